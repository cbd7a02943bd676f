//! What the readers of a model folder's files share.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// Advice for a folder of quantized weights.
pub(super) const UNQUANTIZED: &str = "use the original model, whose name its page gives (such as Qwen/Qwen3-0.6B for a copy of \
                                      it in 4 bits), or a GGUF file of F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q5_0, Q4_1 or Q4_0";

/// Returns an error for the pointer that Git stores in place of a large file that was not fetched.
pub(crate) fn check_fetched(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"version https://git-lfs.github.com/") {
        let message = "is a pointer of Git LFS, not the file itself; run `git lfs pull`, or fetch it again";
        return Err(Error::file(path, message));
    }
    Ok(())
}

/// Reads a JSON file, or returns `None` if it does not exist.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    // Editors on Windows put a byte-order mark before the text.
    let json = serde_json::from_str(text.trim_start_matches('\u{feff}'));
    json.map(Some)
        .map_err(|e| Error::file_at(path, format!("line {}", e.line()), format!("is not JSON: {e}")))
}
