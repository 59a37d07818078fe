//! The walls of the source tree: a wing imports only wings below it, and no files import each other in a circle.
//!
//! The wings stand once, in the table at the top of `src/main.rs`. What a file imports is read from its `use`
//! declarations and from the paths in its code. A name that a `mod.rs` re-exports counts as an import of the file that
//! defines it. Unit tests are left out: they may look at anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, UseTree, Visibility};

/// The path of a module from the top of the crate: `["run", "job"]`.
type Module = Vec<String>;

#[test]
fn a_wing_imports_only_wings_below_it() {
    let broken = Tree::read().broken_walls();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let tree = Tree::read();
    let circles: Vec<_> = tree.files.keys().filter_map(|file| tree.circle_through(file)).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Without this, a reader that finds no imports would pass.
#[test]
fn a_broken_wall_and_a_circle_are_found() {
    let mut tree = Tree::read();
    let (upper, middle, lower) = (
        module("commands::list"),
        module("run::supervisor"),
        module("lock::queue"),
    );
    tree.replace(
        &lower,
        "use crate::{outcome::ExitCode, commands::{list, run}};\nfn f() { crate::run::supervisor::run() }",
    );
    let mut expected = vec![
        "lock::queue imports commands::list",
        "lock::queue imports commands::run",
    ];
    expected.push("lock::queue imports run::supervisor");
    assert_eq!(tree.broken_walls(), expected);

    tree.replace(&lower, "pub fn f() {}");
    tree.replace(&middle, "use crate::lock::queue::f;");
    tree.replace(&upper, "use crate::run::supervisor;");
    assert_eq!(tree.circle_through(&lower), None);
    tree.replace(&lower, "fn f() { super::super::commands::list::run() }");
    let circle = "lock::queue -> commands::list -> run::supervisor -> lock::queue";
    assert_eq!(tree.circle_through(&lower).as_deref(), Some(circle));
}

/// All files of `src/` but `main.rs` and unit tests.
struct Tree {
    files: BTreeMap<Module, Imports>,
    /// How high each wing stands; the ground is 0.
    levels: BTreeMap<String, usize>,
}

impl Tree {
    fn read() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        for path in rust_files(&root) {
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Module = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            let is_mod_rs = module.last().is_some_and(|name| name == "mod");
            if is_mod_rs {
                module.pop();
            }
            let source = fs::read_to_string(&path).unwrap();
            files.insert(module.clone(), Imports::read(&source, module, is_mod_rs));
        }
        let main = fs::read_to_string(root.join("main.rs")).unwrap();
        let rows: Vec<Vec<String>> = main.lines().filter_map(wings_of_row).collect();
        assert_eq!(rows.len(), 10, "the table of wings in main.rs: {rows:?}");
        let rows = rows.into_iter().rev().enumerate();
        let levels = rows
            .flat_map(|(level, wings)| wings.into_iter().map(move |wing| (wing, level)))
            .collect();
        let tree = Tree { files, levels };
        for file in tree.files.keys() {
            assert!(tree.levels.contains_key(&file[0]), "{} is in no wing", file.join("::"));
        }
        tree
    }

    fn replace(&mut self, file: &Module, source: &str) {
        let imports = Imports::read(source, file.clone(), false);
        assert!(self.files.insert(file.clone(), imports).is_some(), "{file:?}");
    }

    fn broken_walls(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for file in self.files.keys() {
            for imported in self.imports(file) {
                let (from, to) = (&file[0], &imported[0]);
                if from != to && self.levels[from] <= self.levels[to] {
                    broken.push(format!("{} imports {}", file.join("::"), imported.join("::")));
                }
            }
        }
        broken
    }

    /// The files that a file imports, itself left out.
    fn imports(&self, file: &Module) -> BTreeSet<Module> {
        let Imports { paths, names, .. } = &self.files[file];
        // A name that is only passed on is no import.
        let imports = paths
            .iter()
            .filter(|path| !path.is_reexport || names.contains(&path.name));
        imports
            .filter_map(|path| self.defining_file(&path.full))
            .filter(|imported| imported != file)
            .collect()
    }

    /// The file that defines what a path names: the longest prefix that is a file, followed through re-exports.
    fn defining_file(&self, path: &[String]) -> Option<Module> {
        let length = (1..=path.len())
            .rev()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let file = path[..length].to_vec();
        let mut reexports = self.files[&file]
            .paths
            .iter()
            .filter(|other| other.is_reexport && other.full != path);
        match reexports.find(|reexport| Some(&reexport.name) == path.get(length)) {
            Some(reexport) => self.defining_file(&reexport.full),
            None => Some(file),
        }
    }

    /// A circle of imports from a file back to itself.
    fn circle_through(&self, start: &Module) -> Option<String> {
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in self.imports(way.last()?) {
                let way: Vec<Module> = way.iter().cloned().chain([next.clone()]).collect();
                if next == *start {
                    return Some(way.iter().map(|file| file.join("::")).collect::<Vec<_>>().join(" -> "));
                }
                if seen.insert(next) {
                    ways.push(way);
                }
            }
        }
        None
    }
}

