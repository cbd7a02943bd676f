//! The data set that the tool carries.

use std::path::PathBuf;

use crate::cache;
use crate::failure::Failure;

/// Its name.
pub(crate) const NAME: &str = "shell";

const FILES: [(&str, &str); 3] = [
    ("train.jsonl", include_str!("../../../examples/data/shell/train.jsonl")),
    ("valid.jsonl", include_str!("../../../examples/data/shell/valid.jsonl")),
    ("test.jsonl", include_str!("../../../examples/data/shell/test.jsonl")),
];

/// Its folder in the cache, written if it is not there as it is here.
pub(crate) fn folder() -> Result<PathBuf, Failure> {
    let folder = cache::root()?.join("data").join(NAME);
    cache::create(&folder)?;
    for (name, text) in FILES {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        metal_candle::atomic::write(&path, text.as_bytes()).map_err(|error| {
            let advice = "free space in the cache folder, or set METAL_CANDLE_CACHE to another one";
            Failure::input(error.to_string(), advice)
        })?;
    }
    Ok(folder)
}
