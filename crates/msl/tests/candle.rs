//! Every library of candle-metal-kernels is read, where its source and a preprocessor are on this machine.

use std::path::PathBuf;
use std::process::Command;

fn libraries() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")));
    let Ok(registries) = std::fs::read_dir(home.unwrap_or_default().join("registry/src")) else {
        return Vec::new();
    };
    let folders = registries.flatten().map(|r| r.path().join("candle-metal-kernels-0.11.1/src/metal_src"));
    let files = folders.filter_map(|f| std::fs::read_dir(f).ok()).flatten().flatten().map(|f| f.path());
    let mut files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "metal")).collect();
    files.sort();
    files
}

/// Includes are dropped: the libraries include only Metal's own headers.
fn preprocess(file: &std::path::Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?.replace("#include", "#pragma msl include");
    let folder = std::env::temp_dir().join(format!("msl-candle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).ok()?;
    let copy = folder.join(file.file_name()?);
    std::fs::write(&copy, text).ok()?;
    let flags = ["-E", "-x", "c++", "-nostdinc", "-D__METAL_VERSION__=320", "-D__HAVE_BFLOAT__=1"];
    let compilers = ["clang++-19", "clang++", "c++"];
    let output = compilers.iter().find_map(|c| Command::new(c).args(flags).arg(&copy).output().ok());
    std::fs::remove_file(&copy).ok()?;
    String::from_utf8(output?.stdout).ok()
}

#[test]
fn candles_libraries() {
    let files = libraries();
    if files.is_empty() {
        eprintln!("SKIPPED candles_libraries: candle-metal-kernels 0.11.1 is not in cargo's registry");
        return;
    }
    let (mut kernels, mut constants, mut variables) = (0, 0, 0);
    for file in &files {
        let Some(text) = preprocess(file) else {
            eprintln!("SKIPPED candles_libraries: no C++ preprocessor");
            return;
        };
        let library = msl::Library::read(&text).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            !library.kernels.is_empty() || file.ends_with("utils.metal"),
            "{}: no kernel",
            file.display()
        );
        // What the text says in itself: each host_name is a kernel.
        let named = text.matches("host_name").count();
        assert!(library.kernels.len() >= named, "{}: {named} names", file.display());
        kernels += library.kernels.len();
        constants += library.function_constants.len() + library.derived_constants.len();
        variables += library.kernels.iter().map(|k| k.threadgroup_variables.len()).sum::<usize>();
        println!("{}: {} kernels", file.display(), library.kernels.len());
    }
    println!("{kernels} kernels, {constants} constants, {variables} threadgroup variables");
    assert!(kernels > 1700 && constants > 10 && variables > 100);
}
