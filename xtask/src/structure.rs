//! Checks the structure of the sources: which files import one another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Maximum number of files that may import one another in a circle.
const MAX_CIRCLE: usize = 3;

/// A module by its path, such as `["backend", "cpu", "op"]`.
type Module = Vec<String>;

/// Texts of the modules of a crate.
fn modules(root: &Path) -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).unwrap().with_extension("");
                let mut module: Module =
                    relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
                    module.pop();
                }
                found.insert(module, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// Returns the text without comments and without modules of tests.
fn product_text(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(") && line.contains("test") {
            let Some(next) = lines.next() else { break };
            if next.starts_with("mod ") && next.ends_with('{') {
                lines.by_ref().find(|line| *line == "}");
            } else if !next.starts_with("mod ") {
                kept.push_str(next);
                kept.push('\n');
            }
            continue;
        }
        kept.push_str(line.split("//").next().unwrap_or(""));
        kept.push('\n');
    }
    kept
}

/// Splits `a::{b, c::{d, e}}` into its paths.
fn expand(path: &str) -> Vec<String> {
    let Some(open) = path.rfind('{') else { return vec![path.to_owned()] };
    let Some(length) = path[open..].find('}') else { return Vec::new() };
    let (inner, after) = (&path[open + 1..open + length], &path[open + length + 1..]);
    let parts = inner.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(|part| expand(&format!("{}{part}{after}", &path[..open]))).collect()
}

/// Returns the paths within the crate that a text names, in `use` items and elsewhere.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for item in text.split("use ").skip(1) {
        let item = item.split(';').next().unwrap_or("");
        if ["crate", "super", "self"].iter().any(|start| item.starts_with(start)) {
            let words = item.split_whitespace().collect::<Vec<_>>();
            let without_names: String = words.split(|word| *word == "as").map(|part| part.concat()).collect();
            found.extend(expand(&without_names));
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let end = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            found.push(text[at..end.map_or(text.len(), |end| at + end)].to_owned());
        }
    }
    found
}

/// Returns the module that a path from `module` leads to.
fn resolve<'m>(path: &str, module: &[String], modules: &'m BTreeMap<Module, String>) -> Option<&'m Module> {
    let mut segments = path.split("::").peekable();
    let mut at: Module = match segments.peek() {
        Some(&"crate") => Vec::new(),
        _ => module.to_vec(),
    };
    while let Some(segment) = segments.next_if(|segment| matches!(*segment, "crate" | "self" | "super")) {
        if segment == "super" {
            at.pop();
        }
    }
    for segment in segments {
        at.push(segment.to_owned());
        if !modules.contains_key(&at) {
            at.pop();
            break;
        }
    }
    modules.get_key_value(&at).map(|(module, _)| module)
}

/// Returns the modules that each module imports. A module's own parents are left out: they re-export what is below them.
fn imports(modules: &BTreeMap<Module, String>) -> BTreeMap<&Module, BTreeSet<&Module>> {
    let test = |module: &Module| module.last().is_some_and(|last| last.ends_with("tests"));
    let imported = |(module, text): (&Module, &String)| {
        let text = product_text(text);
        let found = paths(&text);
        let found = found.iter().filter_map(|path| resolve(path, module, modules));
        found
            .filter(|found| !module.starts_with(found))
            .map(|m| modules.get_key_value(m).unwrap().0)
            .collect()
    };
    modules
        .iter()
        .filter(|(module, _)| !test(module))
        .map(|(module, text)| (module, imported((module, text))))
        .collect()
}

/// Returns the groups of modules that reach one another.
fn circles<'m>(imports: &BTreeMap<&'m Module, BTreeSet<&'m Module>>) -> Vec<BTreeSet<&'m Module>> {
    let reached = |from: &'m Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            for &to in imports.get(module).into_iter().flatten() {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|&module| (module, reached(module))).collect();
    let circle = |&module: &&'m Module| -> BTreeSet<&'m Module> {
        let both = reach[module].iter().filter(|other| reach.get(*other).is_some_and(|r| r.contains(module)));
        both.copied().collect()
    };
    let all: BTreeSet<BTreeSet<&Module>> = imports.keys().map(circle).collect();
    all.into_iter().filter(|circle| circle.len() > 1).collect()
}

fn joined(circle: &BTreeSet<&Module>) -> String {
    circle.iter().map(|module| module.join("/")).collect::<Vec<_>>().join(", ")
}

#[test]
fn no_more_than_three_files_import_one_another() {
    for folder in ["src", "crates/cli/src", "crates/msl/src"] {
        let modules = modules(&crate::root().join(folder));
        let imports = imports(&modules);
        assert!(
            imports.values().map(BTreeSet::len).sum::<usize>() > modules.len(),
            "{folder}: imports are found"
        );
        let large: Vec<String> = circles(&imports)
            .iter()
            .filter(|circle| circle.len() > MAX_CIRCLE)
            .map(|circle| format!("{folder}: {} files import one another: {}", circle.len(), joined(circle)))
            .collect();
        assert!(large.is_empty(), "{}", large.join("\n"));
    }
}

#[test]
fn circles_are_found_through_braces_and_paths() {
    let text = |name: &str, text: &str| (vec![name.to_owned()], text.to_owned());
    let modules: BTreeMap<Module, String> = [
        text("a", "use super::{b::Thing, c};\n"),
        text("b", "fn f() { crate::d::g(); }\n"),
        text("c", "// use super::a;\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
        text("d", "use crate::{\n    a::{X, Y as Z},\n};\n"),
    ]
    .into();
    let found = circles(&imports(&modules));
    assert_eq!(found.iter().map(joined).collect::<Vec<_>>(), ["a, b, d"]);
}
