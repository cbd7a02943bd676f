use super::*;
use crate::models::Tokenizer;
use crate::models::gguf::Gguf;

/// The letters that stand for the bytes in byte-level BPE.
fn byte_letters() -> Vec<String> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut shifted = 256;
    let mut letter = |b: u32| {
        let code = if printable(b) {
            b
        } else {
            shifted += 1;
            shifted - 1
        };
        char::from_u32(code).unwrap().to_string()
    };
    (0..256).map(&mut letter).collect()
}

/// A byte-level tokenizer: three special tokens, the bytes, and some merges.
fn byte_level(pre: &'static str, further: &[(&'static str, Meta)]) -> Vec<(&'static str, Meta)> {
    let mut tokens: Vec<String> =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"].map(String::from).to_vec();
    tokens.extend(byte_letters());
    tokens.extend(["he", "ll", "hell", "hello", "Ġw", "12", "123"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[..4].copy_from_slice(&[3, 3, 3, 4]);
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3"].map(String::from).to_vec();
    let mut metadata = vec![
        ("tokenizer.ggml.model", Meta::Text("gpt2")),
        ("tokenizer.ggml.pre", Meta::Text(pre)),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::I32s(types)),
        ("tokenizer.ggml.merges", Meta::Texts(merges)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ];
    for (key, value) in further {
        metadata.retain(|(existing, _)| existing != key);
        metadata.push((key, value.clone()));
    }
    metadata
}

fn from_gguf(metadata: &[(&str, Meta)]) -> crate::Result<Tokenizer> {
    let (_folder, path) = file("model.gguf", &gguf_bytes(metadata, &[]));
    Tokenizer::from_gguf(&Gguf::open(&path)?)
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text, "round trip");
    ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect()
}

#[test]
fn numbers_are_split_as_the_pre_tokenizer_says() {
    let split = |pre| tokens(&from_gguf(&byte_level(pre, &[])).unwrap(), "hello 1234");
    assert_eq!(split("gpt-2"), ["hello", "Ġ", "123", "4"]);
    assert_eq!(split("smollm"), ["hello", "Ġ", "1", "2", "3", "4"]);
    assert_eq!(split("qwen2"), ["hello", "Ġ", "1", "2", "3", "4"]);
    assert_eq!(split("llama-bpe"), ["hello", "Ġ", "123", "4"]);
    // A file that does not say how it is split is split as by GPT-2, with a warning.
    assert_eq!(split("default"), ["hello", "Ġ", "123", "4"]);
    let mut silent = byte_level("gpt-2", &[]);
    silent.retain(|(key, _)| *key != "tokenizer.ggml.pre");
    assert_eq!(tokens(&from_gguf(&silent).unwrap(), "hello 1234"), ["hello", "Ġ", "123", "4"]);
    let message = from_gguf(&byte_level("jina-v2-de", &[])).unwrap_err().to_string();
    assert!(message.contains("'jina-v2-de'") && message.contains("Hugging Face folder"), "{message}");
}

#[test]
fn special_tokens_in_a_text_become_their_ids() {
    let tokenizer = from_gguf(&byte_level("smollm", &[])).unwrap();
    let ids = tokenizer.encode("<|im_start|>hello<|im_end|><tool>", false).unwrap();
    assert_eq!(ids, [1, tokenizer.id("hello").unwrap(), 2, 3]);
    // Control tokens are left out of the text, tokens of users are not.
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hello<tool>");
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<|im_start|>"), Some("<|im_end|>")));
    assert_eq!(tokenizer.vocab_size(), 4 + 256 + 7);
    assert_eq!(tokenizer.decode(&[9999]).unwrap(), "");
}

#[test]
fn the_first_token_is_added_where_the_model_wants_it() {
    let with = |pre, further: &[(&'static str, Meta)]| {
        from_gguf(&byte_level(pre, further)).unwrap().encode("he", true).unwrap()
    };
    let he = 260;
    assert_eq!(with("smollm", &[]), [he]);
    assert_eq!(with("llama-bpe", &[]), [1, he]);
    assert_eq!(with("llama-bpe", &[("tokenizer.ggml.add_bos_token", Meta::Bool(false))]), [he]);
    let both = [
        ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Meta::Bool(true)),
    ];
    assert_eq!(with("smollm", &both), [1, he, 2]);
}

#[test]
fn streams_give_text_once_its_characters_are_complete() {
    let tokenizer = from_gguf(&byte_level("smollm", &[])).unwrap();
    let text = "hello wörld €🙂 123";
    let ids = tokenizer.encode(text, false).unwrap();
    let mut stream = tokenizer.decode_stream();
    let mut pieces = Vec::new();
    for id in &ids {
        if let Some(piece) = stream.push(*id).unwrap() {
            assert!(!piece.contains('\u{fffd}'), "{piece:?}");
            pieces.push(piece);
        }
    }
    assert_eq!(stream.finish().unwrap(), None);
    assert_eq!(pieces.concat(), text);
    assert!(pieces.contains(&"🙂".to_owned()));
}

#[test]
fn streams_do_not_wait_for_damaged_characters_for_ever() {
    let tokenizer = from_gguf(&byte_level("smollm", &[])).unwrap();
    // Byte 0x80 begins no character.
    let damaged = tokenizer.id(&byte_letters()[0x80]).unwrap();
    let mut stream = tokenizer.decode_stream();
    let shown: Vec<_> = (0..20).filter_map(|_| stream.push(damaged).unwrap()).collect();
    assert!(!shown.is_empty() && shown.concat().chars().all(|c| c == '\u{fffd}'));
    // The half of a character at the end comes out as damaged text.
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(tokenizer.id(&byte_letters()[0xe2]).unwrap()).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
}

#[test]
fn damaged_gguf_tokenizers_are_errors() {
    for (key, value, expected) in [
        ("tokenizer.ggml.model", Meta::Text("bert"), "'bert'"),
        ("tokenizer.ggml.tokens", Meta::Texts(Vec::new()), "no tokenizer"),
        ("tokenizer.ggml.tokens", Meta::U32(1), "expected an array"),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![1, 2]), "2 entries"),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["h e".into(), "hello hello".into()]), "merge 1"),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["he".into()]), "no pair"),
        ("tokenizer.ggml.eos_token_id", Meta::U32(1 << 20), "tokenizer.ggml.eos_token_id"),
    ] {
        let message = from_gguf(&byte_level("smollm", &[(key, value)])).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("model.gguf"), "{message}");
    }
}

