use super::*;
use crate::models::ModelFiles;

#[test]
fn folders_and_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ModelFiles::open_weights(path).map(|(config, _)| config);
    let error = |path: &Path| open(path).unwrap_err().to_string();
    assert!(error(&folder.path().join("absent")).contains("is not there"));
    assert!(error(folder.path()).contains("neither config.json nor a GGUF file"));
    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert!(error(folder.path()).contains("adapter"));

    let bytes = gguf_bytes(&llama_metadata(), &[]);
    std::fs::write(folder.path().join("one.gguf"), &bytes).unwrap();
    assert_eq!(open(folder.path()).unwrap().hidden, 8);
    assert_eq!(open(&folder.path().join("one.gguf")).unwrap().hidden, 8);
    std::fs::write(folder.path().join("two.GGUF"), &bytes).unwrap();
    assert!(error(folder.path()).contains("2 GGUF files"));

    // config.json makes it a Hugging Face folder, whatever else lies there.
    let config = r#"{"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 4, "vocab_size": 4}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    assert!(error(folder.path()).contains("model.safetensors"));
    write_safetensors(
        &folder.path().join("model.safetensors"),
        &[("a", DType::F32, vec![1], f32_bytes(&[1.0]))],
    );
    assert_eq!(open(folder.path()).unwrap().hidden, 4);
    let message = ModelFiles::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("no tokenizer.json"), "{message}");
}

#[test]
fn a_whole_gguf_opens() {
    let mut metadata = llama_metadata();
    metadata.extend([
        ("general.name", Meta::Text("Tiny")),
        ("general.source.huggingface.repository", Meta::Text("owner/tiny")),
        ("tokenizer.ggml.model", Meta::Text("gpt2")),
        ("tokenizer.ggml.tokens", Meta::Texts(["<s>", "a", "b", "ab", "c"].map(String::from).to_vec())),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["a b".into()])),
        ("tokenizer.ggml.eos_token_id", Meta::U32(0)),
        ("tokenizer.chat_template", Meta::Text("{{ messages[0].content }}{{ eos_token }}")),
    ]);
    let (_folder, path) = file("tiny-f32.gguf", &gguf_bytes(&metadata, &[]));
    let files = ModelFiles::open(&path).unwrap();
    assert_eq!((files.name.as_str(), files.base_model.as_deref()), ("tiny-f32", Some("owner/tiny")));
    assert_eq!(files.config.vocab, 5);
    let text =
        files.chat_template.unwrap().render(&[serde_json::json!({"content": "abc"})], None, true).unwrap();
    assert_eq!(text, "abc<s>");
    assert_eq!(files.tokenizer.encode("abc", true).unwrap(), [3, 4]);
    assert_eq!(files.tokenizer.eos_ids(), [0]);
}

/// `general.name` was stated as the base of adapters, which no tool finds again.
#[test]
fn the_base_of_a_gguf_file_is_the_repository_that_it_states() {
    let base = |file_name: &str, more: &[(&'static str, &'static str)]| {
        let mut metadata = llama_metadata();
        metadata.extend([
            ("tokenizer.ggml.model", Meta::Text("gpt2")),
            ("tokenizer.ggml.tokens", Meta::Texts(["<s>", "a", "b", "ab", "c"].map(String::from).to_vec())),
            ("tokenizer.ggml.merges", Meta::Texts(vec!["a b".into()])),
        ]);
        metadata.extend(more.iter().map(|&(key, text)| (key, Meta::Text(text))));
        let (_folder, path) = file(file_name, &gguf_bytes(&metadata, &[]));
        ModelFiles::open(&path).unwrap().base_model
    };
    let (title, parent) = ("general.name", "general.base_model.0.repo_url");
    let tiny = Some("owner/Tiny-1B".to_owned());
    assert_eq!(base("x.gguf", &[(title, "Tiny 1B 8k Mix1")]), None);
    assert_eq!(base("x.gguf", &[("general.source.url", "https://huggingface.co/owner/Tiny-1B")]), tiny);
    // Converters state the converted model as the base, or the model that it was trained from.
    let states = (parent, "https://huggingface.co/owner/Tiny-1B");
    assert_eq!(base("x.gguf", &[(title, "Tiny 1B"), states]), tiny);
    assert_eq!(base("Tiny-1B-Q4_K_M.gguf", &[states]), tiny);
    assert_eq!(base("Tiny-1B-Instruct-Q4_K_M.gguf", &[(title, "Tiny 1B Instruct"), states]), None);
    assert_eq!(base("x.gguf", &[("general.repo_url", "https://huggingface.co/owner")]), None);
}

#[test]
fn the_base_model_is_a_repository_name() {
    let (folder, path) = file("config.json", b"");
    write_safetensors(
        &folder.path().join("model.safetensors"),
        &[("a", DType::F32, vec![1], f32_bytes(&[1.0]))],
    );
    std::fs::write(
        folder.path().join("tokenizer.json"),
        r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#,
    )
    .unwrap();
    let base = |name: &str| {
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 4, "vocab_size": 4, "_name_or_path": "{name}"}}"#
        );
        std::fs::write(&path, config).unwrap();
        ModelFiles::open(folder.path()).unwrap().base_model
    };
    assert_eq!(base("meta-llama/Llama-3.2-1B").as_deref(), Some("meta-llama/Llama-3.2-1B"));
    for local in ["", "/home/someone/model", "./out/model", "../model", "a/b/c"] {
        assert_eq!(base(local), None, "{local}");
    }
}

