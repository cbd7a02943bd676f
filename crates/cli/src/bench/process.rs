//! Peers as processes that speak one line of JSON at a time, so that each has threads and memory of its own, and one
//! that ends takes nothing with it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// The libraries that are measured beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Library {
    Candle,
    Mlx,
    Torch,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// Evaluates one result of eight; to be refused.
    #[value(hide = true)]
    Flawed,
    /// The same with MLX.
    #[value(hide = true)]
    FlawedMlx,
}

impl Library {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::Mlx => "mlx",
            Self::Torch => "torch",
            Self::LlamaCpp => "llama.cpp",
            Self::Flawed => "flawed",
            Self::FlawedMlx => "flawed-mlx",
        }
    }

    /// How what single operations need is installed.
    pub(crate) fn install(self) -> &'static str {
        match self {
            Self::Candle => "it is part of this tool",
            Self::Torch => "python3 -m pip install torch numpy",
            Self::Mlx | Self::FlawedMlx if cfg!(target_os = "linux") => {
                "python3 -m pip install mlx mlx-cpu numpy, and apt-get install libopenblas0"
            }
            Self::Mlx | Self::FlawedMlx => "python3 -m pip install mlx numpy",
            Self::LlamaCpp => "python3 -m pip install llama-cpp-python",
            Self::Flawed => "apt-get install python3",
        }
    }
}

/// A peer that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Missing {
    pub(crate) name: &'static str,
    pub(crate) why: String,
    /// The command that installs it; nothing for what cannot be had here.
    pub(crate) install: Option<String>,
}

impl Missing {
    /// For a person.
    pub(crate) fn message(&self) -> String {
        match &self.install {
            Some(install) => format!("{} is missing ({}); install it with: {install}", self.name, self.why),
            None => format!("{} is not measured: {}", self.name, self.why),
        }
    }
}

/// A running peer.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Process {
    /// Starts a peer and waits for its greeting. `program` makes the command; it may put files into the folder that it is
    /// given.
    pub(crate) fn start(
        library: Library,
        threads: usize,
        install: &str,
        program: impl FnOnce(&Path) -> std::io::Result<Command>,
    ) -> Result<Self, Missing> {
        let missing = |why: String| Missing { name: library.name(), why, install: Some(install.to_owned()) };
        let failed = |error: std::io::Error| missing(error.to_string());
        let folder = tempfile::tempdir().map_err(failed)?;
        let mut command = program(folder.path()).map_err(failed)?;
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        if matches!(library, Library::Mlx | Library::FlawedMlx) && cfg!(target_os = "linux") {
            // The wheel's own product is the reference implementation, thirty times slower than this one.
            command.env("LD_PRELOAD", "libopenblas.so.0");
        }
        let errors = std::fs::File::create(folder.path().join("errors")).map_err(failed)?;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().map_err(failed)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(missing("it cannot be spoken to".into()));
        };
        let mut process = Self { name: library.name(), child, to, from: BufReader::new(from), folder };
        let hello = process.answer().map_err(missing)?;
        if hello["hello"] != true {
            return Err(missing(hello["error"].as_str().unwrap_or("it does not answer").to_owned()));
        }
        Ok(process)
    }

    /// A place for a file of the peer's.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The numbers, f32, that it wrote into a file.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        let bytes = std::fs::read(self.path(name)).map_err(|error| format!("its result: {error}"))?;
        let number = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(bytes.chunks_exact(4).map(number).collect())
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err(self.last_words()),
            Ok(_) => {
                serde_json::from_str(&line).map_err(|error| format!("it says '{}': {error}", line.trim()))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(self.path("errors")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("it has ended: {}", line.trim()),
            None => "it has ended".into(),
        }
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value, String> {
        // A peer that has ended is told of by its last words.
        let _ = writeln!(self.to, "{request}").and_then(|()| self.to.flush());
        let answer = self.answer()?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Python, by METAL_CANDLE_PYTHON or its usual name, with a script that the tool carries.
pub(crate) fn python(folder: &Path, script: &str) -> std::io::Result<Command> {
    let path = folder.join("peer.py");
    std::fs::write(&path, script)?;
    let mut command =
        Command::new(std::env::var_os("METAL_CANDLE_PYTHON").unwrap_or_else(|| "python3".into()));
    command.arg(path);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_there_says_why_and_how_it_is_installed() {
        let none = |_: &Path| Ok(Command::new("no-such-program-anywhere"));
        let missing = Process::start(Library::Torch, 1, Library::Torch.install(), none).err().unwrap();
        let message = missing.message();
        assert!(message.starts_with("torch is missing ("), "{message}");
        assert!(message.ends_with("install it with: python3 -m pip install torch numpy"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn what_ends_or_refuses_says_why() {
        let shell = |script: &'static str| {
            move |_: &Path| {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                Ok(command)
            }
        };
        let ended = Process::start(Library::Torch, 1, "x", shell("echo no luck >&2")).err().unwrap();
        assert_eq!(ended.why, "it has ended: no luck");
        let refused =
            Process::start(Library::Torch, 1, "x", shell("echo '{\"error\": \"no module\"}'")).err().unwrap();
        assert_eq!(refused.why, "no module");
        let script = "echo '{\"hello\": true}'; read line; echo '{\"got\": 1}'; read line; echo bye >&2";
        let mut process = Process::start(Library::Torch, 1, "x", shell(script)).unwrap();
        assert_eq!(process.ask(&Value::Null).unwrap()["got"], 1);
        assert_eq!(process.ask(&Value::Null).unwrap_err(), "it has ended: bye");
    }
}
