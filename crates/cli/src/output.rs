//! The output folder of `train`: what it holds already, and whether a run may write into it.

use std::path::Path;

use metal_candle::atomic::WRITING;
use metal_candle::training::{RunFolder, checkpoint};
use metal_candle::{Error, durable};

use crate::failure::{Code, Failure, of_io};

/// What is to happen to a run that the folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    New,
    Resume,
    Overwrite,
}

/// Name of mlx-lm's adapter file. Its folder shares the name of the configuration with ours.
const MLX_ADAPTER: &str = "adapters.safetensors";

/// What a run writes, beside its checkpoints.
const FILES: [&str; 6] =
    ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "loss.svg", "loss.png", "run.toml"];

/// Claims the folder for a run, before anything long is begun. What is refused changes nothing.
pub(crate) fn claim(out: &Path, mode: Mode) -> Result<RunFolder, Failure> {
    let shown = out.display();
    if mode == Mode::Resume && !out.is_dir() {
        return Err(Failure::input(
            format!("{shown}: there is no run to resume"),
            "leave out --resume, or name the run's folder with --out",
        ));
    }
    let folder = RunFolder::claim(out).map_err(|error| match error {
        Error::Io { source, .. } => unwritable(out, &source),
        other => {
            Failure::input(other.to_string(), "wait until that run ends, or choose another folder with --out")
        }
    })?;
    durable::temporary_file(out, WRITING).map_err(|e| unwritable(out, &e))?;
    let newest =
        checkpoint::latest(out).map_err(|error| Failure::input(error.to_string(), "check the folder"))?;
    match (mode, newest) {
        (Mode::Resume, None) => {
            let damaged = damaged(out)?;
            let reasons: String = damaged.iter().map(|text| format!("; {text}")).collect();
            Err(Failure::input(
                format!("{shown}: contains no complete checkpoint to resume from{reasons}"),
                "leave out --resume, or name the run's folder with --out",
            ))
        }
        (Mode::New, Some(checkpoint)) => {
            let step =
                checkpoint.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Err(Failure::input(
                format!("{shown}: contains a run already, with the checkpoint {step}"),
                format!(
                    "go on with it by --resume, replace it by --overwrite, or choose another folder with --out NEW, also to \
                     train its adapter further with --adapter {}",
                    quoted(out)
                ),
            ))
        }
        (Mode::New | Mode::Overwrite, None) if out.join(MLX_ADAPTER).exists() => Err(Failure::input(
            format!(
                "{shown}: contains an adapter of mlx-lm ({MLX_ADAPTER}), whose configuration would be lost"
            ),
            "choose another folder with --out",
        )),
        (Mode::New, None) if out.join(FILES[0]).exists() => Err(Failure::input(
            format!("{shown}: contains an adapter already"),
            "replace it by --overwrite, or choose another folder with --out",
        )),
        _ => Ok(folder),
    }
}

/// Checkpoints that a resume passes over, each with the reason, and the one that it takes.
pub(crate) fn passed_over(out: &Path) -> Result<Option<String>, Failure> {
    let damaged = damaged(out)?;
    let newest = checkpoint::latest(out).ok().flatten();
    let name = newest.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    Ok(name
        .filter(|_| !damaged.is_empty())
        .map(|name| format!("warning: {}; the run goes on from {name}", damaged.join("; "))))
}

/// Sentences about the checkpoints that are newer than the newest complete one.
fn damaged(out: &Path) -> Result<Vec<String>, Failure> {
    let found =
        checkpoint::damaged(out).map_err(|error| Failure::input(error.to_string(), "check the folder"))?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(found
        .iter()
        .map(|one| format!("the checkpoint {} is damaged: {}", name(&one.path), one.reason))
        .collect())
}

/// Removes what an earlier run wrote, when a run that replaces it begins.
pub(crate) fn clear(out: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| unwritable(out, &error);
    for path in FILES.map(|name| out.join(name)) {
        match durable::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    checkpoint::prune(out, 0).map_err(|error| Failure::input(error.to_string(), "remove the old checkpoints"))
}

pub(crate) fn unwritable(out: &Path, error: &std::io::Error) -> Failure {
    let cause = format!("{}: cannot write: {error}", out.display());
    match of_io(error.kind()) {
        (Code::Run, advice) => {
            Failure::new(Code::Run, cause, format!("{advice}; or choose another folder with --out"))
        }
        _ => Failure::input(cause, "choose another folder with --out"),
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    quoted_text(&path.display().to_string())
}

/// A text as a shell takes it.
pub(crate) fn quoted_text(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_adapter_is_not_replaced_unless_asked() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path();
        std::fs::write(out.join("run.toml"), "rank = 8").unwrap();
        drop(claim(out, Mode::New).unwrap());
        std::fs::write(out.join("adapter_model.safetensors"), "x").unwrap();
        std::fs::write(out.join("notes.txt"), "mine").unwrap();
        let refused = claim(out, Mode::New).unwrap_err();
        assert!(refused.cause.ends_with("contains an adapter already"), "{refused:?}");
        assert!(
            claim(out, Mode::Resume).unwrap_err().cause.contains("no complete checkpoint to resume from")
        );
        assert_eq!(names(out), ["adapter_model.safetensors", "notes.txt", "run.toml"]);
        let _held = claim(out, Mode::Overwrite).unwrap();
        assert_eq!(
            claim(out, Mode::Overwrite).unwrap_err().advice,
            "wait until that run ends, or choose another folder with --out"
        );
        clear(out).unwrap();
        assert_eq!(names(out), [".lock", "notes.txt"]);
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("adapters/x-1")), "adapters/x-1");
        assert_eq!(quoted(Path::new("my adapters/it's")), r"'my adapters/it'\''s'");
    }
}
