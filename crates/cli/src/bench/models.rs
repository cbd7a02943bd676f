//! `metal-candle bench train` and `bench generate`: a whole model, ours and our peers' in turns.
//!
//! Before anything is timed a peer's logits, or the losses of its first steps from the same adapter, are compared with
//! ours; while it is timed the loss of every step is. Losses that fall as ours do show that gradients and updates were
//! computed.

use std::path::{Path, PathBuf};
use std::process::Command;

use metal_candle::bench::model::{Generation, Training, TrainingData, token_ids, training_rows};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::{Adapter, LoraConfig, merge};
use serde_json::{Value, json};

use crate::args::BenchModelArgs;
use crate::bench::model_report::{Entry, ModelReport, Outcome, Quantity};
use crate::bench::process::{Library, Missing, Process, python};
use crate::bench::report::Spread;
use crate::bench::table::{machine, same_place, threads, warnings};
use crate::cache;
use crate::model::Loaded;
use crate::model_source::DEFAULT;
use crate::profiling::Profiling;
use crate::session::Session;
use crate::settings;

/// The script of the Python peers, which the tool carries with it.
const SCRIPT: &str = include_str!("../../../../compare/models.py");
/// Training steps whose losses are compared before anything is timed; they are the warm-up too.
const CHECKED: usize = 3;
/// How a round is begun: whoever ran before falls asleep.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Which of the two jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Train,
    Generate,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Generate => "generate",
        }
    }

    /// How a library is installed with all that this job needs; an error if it cannot do the job.
    fn install(self, library: Library) -> Result<&'static str, &'static str> {
        match (library, self) {
            (Library::Torch, Self::Train) => Ok("python3 -m pip install torch numpy transformers peft"),
            (Library::Torch, Self::Generate) => Ok("python3 -m pip install torch numpy transformers"),
            (Library::Mlx, _) => Ok(Library::Mlx.install()),
            (Library::LlamaCpp, Self::Generate) => Ok("python3 -m pip install llama-cpp-python numpy"),
            (Library::LlamaCpp, Self::Train) => Err("it has no training of LoRA"),
            (Library::Candle, Self::Generate) => {
                Ok("cargo install --path compare/candle, in this project's repository")
            }
            (Library::Candle, Self::Train) => Err("candle-transformers has no training of LoRA"),
            (Library::Flawed | Library::FlawedMlx, _) => Err("it is a test of bench ops"),
        }
    }
}

