use super::*;

fn read(text: &str) -> Result<TrainFlags, Failure> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    TrainFlags::read(file.path())
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = read("rank = 4\nlearning-rate = 5e-4\ntargets = \"q_proj, v_proj\"\n").unwrap();
    let flags = TrainFlags { rank: Some(32), ..TrainFlags::default() };
    let settings = flags.or(file).with_defaults().with_steps(100).unwrap();
    assert_eq!((settings.rank, settings.learning_rate, settings.steps), (Some(32), Some(5e-4), Some(13)));
    assert_eq!(settings.lora().unwrap().targets, Targets::List(vec!["q_proj".into(), "v_proj".into()]));
    let text = toml::to_string(&settings).unwrap();
    assert_eq!(read(&text).unwrap(), settings);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let failure = read("rank = 4\nlerning-rate = 5e-4\n").unwrap_err();
    assert!(failure.cause.contains("(line 2): unknown field `lerning-rate`"), "{failure:?}");
    assert_eq!(failure.advice, "did you mean 'learning-rate'?");
    assert!(read("rank = \"x\"").unwrap_err().cause.contains("invalid type"));
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
    assert!(cosin.options(false).unwrap_err().cause.contains("'cosin' is unknown"));
    assert!(train_on("answers").is_err() && dtype("u32").is_err());
}
