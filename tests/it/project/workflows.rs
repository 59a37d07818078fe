//! The workflows of `.github`, which nobody runs before they matter: every script and make target that they name must
//! exist and accept these arguments, and every action must be pinned by commit.

use crate::support::command::command;
use crate::support::pglock::python_tool;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Prints, as JSON: for a workflow on standard input, its `uses:` and the simple commands of its `run:`; for a shell
/// script, the simple commands. An expression in `${{ }}` is one word.
const PARSER: &str = r#"
import json, re, shlex, sys, yaml

def simple_commands(script):
    script = re.sub(r'\$\{\{.*?\}\}', 'EXPRESSION', script).replace('\\\n', ' ')
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command = []
        for word in lexer:
            if set(word) <= set('();|&'):
                yield command
                command = []
            else:
                command.append(word)
        yield command

def values(node, key):
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)

text = sys.stdin.read()
workflow = yaml.safe_load(text) if sys.argv[1] == 'workflow' else {'run': text}
runs = [command for script in values(workflow, 'run') for command in simple_commands(script)]
print(json.dumps({'uses': list(values(workflow, 'uses')), 'commands': runs}))
"#;

/// What the parser prints.
struct Parsed {
    uses: Vec<String>,
    commands: Vec<Vec<String>>,
}

fn parse(kind: &str, text: &str) -> Parsed {
    let json = python_tool("python3")
        .args(["-c", PARSER, kind])
        .output_with(text.as_bytes())
        .stdout();
    let json: Value = serde_json::from_str(&json).unwrap();
    let strings = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    Parsed {
        uses: strings(&json["uses"]),
        commands: json["commands"].as_array().unwrap().iter().map(strings).collect(),
    }
}

fn workflows() -> Vec<Parsed> {
    let directory = Path::new(ROOT).join(".github/workflows");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| parse("workflow", &fs::read_to_string(path).unwrap()))
        .collect()
}

/// Returns the command without `sudo`, `env`, assignments and redirections.
fn bare(command: &[String]) -> Vec<&str> {
    let is_wrapper = |word: &&str| *word == "sudo" || *word == "env" || word.contains('=');
    let words = command.iter().map(String::as_str).skip_while(is_wrapper);
    words.take_while(|word| !word.starts_with('>')).collect()
}

#[test]
fn every_action_is_pinned_by_commit() {
    let uses: Vec<String> = workflows().into_iter().flat_map(|workflow| workflow.uses).collect();
    assert!(uses.len() > 5, "{uses:?}");
    for action in uses {
        let is_pinned = action
            .split_once('@')
            .is_some_and(|(_, commit)| commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let is_ours = action
            .strip_prefix("./")
            .is_some_and(|path| Path::new(ROOT).join(path).exists());
        assert!(is_pinned || is_ours, "{action}");
    }
}

#[test]
fn every_script_accepts_its_arguments() {
    let mut scripts = 0;
    let commands = workflows().into_iter().flat_map(|workflow| workflow.commands);
    for command in commands {
        match bare(&command)[..] {
            ["make", ref arguments @ ..] => {
                // Prints the commands without running them; fails if a target does not exist.
                let dry_run = crate::support::command::command("make")
                    .arg("-n")
                    .args(arguments)
                    .current_dir(ROOT)
                    .output();
                let dry_run = dry_run.unwrap();
                assert!(
                    dry_run.status.success(),
                    "{command:?}: {}",
                    String::from_utf8_lossy(&dry_run.stderr)
                );
                let recipe = parse("script", &String::from_utf8(dry_run.stdout).unwrap());
                for command in recipe.commands {
                    scripts += check_call(&bare(&command));
                }
            }
            ref words => scripts += check_call(words),
        }
    }
    assert!(scripts > 5, "{scripts} calls of scripts");
}

/// Checks a call of a script by the usage that the script prints; returns how many calls that were.
fn check_call(words: &[&str]) -> usize {
    let [script, arguments @ ..] = words else { return 0 };
    if !script.starts_with("scripts/") {
        return 0;
    }
    let path = Path::new(ROOT).join(script);
    let mode = path
        .metadata()
        .unwrap_or_else(|error| panic!("{script}: {error}"))
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111, "{script} is not executable");

    let too_many = vec!["x"; 20];
    let usage = usage_error(script, &too_many);
    let parameters: Vec<&str> = usage.split(' ').skip(2).collect();
    let required = parameters
        .iter()
        .filter(|parameter| !parameter.starts_with('['))
        .count();
    if required > 0 {
        usage_error(script, &too_many[..required - 1]);
    }
    let count = arguments.len();
    assert!((required..=parameters.len()).contains(&count), "{words:?}; {usage}");
    for (parameter, argument) in parameters.iter().zip(arguments) {
        let is_choice = parameter.contains('|');
        assert!(
            !is_choice || parameter.split('|').any(|choice| choice == *argument),
            "{words:?}; {usage}"
        );
    }
    1
}

/// Runs the script with a wrong number of arguments, and returns its usage.
fn usage_error(script: &str, arguments: &[&str]) -> String {
    let output = command(Path::new(ROOT).join(script)).args(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(64),
        "{script} with {} arguments: {stderr}",
        arguments.len()
    );
    let usage = stderr.trim_end();
    assert!(usage.starts_with(&format!("usage: {script} ")), "{stderr}");
    usage.to_owned()
}
