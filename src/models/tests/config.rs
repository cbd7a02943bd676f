use super::*;
use crate::models::gguf::Gguf;
use crate::models::{Architecture, ModelConfig, RopeScaling};

fn from_hf(json: &str) -> crate::Result<ModelConfig> {
    let (folder, _) = file("config.json", json.as_bytes());
    ModelConfig::from_hf(folder.path())
}

fn from_gguf(metadata: &[(&str, Meta)], tensors: &[GgufPart]) -> crate::Result<ModelConfig> {
    let (_folder, path) = file("model.gguf", &gguf_bytes(metadata, tensors));
    ModelConfig::from_gguf(&Gguf::open(&path)?)
}

/// The sizes that every configuration below shares, then further fields.
fn json(model_type: &str, further: &str) -> String {
    format!(
        r#"{{"model_type": "{model_type}", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100, "hidden_act": "silu"{further}}}"#
    )
}

#[test]
fn llama_of_transformers_4() {
    let further = r#", "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 131072,
        "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "pretraining_tp": 1,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}"#;
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        hidden: 64,
        layers: 3,
        heads: 8,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 96,
        vocab: 100,
        context: 131_072,
        rms_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        },
        sliding_window: None,
        tie_embeddings: true,
        attention_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
    };
    assert_eq!(from_hf(&json("llama", further)).unwrap(), expected);
}

