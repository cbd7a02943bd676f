//! What the report says of the machine.

use std::process::Command;

use serde_json::{Value, json};

use super::super::root;

/// Describes the machine and the source by the system's own tools; what a tool does not answer is null.
pub(super) fn describe() -> Value {
    let sysctl = |name: &str| answer("sysctl", &["-n", name]);
    let changed = answer("git", &["status", "--porcelain", "--untracked-files=no"]);
    json!({
        "chip": sysctl("machdep.cpu.brand_string"),
        "model": sysctl("hw.model"),
        "memory_bytes": sysctl("hw.memsize").and_then(|text| text.parse::<u64>().ok()),
        "cores": sysctl("hw.ncpu").and_then(|text| text.parse::<u64>().ok()),
        "macos": answer("sw_vers", &["-productVersion"]),
        "macos_build": answer("sw_vers", &["-buildVersion"]),
        "kernel": answer("uname", &["-r"]),
        "rustc": answer("rustc", &["-V"]),
        "commit": answer("git", &["rev-parse", "HEAD"]),
        "changed_files": changed.map(|text| text.lines().count()),
        "date": answer("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
    })
}

/// First lines of what a program prints, if it succeeds.
fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    output.status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_is_there_if_only_as_null() {
        let machine = describe();
        let facts = machine.as_object().unwrap();
        assert_eq!(facts.len(), 11);
        assert!(machine["rustc"].as_str().unwrap().starts_with("rustc "));
        assert_eq!(answer("false", &[]), None);
        assert_eq!(answer("no-such-program", &[]), None);
    }
}