fn sentence_piece() -> Vec<(&'static str, Meta)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let pieces = ["▁hello", "▁he", "llo", "▁h", "ll", "lo", "▁", "h", "e", "l", "o"];
    tokens.extend(pieces.map(String::from));
    types.extend([1; 11]);
    // The longer pieces are worse here, as in real vocabularies: they were found later.
    let mut scores = vec![0.0; 259];
    scores.extend([-6.0, -3.0, -5.0, -1.0, -2.0, -4.0, -7.0, -8.0, -9.0, -10.0, -11.0]);
    vec![
        ("tokenizer.ggml.model", Meta::Text("llama")),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::I32s(types)),
        ("tokenizer.ggml.scores", Meta::F32s(scores)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ]
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = from_gguf(&sentence_piece()).unwrap();
    assert_eq!(tokens(&tokenizer, "hello"), ["▁hello"]);
    // ▁h, ll, ▁he come first by score; then "lo" has no free l left.
    assert_eq!(tokens(&tokenizer, "hell hlo"), ["▁he", "ll", "▁h", "lo"]);
    assert_eq!(tokens(&tokenizer, "hé"), ["▁h", "<0xC3>", "<0xA9>"]);
    let ids = tokenizer.encode("hello</s>", true).unwrap();
    assert_eq!(ids, [1, tokenizer.id("▁hello").unwrap(), 2]);
    let mut stream = tokenizer.decode_stream();
    let ids = tokenizer.encode("hello hello é", false).unwrap();
    let pieces: Vec<_> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces.concat(), "hello hello é");
}

fn tokenizer_json() -> serde_json::Value {
    serde_json::json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 1, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<s>": 0, "<|im_end|>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "abab": 6}, "merges": [["a", "b"], ["ab", "ab"]]}
    })
}

