//! `cargo xtask softmetal`: the software Metal device on a bare machine: clang, copies of objc2's framework crates that
//! link on Linux, and the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{Counts, cargo, counted, root, run};

/// The framework crates: name, version, SHA-256 of their Rust sources before the edit, how many lines are edited.
const COPIES: [(&str, &str, &str, usize); 4] = [
    ("objc2-metal", "0.3.2", "181628be805934d4460b333355957a985f8a41e4d24acad8363dd47e1cecc96c", 3),
    (
        "objc2-metal-performance-shaders",
        "0.3.2",
        "463e2be66d929f93b425545b84cc99a8688241694aba8acbef2afcc1d2c6ed1b",
        1,
    ),
    ("objc2-core-graphics", "0.3.2", "3e47cc196e807da0528ca490acdb1e3f4b694dd2853dcad3f5090c23d6ed5238", 1),
    ("objc2-io-surface", "0.3.2", "54b15eaa6cc1a91c4c47c288b5ca2356597acc823678a5af123fd4ac5fcf71bc", 1),
];

/// The compiler of kernels.
const CLANG: &str = "clang++-19";

fn folder() -> PathBuf {
    root().join("crates/softmetal")
}

/// Sets everything up and runs the tests, or with `--calibrate` candle's own suites.
///
/// `model` is the default model's file, if it is here.
pub(crate) fn softmetal(model: Option<&Path>) -> Result<Counts, String> {
    clang()?;
    copies()?;
    let mut arguments = std::env::args().skip_while(|argument| argument != "--calibrate");
    if arguments.next().is_some() {
        return calibrate(arguments.next().as_deref()).map(|()| Counts::default());
    }
    let manifest = folder().join("Cargo.toml");
    // In the target folder of the root: what the root's tests and lints have compiled is not compiled again.
    let with_manifest = |arguments: &[&str]| {
        let mut command = cargo();
        command.args(arguments).arg("--manifest-path").arg(&manifest);
        command.arg("--target-dir").arg(root().join("target"));
        command
    };
    if std::env::args().any(|argument| argument == "--encode") {
        let suite = "metal-candle-on-softmetal";
        let mut measure = with_manifest(&["test", "--release", "-p", suite, "--test", "metal", "encode"]);
        measure.args(["--", "--ignored", "--nocapture"]).env("METAL_CANDLE_MODEL", super::model()?);
        return counted("time to encode", &mut measure);
    }
    run("softmetal: format", cargo().args(["fmt", "--all", "--check", "--manifest-path"]).arg(&manifest))?;
    // The tests of training are not among all targets, since they are not to run with the others.
    for targets in [&["--all-targets"][..], &["--test", "training"]] {
        let mut lints = with_manifest(&["clippy", "--workspace"]);
        run("softmetal: lints", lints.args(targets).args(["--", "-D", "warnings"]))?;
    }
    // The device's tests, and the library's own on the device. All packages at once, since features depend on which are
    // chosen, and others would be compiled anew. Those of training and of the whole model take minutes.
    let full = std::env::args().any(|argument| argument == "--full");
    let tested = |what: &str, targets: &[&str]| {
        let mut tests = with_manifest(&["test", "--workspace", "--no-fail-fast"]);
        tests.args(targets).args(["--", "--test-threads", "2", "--nocapture"]);
        tests
            .args(["--skip", "smollm2", "--skip", "backend::cpu", "--skip", "bench::"])
            .env("RUST_BACKTRACE", "0");
        tests.env(super::STACK.0, super::STACK.1);
        if full {
            tests.env("METAL_CANDLE_FULL", "1");
        }
        if let Some(model) = model {
            tests.env("METAL_CANDLE_MODEL", model);
        }
        counted(what, &mut tests)
    };
    let counts = tested("softmetal: tests, and metal-candle's on it", &[])?;
    if full {
        return Ok(counts.plus(tested("training on softmetal", &["--test", "training"])?));
    }
    Ok(counts)
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// clang, installed on Debian if it is missing.
fn clang() -> Result<(), String> {
    if works(CLANG, &["--version"]) {
        return Ok(());
    }
    println!("== {CLANG} is missing: apt-get install");
    if works("apt-get", &["update", "-q"]) && works("apt-get", &["install", "-yq", "clang-19"]) {
        return Ok(());
    }
    Err(format!("{CLANG} is needed to compile Metal kernels for the CPU: install clang 19"))
}

/// The packages whose suites calibrate the device, the features they are built with, and which of their tests run.
const SUITES: [(&str, &[&str], &[&str]); 3] = [
    ("candle-metal-kernels", &["--lib"], &[]),
    ("candle-core", &["--features", "metal", "--lib", "--tests"], &["metal", "concurrent"]),
    ("candle-nn", &["--features", "metal", "--lib", "--tests"], &["metal"]),
];
/// Their version.
const CANDLE: &str = "0.11.1";

/// Runs candle's own Metal tests on the device: one line a suite, then the tests that failed. Broken rules are logged,
/// not fatal, and new memory is zero, as it is on a Mac. `only` names one of the suites.
fn calibrate(only: Option<&str>) -> Result<(), String> {
    if let Some(name) = only.filter(|name| !SUITES.iter().any(|(suite, ..)| suite == name)) {
        return Err(format!(
            "there is no suite '{name}': they are {}",
            SUITES.map(|(suite, ..)| suite).join(", ")
        ));
    }
    let home = root().join("target/softmetal/calibration");
    let sources = packages(&folder().join("sources/candle/Cargo.toml"))?;
    for (name, ..) in SUITES {
        let from = sources
            .iter()
            .find(|(package, version, _)| package == name && version == CANDLE)
            .ok_or_else(|| format!("{name} {CANDLE} is not among the sources"))?;
        prepare(name, &from.2, &home.join(name))?;
    }
    let workspace = home.join("Cargo.toml");
    let patches: String =
        COPIES.iter().map(|(name, ..)| format!("{name} = {{ path = \"../copies/{name}\" }}\n")).collect();
    let members: String =
        SUITES.iter().map(|(name, ..)| format!("{name} = {{ path = \"{name}\" }}\n")).collect();
    let text = format!(
        "[workspace]\nmembers = [\"candle-*\"]\nresolver = \"2\"\n\n[patch.crates-io]\n{patches}{members}\n\
         [profile.dev]\nopt-level = 1\ndebug = 1\n"
    );
    std::fs::write(&workspace, text).map_err(|error| format!("{}: {error}", workspace.display()))?;
    for (name, build, filter) in SUITES.into_iter().filter(|(name, ..)| only.is_none_or(|only| only == *name))
    {
        let output = cargo()
            .args(["test", "--no-fail-fast", "-p", name, "--manifest-path"])
            .arg(&workspace)
            .arg("--target-dir")
            .arg(root().join("target/softmetal/build-calibration"))
            .args(build)
            .arg("--")
            .args(filter)
            .args(["--test-threads", "2"])
            .envs([("SOFTMETAL_VALIDATION", "log"), ("SOFTMETAL_POISON", "0"), ("RUST_BACKTRACE", "0")])
            .output()
            .map_err(|error| format!("{name}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let with =
            |ending: &str| text.lines().filter(|l| l.starts_with("test ") && l.ends_with(ending)).count();
        let (passed, failed) = (with("... ok"), with("... FAILED"));
        if passed + failed == 0 {
            return Err(format!("{name}: no test ran:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        println!("{name}: {passed} passed, {failed} failed");
        text.lines().filter(|line| line.ends_with("... FAILED")).for_each(|line| println!("    {line}"));
        let said = String::from_utf8_lossy(&output.stderr);
        let mut broken: Vec<&str> = said.lines().filter(|line| line.starts_with("softmetal: ")).collect();
        broken.retain(|line| !line.starts_with("softmetal: seed"));
        broken.sort_unstable();
        broken.dedup();
        broken.iter().take(40).for_each(|line| println!("    {line}"));
    }
    Ok(())
}

/// A copy of a package whose tests link the device. Nothing else is changed.
fn prepare(name: &str, from: &Path, to: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    for path in files(from)? {
        let mut bytes = std::fs::read(from.join(&path)).map_err(|error| failed(&path, error))?;
        let text = path.to_string_lossy();
        if text == "Cargo.toml.orig" {
            continue;
        }
        if text == "Cargo.toml" {
            let device = folder().display().to_string();
            bytes.extend(format!("\n[dev-dependencies.softmetal]\npath = \"{device}\"\n").bytes());
        } else if text == "src/lib.rs" {
            bytes.extend(b"\n#[cfg(test)]\nextern crate softmetal;\n");
        } else if text.starts_with("tests/") && text.ends_with(".rs") && text.matches('/').count() == 1 {
            bytes.extend(b"\nextern crate softmetal;\n");
        }
        let target = to.join(&path);
        if std::fs::read(&target).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = target.parent().unwrap_or(to);
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        std::fs::write(&target, bytes).map_err(|error| format!("{name}: {}: {error}", target.display()))?;
    }
    Ok(())
}

/// Name, version and folder of every package that a manifest's lock names; fetched if they are missing.
fn packages(manifest: &Path) -> Result<Vec<(String, String, PathBuf)>, String> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{}: no metadata: {error}", manifest.display()))?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let found = packages.iter().filter_map(|package| {
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?.to_owned();
        Some((text(&package["name"]), text(&package["version"]), folder))
    });
    Ok(found.collect())
}

/// Copies the framework crates into the target folder, without the attribute that links Apple's frameworks, and with the
/// functions that they have on macOS only.
fn copies() -> Result<(), String> {
    let packages = packages(&folder().join("sources/Cargo.toml"))?;
    for (name, version, sum, edits) in COPIES {
        let package = packages
            .iter()
            .find(|(found, of, _)| found == name && of == version)
            .ok_or_else(|| format!("{name} {version} is not among the sources"))?;
        copy(name, &package.2, &root().join("target/softmetal/copies").join(name), sum, edits)?;
    }
    Ok(())
}

fn copy(name: &str, from: &Path, to: &Path, sum: &str, edits: usize) -> Result<(), String> {
    let files = files(from)?;
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut hash = Sha256::new();
    let mut made = 0;
    let mut copies = Vec::new();
    for path in &files {
        let bytes = std::fs::read(from.join(path)).map_err(|error| failed(path, error))?;
        let mut text = None;
        if path.extension().is_some_and(|extension| extension == "rs") {
            hash.update(path.to_string_lossy().as_bytes());
            hash.update(&bytes);
            if path.starts_with("src") {
                let (edited, count) = for_linux(&String::from_utf8_lossy(&bytes));
                made += count;
                text = Some(edited.into_bytes());
            }
        }
        copies.push((path, text.unwrap_or(bytes)));
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != sum {
        return Err(format!(
            "{name}: its sources have the sum {found}, expected {sum}; look at what changed"
        ));
    }
    if made != edits {
        return Err(format!("{name}: {made} link attributes found, expected {edits}"));
    }
    for (path, bytes) in copies {
        let to = to.join(path);
        // Files that stay as they are keep their time, so that nothing is compiled again.
        if std::fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = to.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        std::fs::write(&to, bytes).map_err(|error| failed(&to, error))?;
    }
    Ok(())
}

/// Conditions that hold on macOS only, and what they become: elsewhere objc2-metal lists the default device instead of
/// calling `MTLCopyAllDevices`.
const CONDITIONS: [(&str, &str); 2] = [
    ("#[cfg(any(target_os = \"macos\", target_env = \"macabi\"))]", "#[cfg(all())]"),
    ("#[cfg(not(any(target_os = \"macos\", target_env = \"macabi\")))]", "#[cfg(any())]"),
];

/// The text with its framework link attributes taken out and its conditions as on macOS, and how many lines changed.
fn for_linux(text: &str) -> (String, usize) {
    let is_link =
        |line: &str| line.starts_with("#[link(name = \"") && line.ends_with("\", kind = \"framework\")]");
    let mut count = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        let code = line.trim();
        let condition = CONDITIONS.iter().find(|(from, _)| code == *from);
        let edited = match condition {
            Some((from, to)) => line.replace(from, to),
            None if is_link(line.trim_end()) => "\n".to_owned(),
            None => return line.to_owned(),
        };
        count += 1;
        edited
    });
    (lines.collect(), count)
}

/// Every file of a package, relative to its folder, sorted. What cargo wrote into its own cache is not the package's.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        let here = folder.join(&inside);
        for entry in std::fs::read_dir(&here).map_err(|error| format!("{}: {error}", here.display()))? {
            let entry = entry.map_err(|error| format!("{}: {error}", here.display()))?;
            let path = inside.join(entry.file_name());
            if entry.path().is_dir() {
                open.push(path);
            } else if entry.file_name() != ".cargo-ok" && entry.file_name() != "Cargo.lock" {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "use a;\n#[link(name = \"Metal\", kind = \"framework\")]\nextern \"C\" {}\n";

    #[test]
    fn only_the_link_attribute_is_taken_out() {
        assert_eq!(for_linux(TEXT), ("use a;\n\nextern \"C\" {}\n".to_owned(), 1));
        let comment = "//! #[link(name = \"Metal\", kind = \"framework\")]\n";
        assert_eq!(for_linux(comment), (comment.to_owned(), 0));
    }

    #[test]
    fn conditions_are_those_of_macos() {
        let [(mac, on), (other, off)] = CONDITIONS;
        let text = format!("    {mac}\n    f();\n    {other}\n    g();\n");
        let edited = format!("    {on}\n    f();\n    {off}\n    g();\n");
        assert_eq!(for_linux(&text), (edited, 2));
        let ios = "#[cfg(target_os = \"ios\")]\n";
        assert_eq!(for_linux(ios), (ios.to_owned(), 0));
    }

    #[test]
    fn other_sources_or_another_number_of_edits_are_refused() {
        let folder = std::env::temp_dir().join(format!("softmetal-copy-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        std::fs::create_dir_all(from.join("src")).unwrap();
        std::fs::write(from.join("src/lib.rs"), TEXT).unwrap();
        let mut hash = Sha256::new();
        hash.update("src/lib.rs");
        hash.update(TEXT);
        let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(copy("x", &from, &to, "00", 1).unwrap_err().contains(&sum));
        assert!(copy("x", &from, &to, &sum, 2).unwrap_err().contains("1 link attributes found, expected 2"));
        assert!(!to.exists());
        copy("x", &from, &to, &sum, 1).unwrap();
        assert!(!std::fs::read_to_string(to.join("src/lib.rs")).unwrap().contains("link"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
