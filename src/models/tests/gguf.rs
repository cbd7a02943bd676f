use super::*;
use crate::models::gguf::Gguf;

fn sample() -> Vec<u8> {
    let mut metadata = llama_metadata();
    metadata.push(("texts", Meta::Texts(vec!["a".into(), "ß".into(), String::new()])));
    metadata.push(("whole", Meta::I32s(vec![3, -1])));
    metadata.push(("real", Meta::F32s(vec![0.5, -2.0])));
    metadata.push(("flag", Meta::Bool(true)));
    metadata.extend([
        ("tokenizer.ggml.model", Meta::Text("gpt2")),
        ("tokenizer.ggml.pre", Meta::Text("smollm")),
        ("tokenizer.ggml.tokens", Meta::Texts(["<s>", "a", "b", "ab", "abab"].map(String::from).to_vec())),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![3, 1, 1, 1, 1])),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["a b".into(), "ab ab".into()])),
        ("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 5])),
        ("tokenizer.ggml.eos_token_id", Meta::U32(0)),
        ("tokenizer.chat_template", Meta::Text("{% for m in messages %}{{ m.content }}{% endfor %}")),
    ]);
    let tensors = [
        ("token_embd.weight", vec![5, 8], 0, f32_bytes(&[1.0; 40])),
        ("blk.0.attn_q.weight", vec![8, 32], 2, vec![0; 8 * 18]),
    ];
    gguf_bytes(&metadata, &tensors)
}

fn open(bytes: &[u8]) -> crate::Result<Gguf> {
    let (_folder, path) = file("model.gguf", bytes);
    Gguf::open(&path)
}