/// Ours, made ready.
enum Ours<'a> {
    Train(Box<Training<'a>>),
    Generate(Box<Generation<'a>>),
}

/// What one round gave: seconds for each quantity, and what proves them.
struct Round {
    seconds: Vec<f64>,
    loss: f64,
    continuation: Vec<u32>,
    peak_bytes: Option<u64>,
}

/// What a peer is compared with.
struct Expected {
    losses: Vec<f64>,
    logits: Vec<f64>,
    exact: bool,
}

/// A peer with what it has shown so far, or why it is out.
struct Rival {
    process: Process,
    ready: Ready,
    state: Result<String, String>,
    rounds: Vec<Round>,
    ratios: Vec<Vec<f64>>,
}

#[derive(Default)]
struct Ready {
    device: String,
    form: String,
    synchronised: String,
}

/// The greatest difference of losses that rounding explains.
fn loss_tolerance(exact: bool) -> f64 {
    if exact { 2e-3 } else { 3e-2 }
}

/// The greatest of differences; what is no number is infinitely far.
fn greatest(differences: impl Iterator<Item = f64>) -> f64 {
    differences.fold(0.0, |a, x| if x.is_nan() { f64::INFINITY } else { a.max(x) })
}

/// Losses of the first steps: equal, and falling by the same amount.
fn same_losses(ours: &[f64], theirs: &[f64], exact: bool) -> Result<String, String> {
    if ours.len() != theirs.len() {
        return Err(format!("refused: it gave {} losses of {}", theirs.len(), ours.len()));
    }
    let apart = greatest(ours.iter().zip(theirs).map(|(a, b)| (a - b).abs() / a.abs().max(1e-6)));
    let text = |losses: &[f64]| losses.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(", ");
    if apart > loss_tolerance(exact) {
        return Err(format!("refused: its losses are {}, ours {}", text(theirs), text(ours)));
    }
    let fall = |losses: &[f64]| losses[0] - losses[losses.len() - 1];
    let (mine, its) = (fall(ours), fall(theirs));
    if exact && (mine - its).abs() > 0.1 * mine.abs() + 2e-5 * ours[0].abs() {
        return Err(format!(
            "refused: its loss falls by {its:.5}, ours by {mine:.5}: other gradients or updates"
        ));
    }
    Ok(format!("losses of {CHECKED} steps within {apart:.0e}"))
}

/// Logits after the prompt: those of the same weights in f32 are equal; of quantised activations the direction is.
fn same_logits(ours: &[f64], theirs: &[f64], exact: bool) -> Result<String, String> {
    if ours.len() != theirs.len() {
        return Err(format!("refused: it gave {} logits, ours are {}", theirs.len(), ours.len()));
    }
    let scale = ours.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let apart = greatest(ours.iter().zip(theirs).map(|(a, b)| (a - b).abs())) / scale;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let cosine = dot(ours, theirs) / (dot(ours, ours) * dot(theirs, theirs)).sqrt();
    let fits = if exact { apart <= 1e-3 } else { cosine >= 0.98 };
    if fits {
        Ok(format!("logits within {apart:.0e} of the greatest, cosine {cosine:.5}"))
    } else {
        Err(format!(
            "refused: its logits differ from ours by {apart:.1e} of the greatest, cosine {cosine:.4}"
        ))
    }
}

impl Rival {
    fn prepare(mut process: Process, request: &Value, place: &str, expected: &Expected) -> Self {
        let mut ready = Ready::default();
        let out = process.path("logits");
        let mut request = request.clone();
        request["out"] = json!(out);
        let state = process.ask(&request).and_then(|answer| {
            let text = |name: &str| answer[name].as_str().unwrap_or("it does not say").to_owned();
            ready = Ready { device: text("device"), form: text("form"), synchronised: text("synchronised") };
            if !same_place(place, &ready.device) {
                return Err(format!("refused: it ran on {}, ours on {place}", ready.device));
            }
            let exact = expected.exact && ready.form.starts_with("f32");
            match answer["losses"].as_array() {
                Some(losses) => {
                    let losses: Vec<f64> = losses.iter().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect();
                    same_losses(&expected.losses, &losses, exact)
                }
                None => same_logits(&expected.logits, &process.numbers("logits")?, exact),
            }
        });
        Self { process, ready, state, rounds: Vec::new(), ratios: Vec::new() }
    }

    fn time(&mut self, ours: &Round, expected: &Expected) {
        if self.state.is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
        match self.process.ask(&json!({"time": true})).and_then(|answer| self.round(&answer, ours, expected))
        {
            Ok(round) => {
                self.ratios.push(round.seconds.iter().zip(&ours.seconds).map(|(a, b)| a / b).collect());
                self.rounds.push(round);
            }
            Err(why) => self.state = Err(why),
        }
    }

    fn round(&self, answer: &Value, ours: &Round, expected: &Expected) -> Result<Round, String> {
        let seconds = |name: &str| answer[name].as_f64().ok_or_else(|| format!("it tells no time: {answer}"));
        let (loss, mut continuation) = (answer["loss"].as_f64().unwrap_or(f64::NAN), Vec::new());
        let found = if let Some(tokens) = answer["continuation"].as_array() {
            continuation = tokens.iter().filter_map(Value::as_u64).map(|id| id as u32).collect();
            if continuation.len() != ours.continuation.len() {
                let (its, mine) = (continuation.len(), ours.continuation.len());
                return Err(format!("refused: it generated {its} tokens of {mine}"));
            }
            vec![seconds("prefill")?, seconds("decode")?]
        } else {
            let exact = expected.exact && self.ready.form.starts_with("f32");
            let apart = greatest([(loss - ours.loss).abs() / ours.loss.abs().max(1e-6)].into_iter());
            if apart > loss_tolerance(exact) {
                return Err(format!("refused: the loss of a timed step is {loss:.4}, ours {:.4}", ours.loss));
            }
            vec![seconds("seconds")?]
        };
        Ok(Round { seconds: found, loss, continuation, peak_bytes: answer["peak_bytes"].as_u64() })
    }

    fn outcome(self, quantities: usize, ours: &[Round]) -> Outcome {
        let name = self.process.name.to_owned();
        let mut agreement = match self.state {
            Ok(agreement) => agreement,
            Err(why) => return Outcome::Refused { name, form: self.ready.form, why },
        };
        if let (Some(mine), Some(its)) = (ours.last(), self.rounds.last())
            && !mine.continuation.is_empty()
        {
            let (all, equal) = (mine.continuation.len(), mine.continuation.iter().zip(&its.continuation));
            let equal = equal.take_while(|(a, b)| a == b).count();
            agreement += &format!("; the first {equal} of {all} tokens are ours");
        }
        Outcome::Measured(Entry {
            name,
            form: self.ready.form,
            device: self.ready.device,
            synchronised: self.ready.synchronised,
            agreement,
            seconds: spreads(&self.rounds, quantities),
            ratios: (0..quantities).map(|i| Spread::of(self.ratios.iter().map(|r| r[i]).collect())).collect(),
            peak_bytes: self.rounds.last().and_then(|round| round.peak_bytes),
        })
    }
}

fn spreads(rounds: &[Round], quantities: usize) -> Vec<Spread> {
    (0..quantities).map(|i| Spread::of(rounds.iter().map(|round| round.seconds[i]).collect())).collect()
}

impl Ours<'_> {
    fn time(&mut self) -> anyhow::Result<Round> {
        Ok(match self {
            Self::Train(training) => {
                let (seconds, loss) = training.step()?;
                Round { seconds: vec![seconds], loss, continuation: Vec::new(), peak_bytes: peak_bytes() }
            }
            Self::Generate(generation) => {
                let run = generation.run()?;
                let seconds = vec![run.prefill, run.decode];
                Round { seconds, loss: f64::NAN, continuation: run.tokens, peak_bytes: peak_bytes() }
            }
        })
    }
}

