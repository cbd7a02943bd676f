//! The target of settings: TOML and YAML files of ours and of other tools. It is apart from the other targets, because
//! it needs the tool.

use std::path::Path;

/// Kinds of files, by the first byte of an input.
const ENDINGS: [&str; 3] = ["yaml", "toml", "json"];

/// A configuration file of `train`. What is refused is refused with its cause and an advice.
pub fn settings(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder can be made");
    let path = folder.path().join(format!("run.{}", ENDINGS[usize::from(*kind) % ENDINGS.len()]));
    std::fs::write(&path, data).expect("a file of a temporary folder can be written");
    if let Err([cause, advice]) = metal_candle_cli::check_settings(&path) {
        assert!(!cause.is_empty() && !advice.is_empty(), "refused without a reason: {cause:?}, {advice:?}");
    }
}
