//! Every example is run, on the golden model, and what it writes is checked.

use std::path::Path;

use metal_candle::backend::Device;
use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::Adapter;

mod byte_model;

#[expect(dead_code, reason = "its main is for whoever runs it")]
#[path = "../examples/candle_ops.rs"]
mod candle_ops;
#[expect(dead_code, reason = "its main is for whoever runs it")]
#[path = "../examples/generate.rs"]
mod generate;
#[expect(dead_code, reason = "its main is for whoever runs it")]
#[path = "../examples/hot_swap.rs"]
mod hot_swap;
#[expect(dead_code, reason = "its main is for whoever runs it")]
#[path = "../examples/train_lora.rs"]
mod train_lora;

type Run = fn(&[String], &mut dyn std::io::Write) -> Result<(), Box<dyn std::error::Error>>;

fn written(run: Run, arguments: &[&str]) -> String {
    let mut out = Vec::new();
    run(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn refused(run: Run, arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    run(&arguments, &mut Vec::new()).unwrap_err().to_string()
}

fn byte_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    byte_model::write(folder.path());
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The losses of lines `step N: loss L`.
fn losses(written: &str) -> Vec<f64> {
    let loss = |line: &str| line.strip_prefix("step ")?.split_once(": loss ")?.1.parse().ok();
    written.lines().filter_map(loss).collect()
}

#[test]
fn every_example_is_run_here() {
    let folder = Path::new(env!("METAL_CANDLE_ROOT")).join("examples");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let programs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<_> =
        programs.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["candle_ops", "generate", "hot_swap", "train_lora"]);
}

/// Each example computes on the GPU where there is one: none of them names the CPU.
#[test]
fn examples_take_the_best_device() {
    for name in ["candle_ops", "generate", "hot_swap", "train_lora"] {
        let path = Path::new(env!("METAL_CANDLE_ROOT")).join(format!("examples/{name}.rs"));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains("Device::best()") && !text.contains("Device::cpu") && !text.contains("Device::Cpu"),
            "{name}"
        );
    }
    let name = Device::best().unwrap().name();
    let has_gpu = Device::metal().is_ok();
    assert_eq!(name == "metal", has_gpu, "{name}");
}

#[test]
fn candle_ops_learns_its_classes() {
    let written = written(candle_ops::run, &[]);
    let losses = losses(&written);
    assert_eq!(losses.len(), 5, "{written}");
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{written}");
    assert!(losses[4] < 0.5 * losses[0], "{written}");
    let expected = format!("most probable: {:?}\n", (0..16).collect::<Vec<u32>>());
    assert!(written.ends_with(&expected), "{written}");
}

#[test]
fn generate_writes_the_models_continuation() {
    let folder = byte_model();
    let written = written(generate::run, &[text(folder.path()), "Hello"]);
    let files = ModelFiles::open(folder.path()).unwrap();
    // The device that the example takes: rounding differs between devices.
    let device = Device::best().unwrap();
    let model = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ()).unwrap();
    let tokens = files.tokenizer.encode("Hello", true).unwrap();
    let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
    let mut generator = Generator::new(&model, None).unwrap();
    let wanted = generator.generate(&files.tokenizer, &tokens, &options, &mut |_| true).unwrap();
    let rest = written.strip_prefix(&wanted.text).unwrap();
    assert!(rest.starts_with(&format!("\n{} tokens in ", wanted.tokens.len())), "{written}");
    assert!(refused(generate::run, &[]).contains("give the path"));
}

#[test]
fn train_lora_learns_and_writes_an_adapter_that_loads() {
    let (folder, out) = (byte_model(), tempfile::tempdir().unwrap());
    let written = written(train_lora::run, &[text(folder.path()), text(out.path()), "30"]);
    assert_eq!(losses(&written).len(), 30, "{written}");
    let line = written.lines().find_map(|line| line.strip_prefix("validation loss ")).unwrap();
    let (before, after) = line.split_once(", ").unwrap().0.split_once(" -> ").unwrap();
    let (before, after): (f64, f64) = (before.parse().unwrap(), after.parse().unwrap());
    // It was 6.898 and 5.717 on 2026-11-26; rounding differs by processor.
    assert!(after < 0.9 * before, "{line}");
    let adapter = Adapter::load(out.path()).unwrap();
    assert_eq!((adapter.config.rank, adapter.modules.len()), (8, 14));
    assert!(
        adapter.modules.iter().any(|module| module.b.as_slice::<f32>().unwrap().iter().any(|&b| b != 0.0))
    );
}

#[test]
fn hot_swap_answers_by_the_adapter_that_is_on() {
    let folder = byte_model();
    let peft = Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden/peft");
    let (one, two) = (peft.join("final"), peft.join("patterned"));
    let written = written(hot_swap::run, &[text(folder.path()), text(&one), text(&two), "Hello"]);
    let files = ModelFiles::open(folder.path()).unwrap();
    // The device that the example takes: rounding differs between devices.
    let device = Device::best().unwrap();
    let model = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ()).unwrap();
    let tokens = files.tokenizer.encode("Hello", true).unwrap();
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    // What a generator says that never had another adapter.
    let alone = |adapter: Option<&Path>| {
        let adapter = adapter.map(|folder| Adapter::load(folder).unwrap().on(&device).unwrap());
        let mut generator = Generator::new(&model, adapter.as_ref()).unwrap();
        generator.generate(&files.tokenizer, &tokens, &options, &mut |_| true).unwrap().text
    };
    let wanted = [alone(None), alone(Some(&one)), alone(Some(&two))].map(|text| format!("{text:?}"));
    assert!(wanted[0] != wanted[1] && wanted[1] != wanted[2] && wanted[0] != wanted[2], "{wanted:?}");
    let lines: Vec<&str> = written.lines().collect();
    let answers: Vec<&str> = lines.iter().step_by(2).map(|line| line.split_once(": ").unwrap().1).collect();
    assert_eq!(answers, [&wanted[0], &wanted[1], &wanted[2], &wanted[1]]);
    let plans = |line: usize| lines[line].split_once("; ").unwrap().1.to_owned();
    assert_eq!(plans(5), plans(7), "an adapter that comes back was compiled again");
    assert_ne!(plans(3), plans(5));
}
