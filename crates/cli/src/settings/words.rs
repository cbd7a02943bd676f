//! Choices by their words: ours, and those of other tools that mean the same.
//!
//! Each function returns our word for a choice, or cause and advice separated by a semicolon.

use crate::failure::nearest;

type Word = Result<String, String>;

/// Returns the device that a word means: `auto`, `cpu`, `metal` or `cuda`, the last also with the number of a GPU (`cuda:1`).
pub(crate) fn device(text: &str) -> Word {
    let word = text.to_ascii_lowercase();
    match word.as_str() {
        "auto" | "cpu" | "metal" | "cuda" => Ok(word),
        "mps" => Ok("metal".to_owned()),
        "gpu" => Ok(if cfg!(target_os = "macos") { "metal" } else { "cuda" }.to_owned()),
        other if other.strip_prefix("cuda:").is_some_and(|number| number.parse::<usize>().is_ok()) => {
            Ok(word)
        }
        other if ["rocm", "hip", "vulkan", "xpu"].iter().any(|name| other.starts_with(name)) => {
            Err(format!("this build has no backend for '{text}'; use metal on a Mac, cuda on a PC, or cpu"))
        }
        _ => Err(unknown(text, &["auto", "cpu", "metal", "cuda"])),
    }
}

/// Returns the storage of weights that a word means: `f32`, `bf16` or `f16`.
pub(crate) fn dtype(text: &str) -> Word {
    let word = text.to_ascii_lowercase();
    let word = word.strip_prefix("torch.").unwrap_or(&word);
    match word {
        "f32" | "float32" | "fp32" | "float" => Ok("f32".to_owned()),
        "bf16" | "bfloat16" => Ok("bf16".to_owned()),
        "f16" | "float16" | "fp16" | "half" => Ok("f16".to_owned()),
        _ => Err(unknown(text, &["f32", "bf16", "f16"])),
    }
}

/// Returns the schedule of the learning rate that a word means: `constant`, `linear` or `cosine`.
pub(crate) fn schedule(text: &str) -> Word {
    match text.to_ascii_lowercase().as_str() {
        "constant" | "constant_with_warmup" | "constant-with-warmup" => Ok("constant".to_owned()),
        "linear" | "linear_schedule" => Ok("linear".to_owned()),
        "cosine" | "cosine_decay" => Ok("cosine".to_owned()),
        _ => Err(unknown(text, &["constant", "linear", "cosine"])),
    }
}

/// Returns what is trained: `completion` or `all`.
pub(crate) fn train_on(text: &str) -> Word {
    match text.to_ascii_lowercase().as_str() {
        "completion" | "completions" | "assistant" => Ok("completion".to_owned()),
        "all" => Ok("all".to_owned()),
        _ => Err(unknown(text, &["completion", "all"])),
    }
}

/// Returns the name of a split of a data set. A part of one, as `train[:50%]`, is refused.
pub(crate) fn split(text: &str) -> Word {
    if text.contains(['[', '+', '%']) {
        return Err(format!(
            "'{text}' is not a single split, which is not supported; name one split, such as train, or put the \
             rows that you want into a file"
        ));
    }
    Ok(text.to_owned())
}

fn unknown(text: &str, known: &[&str]) -> String {
    let cause = format!("'{text}' is unknown");
    match nearest(&text.to_ascii_lowercase(), known.iter().copied()) {
        Some(near) => format!("{cause}; did you mean '{near}'?"),
        None => {
            let (last, others) = known.split_last().unwrap_or((&"", &[]));
            format!("{cause}; use {} or {last}", others.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_tools_mean_ours() {
        assert_eq!(
            [device("mps"), device("CUDA:1"), device("cpu")].map(Result::unwrap),
            ["metal", "cuda:1", "cpu"]
        );
        assert_eq!(device("GPU").unwrap(), if cfg!(target_os = "macos") { "metal" } else { "cuda" });
        assert_eq!(
            device("rocm:0").unwrap_err(),
            "this build has no backend for 'rocm:0'; use metal on a Mac, cuda on a PC, or cpu"
        );
        assert!(device("cuda:x").is_err());
        assert_eq!(device("metall").unwrap_err(), "'metall' is unknown; did you mean 'metal'?");
        assert_eq!(dtype("bfloat16").unwrap(), "bf16");
        assert_eq!(dtype("u32").unwrap_err(), "'u32' is unknown; did you mean 'f32'?");
        assert_eq!(schedule("constant_with_warmup").unwrap(), "constant");
        assert_eq!(schedule("cosin").unwrap_err(), "'cosin' is unknown; did you mean 'cosine'?");
        assert_eq!(split("validation").unwrap(), "validation");
        for part in ["train[:50%]", "train+test", "train[10:]"] {
            assert!(split(part).unwrap_err().starts_with(&format!("'{part}' is not a single split")));
        }
        assert_eq!(train_on("answers").unwrap_err(), "'answers' is unknown; use completion or all");
    }
}
