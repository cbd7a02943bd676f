//! clang, as a program.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::CompileError;

/// The program and what it says of its version, which is part of every key of the cache.
#[derive(Debug)]
pub(crate) struct Compiler {
    program: String,
    pub(crate) version: String,
}

/// Versions that are tried, after `SOFTMETAL_CLANG`. Older ones lack `__bf16` arithmetic.
const PROGRAMS: [&str; 8] = [
    "clang-19",
    "clang-20",
    "clang-21",
    "clang-22",
    "clang-18",
    "clang-17",
    "clang",
    "/usr/lib/llvm-19/bin/clang",
];

const LANGUAGE: [&str; 20] = [
    "-x",
    "c++",
    "-std=c++17",
    "-nostdinc",
    "-nostdinc++",
    "-w",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fsigned-char",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-ferror-limit=8",
    // A frame larger than the guard page must not jump over it, into another fiber's stack.
    "-fstack-clash-protection",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
];

/// C++ for OpenCL has Metal's address spaces under other names. Without the generic one, a pointer or reference that names
/// none is a thread's, as in Metal.
pub(crate) const DIALECT: [&str; 16] = [
    "-x",
    "cl",
    "-cl-std=clc++2021",
    "-cl-single-precision-constant",
    "-target",
    "x86_64-unknown-linux-gnu",
    "-Xclang",
    "-cl-ext=-__opencl_c_pipes,-__opencl_c_device_enqueue,\
     -__opencl_c_program_scope_global_variables,+cl_khr_fp16",
    "-cl-no-stdinc",
    "-w",
    "-ferror-limit=0",
    "-fno-caret-diagnostics",
    "-fsyntax-only",
    "-Xclang",
    "-ast-dump",
    "-",
];

impl Compiler {
    /// The compiler of this machine.
    pub(crate) fn find() -> Result<&'static Compiler, CompileError> {
        static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let named = std::env::var("SOFTMETAL_CLANG").ok();
            let mut programs = named.iter().map(String::as_str).chain(PROGRAMS);
            programs.find_map(|program| {
                let output =
                    Command::new(program).arg("--version").output().ok().filter(|o| o.status.success())?;
                // A wrapper may say what the compiler itself says, so its name counts too.
                let version = format!("{program}: {}", String::from_utf8_lossy(&output.stdout));
                Some(Compiler { program: program.to_string(), version })
            })
        });
        found.as_ref().ok_or_else(|| {
            let reason = "no clang 17 or later was found: install clang-19, or name one in SOFTMETAL_CLANG";
            CompileError::new("compiler", reason)
        })
    }

    /// Everything on the command line that decides what comes out.
    pub(crate) fn flags() -> String {
        format!("{} {} {}", LANGUAGE.join(" "), OPTIMIZE.join(" "), target())
    }

    /// Expands macros of `source`, with those of `-D` arguments defined.
    pub(crate) fn preprocess(&self, source: &str, definitions: &[String]) -> Result<String, String> {
        let mut command = self.command();
        command.args(["-E", "-D__METAL__=1", "-D__METAL_VERSION__=320", "-D__HAVE_BFLOAT__=1"]);
        command.args(definitions).arg("-");
        run(command, source)
    }

    /// Checks translated `text` and nothing else.
    pub(crate) fn check(&self, text: &str) -> Result<(), String> {
        let mut command = self.command();
        command.args(["-fsyntax-only", "-"]);
        run(command, text).map(drop)
    }

    /// Checks `text` as C++ for OpenCL without a generic address space. Returns its syntax tree, or everything that clang
    /// reports.
    pub(crate) fn check_dialect(&self, text: &str) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(DIALECT);
        run(command, text)
    }

    /// Optimised LLVM assembly of `text`. Loops are not vectorised: every access stays a plain load or store.
    pub(crate) fn assembly(&self, text: &str) -> Result<String, String> {
        let mut command = self.command();
        command.args(OPTIMIZE).args(["-S", "-emit-llvm", "-o", "-", "-"]);
        run(command, text)
    }

    /// Makes a shared object of LLVM assembly, without optimising again.
    pub(crate) fn link(&self, assembly: &str, output: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args([
            "-x",
            "ir",
            "-w",
            "-fPIC",
            "-O1",
            "-Xclang",
            "-disable-llvm-passes",
            "-shared",
            "-nostartfiles",
        ]);
        command.args([target(), "-", "-x", "none", "-lm", "-o"]).arg(output);
        run(command, assembly).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(LANGUAGE).arg(target());
        command
    }
}

const OPTIMIZE: [&str; 4] = ["-O2", "-fno-vectorize", "-fno-slp-vectorize", "-fvisibility=hidden"];

/// A level of instructions that converts halves in hardware, where this machine has it.
fn target() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        if v3 { "-march=x86-64-v3" } else { "-march=x86-64" }
    }
    #[cfg(not(target_arch = "x86_64"))]
    "-march=armv8-a"
}

fn run(mut command: Command, input: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let fail = |e: std::io::Error| format!("{program}: {e}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A compiler that stops early closes its input; its message is what matters then.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()).ok());
        child.wait_with_output()
    });
    let output = output.map_err(fail)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{program}: {e}"))
}
