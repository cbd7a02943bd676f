//! `metal-candle list`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::ListArgs;
use crate::cache::{self, Cached};
use crate::progress::size;
use crate::session::print_line;

/// Default parent folder of the adapters that `train` writes.
const ADAPTERS: &str = "adapters";

/// An adapter's folder.
struct Found {
    path: PathBuf,
    base: Option<String>,
}

pub(crate) fn run(args: &ListArgs) -> anyhow::Result<()> {
    let (root, models) = (cache::models()?, cache::list());
    let adapters = adapters(Path::new(ADAPTERS));
    if args.json {
        let models: Vec<Value> = models
            .iter()
            .map(|model| json!({"name": name_of(&model.path, &root), "path": model.path, "bytes": model.bytes}))
            .collect();
        let adapters: Vec<Value> =
            adapters.iter().map(|adapter| json!({"path": adapter.path, "base": adapter.base})).collect();
        return print_line(&json!({"models": models, "adapters": adapters}).to_string());
    }
    print_line(&table(&root, &models, &adapters))
}

fn table(root: &Path, models: &[Cached], adapters: &[Found]) -> String {
    let mut lines = Vec::new();
    if models.is_empty() {
        lines.push(format!("No models in {}. Fetch one: metal-candle pull", root.display()));
    } else {
        lines.push(format!("Models in {}:", root.display()));
        for model in models {
            lines.push(format!("  {}  {}", name_of(&model.path, root), size(model.bytes)));
        }
    }
    if adapters.is_empty() {
        lines.push(format!("No adapters in {ADAPTERS}/. Train one: metal-candle train"));
    } else {
        lines.push(format!("Adapters in {ADAPTERS}/:"));
        for adapter in adapters {
            let base = adapter.base.as_deref().unwrap_or("a model that it does not name");
            lines.push(format!("  {}  for {base}", adapter.path.display()));
        }
    }
    lines.join("\n")
}

/// What `--model` takes for a model in the cache: its short name, its hub id, or else its path.
fn name_of(path: &Path, root: &Path) -> String {
    let shown = || path.display().to_string();
    let Ok(inside) = path.strip_prefix(root) else { return shown() };
    let parts: Vec<String> =
        inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    match parts.as_slice() {
        [hub, id, _commit, file @ ..] if hub == "hub" => match id.split_once("--") {
            Some((org, name)) if file.is_empty() => format!("{org}/{name}"),
            Some((org, name)) => format!("{org}/{name}:{}", file.join("/")),
            None => shown(),
        },
        [short, _file] => short.clone(),
        _ => shown(),
    }
}

/// Folders with an adapter, at most two levels down.
fn adapters(root: &Path) -> Vec<Found> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let mut candidates = folders(root);
    let inner: Vec<PathBuf> = candidates.iter().flat_map(|folder| folders(folder)).collect();
    candidates.extend(inner);
    let mut found: Vec<Found> = candidates.into_iter().filter_map(adapter).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn adapter(path: PathBuf) -> Option<Found> {
    let text = std::fs::read(path.join("adapter_config.json")).ok()?;
    // A configuration that cannot be read still marks an adapter's folder; using it says what is wrong.
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str().map(str::to_owned);
    Some(Found { path, base })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_model_flag_takes() {
        let root = Path::new("/c/models");
        for (path, name) in [
            ("/c/models/smollm2-135m/x.gguf", "smollm2-135m"),
            ("/c/models/hub/Qwen--Qwen3-0.6B/abc", "Qwen/Qwen3-0.6B"),
            ("/c/models/hub/org--name/abc/Q4/x.gguf", "org/name:Q4/x.gguf"),
            ("/elsewhere/x.gguf", "/elsewhere/x.gguf"),
        ] {
            assert_eq!(name_of(Path::new(path), root), name);
        }
    }

    #[test]
    fn adapters_are_found_with_their_bases() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("b", r#"{"base_model_name_or_path": "org/base"}"#), ("a/deep", "broken")] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("adapter_config.json"), text).unwrap();
        }
        std::fs::create_dir(root.path().join("empty")).unwrap();
        let found = adapters(root.path());
        let shown: Vec<_> =
            found.iter().map(|f| (f.path.strip_prefix(root.path()).unwrap(), f.base.as_deref())).collect();
        assert_eq!(shown, [(Path::new("a/deep"), None), (Path::new("b"), Some("org/base"))]);
    }
}
