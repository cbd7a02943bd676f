//! GGUF models that are split over several files, as `llama-gguf-split` writes them.
//!
//! The first file holds the metadata. Every file has `split.no` (from 0) and `split.count`, and describes only the tensors
//! that it holds.

use std::path::Path;

use super::gguf::Gguf;
use super::shards::Shard;
use crate::{Error, Result};

/// Key of the number of files.
pub(super) const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// Opens all files of the model to which this file belongs. `count` is the number of files that it states.
pub(super) fn open(path: &Path, count: usize) -> Result<Gguf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(shard) = Shard::parse(&name).filter(|shard| shard.count == count) else {
        let message = format!(
            "is one of {count} files of a split model, but its name does not end like -00001-of-{count:05}.gguf, by which \
             the others are found; give the files their names back, or join them with 'llama-gguf-split --merge'"
        );
        return Err(Error::file(path, message));
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut whole: Option<Gguf> = None;
    for (index, name) in shard.all().enumerate() {
        let path = folder.join(name);
        if !path.is_file() {
            let message = format!(
                "is missing; the model is split over {count} files, which must all be in one folder: fetch it again"
            );
            return Err(Error::file(path, message));
        }
        let part = Gguf::open_one(&path)?;
        let found = (part.integer(NUMBER)?, part.integer(COUNT)?);
        if found != (Some(index), Some(count)) {
            let message =
                format!("is not file {} of {count} of its split model; fetch the model again", index + 1);
            return Err(Error::file(path, message));
        }
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => whole.append(part)?,
        }
    }
    let Some(whole) = whole else { return Err(Error::file(path, "belongs to a model of no files")) };
    let (found, stated) = (whole.tensors().len(), whole.integer(TENSORS)?);
    if stated.is_some_and(|stated| stated != found) {
        let message = format!(
            "is {}, but the {count} files hold {found} tensors; they are not of one model: fetch it again",
            stated.unwrap_or_default()
        );
        return Err(Error::file_at(whole.path(), TENSORS, message));
    }
    Ok(whole)
}
