//! The project's kernel libraries, put together as the Metal backend does.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};

/// A library.
pub(crate) struct Source {
    /// Its name in the backend.
    pub(crate) name: String,
    /// `common.metal` and its own files.
    pub(crate) text: String,
}

/// Folder of the Metal backend.
pub(crate) fn backend() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../src/backend/gpu")
}

/// Text of a file of the backend.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `Source::new("name", ...)` of the backend. A kernel file that none of them includes is an error.
pub(crate) fn ours() -> Vec<Source> {
    let folder = backend();
    let part = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        format!("#line 1 \"{name}\"\n{}\n", read(&folder.join(file)))
    };
    let (mut sources, mut used) = (Vec::new(), vec!["kernels/common.metal".to_string()]);
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        for declaration in read(&entry.path()).split("Source::new(").skip(1) {
            let declaration = declaration.split(';').next().unwrap_or_default();
            let Some(name) = declaration.trim_start().strip_prefix('"').and_then(|d| d.split('"').next())
            else {
                continue;
            };
            let files: Vec<String> = declaration
                .split("include_str!(\"")
                .skip(1)
                .filter_map(|rest| rest.split('"').next().map(str::to_string))
                .collect();
            let text =
                part("kernels/common.metal") + &files.iter().map(|file| part(file)).collect::<String>();
            used.extend(files);
            sources.push(Source { name: name.to_string(), text });
        }
    }
    for entry in std::fs::read_dir(folder.join("kernels")).unwrap().flatten() {
        let name = format!("kernels/{}", entry.file_name().to_string_lossy());
        assert!(used.contains(&name), "{name} is part of no library");
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}
