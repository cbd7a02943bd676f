//! The list of a repository's files, as the hub's API answers it.

use crate::model_name::is_gguf;

/// The folder of a model's further chat templates.
const TEMPLATES: &str = "additional_chat_templates/";

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    /// Known for the large files only.
    pub(crate) sha256: Option<String>,
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Repository {
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

/// Why a list cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is something else, such as the page of a network's login.
    NotAList,
    /// A file with a SHA-256 that is none, which would let any content pass.
    NoSum { file: String, sum: String },
}

/// Reads the files with names that are safe to create: those in the top folder, further chat templates, and GGUF files in
/// any folder; with `nested` all of them.
pub(super) fn parse(text: &str, nested: bool) -> Result<Repository, Unusable> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_| Unusable::NotAList)?;
    let sound = |sha: &&str| !sha.is_empty() && sha.chars().all(|c| c.is_ascii_alphanumeric());
    let commit = json.get("sha").and_then(|sha| sha.as_str()).filter(sound).ok_or(Unusable::NotAList)?;
    let siblings = json.get("siblings").and_then(|list| list.as_array()).ok_or(Unusable::NotAList)?;
    let mut files = Vec::new();
    for file in siblings {
        let Some(name) = file.get("rfilename").and_then(|name| name.as_str()) else { continue };
        if is_wanted(name, nested) {
            let size = file.get("size").and_then(serde_json::Value::as_u64);
            files.push(RemoteFile { name: name.to_owned(), size, sha256: sum_of(file, name)? });
        }
    }
    Ok(Repository { files, commit: commit.to_owned() })
}

fn is_wanted(name: &str, nested: bool) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    let sound = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
    let inside = name.strip_prefix(TEMPLATES).unwrap_or(name);
    let wanted = nested || !inside.contains('/') || is_gguf(name);
    wanted && inside.split('/').all(sound)
}

/// The SHA-256 of a large file.
fn sum_of(file: &serde_json::Value, name: &str) -> Result<Option<String>, Unusable> {
    let Some(sum) = file.pointer("/lfs/sha256").filter(|sum| !sum.is_null()) else { return Ok(None) };
    let text = sum.as_str().unwrap_or_default().to_ascii_lowercase();
    if is_sha256(&text) {
        return Ok(Some(text));
    }
    let sum = sum.as_str().map_or_else(|| sum.to_string(), str::to_owned);
    Err(Unusable::NoSum { file: name.to_owned(), sum })
}

/// Returns true if a text is a SHA-256 in lowercase digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_lists_safe_top_level_files() {
        let sum = "FF00".repeat(16);
        let text = r#"{"sha": "abc123", "siblings": [
            {"rfilename": "config.json", "size": 10},
            {"rfilename": "onnx/model.onnx", "size": 10},
            {"rfilename": "../../etc/passwd"},
            {"rfilename": "../x.gguf"},
            {"rfilename": "Q8_0/x.gguf", "size": 30},
            {"rfilename": ".gitattributes"},
            {"rfilename": "additional_chat_templates/../x.jinja"},
            {"rfilename": "additional_chat_templates/.jinja"},
            {"rfilename": "additional_chat_templates/tool_use.jinja", "size": 5},
            {"rfilename": "model.safetensors", "size": 20, "lfs": {"sha256": "SUM", "size": 20}}]}"#;
        let repository = parse(&text.replace("SUM", &sum), false).unwrap();
        assert_eq!(repository.commit, "abc123");
        let inner = RemoteFile { name: "Q8_0/x.gguf".into(), size: Some(30), sha256: None };
        let config = RemoteFile { name: "config.json".into(), size: Some(10), sha256: None };
        let model = RemoteFile {
            name: "model.safetensors".into(),
            size: Some(20),
            sha256: Some(sum.to_ascii_lowercase()),
        };
        let name = "additional_chat_templates/tool_use.jinja".to_owned();
        let template = RemoteFile { name, size: Some(5), sha256: None };
        assert_eq!(repository.files, [config, inner, template, model]);
        for other in ["<html>", r#"{"sha": "../x", "siblings": []}"#, r#"{"sha": "", "siblings": []}"#] {
            assert_eq!(parse(other, false).unwrap_err(), Unusable::NotAList, "{other}");
        }
        for none in ["", "FF00", &"zz".repeat(32)] {
            let error = parse(&text.replace("SUM", none), false).unwrap_err();
            assert_eq!(error, Unusable::NoSum { file: "model.safetensors".into(), sum: none.into() });
        }
    }
}
