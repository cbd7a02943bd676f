//! Names of models on the hub, in every form that people paste.
//!
//! `org/name`, with `@revision` and with `:file.gguf` or `:Q4_K_M`; `hf://org/name`, as llama.cpp and vLLM write it;
//! `hf.co/org/name:Q4_K_M`, as ollama does; and the addresses of the hub's pages, `https://huggingface.co/org/name`, also
//! with `/tree/REVISION` or `/blob/REVISION/FILE`.

use crate::failure::Failure;

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelName {
    /// `org/name`.
    pub(crate) id: String,
    pub(crate) revision: String,
    /// A GGUF file, with its folder in the repository, or a quantization such as `Q4_K_M`.
    pub(crate) file: Option<String>,
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Hosts of the hub.
const HOSTS: [&str; 4] = ["huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"];

/// Reads a name; `None` if it is none of the hub's, an error if it is the hub's but no model.
pub(crate) fn parse(text: &str) -> Result<Option<ModelName>, Failure> {
    let text = text.trim();
    if let Some(address) = address(text)? {
        return page(text, address).map(Some);
    }
    let short = ["hf://", "hf:"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let name = plain(short.unwrap_or(text));
    match (short, &name) {
        (Some(_), None) => Err(not_a_model(text)),
        _ => Ok(name),
    }
}

/// The path of a page of the hub, if the text is an address.
fn address(text: &str) -> Result<Option<&str>, Failure> {
    let scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let (host, path) = scheme.unwrap_or(text).split_once('/').unwrap_or((scheme.unwrap_or(text), ""));
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_default();
    let own_host = endpoint.split("://").nth(1).unwrap_or_default().trim_end_matches('/');
    let is_hub = HOSTS.iter().any(|known| known.eq_ignore_ascii_case(host))
        || (!own_host.is_empty() && host == own_host);
    match (scheme, is_hub) {
        (_, true) => Ok(Some(path)),
        (Some(_), false) => Err(Failure::input(
            format!("{text}: is not an address of the Hugging Face hub"),
            "download the file and pass its path, or pass a hub id such as org/name",
        )),
        (None, false) => Ok(None),
    }
}

/// The model of a page: `org/name`, `org/name/tree/REVISION`, `org/name/blob/REVISION/FILE`.
fn page(text: &str, path: &str) -> Result<ModelName, Failure> {
    let path = path.split(['?', '#']).next().unwrap_or(path).trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["datasets", ..] => Err(Failure::input(
            format!("{text}: is a data set, not a model"),
            "pass data to `metal-candle train --data`, and a model such as org/name here",
        )),
        ["spaces" | "collections" | "papers" | "docs" | "blog", ..] => Err(not_a_model(text)),
        [org, name] => plain(&format!("{org}/{name}")).ok_or_else(|| not_a_model(text)),
        [org, name, "tree" | "commit" | "commits", revision] => {
            plain(&format!("{org}/{name}@{revision}")).ok_or_else(|| not_a_model(text))
        }
        [org, name, "blob" | "resolve" | "raw", revision, file @ ..] if !file.is_empty() => {
            let file = file.join("/");
            let suffix = if is_gguf(&file) { format!(":{file}") } else { String::new() };
            plain(&format!("{org}/{name}@{revision}{suffix}")).ok_or_else(|| not_a_model(text))
        }
        [_, _, "tree", ..] => Err(Failure::input(
            format!("{text}: is a folder inside a repository"),
            "pass the repository as org/name, or one of its GGUF files as org/name:folder/file.gguf",
        )),
        _ => Err(not_a_model(text)),
    }
}

fn not_a_model(text: &str) -> Failure {
    Failure::input(format!("{text}: is not a model on the hub"), "pass a hub id such as org/name")
}

/// `org/name`, optionally `@revision` and `:file.gguf` or `:quantization`.
fn plain(text: &str) -> Option<ModelName> {
    let (rest, file) = match text.split_once(':') {
        Some((rest, file)) => (rest, Some(file)),
        None => (text, None),
    };
    let (id, revision) = rest.split_once('@').unwrap_or((rest, "main"));
    let (org, name) = id.split_once('/')?;
    let fits = word(org)
        && word(name)
        && word(revision)
        && file.is_none_or(|file| gguf_path(file) || quantization(file));
    // `some/model.gguf` is a path that does not exist, not a repository.
    (fits && !is_gguf(name)).then(|| ModelName {
        id: id.to_owned(),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
    })
}

fn word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.chars().all(allowed) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

pub(crate) fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

/// A GGUF file, at most a few folders deep.
fn gguf_path(text: &str) -> bool {
    is_gguf(text) && text.split('/').all(word) && text.split('/').count() <= 4
}

/// A quantization as file names have it: `Q4_K_M`, `IQ2_XXS`, `BF16`, `F16`, `UD-Q4_K_XL`, `latest` for any.
pub(crate) fn quantization(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let bits = upper.strip_prefix("UD-").unwrap_or(&upper);
    let number = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let named = ["IQ", "TQ", "BF", "FP", "MXFP", "Q", "F"]
        .iter()
        .any(|kind| bits.strip_prefix(kind).is_some_and(number));
    (named || upper == "LATEST") && word(text)
}

/// Whether a file's name has this quantization.
pub(crate) fn has_quantization(file: &str, wanted: &str) -> bool {
    if wanted.eq_ignore_ascii_case("latest") {
        return true;
    }
    let (file, wanted) = (file.to_ascii_uppercase(), wanted.to_ascii_uppercase());
    let stem = file.strip_suffix(".GGUF").unwrap_or(&file);
    // A part of the name as a whole: Q4_K is not Q4_K_M, and F16 is not BF16.
    stem.match_indices(&wanted).any(|(at, found)| {
        let before = stem[..at].chars().next_back();
        let after = stem[at + found.len()..].chars().next();
        before.is_none_or(|c| "-./_".contains(c))
            && after.is_none_or(|c| "-./".contains(c))
            && (wanted.starts_with("UD-") || !stem[..at].ends_with("UD-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str, revision: &str, file: Option<&str>) -> ModelName {
        ModelName { id: id.into(), revision: revision.into(), file: file.map(Into::into) }
    }

    #[test]
    fn every_form_of_a_name_is_understood() {
        for (text, expected) in [
            ("Qwen/Qwen3-0.6B", name("Qwen/Qwen3-0.6B", "main", None)),
            ("a/b@abc:c.Q8_0.gguf", name("a/b", "abc", Some("c.Q8_0.gguf"))),
            ("a/b:Q4_K_M", name("a/b", "main", Some("Q4_K_M"))),
            ("a/b:BF16/b-BF16.gguf", name("a/b", "main", Some("BF16/b-BF16.gguf"))),
            ("hf://a/b", name("a/b", "main", None)),
            ("hf:a/b", name("a/b", "main", None)),
            ("hf.co/a/b:Q8_0", name("a/b", "main", Some("Q8_0"))),
            ("huggingface.co/a/b", name("a/b", "main", None)),
            ("https://huggingface.co/a/b", name("a/b", "main", None)),
            ("https://huggingface.co/a/b/", name("a/b", "main", None)),
            ("https://huggingface.co/a/b?library=transformers#use", name("a/b", "main", None)),
            ("https://huggingface.co/a/b/tree/main", name("a/b", "main", None)),
            ("https://huggingface.co/a/b/tree/v1.0", name("a/b", "v1.0", None)),
            ("https://huggingface.co/a/b/blob/main/config.json", name("a/b", "main", None)),
            ("https://huggingface.co/a/b/blob/main/q/c.gguf", name("a/b", "main", Some("q/c.gguf"))),
            (
                "https://huggingface.co/a/b/resolve/abc/c.gguf?download=true",
                name("a/b", "abc", Some("c.gguf")),
            ),
        ] {
            assert_eq!(parse(text).unwrap(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_model_of_the_hub_is_refused_or_left_to_others() {
        for other in
            ["a", "a/b/c", "../b", "a/b@", "a/b:c.bin", "a/b:../c.gguf", "a/c.gguf", "/b", "C:\\models\\x"]
        {
            assert_eq!(parse(other).unwrap(), None, "{other}");
        }
        for (text, part) in [
            ("https://huggingface.co/datasets/a/b", "is a data set, not a model"),
            ("https://huggingface.co/spaces/a/b", "is not a model on the hub"),
            ("https://huggingface.co/a/b/tree/main/sub", "is a folder inside a repository"),
            ("https://huggingface.co/a", "is not a model on the hub"),
            ("https://example.org/m.gguf", "is not an address of the Hugging Face hub"),
            ("hf://a", "is not a model on the hub"),
        ] {
            assert!(parse(text).unwrap_err().cause.contains(part), "{text}");
        }
    }

    #[test]
    fn quantizations_are_whole_parts_of_file_names() {
        let names = [
            "m-Q4_K_M.gguf",
            "m.Q4_K_S.gguf",
            "m-BF16.gguf",
            "m-f16.gguf",
            "m-UD-Q4_K_M.gguf",
            "Q8_0/m.gguf",
        ];
        let found = |wanted: &str| -> Vec<&str> {
            names.iter().copied().filter(|name| has_quantization(name, wanted)).collect()
        };
        assert_eq!(found("q4_k_m"), ["m-Q4_K_M.gguf"]);
        assert_eq!(found("F16"), ["m-f16.gguf"]);
        assert_eq!(found("Q4_K"), [] as [&str; 0]);
        assert_eq!(found("UD-Q4_K_M"), ["m-UD-Q4_K_M.gguf"]);
        assert_eq!(found("Q8_0"), ["Q8_0/m.gguf"]);
        assert_eq!(found("latest").len(), names.len());
    }
}
