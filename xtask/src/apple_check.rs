//! `cargo xtask apple-check`: the whole workspace compiled, linted, documented and linked for macOS on Linux.
//!
//! The linker is LLVM's for Mach-O. Apple's libraries are stood in for by text files that name what we use of them
//! (`xtask/apple.txt`), so that a function or class which is not there by that name fails the link. Nothing is run: what
//! the code does is shown on the software device, and on a Mac.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{root, run};

const TARGET: &str = "aarch64-apple-darwin";
const LINKER: &str = "ld64.lld-19";
/// Debian's packages: rustc with the sources of its library, from which that of macOS is built, and LLVM's tools.
const PACKAGES: [&str; 7] =
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld-19", "llvm-19", "clang-19"];
/// What of Apple's libraries is used, by name.
const NAMES: &str = include_str!("../apple.txt");
/// The C headers that `ring` reads beside the compiler's own: its only use of them is these declarations.
const HEADERS: [(&str, &str); 4] = [
    (
        "TargetConditionals.h",
        "#define TARGET_OS_MAC 1\n#define TARGET_OS_OSX 1\n#define TARGET_OS_IPHONE 0\n",
    ),
    ("assert.h", "#define assert(condition) ((void)0)\n#define static_assert _Static_assert\n"),
    (
        "string.h",
        "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\nvoid *memmove(void *, const void *, size_t);\n\
         void *memset(void *, int, size_t);\nint memcmp(const void *, const void *, size_t);\n",
    ),
    ("stdlib.h", "#include <stddef.h>\n"),
];

/// Compiles, lints, documents and links everything for macOS, and shows that a misspelt name fails the link.
pub(crate) fn apple_check() -> Result<(), String> {
    tools()?;
    let folder = root().join("target/apple-check");
    let sdk = folder.join("sdk");
    write_sdk(&sdk, &libraries(NAMES)?)?;
    control(&folder, &sdk)?;
    one_version_each()?;
    let everything = ["--workspace", "--all-targets"];
    run(
        "apple: compile and lint",
        cargo(&folder, &sdk, "clippy").args(everything).args(["--", "-Dwarnings"]),
    )?;
    run("apple: documents", cargo(&folder, &sdk, "doc").args(["--workspace", "--no-deps"]))?;
    run("apple: link", cargo(&folder, &sdk, "build").args(everything).arg("--keep-going"))?;
    let count = linked(&folder.join(TARGET).join("debug"))?;
    println!("{count} executables for {TARGET} linked, none of them run");
    Ok(())
}

