use half::{bf16, f16};

use super::*;
use crate::models::Weights;
use crate::models::gguf::Gguf;
use crate::tensor::HostTensor;

fn values(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_f64().iter().map(|x| *x as f32).collect()
}

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

fn from_gguf(metadata: &[(&str, Meta)], tensors: &[GgufPart]) -> Weights {
    let (_folder, path) = file("model.gguf", &gguf_bytes(metadata, tensors));
    Weights::from_gguf(&Gguf::open(&path).unwrap()).unwrap()
}

#[test]
fn a_tensor_of_the_same_dtype_stays_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [0.5, -1.0, 2.0, 3.0];
    let tensors =
        [("a", DType::F32, vec![2, 2], f32_bytes(&rows)), ("b", DType::BF16, vec![4], bf16_bytes(&rows))];
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(weights.contains("a") && !weights.contains("c"));
    assert_eq!(weights.shape("a"), Some(&[2, 2][..]));
    assert_eq!(weights.storage("b").as_deref(), Some("bf16"));
    for (name, shape) in [("a", &[2, 2][..]), ("b", &[4][..])] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = weights.load(name, shape, dtype).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(values(&tensor), rows, "{name} as {dtype}");
            let stored = if name == "a" { DType::F32 } else { DType::BF16 };
            assert_eq!(tensor.is_mapped(), dtype == stored, "{name} as {dtype}");
        }
    }
}

#[test]
fn misaligned_tensors_are_copied() {
    // A header of odd length, which other writers produce.
    let mut header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_owned();
    while header.len() % 4 != 1 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(f32_bytes(&[1.5, -2.5]));
    let (folder, _) = file("model.safetensors", &bytes);
    let tensor = Weights::open(folder.path()).unwrap().load("a", &[2], DType::F32).unwrap();
    assert!(!tensor.is_mapped());
    assert_eq!(values(&tensor), [1.5, -2.5]);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(
        &path,
        &[("a", DType::F32, vec![2, 2], f32_bytes(&[0.0; 4])), ("n", DType::U32, vec![1], vec![0; 4])],
    );
    let weights = Weights::open(folder.path()).unwrap();
    let message = weights.load("lm_head.weight", &[2], DType::F32).unwrap_err().to_string();
    assert!(message.contains("'lm_head.weight'") && message.contains("missing"), "{message}");
    let message = weights.load("a", &[4], DType::F32).unwrap_err().to_string();
    assert!(
        message.contains("model.safetensors") && message.contains("[2, 2]") && message.contains("[4]"),
        "{message}"
    );
    let message = weights.load("n", &[1], DType::F32).unwrap_err().to_string();
    assert!(message.contains("stored as U32"), "{message}");
    assert!(weights.load("a", &[2, 2], DType::U32).is_err());
}

#[test]
fn values_that_are_not_finite_are_found_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = vec![0.25_f32; 3_000_000];
    rows[2_999_998] = f32::NAN;
    rows[2_999_999] = f32::INFINITY;
    let tensors = [
        ("nan", DType::F32, vec![3_000_000], f32_bytes(&rows)),
        ("inf", DType::BF16, vec![3], bf16_bytes(&[1.0, f32::NEG_INFINITY, 1.0])),
        ("large", DType::F32, vec![2], f32_bytes(&[1.0, 70_000.0])),
    ];
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    let weights = Weights::open(folder.path()).unwrap();
    let message = |name: &str, len: usize, dtype| weights.load(name, &[len], dtype).unwrap_err().to_string();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let text = message("nan", 3_000_000, dtype);
        assert!(text.contains("'nan'") && text.contains("NaN at element 2999998"), "{text}");
        let text = message("inf", 3, dtype);
        assert!(text.contains("'inf'") && text.contains("infinity at element 1"), "{text}");
    }
    let text = message("large", 2, DType::F16);
    assert!(text.contains("70000 at element 1") && text.contains("use bf16 or f32"), "{text}");
    assert_eq!(values(&weights.load("large", &[2], DType::F32).unwrap()), [1.0, 70_000.0]);
}