/// The greatest resident memory of this process so far, where the system tells.
fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The processes of the libraries that are here.
fn start(
    job: Job,
    args: &BenchModelArgs,
    place: &str,
    gguf: bool,
    session: &Session,
) -> (Vec<Process>, Vec<Missing>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for &library in &args.peers {
        let name = library.name();
        let install = match job.install(library) {
            Ok(install) => install,
            Err(why) => {
                missing.push(Missing { name, why: why.to_owned(), install: None });
                continue;
            }
        };
        // candle computes with a file's blocks or with floats, by different code.
        let forms: &[&str] = match library {
            Library::Candle if gguf => &["f32", "file"],
            _ => &["f32"],
        };
        for form in forms {
            let process = Process::start(library, threads(args.threads), install, |folder| {
                if library == Library::Candle {
                    let program = std::env::var_os("METAL_CANDLE_COMPARE_CANDLE");
                    let mut command = Command::new(program.unwrap_or_else(|| "compare-candle".into()));
                    command.arg(form);
                    return Ok(command);
                }
                let mut command = python(folder, SCRIPT)?;
                command.args([name, job.name(), place]);
                Ok(command)
            });
            match process {
                Ok(process) => found.push(process),
                Err(why) => {
                    missing.push(why);
                    break;
                }
            }
        }
    }
    missing.iter().for_each(|missing| session.note(missing.message()));
    (found, missing)
}