#[test]
fn reads_every_kind_of_value() {
    let gguf = open(&sample()).unwrap();
    assert_eq!(gguf.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.integer("llama.context_length").unwrap(), Some(64));
    assert_eq!(gguf.real("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(f64::from(1e-5_f32)));
    assert_eq!(gguf.flag("flag").unwrap(), Some(true));
    assert_eq!(gguf.texts("texts").unwrap().unwrap(), ["a", "ß", ""]);
    assert_eq!(gguf.integers("whole").unwrap().unwrap(), [3, -1]);
    assert_eq!(gguf.reals("real").unwrap().unwrap(), [0.5, -2.0]);
    assert_eq!(gguf.text("absent").unwrap(), None);
    let tensor = &gguf.tensors()["blk.0.attn_q.weight"];
    assert_eq!((tensor.shape.as_slice(), tensor.bytes, tensor.start % 32), (&[8, 32][..], 144, 0));
}

#[test]
fn a_value_of_another_kind_is_an_error_with_the_key() {
    let gguf = open(&sample()).unwrap();
    let message = gguf.integer("general.architecture").unwrap_err().to_string();
    assert!(message.contains("general.architecture") && message.contains("holds text"), "{message}");
    assert!(gguf.texts("whole").is_err());
    assert!(gguf.reals("texts").is_err());
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    for len in 0..whole.len() {
        let error = open(&whole[..len]).expect_err("truncated");
        assert!(error.to_string().contains("model.gguf"), "{error}");
    }
}

/// Every byte of the header replaced by values that make lengths, counts and types lie. Opening must not
/// panic, and what opens must stay within the file.
#[test]
fn lying_bytes_never_panic() {
    let whole = sample();
    let header = whole.len() - (8 * 18 + 160 + 32);
    let (folder, path) = file("model.gguf", &whole);
    for at in 0..header {
        for lie in [0x00, 0x01, 0x09, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            if bytes[at] == lie {
                continue;
            }
            bytes[at] = lie;
            // A new file each time: the old one may still be mapped.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            let Ok(gguf) = Gguf::open(&path) else { continue };
            for tensor in gguf.tensors().values() {
                assert!(tensor.start + tensor.bytes <= bytes.len());
            }
            let keys: Vec<String> = gguf.keys().map(str::to_owned).collect();
            for key in keys {
                let _ = (gguf.texts(&key), gguf.integers(&key), gguf.reals(&key));
            }
            let _ = crate::models::ModelConfig::from_gguf(&gguf);
            if let Ok(tokenizer) = crate::models::Tokenizer::from_gguf(&gguf) {
                let _ = tokenizer.encode("ab<s>abab é 12", true).and_then(|ids| tokenizer.decode(&ids));
            }
            if let Ok(Some(template)) = crate::models::ChatTemplate::from_gguf(&gguf) {
                let _ = template.render(&[], None, true);
            }
            if let Ok(weights) = crate::models::Weights::from_gguf(&gguf) {
                let _ = weights.load("model.layers.0.self_attn.q_proj.weight", &[8, 32], DType::F32);
            }
        }
    }
    drop(folder);
}

#[test]
fn counts_and_lengths_that_lie_name_what_is_wrong() {
    let with = |at: usize, value: u64| {
        let mut bytes = sample();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        open(&bytes).expect_err("a lie").to_string()
    };
    let entries = u64::from_le_bytes(sample()[16..24].try_into().unwrap());
    assert!(with(8, u64::MAX).contains("plausible"));
    assert!(with(16, 1 << 40).contains("plausible"));
    // One entry more than there are runs into the descriptions of tensors.
    assert!(with(16, entries + 1).contains("damaged"));
    // The first key's length.
    assert!(with(24, u64::MAX).contains("not plausible"));
    assert!(with(24, 60_000).contains("truncated"));

    let array = |count: u64| {
        let mut bytes = sample();
        let key = bytes.windows(5).position(|window| window == b"texts").unwrap();
        bytes[key + 13..key + 21].copy_from_slice(&count.to_le_bytes());
        open(&bytes).expect_err("a lie").to_string()
    };
    assert!(array(u64::MAX).contains("claims"));
    assert!(array(1 << 33).contains("claims"));
}

#[test]
fn shapes_and_offsets_that_lie_name_the_tensor() {
    let open_with = |shape: Vec<u64>, kind: u32| {
        open(&gguf_bytes(&[], &[("w", shape, kind, vec![0; 64])])).expect_err("a lie").to_string()
    };
    for (shape, kind, expected) in [
        (vec![1 << 32, 1 << 32], 0, "plausible"),
        (vec![0, 4], 0, "plausible"),
        (vec![17], 0, "truncated"),
        (vec![u64::MAX], 8, "plausible"),
        (vec![2, 16], 8, "whole Q8_0 blocks"),
        (vec![1, 1, 1, 1, 1], 0, "dimensions"),
    ] {
        let message = open_with(shape, kind);
        assert!(message.contains("(w, ") && message.contains(expected), "{message}");
    }
    let good = gguf_bytes(&[], &[("w", vec![16], 0, vec![0; 64])]);
    let offset = good.len() - 64 - 32 + 1;
    for lie in [8_u64, 32, 1 << 40, u64::MAX - 31, u64::MAX] {
        let mut bytes = good.clone();
        // Magic to counts 24, name 9, rank 4, dimension 8, type 4.
        bytes[49..57].copy_from_slice(&lie.to_le_bytes());
        assert!(open(&bytes).is_err(), "{lie}, {offset}");
    }
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    let message = |bytes: &[u8]| open(bytes).expect_err("no model").to_string();
    assert!(message(b"").contains("empty"));
    assert!(message(b"PK\x03\x04 not a model at all").contains("not a GGUF file"));
    let mut bytes = sample();
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    assert!(message(&bytes).contains("version 1"));
    bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert!(message(&bytes).contains("big-endian"));
    let split = gguf_bytes(&[("split.count", Meta::U32(2))], &[]);
    assert!(message(&split).contains("--merge"));
    let twice = gguf_bytes(&[("a", Meta::U32(2)), ("a", Meta::U32(2))], &[]);
    assert!(message(&twice).contains("twice"));
    let unaligned = gguf_bytes(&[("general.alignment", Meta::U32(0))], &[]);
    assert!(message(&unaligned).contains("general.alignment"));
}

/// A sparse file of 16 TiB holds an array of bytes that would need 128 TiB, all of a process's addresses, in memory. The
/// allocation ended the process.
#[cfg(target_os = "linux")]
#[test]
fn arrays_that_need_more_memory_than_there_is_are_errors_that_name_them() {
    const COUNT: u64 = (1 << 44) - (1 << 16);
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend([0_u64, 1, 5].iter().flat_map(|number| number.to_le_bytes()));
    header.extend(b"bytes");
    // An array of u8.
    header.extend([9_u32, 0].iter().flat_map(|kind| kind.to_le_bytes()));
    header.extend(COUNT.to_le_bytes());
    let (_folder, path) = file("model.gguf", &header);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(header.len() as u64 + COUNT).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.array_len("bytes"), Some(COUNT as usize));
    let message = gguf.integers("bytes").unwrap_err().to_string();
    let expected = format!("out of memory: {} bytes for {COUNT} elements of 'bytes' of ", 8 * COUNT);
    assert!(message.contains(&expected) && message.contains("model.gguf"), "{message}");
}