/// What a file imports from this crate.
struct Imports {
    module: Module,
    is_mod_rs: bool,
    paths: Vec<ImportedPath>,
    /// Every name in the code, `use` declarations left out.
    names: BTreeSet<String>,
}

struct ImportedPath {
    full: Module,
    /// The name by which the file knows it.
    name: String,
    is_reexport: bool,
}

impl Imports {
    fn read(source: &str, module: Module, is_mod_rs: bool) -> Imports {
        let mut imports = Imports {
            module,
            is_mod_rs,
            paths: Vec::new(),
            names: BTreeSet::new(),
        };
        imports.visit_file(&syn::parse_file(source).unwrap());
        imports
    }

    /// Notes a path if it leads to this crate.
    fn add(&mut self, path: &[String], name: &str, is_reexport: bool, is_declaration: bool) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        // In a file that is not a mod.rs, `super` is the module of its directory.
        let base = self.module.len() - ups.min(self.module.len());
        let full = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("super") => [&self.module[..base], &path[ups..]].concat(),
            Some("self") => [&self.module[..], &path[1..]].concat(),
            // A child module can be named without `self::`, a crate's name never is that of a child.
            Some(_) if self.is_mod_rs && is_declaration => [&self.module[..], path].concat(),
            _ => return,
        };
        self.paths.push(ImportedPath {
            full,
            name: name.to_owned(),
            is_reexport,
        });
    }

    fn add_tree(&mut self, tree: &UseTree, prefix: &[String], is_reexport: bool) {
        let joined = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&path.tree, &joined(&path.ident), is_reexport),
            UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|item| self.add_tree(item, prefix, is_reexport)),
            UseTree::Name(name) if name.ident == "self" => {
                let own_name = prefix.last().cloned().unwrap_or_default();
                self.add(prefix, &own_name, is_reexport, true);
            }
            UseTree::Name(name) => self.add(&joined(&name.ident), &name.ident.to_string(), is_reexport, true),
            UseTree::Rename(rename) => self.add(&joined(&rename.ident), &rename.rename.to_string(), is_reexport, true),
            UseTree::Glob(_) => self.add(prefix, "*", is_reexport, true),
        }
    }
}

impl<'a> Visit<'a> for Imports {
    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.add_tree(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !item.attrs.iter().any(is_for_tests) {
            visit::visit_item_mod(self, item);
        }
    }

    /// `pub(super)` is no import.
    fn visit_visibility(&mut self, _: &'a Visibility) {}

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&parts, parts.last().expect("a path has parts"), false, false);
        self.names.extend(parts);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let tokens = call.tokens.to_string();
        self.names.extend(
            tokens
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .map(str::to_owned),
        );
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
}

/// The wings of a row of the table: the names in the backquotes of its first cell.
fn wings_of_row(line: &str) -> Option<Vec<String>> {
    let (wings, _) = line.strip_prefix("//! | `")?.split_once("` | ")?;
    Some(wings.split("`, `").map(str::to_owned).collect())
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    let is_read = |path: &PathBuf| {
        let name = path.file_name().unwrap();
        path.extension().is_some_and(|extension| extension == "rs") && name != "main.rs" && name != "tests.rs"
    };
    files.filter(is_read).collect()
}

fn module(path: &str) -> Module {
    path.split("::").map(str::to_owned).collect()
}