#[test]
fn truncated_and_lying_safetensors_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, &[("a", DType::F32, vec![2, 2], f32_bytes(&[0.0; 4]))]);
    let whole = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        let (folder, _) = file("model.safetensors", bytes);
        Weights::open(folder.path())
    };
    for len in 0..whole.len() {
        let error = open(&whole[..len]).expect_err("truncated");
        assert!(error.to_string().contains("fetch it again"), "{error}");
    }
    for header in [
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9999999999]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}"#,
        "[]",
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 16]);
        assert!(open(&bytes).is_err(), "{header}");
    }
    let mut bytes = whole.clone();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open(&bytes).is_err());
}

#[test]
fn shards_must_be_files_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(
        &folder.path().join("one.safetensors"),
        &[("a", DType::F32, vec![1], f32_bytes(&[1.0]))],
    );
    write_safetensors(
        &folder.path().join("two.safetensors"),
        &[("b", DType::F32, vec![1], f32_bytes(&[2.0]))],
    );
    let open = |weight_map: &str| {
        let index = format!(r#"{{"metadata":{{}},"weight_map":{weight_map}}}"#);
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        Weights::open(folder.path())
    };
    let weights = open(r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap();
    assert_eq!(values(&weights.load("b", &[1], DType::F32).unwrap()), [2.0]);
    for (weight_map, expected) in [
        (r#"{"a":"../one.safetensors"}"#, "no name of a file in this folder"),
        (r#"{"a":"/etc/passwd"}"#, "no name of a file in this folder"),
        (r#"{"a":"sub/one.safetensors"}"#, "no name of a file in this folder"),
        (r#"{"a":7}"#, "no name of a file in this folder"),
        (r#"{"a":"three.safetensors"}"#, "is not there"),
        (r#"[]"#, "weight_map"),
    ] {
        let message = open(weight_map).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    // An entry that its shard lacks is an error for whoever needs it only.
    let weights = open(r#"{"a":"one.safetensors","b":"one.safetensors"}"#).unwrap();
    assert_eq!(values(&weights.load("a", &[1], DType::F32).unwrap()), [1.0]);
    let message = weights.load("b", &[1], DType::F32).unwrap_err().to_string();
    assert!(
        message.contains("one.safetensors (tensor 'b')") && message.contains("fetch the model again"),
        "{message}"
    );
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a"]);
    let empty = tempfile::tempdir().unwrap();
    assert!(Weights::open(empty.path()).unwrap_err().to_string().contains("neither"));
    std::fs::write(empty.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(Weights::open(empty.path()).unwrap_err().to_string().contains("save_pretrained"));
}

/// llama.cpp's converter writes row `2i + j` of a head where transformers has row `j·d/2 + i`.
#[test]
fn rows_of_llama_heads_are_put_back_in_halves() {
    // Two query heads and one key head of width 4; each row of q holds its number in transformers.
    let q: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].iter().flat_map(|row| [*row as f32; 8]).collect();
    let k: Vec<f32> = [0, 2, 1, 3].iter().flat_map(|row| [*row as f32; 8]).collect();
    let bias: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| row as f32).to_vec();
    let tensors = [
        ("blk.0.attn_q.weight", vec![8, 8], 0, f32_bytes(&q)),
        ("blk.0.attn_q.bias", vec![8], 0, f32_bytes(&bias)),
        ("blk.0.attn_k.weight", vec![4, 8], 0, f32_bytes(&k)),
        ("blk.0.attn_v.weight", vec![4, 8], 0, f32_bytes(&k)),
        ("token_embd.weight", vec![5, 8], 0, f32_bytes(&[1.0; 40])),
        ("rope_freqs.weight", vec![2], 0, f32_bytes(&[1.0; 2])),
    ];
    let weights = from_gguf(&llama_metadata(), &tensors);
    let load = |name: &str, shape: &[usize]| values(&weights.load(name, shape, DType::F32).unwrap());
    let in_order = |rows: usize| (0..rows).flat_map(|row| [row as f32; 8]).collect::<Vec<_>>();
    assert_eq!(load("model.layers.0.self_attn.q_proj.weight", &[8, 8]), in_order(8));
    assert_eq!(
        load("model.layers.0.self_attn.q_proj.bias", &[8]),
        (0..8).map(|x| x as f32).collect::<Vec<_>>()
    );
    assert_eq!(load("model.layers.0.self_attn.k_proj.weight", &[4, 8]), in_order(4));
    assert_eq!(load("model.layers.0.self_attn.v_proj.weight", &[4, 8]), k);
    assert!(weights.contains("model.embed_tokens.weight") && weights.contains("rope_freqs.weight"));

    let mut qwen = llama_metadata();
    qwen[0].1 = Meta::Text("qwen2");
    let weights = from_gguf(&qwen, &tensors);
    let as_stored = weights.load("model.layers.0.self_attn.q_proj.weight", &[8, 8], DType::F32).unwrap();
    assert_eq!(values(&as_stored), q);
}

/// Blocks written by hand against the values that the format's definition gives.
#[test]
fn blocks_are_dequantised() {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    // Low nibbles are elements 0 to 15, high nibbles 16 to 31.
    let nibbles: Vec<u8> = (0..16_u8).map(|i| i | ((15 - i) << 4)).collect();
    let q = |i: usize| if i < 16 { i as f32 } else { (31 - i) as f32 };
    let q4_0 = [&half(0.5)[..], &nibbles].concat();
    let q4_1 = [&half(0.5)[..], &half(-3.0), &nibbles].concat();
    let q8_0 = [&half(0.25)[..], &(0..32_i8).map(|i| (i - 16) as u8).collect::<Vec<_>>()].concat();
    // The fifth bit of every element set.
    let q5_0 = [&half(0.5)[..], &[0xff; 4], &nibbles].concat();
    let q5_1 = [&half(0.5)[..], &half(1.0), &[0xff; 4], &nibbles].concat();
    let tensors = [
        ("q4_0", vec![1, 32], 2, q4_0),
        ("q4_1", vec![1, 32], 3, q4_1),
        ("q5_0", vec![1, 32], 6, q5_0),
        ("q5_1", vec![1, 32], 7, q5_1),
        ("q8_0", vec![1, 32], 8, q8_0),
        ("bad", vec![1, 32], 8, [&half(f32::INFINITY)[..], &[1; 32]].concat()),
        ("iq4", vec![1, 32], 20, vec![0; 18]),
    ];
    let weights = from_gguf(&[("general.architecture", Meta::Text("qwen2"))], &tensors);
    let load = |name: &str| values(&weights.load(name, &[1, 32], DType::F32).unwrap());
    let expected = |f: &dyn Fn(usize) -> f32| (0..32).map(f).collect::<Vec<_>>();
    assert_eq!(load("q4_0"), expected(&|i| (q(i) - 8.0) * 0.5));
    assert_eq!(load("q4_1"), expected(&|i| q(i) * 0.5 - 3.0));
    assert_eq!(load("q5_0"), expected(&|i| (q(i) + 16.0 - 16.0) * 0.5));
    assert_eq!(load("q5_1"), expected(&|i| (q(i) + 16.0) * 0.5 + 1.0));
    assert_eq!(load("q8_0"), expected(&|i| (i as f32 - 16.0) * 0.25));
    let message = |name: &str| weights.load(name, &[1, 32], DType::BF16).unwrap_err().to_string();
    assert!(message("bad").contains("infinity at element 0"));
    assert!(message("iq4").contains("IQ4_NL") && message("iq4").contains("not supported"));
}

/// Many blocks over several threads give what candle gives for the whole tensor.
#[test]
fn large_quantised_tensors_equal_candles() {
    use candle_core::quantized::{GgmlDType, QTensor};
    let (rows, columns) = (2200, 1024);
    let source: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919 % 4001) as f32 - 2000.0) / 900.0).collect();
    let source = candle_core::Tensor::from_vec(source, (rows, columns), &candle_core::Device::Cpu).unwrap();
    let kinds = [(8, GgmlDType::Q8_0), (12, GgmlDType::Q4K), (13, GgmlDType::Q5K), (14, GgmlDType::Q6K)];
    for (number, kind) in kinds {
        let quantised = QTensor::quantize(&source, kind).unwrap();
        let expected = quantised.dequantize(&candle_core::Device::Cpu).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let part = ("w", vec![rows as u64, columns as u64], number, quantised.data().unwrap().into_owned());
        let weights = from_gguf(&[("general.architecture", Meta::Text("qwen2"))], &[part]);
        let loaded = weights.load("w", &[rows, columns], DType::F32).unwrap();
        assert!(loaded.as_slice::<f32>().unwrap() == expected, "{kind:?}");
        let narrow = weights.load("w", &[rows, columns], DType::BF16).unwrap();
        let rounded = expected.iter().map(|x| bf16::from_f32(*x));
        assert!(narrow.as_slice::<bf16>().unwrap().iter().copied().eq(rounded), "{kind:?} as bf16");
    }
}

#[test]
fn a_stray_file_does_not_win_over_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: f32| {
        write_safetensors(&folder.path().join(name), &[("a", DType::F32, vec![1], f32_bytes(&[value]))]);
    };
    let loaded = || values(&Weights::open(folder.path()).unwrap().load("a", &[1], DType::F32).unwrap());
    write("model.safetensors", 1.0);
    write("model-00001-of-00001.safetensors", 2.0);
    assert_eq!(loaded(), [1.0]);
    let index = r#"{"weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(loaded(), [2.0]);
    // An index whose shards are all gone is what is left over.
    std::fs::remove_file(folder.path().join("model-00001-of-00001.safetensors")).unwrap();
    assert_eq!(loaded(), [1.0]);
}

#[test]
fn weights_of_a_bare_or_compiled_model_have_their_usual_names() {
    let open = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<_> =
            names.iter().map(|name| (*name, DType::F32, vec![1], f32_bytes(&[1.0]))).collect();
        write_safetensors(&folder.path().join("model.safetensors"), &tensors);
        Weights::open(folder.path()).unwrap()
    };
    let whole =
        ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.x.weight", "model.norm.weight"];
    let bare = open(&["embed_tokens.weight", "layers.0.x.weight", "lm_head.weight", "norm.weight"]);
    assert_eq!(bare.names().collect::<Vec<_>>(), whole);
    let compiled = [
        "_orig_mod.lm_head.weight",
        "_orig_mod.model.embed_tokens.weight",
        "model.layers.0._orig_mod.x.weight",
        "_orig_mod.model.norm.weight",
    ];
    assert_eq!(open(&compiled).names().collect::<Vec<_>>(), whole);
    assert_eq!(open(&whole).names().collect::<Vec<_>>(), whole);
    let message = bare.load("model.norm.weight", &[2], DType::F32).unwrap_err().to_string();
    assert!(message.contains("stored as 'norm.weight'"), "{message}");
}

#[test]
fn quantized_weights_are_named_for_what_they_are() {
    for (beside, expected) in [
        (&["scales", "biases"][..], "quantized by MLX"),
        (&["qweight", "qzeros", "scales", "g_idx"], "quantized by GPTQ"),
        (&["qweight", "qzeros", "scales"], "quantized by AWQ or GPTQ"),
        (&["weight.absmax", "weight.quant_state.bitsandbytes__nf4"], "quantized by bitsandbytes"),
        (&["weight_packed", "weight_scale"], "quantized by compressed-tensors"),
        (&["weight_scale_inv"], "quantized by fp8"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> =
            std::iter::once("weight").chain(beside.iter().copied()).map(|part| format!("x.{part}")).collect();
        let stored_elsewhere = beside.iter().any(|part| part.contains("qweight") || part.contains("packed"));
        let tensors: Vec<_> = names
            .iter()
            .filter(|name| !(stored_elsewhere && *name == "x.weight"))
            .map(|name| (name.as_str(), DType::U32, vec![1, 2], vec![0; 8]))
            .collect();
        write_safetensors(&folder.path().join("model.safetensors"), &tensors);
        let weights = Weights::open(folder.path()).unwrap();
        let message = weights.load("x.weight", &[1, 16], DType::F32).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("GGUF file"), "{message}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("model-{number:05}-of-00003.safetensors");
    let write = |number: usize| {
        let tensor = format!("t{number}");
        let tensors = [(tensor.as_str(), DType::F32, vec![1], f32_bytes(&[number as f32]))];
        write_safetensors(&folder.path().join(name(number)), &tensors);
    };
    let index = |shards: &[usize]| {
        let entries: Vec<String> = shards.iter().map(|n| format!(r#""t{n}": "{}""#, name(*n))).collect();
        let text = format!(r#"{{"weight_map": {{{}}}}}"#, entries.join(", "));
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    let error = || Weights::open(folder.path()).unwrap_err().to_string();
    write(1);
    write(3);
    // Without an index, with one that names the file, and with one that does without it.
    let text = error();
    assert!(
        text.contains(&name(2)) && text.contains("is missing, though") && text.contains("index.json"),
        "{text}"
    );
    index(&[1, 2, 3]);
    let text = error();
    assert!(text.contains(&name(2)) && text.contains("is not there"), "{text}");
    index(&[1, 3]);
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(values(&weights.load("t3", &[1], DType::F32).unwrap()), [3.0]);
    let text = weights.load("t2", &[1], DType::F32).unwrap_err().to_string();
    assert!(text.contains(&format!("{} (tensor 't2')", name(2))) && text.contains("missing"), "{text}");
    // A complete model needs no index.
    std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    write(2);
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["t1", "t2", "t3"]);
    assert_eq!(values(&weights.load("t2", &[1], DType::F32).unwrap()), [2.0]);
    let twice = [("t1", DType::F32, vec![1], f32_bytes(&[5.0]))];
    std::fs::remove_file(folder.path().join(name(3))).unwrap();
    write_safetensors(&folder.path().join(name(3)), &twice);
    let text = error();
    assert!(text.contains(&format!("{} (t1)", name(3))) && text.contains("earlier file"), "{text}");
}

#[test]
fn weights_that_are_stored_otherwise_come_with_advice() {
    for (file, advice) in [
        ("tiny-q8_0.gguf", "pass that file instead of the folder"),
        ("pytorch_model-00001-of-00002.bin", "safe_serialization=True"),
        ("consolidated.00.pth", "safe_serialization=True"),
        ("weights.safetensors", "rename it to model.safetensors"),
        ("readme.txt", "is the download complete?"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), "x").unwrap();
        let text = Weights::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains(advice) && text.contains(file) == (file != "readme.txt"), "{text}");
    }
}

/// A split model gives the same tensors as one file, whichever of its files is opened.
#[test]
fn a_split_gguf_is_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let part = |number: u32| folder.path().join(format!("tiny-{number:05}-of-00002.gguf"));
    let write = |number: u32, of: u32, tensors: &[GgufPart]| {
        let mut metadata = if number == 1 { llama_metadata() } else { Vec::new() };
        metadata.push(("split.no", Meta::U32(number - 1)));
        metadata.push(("split.count", Meta::U32(of)));
        metadata.push(("split.tensors.count", Meta::I32(3)));
        drop(std::fs::remove_file(part(number)));
        std::fs::write(part(number), gguf_bytes(&metadata, tensors)).unwrap();
    };
    let embedding = ("token_embd.weight", vec![5, 8], 0, f32_bytes(&[1.5; 40]));
    let norm = ("output_norm.weight", vec![8], 0, f32_bytes(&[2.5; 8]));
    let factors = ("rope_freqs.weight", vec![2], 0, f32_bytes(&[4.0, 8.0]));
    write(1, 2, std::slice::from_ref(&embedding));
    let text = Weights::open(&part(1)).unwrap_err().to_string();
    assert!(text.contains("tiny-00002-of-00002.gguf: is missing"), "{text}");
    write(2, 2, &[norm.clone(), factors]);
    for opened in [part(1), part(2), folder.path().to_owned()] {
        let (config, weights) = crate::models::ModelFiles::open_weights(&opened).unwrap();
        assert_eq!(config.rope_scaling, crate::models::RopeScaling::Factors(vec![4.0, 8.0]));
        assert_eq!(values(&weights.load("model.norm.weight", &[8], DType::F32).unwrap()), [2.5; 8]);
        assert_eq!(
            values(&weights.load("model.embed_tokens.weight", &[5, 8], DType::F32).unwrap()),
            [1.5; 40]
        );
        assert_eq!(weights.path(), part(1));
    }
    let error = || Weights::open(&part(1)).unwrap_err().to_string();
    write(2, 2, std::slice::from_ref(&norm));
    assert!(error().contains("(split.tensors.count): is 3, but the 2 files hold 2 tensors"), "{}", error());
    write(2, 2, std::slice::from_ref(&embedding));
    assert!(error().contains("tiny-00002-of-00002.gguf (token_embd.weight)"), "{}", error());
    write(2, 3, &[norm]);
    assert!(error().contains("is not file 2 of 2"), "{}", error());
    let renamed = folder.path().join("part.gguf");
    std::fs::copy(part(1), &renamed).unwrap();
    let text = Weights::open(&renamed).unwrap_err().to_string();
    assert!(
        text.contains("part.gguf") && text.contains("-00001-of-00002.gguf") && text.contains("--merge"),
        "{text}"
    );
}