#[test]
fn a_head_that_differs_from_the_embedding_is_used_though_it_is_tied() {
    let (folder, _) = file(
        "config.json",
        br#"{"model_type": "llama", "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 4, "vocab_size": 2, "tie_word_embeddings": true}"#,
    );
    let tied = |head: Option<(DType, Vec<u8>)>| {
        let embedding =
            ("model.embed_tokens.weight", DType::F32, vec![2, 2], f32_bytes(&[1.0, 2.0, 3.0, 4.0]));
        let mut tensors = vec![embedding];
        tensors.extend(head.map(|(dtype, bytes)| ("lm_head.weight", dtype, vec![2, 2], bytes)));
        write_safetensors(&folder.path().join("model.safetensors"), &tensors);
        ModelFiles::open_weights(folder.path()).unwrap().0.tie_embeddings
    };
    assert!(tied(None));
    assert!(tied(Some((DType::F32, f32_bytes(&[1.0, 2.0, 3.0, 4.0])))));
    let halves = [1.0, 2.0, 3.0, 4.0].map(|x| half::f16::from_f32(x).to_le_bytes()).concat();
    assert!(tied(Some((DType::F16, halves))));
    assert!(!tied(Some((DType::F32, f32_bytes(&[1.0, 2.0, 3.0, 5.0])))));
}

/// A header may claim any size. The sizes are compared with the weights before memory is allocated by them.
#[test]
fn sizes_that_only_a_header_claims_are_refused() {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 5, "max_position_embeddings": 1_000_000_000,
    });
    let f32s = |count: usize| f32_bytes(&vec![0.5; count]);
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let names = [
        ("model.embed_tokens.weight".to_owned(), vec![5, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
        ("lm_head.weight".to_owned(), vec![5, 8]),
        (layer("input_layernorm"), vec![8]),
        (layer("post_attention_layernorm"), vec![8]),
        (layer("self_attn.q_proj"), vec![8, 8]),
        (layer("self_attn.k_proj"), vec![4, 8]),
        (layer("self_attn.v_proj"), vec![4, 8]),
        (layer("self_attn.o_proj"), vec![8, 8]),
        (layer("mlp.gate_proj"), vec![16, 8]),
        (layer("mlp.up_proj"), vec![16, 8]),
        (layer("mlp.down_proj"), vec![8, 16]),
    ];
    let tensors: Vec<(&str, DType, Vec<usize>, Vec<u8>)> = names
        .iter()
        .map(|(name, shape)| (name.as_str(), DType::F32, shape.clone(), f32s(shape.iter().product())))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    let load = |key: &str, value: u64| {
        let mut changed = config.clone();
        changed[key] = value.into();
        std::fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
        let (config, weights) = ModelFiles::open_weights(folder.path())?;
        let device = crate::backend::Device::cpu(1)?;
        crate::models::Decoder::load(config, &weights, &device, DType::F32, &|_| {})
    };
    // The rotary tables are as long as the sequences, not as the context.
    load("max_position_embeddings", 1_000_000_000).unwrap();
    for (key, value, part) in [
        ("num_hidden_layers", 1_000_000_000, "expected 1 to 10000"),
        ("num_hidden_layers", 10_000, "10000 layers, but there are only 12 tensors"),
        ("num_hidden_layers", 2, "model.layers.1."),
        ("intermediate_size", 1_000_000_000, "[1000000000, 8]"),
        ("vocab_size", 1_000_000_000, "[1000000000, 8]"),
        ("hidden_size", 1_000_000_000, "1000000000"),
        ("head_dim", 1_000_000_000, "[2000000000, 8]"),
    ] {
        let message = load(key, value).unwrap_err().to_string();
        assert!(
            message.contains(part) && message.contains(&*folder.path().to_string_lossy()),
            "{key}: {message}"
        );
    }
}

#[test]
fn sizes_that_only_a_gguf_header_claims_are_refused() {
    for (key, value) in [("llama.block_count", 1_000_000_000), ("llama.context_length", u32::MAX)] {
        let mut metadata = llama_metadata();
        metadata.retain(|(name, _)| *name != key);
        metadata.push((key, Meta::U32(value)));
        let (_folder, path) = file("model.gguf", &gguf_bytes(&metadata, &[]));
        let message = ModelFiles::open_weights(&path).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains(&value.to_string()), "{message}");
    }
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n";
    let (_gguf, path) = file("model.gguf", pointer);
    let message = ModelFiles::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("model.gguf: is a pointer of Git LFS") && message.contains("git lfs pull"),
        "{message}"
    );
    let config =
        br#"{"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 4, "vocab_size": 4}"#;
    let (folder, _) = file("config.json", config);
    let weights = folder.path().join("model.safetensors");
    std::fs::write(&weights, pointer).unwrap();
    let error = || ModelFiles::open(folder.path()).unwrap_err().to_string();
    assert!(error().contains("model.safetensors: is a pointer of Git LFS"), "{}", error());
    write_safetensors(&weights, &[("a", DType::F32, vec![1], f32_bytes(&[1.0]))]);
    std::fs::write(folder.path().join("tokenizer.json"), pointer).unwrap();
    assert!(error().contains("tokenizer.json: is a pointer of Git LFS"), "{}", error());
}
