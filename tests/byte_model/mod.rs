//! A folder with the golden Llama of 256 tokens and a tokenizer whose tokens are bytes.

use std::path::Path;

use serde_json::{Map, Value, json};

/// GPT-2's letters for bytes.
fn letters() -> impl Iterator<Item = char> {
    let mut next = 0x100;
    (0..256).map(move |byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from_u32(byte).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    })
}

/// Writes the model into a folder that exists.
pub(crate) fn write(folder: &Path) {
    // The tool's own tests are a folder of the workspace further down.
    let root = option_env!("METAL_CANDLE_ROOT").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let golden = Path::new(root).join("tests/golden/llama");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    let vocab: Map<String, Value> =
        letters().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