#[test]
fn tokenizer_json_with_its_post_processor_and_end_tokens() {
    let (folder, path) = file("tokenizer.json", tokenizer_json().to_string().as_bytes());
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [5, 3]}"#).unwrap();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    // The file's truncation to 2 tokens is for training; it does not apply here.
    assert_eq!(tokenizer.encode("abab ab", true).unwrap(), [0, 6, 5, 4]);
    assert_eq!(tokenizer.encode("abab ab", false).unwrap(), [6, 5, 4]);
    assert_eq!(tokenizer.eos_ids(), [5, 3, 1]);
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<s>"), Some("<|im_end|>")));

    let mut damaged = tokenizer_json();
    damaged["model"]["merges"][1] = serde_json::json!(["abab", "abab"]);
    std::fs::write(&path, damaged.to_string()).unwrap();
    let message = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("merge 1"), "{message}");
    std::fs::write(&path, r#"{"model": {"type": "Nonsense"}}"#).unwrap();
    assert!(Tokenizer::from_folder(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    assert!(Tokenizer::from_folder(folder.path()).unwrap_err().to_string().contains("save_pretrained"));
}

/// A folder with the tokenizer above and further files.
fn folder_with(post_processor: bool, files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let mut json = tokenizer_json();
    if !post_processor {
        json["post_processor"] = serde_json::Value::Null;
    }
    let (folder, _) = file("tokenizer.json", json.to_string().as_bytes());
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn from_files(post_processor: bool, files: &[(&str, serde_json::Value)]) -> Tokenizer {
    Tokenizer::from_folder(folder_with(post_processor, files).path()).unwrap()
}

#[test]
fn flags_replace_the_post_processor_of_the_classes_that_obey_them() {
    let encode = |post_processor: bool, class: &str, flags: serde_json::Value| {
        let mut settings = flags;
        settings["bos_token"] = "<s>".into();
        settings["eos_token"] = "<|im_end|>".into();
        settings["tokenizer_class"] = class.into();
        let tokenizer = from_files(post_processor, &[("tokenizer_config.json", settings)]);
        tokenizer.encode("ab", true).unwrap()
    };
    let flag = |value: serde_json::Value| serde_json::json!({"add_bos_token": value});
    for class in ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizerFast", "CohereTokenizer"] {
        assert_eq!(encode(false, class, flag(true.into())), [0, 4], "{class}");
        assert_eq!(encode(true, class, flag(false.into())), [4], "{class}");
        // Only the other flag: these classes add a first token by default.
        let last = serde_json::json!({"add_eos_token": true});
        assert_eq!(encode(false, class, last), [0, 4, 1], "{class}");
        assert_eq!(encode(true, class, flag(serde_json::Value::Null)), [0, 4], "{class}");
    }
    for class in ["PreTrainedTokenizerFast", "Qwen2TokenizerFast", ""] {
        assert_eq!(encode(true, class, flag(false.into())), [0, 4], "{class}");
        assert_eq!(encode(false, class, flag(true.into())), [4], "{class}");
    }
    let refused = |settings: serde_json::Value| {
        let folder = folder_with(true, &[("tokenizer_config.json", settings)]);
        Tokenizer::from_folder(folder.path()).unwrap_err().to_string()
    };
    let llama = |further: &str| {
        serde_json::from_str(&format!(r#"{{"tokenizer_class": "LlamaTokenizer", {further}}}"#)).unwrap()
    };
    let message = refused(llama(r#""add_bos_token": "yes""#));
    assert!(message.contains("tokenizer_config.json (add_bos_token): is \"yes\""), "{message}");
    let message = refused(llama(r#""add_bos_token": true, "bos_token": "<nowhere>""#));
    assert!(message.contains("(bos_token): is '<nowhere>', which is not in the vocabulary"), "{message}");
    // A flag without a token adds nothing, as in transformers.
    let tokenizer = from_files(true, &[("tokenizer_config.json", llama(r#""add_bos_token": true"#))]);
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [4]);
}

#[test]
fn special_tokens_come_from_every_file_that_names_them() {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let names = |tokenizer: &Tokenizer| {
        (tokenizer.bos_token().map(str::to_owned), tokenizer.eos_token().map(str::to_owned))
    };
    let pair = |bos: &str, eos: &str| (Some(bos.to_owned()), Some(eos.to_owned()));
    let map =
        ("special_tokens_map.json", json(r#"{"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>"}"#));
    let only_map = from_files(true, std::slice::from_ref(&map));
    assert_eq!(names(&only_map), pair("<s>", "<|im_end|>"));
    assert_eq!(only_map.eos_ids(), [1]);
    // Without added_tokens_decoder the map wins; with it the configuration does.
    let settings = |more: &str| {
        ("tokenizer_config.json", json(&format!(r#"{{"eos_token": "<s>", "bos_token": null{more}}}"#)))
    };
    assert_eq!(names(&from_files(true, &[settings(""), map.clone()])), pair("<s>", "<|im_end|>"));
    let newer = from_files(true, &[settings(r#", "added_tokens_decoder": {}"#), map]);
    assert_eq!(names(&newer), (None, Some("<s>".to_owned())));

    // A token of the vocabulary that is only listed becomes whole and special.
    let listed = ("special_tokens_map.json", json(r#"{"additional_special_tokens": ["abab"]}"#));
    let tokenizer = from_files(false, &[listed]);
    assert_eq!(tokenizer.encode("aabab", false).unwrap(), [2, 6]);
    assert_eq!(tokenizer.decode(&[2, 6]).unwrap(), "a");

    // Added tokens extend the vocabulary at their ids; one whose id is another's is left out.
    let added = json(r#"{"<tool>": 7, "<call>": 8, "<wrong>": 40}"#);
    let special = json(r#"{"additional_special_tokens": ["<call>"]}"#);
    let tokenizer = from_files(false, &[("added_tokens.json", added), ("special_tokens_map.json", special)]);
    assert_eq!(tokenizer.encode("a<tool><call>", false).unwrap(), [2, 7, 8]);
    assert_eq!(tokenizer.decode(&[7, 8]).unwrap(), "<tool>");
    assert_eq!((tokenizer.id("<wrong>"), tokenizer.vocab_size()), (None, 9));
    let decoder = json(r#"{"added_tokens_decoder": {"7": {"content": "<tool>", "special": true}}}"#);
    let tokenizer = from_files(false, &[("tokenizer_config.json", decoder)]);
    assert_eq!(tokenizer.encode("a<tool>", false).unwrap(), [2, 7]);
    assert_eq!(tokenizer.decode(&[2, 7]).unwrap(), "a");

    for (name, text, expected) in [
        ("added_tokens.json", r#"{"<tool>": -1}"#, "added_tokens.json (token '<tool>'): has id -1"),
        ("added_tokens.json", r#"["<tool>"]"#, "must be a JSON object"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "'x'"),
    ] {
        let folder = folder_with(true, &[(name, json(text))]);
        let message = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    // A byte-order mark is no reason to fail.
    let folder = folder_with(true, &[]);
    std::fs::write(folder.path().join("tokenizer_config.json"), "\u{feff}{\"bos_token\": \"<s>\"}").unwrap();
    assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().bos_token(), Some("<s>"));
}

#[test]
fn end_ids_that_are_no_tokens_are_ignored() {
    let ids = serde_json::json!({"eos_token_id": [-1, 1, 4_294_967_295_u32, 700, "x"]});
    assert_eq!(from_files(true, &[("generation_config.json", ids)]).eos_ids(), [1]);
    assert_eq!(
        from_files(true, &[("config.json", serde_json::json!({"eos_token_id": null}))]).eos_ids(),
        [1]
    );
}

#[test]
fn a_prompt_never_ends_with_an_end_token() {
    let flags = [
        ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Meta::Bool(true)),
    ];
    let tokenizer = from_gguf(&byte_level("smollm", &flags)).unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap(), [1, 260, 2]);
    assert_eq!(tokenizer.encode_prompt("he").unwrap(), [1, 260]);
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [1]);
    // What the user wrote stays.
    assert_eq!(tokenizer.encode_prompt("he<|im_end|>").unwrap(), [1, 260, 2]);
    let settings = serde_json::json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>",
        "eos_token": "<|im_end|>", "add_eos_token": true});
    let tokenizer = from_files(false, &[("tokenizer_config.json", settings)]);
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [0, 4, 1]);
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [0, 4]);
}

#[test]
fn ids_of_a_gguf_file_that_mean_none_are_none() {
    for none in [Meta::I32(-1), Meta::U32(u32::MAX)] {
        let further = [
            ("tokenizer.ggml.bos_token_id", none.clone()),
            ("tokenizer.ggml.eos_token_id", none.clone()),
            ("tokenizer.ggml.eot_token_id", none.clone()),
            ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ];
        let tokenizer = from_gguf(&byte_level("smollm", &further)).unwrap();
        assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (None, None));
        assert_eq!(tokenizer.encode("he", true).unwrap(), [260]);
        // The turn's end is known by its name.
        assert_eq!(tokenizer.eos_ids(), [2, 0]);
    }
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        let mut metadata = byte_level("smollm", &[]);
        metadata.retain(|(name, _)| *name != key);
        let mut metadata: Vec<(&str, Meta)> = metadata;
        metadata.push((&key, Meta::U32(267)));
        let message = from_gguf(&metadata).unwrap_err().to_string();
        assert!(message.contains(&key) && message.contains("is 267, but there are 267 tokens"), "{message}");
    }
    let mut ends = byte_level("smollm", &[("tokenizer.ggml.eom_token_id", Meta::U32(3))]);
    ends.push(("tokenizer.ggml.eot_token_id", Meta::U32(0)));
    assert_eq!(from_gguf(&ends).unwrap().eos_ids(), [2, 0, 3]);
    // SentencePiece files without ids have them at their usual places.
    let mut metadata = sentence_piece();
    metadata.retain(|(key, _)| !key.ends_with("_token_id"));
    let tokenizer = from_gguf(&metadata).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<s>"), Some("</s>")));
}

#[test]
fn a_gguf_tokenizer_written_as_json_adds_the_same_tokens() {
    let flags = [
        ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Meta::Bool(true)),
    ];
    let mut sentence_piece = sentence_piece();
    sentence_piece.push(("tokenizer.ggml.add_eos_token", Meta::Bool(true)));
    for metadata in [byte_level("llama-bpe", &flags), byte_level("smollm", &[]), sentence_piece] {
        let tokenizer = from_gguf(&metadata).unwrap();
        let (folder, _) = file("tokenizer.json", tokenizer.to_json().unwrap().as_bytes());
        let written = Tokenizer::from_folder(folder.path()).unwrap();
        for text in ["hello 12", "he<|im_start|>"] {
            assert_eq!(written.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap(), "{text}");
        }
    }
}

/// Each of these makes the tokenizers crate panic or fill the memory, when it reads the file, encodes or decodes.
#[test]
fn tokenizers_that_panic_are_errors_that_name_the_file() {
    let bos = serde_json::json!({"SpecialToken": {"id": "<absent>", "type_id": 0}});
    let doubled = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let strip = |start: usize, stop: usize| serde_json::json!({"type": "Strip", "content": "a", "start": start, "stop": stop});
    let cases = [
        ("/post_processor/single/0", bos),
        ("/normalizer", serde_json::json!({"type": "Prepend", "prepend": ""})),
        ("/normalizer", serde_json::json!({"type": "Sequence", "normalizers": vec![doubled.clone(); 60]})),
        ("/decoder", serde_json::json!({"type": "Sequence", "decoders": vec![doubled; 60]})),
        ("/decoder", strip(9, 0)),
        ("/decoder", strip(0, 9)),
        ("/decoder", strip(1, 1)),
        (
            "/decoder",
            serde_json::json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        ),
        ("/model/continuing_subword_prefix", serde_json::json!("##")),
        ("/model/continuing_subword_prefix", serde_json::json!("é")),
        ("/model/vocab/a", serde_json::json!(u32::MAX)),
        ("/model/vocab/ab", serde_json::json!(1_000_000_000)),
        ("/added_tokens/1/id", serde_json::json!(u32::MAX)),
        ("/added_tokens/1/content", serde_json::json!("")),
        ("/model/unk_token", serde_json::json!("<absent>")),
    ];
    for (place, value) in cases {
        let mut json = tokenizer_json();
        *json.pointer_mut(place).unwrap() = value;
        let (folder, _) = file("tokenizer.json", json.to_string().as_bytes());
        let run = || -> crate::Result<()> {
            let tokenizer = Tokenizer::from_folder(folder.path())?;
            let all: Vec<u32> = (0..7).collect();
            for text in ["", "a", "abab é ab<|im_end|>\u{10ffff}"] {
                let ids = tokenizer.encode(text, true)?;
                tokenizer.encode_prompt(text)?;
                tokenizer.decode(&ids)?;
            }
            let mut stream = tokenizer.decode_stream();
            for id in all.iter().copied().chain([1_000_000_000, u32::MAX]) {
                tokenizer.decode(&[id])?;
                stream.push(id)?;
            }
            stream.finish()?;
            tokenizer.decode(&all)?;
            tokenizer.to_json().map(drop)
        };
        match run() {
            Ok(()) => {}
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.contains("tokenizer.json") || message.starts_with("encode"),
                    "{place}: {message}"
                );
            }
        }
    }
}