#[test]
fn rope_parameters_of_transformers_5() {
    let with =
        |parameters: &str| from_hf(&json("llama", &format!(r#", "rope_parameters": {parameters}"#))).unwrap();
    let config = with(r#"{"rope_theta": 20000.0, "rope_type": "default"}"#);
    assert_eq!((config.rope_theta, config.rope_scaling), (20_000.0, RopeScaling::None));
    let config = with(r#"{"rope_theta": 20000.0, "rope_type": "linear", "factor": 4.0}"#);
    assert_eq!((config.rope_theta, config.rope_scaling), (20_000.0, RopeScaling::Linear(4.0)));
    let config = from_hf(&json("llama", r#", "rope_scaling": {"type": "linear", "factor": 2}"#)).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (10_000.0, RopeScaling::Linear(2.0)));
    let config = from_hf(&json("llama", r#", "rope_scaling": null, "rope_theta": 300"#)).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (300.0, RopeScaling::None));
}

#[test]
fn mistral_has_a_window_unless_it_is_null() {
    let config = from_hf(&json("mistral", r#", "sliding_window": 512, "head_dim": 16"#)).unwrap();
    assert_eq!(config.architecture, Architecture::Mistral);
    assert_eq!((config.sliding_window, config.head_dim), (Some(512), 16));
    assert!(!config.attention_bias && !config.output_bias && !config.tie_embeddings);
    assert_eq!(from_hf(&json("mistral", r#", "sliding_window": null"#)).unwrap().sliding_window, None);
    assert_eq!(from_hf(&json("mistral", "")).unwrap().sliding_window, Some(4096));
}

#[test]
fn qwen2_has_biases_on_q_k_v_only() {
    let further = r#", "use_sliding_window": false, "sliding_window": 32768, "tie_word_embeddings": true"#;
    let config = from_hf(&json("qwen2", further)).unwrap();
    assert!(config.attention_bias && !config.output_bias && !config.mlp_bias && !config.qk_norm);
    assert!(config.tie_embeddings);
    assert_eq!(config.sliding_window, None);
}

#[test]
fn qwen_windows_are_for_all_layers_or_none() {
    let with = |more: &str| {
        from_hf(&json("qwen2", &format!(r#", "use_sliding_window": true, "sliding_window": 9{more}"#)))
    };
    assert_eq!(with(r#", "max_window_layers": 0"#).unwrap().sliding_window, Some(9));
    assert_eq!(with(r#", "max_window_layers": 3"#).unwrap().sliding_window, None);
    assert!(with(r#", "max_window_layers": 2"#).unwrap_err().to_string().contains("all or none"));
    let all = r#", "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]"#;
    assert_eq!(with(all).unwrap().sliding_window, Some(9));
}

#[test]
fn qwen3_norms_heads_of_its_own_width() {
    let config = from_hf(&json("qwen3", r#", "head_dim": 32, "attention_bias": false"#)).unwrap();
    assert!(config.qk_norm && !config.attention_bias && !config.output_bias);
    assert_eq!(config.head_dim, 32);
    assert_eq!(from_hf(&json("qwen3", "")).unwrap().head_dim, 128);
    let config = from_hf(&json("qwen3", r#", "attention_bias": true"#)).unwrap();
    assert!(config.attention_bias && config.output_bias);
}

#[test]
fn what_is_not_supported_is_named() {
    for (text, expected) in [
        (json("gemma2", ""), "'gemma2' is not supported"),
        (json("llama", r#", "rope_scaling": {"type": "yarn", "factor": 4.0}"#), "'yarn'"),
        (json("llama", r#", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}"#), "'dynamic'"),
        (json("llama", r#", "rope_parameters": {"rope_type": "longrope"}"#), "'longrope'"),
        (
            json("llama", r#", "rope_parameters": {"full_attention": {"rope_type": "default"}}"#),
            "kind of layer",
        ),
        (json("llama", r#", "partial_rotary_factor": 0.5"#), "partial"),
        (json("llama", r#", "hidden_act": "gelu""#), "hidden_act"),
        (json("llama", r#", "quantization_config": {"quant_method": "awq", "bits": 4}"#), "by AWQ in 4 bits"),
        (json("llama", r#", "quantization_config": {"quant_method": "fp8"}"#), "by fp8, which"),
        (json("llama", r#", "quantization_config": {"load_in_4bit": true}"#), "by bitsandbytes"),
        (json("llama", r#", "quantization_config": {"group_size": 64, "bits": 4}"#), "by MLX in 4 bits"),
        (json("llama", r#", "quantization": {"group_size": 64, "bits": 8}"#), "by MLX in 8 bits"),
        (json("llama", r#", "quantization_config": {"quant_method": "gptq"}"#), "use the original model"),
        (json("gemma2", ""), "for example SmolLM2"),
        ("{".to_owned(), "line 1"),
        ("[]".to_owned(), "object"),
        ("{}".to_owned(), "model_type"),
        (json("llama", r#", "num_hidden_layers": null"#), "num_hidden_layers"),
    ] {
        let message = from_hf(&text).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("config.json"), "{message}");
    }
}

#[test]
fn values_out_of_range_are_named_with_their_key() {
    for (further, key) in [
        (r#", "hidden_size": 0"#, "hidden_size"),
        (r#", "hidden_size": -64"#, "hidden_size"),
        (r#", "hidden_size": 2.5"#, "hidden_size"),
        (r#", "vocab_size": 1000000000000"#, "vocab_size"),
        (r#", "num_attention_heads": 0"#, "heads"),
        (r#", "num_key_value_heads": 3"#, "num_key_value_heads"),
        (r#", "num_key_value_heads": 0"#, "num_key_value_heads"),
        (r#", "head_dim": 7"#, "head_dim"),
        (r#", "rms_norm_eps": 0"#, "rms_norm_eps"),
        (r#", "rms_norm_eps": "small""#, "rms_norm_eps"),
        (r#", "rope_theta": 0"#, "rope_theta"),
        (r#", "rope_scaling": {"rope_type": "linear", "factor": 0}"#, "rope_scaling"),
        (r#", "rope_scaling": {"rope_type": "linear"}"#, "rope_scaling.factor"),
        (r#", "max_position_embeddings": 0"#, "max_position_embeddings"),
        (r#", "tie_word_embeddings": 1"#, "tie_word_embeddings"),
    ] {
        let message = from_hf(&json("llama", further)).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("config.json"), "{message}");
    }
}

#[test]
fn gguf_metadata_and_tensors_make_the_configuration() {
    let embedding = ("token_embd.weight", vec![6, 8], 0, f32_bytes(&[0.0; 48]));
    let config = from_gguf(&llama_metadata(), std::slice::from_ref(&embedding)).unwrap();
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        hidden: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        intermediate: 16,
        // The embedding's rows, whatever the metadata says.
        vocab: 6,
        context: 64,
        rms_eps: f64::from(1e-5_f32),
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tie_embeddings: true,
        attention_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
    };
    assert_eq!(config, expected);

    let rename = |name: &'static str| -> Vec<(String, Meta)> {
        let named = llama_metadata()
            .into_iter()
            .map(|(key, value)| (key.replace("llama.", &format!("{name}.")), value));
        named
            .map(
                |(key, value)| {
                    if key == "general.architecture" { (key, Meta::Text(name)) } else { (key, value) }
                },
            )
            .collect()
    };
    let borrow = |owned: &[(String, Meta)]| -> crate::Result<ModelConfig> {
        let metadata: Vec<_> = owned.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let tensors = [
            embedding.clone(),
            ("output.weight", vec![6, 8], 0, f32_bytes(&[0.0; 48])),
            ("blk.0.attn_q.bias", vec![8], 0, f32_bytes(&[0.0; 8])),
            ("blk.0.attn_q_norm.weight", vec![4], 0, f32_bytes(&[0.0; 4])),
        ];
        from_gguf(&metadata, &tensors)
    };
    let config = borrow(&rename("qwen2")).unwrap();
    assert_eq!(config.architecture, Architecture::Qwen2);
    assert!(config.attention_bias && !config.tie_embeddings);
    let config = borrow(&rename("qwen3")).unwrap();
    assert!(config.architecture == Architecture::Qwen3 && config.qk_norm);
    let message = borrow(&rename("gemma")).unwrap_err().to_string();
    assert!(message.contains("'gemma' is not supported"), "{message}");
}

#[test]
fn gguf_rope_scaling() {
    let with = |further: &[(&'static str, Meta)], tensors: &[GgufPart]| {
        let mut metadata = llama_metadata();
        metadata.extend_from_slice(further);
        from_gguf(&metadata, tensors)
    };
    let scaling = |kind: &'static str, factor: f32| {
        [("llama.rope.scaling.type", Meta::Text(kind)), ("llama.rope.scaling.factor", Meta::F32(factor))]
    };
    assert_eq!(with(&scaling("linear", 4.0), &[]).unwrap().rope_scaling, RopeScaling::Linear(4.0));
    assert_eq!(with(&scaling("none", 1.0), &[]).unwrap().rope_scaling, RopeScaling::None);
    let message = with(&scaling("yarn", 4.0), &[]).unwrap_err().to_string();
    assert!(message.contains("'yarn'") && message.contains("llama.rope.scaling.type"), "{message}");
    let factors = ("rope_freqs.weight", vec![2], 0, f32_bytes(&[1.0, 8.0]));
    let config = with(&[], &[factors]).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Factors(vec![1.0, 8.0]));
    let (cos, _) = config.rope_tables(2);
    assert_eq!(cos[3], (0.01_f32 / 8.0).cos());
    let too_many = ("rope_freqs.weight", vec![3], 0, f32_bytes(&[1.0; 3]));
    assert!(with(&[], &[too_many]).is_err());
    assert!(with(&[("llama.expert_count", Meta::U32(8))], &[]).unwrap_err().to_string().contains("experts"));
    assert!(with(&[("llama.rope.dimension_count", Meta::U32(2))], &[]).is_err());
    assert!(with(&[("llama.attention.key_length", Meta::U32(0))], &[]).is_err());
}

/// Values of transformers' `LlamaRotaryEmbedding`, computed by its formula in f64 and rounded.
#[test]
fn rope_tables_hold_cosines_and_sines_of_the_angles() {
    let config = from_hf(&json("llama", "")).unwrap();
    let (cos, sin) = config.rope_tables(300);
    assert_eq!((cos.len(), sin.len()), (300 * 4, 300 * 4));
    assert_eq!((&cos[..4], &sin[..4]), (&[1.0; 4][..], &[0.0; 4][..]));
    for position in [1_usize, 17, 299] {
        for pair in 0..4 {
            let angle = position as f64 * 10_000_f64.powf(-2.0 * pair as f64 / 8.0);
            // The angle itself is rounded to f32: half a unit in the last place of up to 299.
            let tolerance = 2e-5;
            assert!((f64::from(cos[position * 4 + pair]) - angle.cos()).abs() < tolerance);
            assert!((f64::from(sin[position * 4 + pair]) - angle.sin()).abs() < tolerance);
        }
    }
}

#[test]
fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
    let further = r#", "head_dim": 64, "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}"#;
    let scaled = from_hf(&json("llama", further)).unwrap();
    let plain = ModelConfig { rope_scaling: RopeScaling::None, ..scaled.clone() };
    // The sine of a small angle is the angle: position 1 shows the frequencies.
    let ratio = |pair: usize| {
        let of = |config: &ModelConfig| f64::from(config.rope_tables(2).1[32 + pair]).asin();
        of(&plain) / of(&scaled)
    };
    assert!((ratio(4) - 1.0).abs() < 1e-6);
    assert!((ratio(30) - 8.0).abs() < 1e-5);
    // Pair 17: wavelength 2π·500000^(34/64) = 6697, between 2048 and 8192.
    let wavelength = 2.0 * std::f64::consts::PI * 500_000_f64.powf(34.0 / 64.0);
    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
    assert!((1.0 / ratio(17) - ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-5);
}
