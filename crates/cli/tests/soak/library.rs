//! Rounds through the library, in this process: training that is stopped and whose disk fails, resumed until it is done;
//! adapters that are exchanged; a merge.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use metal_candle::backend::Device;
use metal_candle::durable::fault::{self, Fault, Plan};
use metal_candle::inference::{GenerateOptions, Generator, SamplingOptions};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::data::examples;
use metal_candle::training::{
    Adapter, DataSet, Event, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, TrainOn,
    TrainOptions, Trainer, checkpoint, merge,
};

use crate::random::Random;
use crate::report::Report;
use crate::tree::{Tree, differences, result, tree};

const STEPS: usize = 6;
/// Attempts that a fault may spoil before the run is left alone.
const ATTEMPTS: usize = 5;
const PROMPT: &str = "41 and 41 ";

/// A model, its data, and what runs that nothing disturbed make of them.
pub(crate) struct Library {
    files: ModelFiles,
    model: Decoder,
    train: Vec<Example>,
    valid: Vec<Example>,
    root: PathBuf,
    runs: [Tree; 2],
    texts: [String; 2],
    merged: Tree,
    /// Operations of the file layer in one run.
    operations: u64,
}

impl Library {
    pub(crate) fn new(model: &Path, data: &Path, root: PathBuf) -> metal_candle::Result<Self> {
        let files = ModelFiles::open(model)?;
        let device = Device::cpu(2)?;
        let loaded = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ())?;
        let set = DataSet::open(data, &Default::default())?;
        let encode = |rows: &[_]| examples(rows, &files, TrainOn::Completion, 64).map(|made| made.examples);
        let (train, valid) = (encode(&set.train)?, encode(&set.valid)?);
        let mut library = Self {
            files,
            model: loaded,
            train,
            valid,
            root,
            runs: Default::default(),
            texts: Default::default(),
            merged: Tree::new(),
            operations: 0,
        };
        for seed in 0..2 {
            let out = library.root.join(format!("reference-{seed}"));
            fault::arm(None);
            library.run(seed, &out, false, None)?;
            library.operations = fault::arm(None);
            library.runs[seed] = result(&out);
        }
        library.texts = library.generate(None)?;
        library.merged = library.merge(0)?;
        Ok(library)
    }

    fn reference(&self, seed: usize) -> PathBuf {
        self.root.join(format!("reference-{seed}"))
    }

    fn run(
        &self,
        seed: usize,
        out: &Path,
        resume: bool,
        stop_after: Option<usize>,
    ) -> metal_candle::Result<bool> {
        let options = TrainOptions {
            steps: STEPS,
            batch_size: 4,
            accumulation: 1,
            max_length: 64,
            schedule: Schedule {
                kind: ScheduleKind::Cosine,
                learning_rate: 5e-3,
                warmup: 1,
                steps: STEPS,
                minimum: 0.0,
            },
            optimizer: OptimizerOptions::default(),
            eval_every: 3,
            report_every: 1,
            save_every: 2,
            keep_checkpoints: 2,
            patience: 0,
            seed: seed as u64,
            checkpoint_layers: false,
            resume,
        };
        let lora =
            LoraConfig { rank: 4, alpha: 8.0, dropout: 0.1, seed: seed as u64, ..LoraConfig::default() };
        let mut trainer = Trainer::new(&self.model, lora, None, options, &self.train, &self.valid, out)?;
        let stop = AtomicBool::new(false);
        let summary = trainer.run(&stop, &mut |event| {
            if let Event::Step { step, .. } = event {
                stop.store(Some(*step) == stop_after, Ordering::Relaxed);
            }
        })?;
        Ok(!summary.interrupted)
    }

    /// The answers of both adapters on one base, exchanged in one generator. `first` replaces the folder of the first.
    fn generate(&self, first: Option<&Path>) -> metal_candle::Result<[String; 2]> {
        let mut generator = Generator::new(&self.model, None)?;
        let options = GenerateOptions {
            max_tokens: 12,
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            ..GenerateOptions::default()
        };
        let tokens = self.files.tokenizer.encode(PROMPT, true)?;
        let mut texts: [String; 2] = Default::default();
        for seed in [0, 1, 0] {
            let folder = match first.filter(|_| seed == 0) {
                Some(folder) => folder.to_owned(),
                None => self.reference(seed),
            };
            let adapter = Adapter::load(&folder)?;
            adapter.check(&self.model.linear_modules())?;
            generator.set_adapter(Some(&adapter.on(self.model.device())?));
            texts[seed] = generator.generate(&self.files.tokenizer, &tokens, &options, &mut |_| true)?.text;
        }
        Ok(texts)
    }

    fn merge(&self, seed: usize) -> metal_candle::Result<Tree> {
        let out = self.root.join("merged");
        let adapter = Adapter::load(&self.reference(seed))?;
        merge(&self.files, &adapter, &out, DType::F32, &|_| ())?;
        let merged = tree(&out);
        std::fs::remove_dir_all(&out).map_err(|source| metal_candle::Error::io(&out, "remove", source))?;
        Ok(merged)
    }

    /// One round; what is wrong goes into the report.
    pub(crate) fn round(&self, random: &mut Random, report: &mut Report) {
        let seed = random.below(2) as usize;
        let out = self.root.join("out");
        for attempt in 0..=ATTEMPTS {
            let resume = matches!(checkpoint::latest(&out), Ok(Some(_)));
            let last = attempt == ATTEMPTS;
            let choice = if last { 3 } else { random.below(4) };
            let stop_after = (choice == 0).then(|| 1 + random.below(STEPS as u64) as usize);
            let plan = [Fault::Error, Fault::Dead]
                .get(choice.wrapping_sub(1) as usize)
                .map(|&fault| Plan { fault, at: 1 + random.below(self.operations) });
            fault::arm(plan);
            let ended = self.run(seed, &out, resume, stop_after);
            fault::arm(None);
            report.count(match (choice, resume) {
                (0, _) => "library: runs stopped by the flag",
                (1, _) => "library: runs with one failed operation",
                (2, _) => "library: runs on a disk that fails for good",
                (_, true) => "library: runs resumed to the end",
                (_, false) => "library: runs from the start to the end",
            });
            match ended {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if plan.is_none() => {
                    report.finding(format!("library: a run without a fault failed: {error}"));
                    break;
                }
                // A fault must be told as what it is.
                Err(error) if !error.to_string().contains("no space left") => {
                    report.finding(format!("library: the fault {plan:?} was told as: {error}"));
                }
                Err(_) => {}
            }
        }
        let found = differences(&self.runs[seed], &result(&out));
        report.count("library: output folders compared");
        if !found.is_empty() {
            report.finding(format!("library: a disturbed run ended otherwise: {}", found.join(", ")));
        }
        let first = (seed == 0).then_some(out.as_path());
        match self.generate(first) {
            Ok(texts) if texts == self.texts => {
                report.count("library: adapters exchanged and answers compared")
            }
            Ok(texts) => report.finding(format!("library: answers {texts:?}, expected {:?}", self.texts)),
            Err(error) => report.finding(format!("library: generating: {error}")),
        }
        if random.below(4) == 0 {
            match self.merge(0) {
                Ok(merged) if merged == self.merged => report.count("library: merges compared"),
                Ok(_) => report.finding("library: a merge made another folder".to_owned()),
                Err(error) => report.finding(format!("library: merging: {error}")),
            }
        }
        drop(std::fs::remove_dir_all(&out));
    }
}