/// The model as a folder of floats, which Python's libraries read: as it is, or written once into the cache. The second
/// tells whether it was written now.
fn folder(files: &ModelFiles, session: &Session) -> anyhow::Result<(PathBuf, bool)> {
    if files.path.is_dir() {
        return Ok((files.path.clone(), false));
    }
    let stem = files.path.file_stem().unwrap_or_default().to_string_lossy();
    let folder = cache::root()?.join("bench").join(format!("{stem}-f32"));
    // The folder gets its name when it is complete.
    let written = !folder.join("config.json").exists();
    if written {
        session.note(format!("writing the model in f32 for the peers: {}", folder.display()));
        let none = Adapter {
            config: LoraConfig::default(),
            base_model: None,
            modules: Vec::new(),
            copies: Vec::new(),
        };
        merge(files, &none, &folder, DType::F32, &|_| ())?;
    }
    Ok((folder, written))
}

/// The model's path: as the command line says, else METAL_CANDLE_MODEL, else the default.
fn model_name(args: &BenchModelArgs) -> String {
    let from_env = || std::env::var("METAL_CANDLE_MODEL").ok().filter(|path| !path.is_empty());
    args.model.clone().or_else(from_env).unwrap_or_else(|| DEFAULT.to_owned())
}

pub(crate) fn run(job: Job, args: &BenchModelArgs, session: &Session) -> anyhow::Result<ModelReport> {
    let (dtype, device) = (settings::dtype(&args.dtype)?, settings::device(&args.device, args.threads)?);
    let place = if device.name() == "metal" { "metal" } else { "cpu" };
    let sizes = args.sizes();
    let warnings = warnings();
    let loaded = Loaded::open(&model_name(args), dtype, &device, session)?;
    let gguf = loaded.files.path.is_file();
    let (processes, missing) = start(job, args, place, gguf, session);
    let scratch = tempfile::tempdir()?;
    let data = TrainingData::new(sizes, &loaded.decoder);
    let mut expected = Expected { losses: Vec::new(), logits: Vec::new(), exact: dtype == DType::F32 };
    let (mut ours, quantities) = match job {
        Job::Train => {
            let data = data.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
            let mut training = Training::new(&loaded.decoder, data, scratch.path())?;
            training.adapter()?.save(scratch.path())?;
            expected.losses = (0..CHECKED).map(|_| Ok(training.step()?.1)).collect::<anyhow::Result<_>>()?;
            let step = Quantity { name: "training step", tokens: training.tokens() };
            (Ours::Train(Box::new(training)), vec![step])
        }
        Job::Generate => {
            let mut generation = Generation::new(&loaded.decoder, None, sizes)?;
            expected.logits = generation.logits()?.into_iter().map(f64::from).collect();
            let prefill = Quantity { name: "prefill", tokens: sizes.prompt };
            let decode = Quantity { name: "decode", tokens: sizes.tokens };
            (Ours::Generate(Box::new(generation)), vec![prefill, decode])
        }
    };
    let folder = if processes.is_empty() { None } else { Some(folder(&loaded.files, session)?) };
    let written = folder.as_ref().is_some_and(|(_, written)| *written);
    let request = request(args, &loaded, scratch.path(), folder.map(|(path, _)| path));
    let mut rivals: Vec<Rival> = processes
        .into_iter()
        .map(|process| {
            session.note(format!("{}: loading, and comparing its results with ours", process.name));
            Rival::prepare(process, &request, place, &expected)
        })
        .collect();
    let mut rounds = Vec::new();
    let profiling = Profiling::begin(&args.profiling, &device);
    let mut meter = session.progress.count("measuring", args.rounds as u64);
    for round in 0..args.rounds {
        session.check_interrupt("measuring")?;
        std::thread::sleep(PAUSE);
        let mine = ours.time()?;
        rivals.iter_mut().for_each(|rival| rival.time(&mine, &expected));
        rounds.push(mine);
        meter.set(round as u64 + 1);
    }
    drop(meter);
    profiling.finish(session)?;
    let seconds = spreads(&rounds, quantities.len());
    let mut notes = notes(job, &loaded.decoder, args);
    notes.extend(warnings);
    Ok(ModelReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        device: if device.name() == "cpu" {
            format!("cpu, {} threads", threads(args.threads))
        } else {
            device.name()
        },
        model: loaded.files.name.clone(),
        dtype: dtype.to_string(),
        rounds: args.rounds,
        ours: seconds,
        // Writing the model for the peers would be counted with it.
        peak_bytes: rounds.last().and_then(|round| round.peak_bytes).filter(|_| !written),
        peers: rivals.into_iter().map(|rival| rival.outcome(quantities.len(), &rounds)).collect(),
        quantities,
        missing,
        notes,
    })
}

