//! The documents of stable interfaces, for the tests that hold them to the code.

/// The documents, in which no heading occurs twice.
const DOCUMENTS: [&str; 2] = ["docs/protocol.md", "docs/history.md"];

/// Returns what follows a heading, up to the next heading.
#[track_caller]
fn section(heading: &str) -> String {
    let sections = DOCUMENTS.iter().find_map(|document| {
        let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("the document is committed");
        let (_, section) = text.split_once(&format!("\n{heading}\n"))?;
        Some(section.to_owned())
    });
    let section = sections.unwrap_or_else(|| panic!("there is no {heading:?} in {DOCUMENTS:?}"));
    section.split("\n#").next().unwrap_or_default().to_owned()
}

/// Returns the rows of all tables of a section, each as its cells, without the backquotes around a cell.
#[track_caller]
pub(crate) fn rows(heading: &str) -> Vec<Vec<String>> {
    let section = section(heading);
    let lines: Vec<&str> = section.lines().filter(|line| line.starts_with('|')).collect();
    let is_delimiter = |line: &str| line.starts_with("|---");
    let rows = lines.iter().enumerate().filter(|(index, line)| {
        let is_title = lines.get(index + 1).is_some_and(|next| is_delimiter(next));
        !is_delimiter(line) && !is_title
    });
    rows.map(|(_, line)| cells(line)).collect()
}

fn cells(row: &str) -> Vec<String> {
    let cells = row.trim().trim_matches('|').split('|');
    cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

/// Returns the only code block of a section.
#[track_caller]
pub(crate) fn code_block(heading: &str) -> String {
    let section = section(heading);
    let (_, block) = section.split_once("```json\n").expect("a block of JSON");
    block.split("```").next().unwrap_or_default().to_owned()
}
