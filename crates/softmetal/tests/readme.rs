//! The table of rules in the README is the one in the code. `SOFTMETAL_WRITE_README=1` writes it.
#![allow(missing_docs)]

use std::fmt::Write;
use std::path::Path;

use softmetal::check::Severity;

const HEAD: &str = "| rule | severity | text | source |\n|---|---|---|---|\n";

#[test]
fn the_table_of_rules_is_up_to_date() {
    let mut table = HEAD.to_owned();
    for rule in softmetal::rules::all() {
        let severity = if rule.severity == Severity::Documented { "documented" } else { "suspected" };
        let source = rule.source.replace('|', "\\|");
        writeln!(table, "| `{}` | {severity} | {} | {source} |", rule.id, rule.text.trim_end_matches('.'))
            .expect("a string takes everything");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).expect("the README");
    let found = text.find(HEAD).map_or("", |at| &text[at..]);
    if std::env::var_os("SOFTMETAL_WRITE_README").is_some() {
        let before = &text[..text.find(HEAD).unwrap_or(text.len())];
        std::fs::write(&path, format!("{before}{table}")).expect("the README is written");
        return;
    }
    assert!(found == table, "run this test with SOFTMETAL_WRITE_README=1 and commit README.md");
}