fn request(args: &BenchModelArgs, loaded: &Loaded, adapter: &Path, folder: Option<PathBuf>) -> Value {
    let (sizes, vocab) = (args.sizes(), loaded.decoder.config().vocab);
    let file = loaded.files.path.is_file().then_some(&loaded.files.path);
    json!({
        "folder": folder, "file": file, "adapter": adapter, "dtype": args.dtype, "check": CHECKED,
        "rows": training_rows(sizes, vocab), "prompt": token_ids(sizes.prompt, vocab), "tokens": sizes.tokens,
    })
}

fn notes(job: Job, model: &Decoder, args: &BenchModelArgs) -> Vec<String> {
    let sizes = args.sizes();
    let what = match job {
        Job::Train => format!(
            "A step: forward, backward, clipping to norm 1 and AdamW, {} x {} tokens, LoRA r = 8 on q and v, loss at every \
             position. Every step starts where the one before ended, ours and the peers' from the same adapter. Ours: loss \
             and gradient norm are in the host's memory when the clock stops.",
            sizes.rows, sizes.length
        ),
        Job::Generate => format!(
            "A prompt of {} tokens, then {} greedy ones, batch 1, weights of {} bytes. Ours: the logits of every token are in \
             the host's memory before the next, and when the clock stops.",
            sizes.prompt,
            sizes.tokens,
            model.bytes()
        ),
    };
    vec![
        what,
        "Ours and the peers' runs take turns; a ratio is a peer's time divided by ours, round by round: the median, and the \
         middle half of the rounds. torch runs eager: torch.compile needs about a minute and a half before its first step."
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_must_be_equal_and_fall_alike() {
        let ours = [3.3630, 3.3521, 3.3418];
        assert!(same_losses(&ours, &[3.3630, 3.3522, 3.3419], true).unwrap().contains("3 steps within 3e-5"));
        let slow = [3.3630, 3.3601, 3.3580];
        let frozen = same_losses(&slow, &[3.3630; 3], true).unwrap_err();
        assert!(frozen.contains("falls by 0.00000, ours by 0.00500"), "{frozen}");
        for theirs in [vec![3.5, 3.4, 3.3], vec![f64::NAN; 3], vec![3.363]] {
            assert!(same_losses(&ours, &theirs, true).unwrap_err().starts_with("refused"), "{theirs:?}");
        }
        assert!(same_losses(&ours, &[3.36, 3.36, 3.35], false).is_ok(), "16 bits round");
    }

    #[test]
    fn logits_of_floats_must_be_equal_those_of_blocks_near() {
        let ours = [1.0, -4.0, 3.0];
        assert!(same_logits(&ours, &[1.0, -4.001, 3.0], true).is_ok());
        let near = [1.1, -3.7, 3.2];
        assert!(same_logits(&ours, &near, true).unwrap_err().contains("by 7.5e-2 of the greatest"));
        assert!(same_logits(&ours, &near, false).is_ok());
        assert!(same_logits(&ours, &[4.0, -1.0, 3.0], false).is_err());
        for exact in [true, false] {
            assert!(same_logits(&ours, &[1.0, f64::NAN, 3.0], exact).is_err());
        }
        assert!(same_logits(&ours, &[1.0], false).unwrap_err().contains("1 logits, ours are 3"));
    }

    #[test]
    fn every_library_says_how_it_is_installed_or_why_it_cannot() {
        for job in [Job::Train, Job::Generate] {
            assert!(job.install(Library::Torch).unwrap().contains("transformers"));
        }
        assert!(Job::Train.install(Library::LlamaCpp).unwrap_err().contains("no training"));
        assert!(Job::Generate.install(Library::LlamaCpp).unwrap().contains("llama-cpp-python"));
    }
}
