//! What decides a run's result, as checkpoints record it and a resumed run compares it.

use super::checkpoint::{BASE, CONTENT, DTYPE, Settings};
use super::data::Example;
use super::lora::{LoraConfig, LoraModule, sorted};
use super::scheduler::ScheduleKind;
use super::trainer::TrainOptions;
use crate::Result;
use crate::content_hash::ContentHash;
use crate::models::Decoder;

/// Describes a run by everything that decides its result: the content of base model, training and validation data, and
/// every option but those about reports, checkpoints and recomputed layers, which change no bit of it.
pub(crate) fn describe(
    model: &Decoder,
    lora: &LoraConfig,
    modules: &[LoraModule],
    options: &TrainOptions,
    (train, valid): (&[Example], &[Example]),
) -> Result<Settings> {
    let mut settings = of_lora(lora, modules);
    let mut add = |name: &str, value: String| settings.insert(name.to_owned(), value);
    add(BASE, format!("{CONTENT}{}", model.content_hash()?));
    add(DTYPE, model.dtype().to_string());
    add("training data", format!("{} examples, content {}", train.len(), tokens(train)));
    add("loss mask", format!("content {}", mask(train)));
    let content = format!("{} examples, content {}, loss mask {}", valid.len(), tokens(valid), mask(valid));
    add("validation data", content);
    add("batch size", options.batch_size.to_string());
    add("accumulation", options.accumulation.to_string());
    add("maximum length", options.max_length.to_string());
    add("seed", options.seed.to_string());
    let schedule = &options.schedule;
    add("learning rate", schedule.learning_rate.to_string());
    add("schedule", schedule.kind.to_string());
    add("warm-up", format!("{} steps", schedule.warmup));
    if schedule.kind != ScheduleKind::Constant {
        // A constant rate does not depend on the end: such a run can be extended.
        add("steps", schedule.steps.to_string());
        add("final learning rate", schedule.minimum.to_string());
    }
    let optimizer = &options.optimizer;
    add("beta1", optimizer.beta1.to_string());
    add("beta2", optimizer.beta2.to_string());
    add("epsilon", optimizer.eps.to_string());
    add("weight decay", optimizer.weight_decay.to_string());
    add("gradient norm limit", optimizer.max_norm.to_string());
    if !valid.is_empty() {
        // They decide which adapter is the best one.
        add("steps between validations", options.eval_every.to_string());
        add("patience", options.patience.to_string());
    }
    Ok(settings)
}

fn of_lora(lora: &LoraConfig, modules: &[LoraModule]) -> Settings {
    let mut settings = Settings::new();
    let mut add = |name: &str, value: String| settings.insert(name.to_owned(), value);
    add("rank", lora.rank.to_string());
    add("alpha", lora.alpha.to_string());
    add("dropout", lora.dropout.to_string());
    add("rsLoRA", lora.rslora.to_string());
    // Their order does not change the result.
    add("targets", lora.targets.sorted().to_string());
    add("excluded modules", list(&sorted(&lora.exclude)));
    let ranks: Vec<String> = lora.rank_pattern.iter().map(|(name, rank)| format!("{name}={rank}")).collect();
    let alphas: Vec<String> =
        lora.alpha_pattern.iter().map(|(name, alpha)| format!("{name}={alpha}")).collect();
    add("rank pattern", list(&ranks));
    add("alpha pattern", list(&alphas));
    add("layers", lora.layers.as_ref().map_or_else(|| "all".to_owned(), |layers| list(&sorted(layers))));
    let mut hash = ContentHash::new();
    for module in modules {
        hash.add(format!("{} {} {}\n", module.path, module.rank, module.scale).as_bytes());
    }
    add("adapted modules", format!("{}, content {}", modules.len(), hash.finish()));
    settings
}

/// Hash of the tokens of examples.
fn tokens(examples: &[Example]) -> String {
    let mut hash = ContentHash::new();
    for example in examples {
        hash.add_words(&[example.tokens.len() as u32]);
        hash.add_words(&example.tokens);
    }
    hash.finish()
}

/// Hash of which tokens are trained.
fn mask(examples: &[Example]) -> String {
    let mut hash = ContentHash::new();
    for example in examples {
        hash.add_words(&[example.supervised.len() as u32]);
        hash.add(&example.supervised.iter().map(|&trained| u8::from(trained)).collect::<Vec<u8>>());
    }
    hash.finish()
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