/// Two versions of the crates that hold Apple's classes would be two sets of types that do not fit together.
fn one_version_each() -> Result<(), String> {
    let output = super::cargo()
        .args([
            "tree",
            "--workspace",
            "--target",
            TARGET,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--locked",
        ])
        .output()
        .map_err(|error| format!("cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    for name in ["objc2", "objc2-foundation", "objc2-metal", "objc2-metal-performance-shaders", "block2"] {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let versions: std::collections::BTreeSet<&str> = lines
            .filter(|(found, _)| *found == name)
            .filter_map(|(_, rest)| rest.split_whitespace().next())
            .collect();
        match versions.len() {
            1 => println!("{name}: {}", versions.first().copied().unwrap_or_default()),
            0 => return Err(format!("{name} is not among the dependencies for {TARGET}")),
            _ => return Err(format!("{name} is there more than once: {versions:?}")),
        }
    }
    Ok(())
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Debian's packages, installed if one is missing.
fn tools() -> Result<(), String> {
    let installed = |package: &&str| works("dpkg", &["-s", package]);
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("== {} missing: apt-get install", missing.join(", "));
    let arguments = [&["install", "-yq"], missing.as_slice()].concat();
    if works("apt-get", &["update", "-q"]) && works("apt-get", &arguments) {
        return Ok(());
    }
    Err(format!(
        "apple-check compiles with Debian's {}; install {} there, or build on a Mac",
        PACKAGES.join(", "),
        missing.join(", ")
    ))
}

/// Debian's cargo for macOS, by its full path: rustup's stand before it in the path.
fn cargo(folder: &Path, sdk: &Path, task: &str) -> Command {
    let (program, task) =
        if task == "clippy" { ("/usr/bin/cargo-clippy", "clippy") } else { ("/usr/bin/cargo", task) };
    let mut command = Command::new(program);
    command.current_dir(root()).arg(task).args(["-Zbuild-std=std,panic_unwind", "--target", TARGET]);
    // Classes as symbols of the link, instead of by name at run time.
    command.args([
        "--features",
        "metal-candle/custom-metal,metal-candle/mps,metal-candle/async-exec,objc2/unstable-static-class",
    ]);
    for setting in
        ["profile.dev.opt-level=0", "profile.dev.package.\"*\".opt-level=0", "profile.dev.debug=false"]
    {
        command.args(["--config", setting]);
    }
    let sdk = sdk.to_string_lossy();
    let flags = [
        "-Dwarnings",
        "-Clinker-flavor=ld64.lld",
        &format!("-Clinker={LINKER}"),
        "-Clink-arg=-syslibroot",
        &format!("-Clink-arg={sdk}"),
        "-Clink-arg=--error-limit=0",
    ]
    .join("\u{1f}");
    command
        .env("CARGO", "/usr/bin/cargo")
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTDOC", "/usr/bin/rustdoc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", folder)
        .env("SDKROOT", sdk.as_ref())
        .env("CC_aarch64_apple_darwin", "clang-19")
        .env("AR_aarch64_apple_darwin", "llvm-ar-19")
        .env_remove("RUSTFLAGS");
    command
}

/// A library: the path that programs load it by, its functions and constants, its Objective-C classes.
struct Library {
    path: String,
    symbols: Vec<String>,
    classes: Vec<String>,
}

/// Reads `apple.txt`: a line `[path]` begins a library; symbols begin with `_`, what else is there are classes.
fn libraries(text: &str) -> Result<Vec<Library>, String> {
    let mut found: Vec<Library> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(path) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            found.push(Library { path: path.to_owned(), symbols: Vec::new(), classes: Vec::new() });
            continue;
        }
        for name in line.split_whitespace() {
            let library = found
                .last_mut()
                .ok_or_else(|| format!("xtask/apple.txt:{}: '{name}' before any library", number + 1))?;
            let names = if name.starts_with('_') || name.starts_with("dyld_") {
                &mut library.symbols
            } else {
                &mut library.classes
            };
            if names.iter().any(|old| old == name) {
                return Err(format!("xtask/apple.txt:{}: '{name}' twice", number + 1));
            }
            names.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Where the linker looks for a library that programs load by `path`.
fn stub(sdk: &Path, path: &str) -> PathBuf {
    let inside = path.trim_start_matches('/');
    match inside.split_once(".framework/") {
        Some((framework, _)) => {
            let name = framework.rsplit('/').next().unwrap_or_default();
            sdk.join(format!("{framework}.framework/{name}.tbd"))
        }
        None => {
            let name = inside.rsplit('/').next().unwrap_or_default();
            let stem = name.split('.').next().unwrap_or_default();
            sdk.join("usr/lib").join(format!("{stem}.tbd"))
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, text))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The stand-in for Apple's SDK: a text-based stub (version 4) a library, and the headers.
fn write_sdk(sdk: &Path, libraries: &[Library]) -> Result<(), String> {
    if sdk.exists() {
        std::fs::remove_dir_all(sdk).map_err(|error| format!("{}: {error}", sdk.display()))?;
    }
    for library in libraries {
        let mut text = format!(
            "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '{}'\nexports:\n  - targets: [ arm64-macos ]\n",
            library.path
        );
        for (key, names) in [("symbols", &library.symbols), ("objc-classes", &library.classes)] {
            if !names.is_empty() {
                let _ = writeln!(text, "    {key}: [ {} ]", names.join(", "));
            }
        }
        text += "...\n";
        write(&stub(sdk, &library.path), &text)?;
    }
    // libm and libc are names of libSystem.
    for name in ["libc", "libm"] {
        let from = sdk.join("usr/lib/libSystem.tbd");
        std::fs::copy(&from, sdk.join(format!("usr/lib/{name}.tbd")))
            .map_err(|error| format!("{}: {error}", from.display()))?;
    }
    for (name, text) in HEADERS {
        write(&sdk.join("usr/include").join(name), text)?;
    }
    Ok(())
}

/// A class and a function of Apple's, as symbols, each beside a misspelt one.
const CONTROLS: [[&str; 2]; 2] = [
    ["_OBJC_CLASS_$_MPSMatrixMultiplication", "_OBJC_CLASS_$_MPSMatrixMultiplicaton"],
    ["_MTLCreateSystemDefaultDevice", "_MTLCreateSystemDefaultDevise"],
];

/// Shows that the link sees names: a program that uses a class or function as it is called links, one that misspells it
/// does not.
fn control(folder: &Path, sdk: &Path) -> Result<(), String> {
    println!("== apple: a misspelt name fails the link");
    let link = |symbol: &str| -> Result<std::process::Output, String> {
        let source = folder.join("control.c");
        let object = folder.join("control.o");
        let text = format!(
            "extern char name __asm(\"{symbol}\");\nvoid *used = &name;\nint main(void) {{ return 0; }}\n"
        );
        write(&source, &text)?;
        run(
            "compile",
            Command::new("clang-19")
                .args(["--target=arm64-apple-macos11", "-c", "-o"])
                .arg(&object)
                .arg(&source),
        )?;
        Command::new(LINKER)
            .args(["-arch", "arm64", "-platform_version", "macos", "11.0", "11.0", "-syslibroot"])
            .arg(sdk)
            .args(["-lSystem", "-framework", "Metal", "-framework", "MetalPerformanceShaders", "-o"])
            .arg(folder.join("control"))
            .arg(&object)
            .output()
            .map_err(|error| format!("{LINKER}: {error}"))
    };
    for [right, misspelt] in CONTROLS {
        let output = link(right)?;
        if !output.status.success() {
            return Err(format!("{right} does not link: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let output = link(misspelt)?;
        let message = String::from_utf8_lossy(&output.stderr);
        // The linker writes classes without the prefix of their symbols.
        let name = misspelt.rsplit("$_").next().unwrap_or(misspelt);
        if output.status.success() || !message.contains(name) {
            return Err(format!("{misspelt} is not refused by name: {message}"));
        }
    }
    Ok(())
}

/// How many executables there are, each for arm64 by its header. The tool and one test at least are expected.
fn linked(folder: &Path) -> Result<usize, String> {
    /// Magic number of a 64-bit Mach-O file, processor type arm64, and at byte 12 its type, executable.
    const HEAD: ([u8; 8], [u8; 4]) = ([0xcf, 0xfa, 0xed, 0xfe, 0x0c, 0, 0, 0x01], [2, 0, 0, 0]);
    let executable = |path: &Path| -> Result<bool, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(bytes.get(..8) == Some(&HEAD.0) && bytes.get(12..16) == Some(&HEAD.1))
    };
    let tool = folder.join("metal-candle");
    if !executable(&tool)? {
        return Err(format!("{} is not an executable for arm64", tool.display()));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut count = 1;
    for entry in std::fs::read_dir(folder.join("deps")).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none() && path.is_file() && executable(&path)? {
            count += 1;
        }
    }
    if count < 2 {
        return Err("no test was linked".into());
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_their_libraries() {
        let found = libraries("# note\n[/usr/lib/libobjc.A.dylib]\n_objc_retain # why\nNSObject\n").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].symbols.join(" "), found[0].classes.join(" ")),
            ("_objc_retain".into(), "NSObject".into())
        );
        assert!(libraries("_free\n").err().unwrap().contains("apple.txt:1"));
        assert!(libraries("[/usr/lib/libSystem.B.dylib]\n_free _free\n").err().unwrap().contains("twice"));
        assert!(libraries(NAMES).is_ok_and(|all| all.len() > 5));
    }

    #[test]
    fn the_controls_are_names_that_the_stubs_have_and_have_not() {
        let all = libraries(NAMES).unwrap();
        let listed = |symbol: &str| {
            let class = symbol.strip_prefix("_OBJC_CLASS_$_");
            all.iter().any(|library| {
                library.symbols.iter().any(|name| name == symbol)
                    || class.is_some_and(|class| library.classes.iter().any(|name| name == class))
            })
        };
        for [right, misspelt] in CONTROLS {
            assert!(listed(right) && !listed(misspelt), "{right}, {misspelt}");
        }
    }

    /// What a Mac's build resolves to, by the lock file.
    #[test]
    fn each_of_apples_crates_is_there_once() {
        one_version_each().unwrap();
    }

    #[test]
    fn stubs_lie_where_the_linker_looks() {
        let sdk = Path::new("/sdk");
        assert_eq!(stub(sdk, "/usr/lib/libSystem.B.dylib"), Path::new("/sdk/usr/lib/libSystem.tbd"));
        assert_eq!(
            stub(sdk, "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"),
            Path::new("/sdk/System/Library/Frameworks/Metal.framework/Metal.tbd")
        );
    }
}
