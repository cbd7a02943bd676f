use super::*;

fn read(text: &str) -> Result<TrainFlags, Failure> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Ok(crate::config_file::read(file.path())?.flags)
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = read("rank = 4\nlearning-rate = 5e-4\ntargets = \"q_proj, v_proj\"\n").unwrap();
    let flags = TrainFlags { rank: Some(32), ..TrainFlags::default() };
    let settings = flags.over(file).with_defaults().with_steps(100).unwrap();
    assert_eq!((settings.rank, settings.learning_rate, settings.steps), (Some(32), Some(5e-4), Some(13)));
    assert_eq!(settings.lora().unwrap().targets, Targets::List(vec!["q_proj".into(), "v_proj".into()]));
    let text = toml::to_string(&settings).unwrap();
    assert_eq!(read(&text).unwrap(), settings);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let failure = read("rank = 4\nlerning-rate = 5e-4\n").unwrap_err();
    assert!(failure.cause.ends_with("(line 2): 'lerning-rate': is not a setting"), "{failure:?}");
    assert_eq!(failure.advice, "did you mean 'learning-rate'?");
    assert!(read("rank = \"x\"").unwrap_err().cause.contains("(line 1): 'rank': invalid type"));
    assert!(read("rank = 4\nalpha = \n").unwrap_err().cause.contains("(line 2): is not valid TOML"));
}

#[test]
fn a_flag_replaces_what_the_file_says_in_other_words() {
    let file = read("steps = 100\nwarmup = 5\nlayers = \"0-3\"\n").unwrap();
    let flags = TrainFlags {
        epochs: Some(2.0),
        warmup_ratio: Some(0.1),
        num_layers: Some(2),
        ..TrainFlags::default()
    };
    let settings = flags.over(file).with_defaults().with_steps(80).unwrap().with_layers(6).unwrap();
    assert_eq!((settings.steps, settings.epochs, settings.warmup), (Some(20), None, Some(2)));
    assert_eq!(settings.layers.as_deref(), Some("4-5"));
}

#[test]
fn iterations_are_batches_and_steps_are_updates() {
    let flags = TrainFlags { iters: Some(600), accumulation: Some(4), ..TrainFlags::default() };
    assert_eq!(flags.with_defaults().with_steps(10).unwrap().steps, Some(150));
    let none = TrainFlags { num_layers: Some(-1), ..TrainFlags::default() };
    assert_eq!(none.with_layers(6).unwrap().layers, None);
    let many = TrainFlags { num_layers: Some(7), ..TrainFlags::default() };
    assert_eq!(many.with_layers(6).unwrap_err().cause, "num-layers: is 7, but the model has 6 layers");
}

#[test]
fn patterns_layers_and_choices() {
    let settings = TrainFlags {
        rank_pattern: Some("down_proj=4".into()),
        layers: Some("0-2, 7".into()),
        targets: Some("regex:.*q_proj".into()),
        ..TrainFlags::default()
    };
    let lora = settings.lora().unwrap();
    assert_eq!(lora.rank_pattern, [("down_proj".to_owned(), 4)]);
    assert_eq!(lora.layers, Some(vec![0, 1, 2, 7]));
    assert_eq!(lora.targets, Targets::Regex(".*q_proj".into()));
    for bad in [
        TrainFlags { rank_pattern: Some("x".into()), ..TrainFlags::default() },
        TrainFlags { rank_pattern: Some("x=0.5".into()), ..TrainFlags::default() },
        TrainFlags { layers: Some("5-2".into()), ..TrainFlags::default() },
    ] {
        assert!(bad.lora().is_err(), "{bad:?}");
    }
    let cosin = TrainFlags { schedule: Some("cosin".into()), ..TrainFlags::default() };
    assert_eq!(cosin.options(false).unwrap_err().cause, "schedule: 'cosin' is unknown");
    assert!(train_on("answers").is_err() && dtype("u32").is_err());
}

/// Each of these reached an allocation, an endless loop or a silently replaced default before it had a range.
#[test]
fn numbers_of_a_file_are_refused_with_line_and_range() {
    for (line, cause, advice) in [
        ("rank = 1000000000", "'rank': 1000000000 is out of range", "a whole number from 1 to 16384"),
        ("accumulation = 0", "'accumulation': 0 is out of range", "a whole number from 1 to 4096"),
        ("accumulation = 1000000000000", "'accumulation': 1000000000000 is out of range", "from 1 to 4096"),
        ("weight-decay = nan", "'weight-decay': is not a finite number", "leave the key out"),
        ("weight-decay = -0.5", "'weight-decay': -0.5 is out of range", "a number from 0 to 10"),
        ("max-grad-norm = inf", "'max-grad-norm': is not a finite number", "leave the key out"),
        ("learning-rate = \"-1\"", "'learning-rate': -1 is out of range", "a number above 0, up to 10"),
        ("dropout = 1.0", "'dropout': 1 is out of range", "a number from 0 to below 1"),
        ("warmup-ratio = 2", "'warmup-ratio': 2 is out of range", "a number from 0 to 1"),
    ] {
        let failure = read(&format!("alpha = 4\n{line}\n")).unwrap_err();
        assert!(failure.cause.ends_with(&format!("(line 2): {cause}")), "{line}: {failure:?}");
        assert!(failure.advice.contains(advice), "{line}: {failure:?}");
    }
}

#[test]
fn patterns_and_products_have_limits_too() {
    let lora = |flags: TrainFlags| flags.lora().unwrap_err().cause;
    for (pattern, cause) in [
        ("q_proj=1e30", "rank-pattern: q_proj: 1000000000000000000000000000000 is out of range"),
        ("q_proj=0", "rank-pattern: q_proj: 0 is out of range"),
        ("q_proj=nan", "rank-pattern: q_proj: NaN is out of range"),
        ("q_proj=2.5", "rank-pattern: q_proj: 2.5 is not a whole number"),
    ] {
        assert_eq!(lora(TrainFlags { rank_pattern: Some(pattern.into()), ..TrainFlags::default() }), cause);
    }
    let alpha = TrainFlags { alpha_pattern: Some("q_proj=inf".into()), ..TrainFlags::default() };
    assert_eq!(lora(alpha), "alpha-pattern: q_proj: inf is out of range");
    let options = |flags: TrainFlags| flags.options(false).unwrap_err().cause;
    let wide = TrainFlags { batch_size: Some(65_536), max_length: Some(1 << 20), ..TrainFlags::default() };
    assert!(options(wide).starts_with("batch-size × max-length: 65536 × 1048576 tokens"));
    let decay = TrainFlags { learning_rate: Some(1.0), weight_decay: Some(2.0), ..TrainFlags::default() };
    assert_eq!(options(decay), "learning-rate × weight-decay: 1 × 2 is above 1");
    let long = TrainFlags { epochs: Some(1e6), batch_size: Some(1), ..TrainFlags::default() };
    assert_eq!(long.with_steps(1_000_000).unwrap_err().cause, "steps: 1000000000000 is out of range");
}
