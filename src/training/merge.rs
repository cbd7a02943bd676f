//! An adapter added to its base model, as a new Hugging Face folder.
//!
//! The written files are opened again and compared with base + adapter. Only then are they moved to their place, so that a
//! folder that opens as a model computes what it should.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::adapter::{Adapter, AdapterModule};
use super::merge_companions as companions;
use super::merge_folder::MergeFolder;
use super::tensors::write_tensors;
use crate::backend::Device;
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder, ModelConfig, ModelFiles, Weights};
use crate::tensor::{DType, HostTensor, TensorSpec, try_with_capacity};
use crate::{Error, Result};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";
/// Tokens on which the written model is compared with base + adapter.
const PROBE: usize = 16;
/// From this relative error on an update is mostly rounding.
const MOSTLY_LOST: f64 = 0.5;
/// Below this share of the update that is left in the stored weights, the merge is refused.
const LEAST_KEPT: f64 = 0.1;

/// How well a merge kept the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeReport {
    /// Modules merged.
    pub modules: usize,
    /// The greatest relative error of an update: ‖stored − base − update‖ / ‖update‖ in the Frobenius norm. Rounding
    /// to 16 bits can eat small updates; in f32 it is of the order 1e-6.
    pub worst_error: f64,
    /// The module where it is.
    pub worst_module: String,
    /// Relative error of the logits of the folder, read back, against those of base + adapter:
    /// ‖difference‖ / ‖logits‖ over all logits of a few tokens.
    pub logits_error: f64,
    /// Whether head and embedding, which shared one weight in the base, are two weights now, since the adapter is on one of
    /// them.
    pub untied: bool,
}

/// `W + scale·B·A` of one module, in f64 sums, and the update. Of the embedding it is `W + scale·(B·A)ᵀ`.
fn merged(weight: &HostTensor, module: &AdapterModule) -> Result<(Vec<f32>, Vec<f64>)> {
    let (n, k, r) = (weight.shape()[0], weight.shape()[1], module.a.shape()[0]);
    let (w, a, b) = (weight.as_slice::<f32>()?, module.a.as_slice::<f32>()?, module.b.as_slice::<f32>()?);
    let mut update = try_with_capacity(n * k, || format!("the update of {}", module.path))?;
    update.resize(n * k, 0.0_f64);
    for (row, update) in update.chunks_mut(k).enumerate() {
        for rank in 0..r {
            // A of the embedding has a column for each row of W, and B a row for each column.
            let factor = if module.is_embedding { a[rank * n + row] } else { b[row * r + rank] };
            let factor = module.scale * f64::from(factor);
            for (column, sum) in update.iter_mut().enumerate() {
                let other = if module.is_embedding { b[column * r + rank] } else { a[rank * k + column] };
                *sum += factor * f64::from(other);
            }
        }
    }
    let sums = w.iter().zip(&update).map(|(&w, &u)| (f64::from(w) + u) as f32).collect();
    Ok((sums, update))
}

/// Writes the merged model as a Hugging Face folder, its tensors stored as `dtype`, and compares it with base + adapter.
///
/// `out` must not exist or be an empty folder. A base that is a folder lends its configuration and tokenizer files; of a
/// GGUF base they are written anew. `progress` is told the share that is done.
pub fn merge(
    files: &ModelFiles,
    adapter: &Adapter,
    out: &Path,
    dtype: DType,
    progress: &dyn Fn(f64),
) -> Result<MergeReport> {
    merge_until(files, adapter, out, dtype, &AtomicBool::new(false), progress)
}

/// Merges as [`merge`] does until `stop` is set. A merge that is stopped removes what it has written.
pub fn merge_until(
    files: &ModelFiles,
    adapter: &Adapter,
    out: &Path,
    dtype: DType,
    stop: &AtomicBool,
    progress: &dyn Fn(f64),
) -> Result<MergeReport> {
    let check_stop = || match stop.load(Ordering::Relaxed) {
        true => Err(Error::Stopped { what: "the merge", advice: "nothing was written".to_owned() }),
        false => Ok(()),
    };
    if !dtype.is_float() {
        return Err(Error::invalid("merge", "a model is stored as f32, f16 or bf16"));
    }
    check_modules(files, adapter)?;
    adapter.check_copies(&files.weights)?;
    let folder = MergeFolder::create(files, out)?;
    let untied = files.config.tie_embeddings
        && adapter.modules.iter().any(|module| module.path == HEAD || module.path == EMBEDDING);
    let config =
        ModelConfig { tie_embeddings: files.config.tie_embeddings && !untied, ..files.config.clone() };
    companions::write(files, &config, dtype, folder.path())?;
    let step = |share: f64| {
        progress(0.6 * share);
        check_stop()
    };
    let (tensors, mut report) = sums(files, adapter, untied, dtype, &step)?;
    check_stop()?;
    write_tensors(&folder.path().join("model.safetensors"), &tensors)?;
    drop(tensors);
    progress(0.7);
    report.logits_error = verify(files, adapter, folder.path(), dtype, &check_stop)?;
    check_stop()?;
    folder.finish()?;
    progress(1.0);
    Ok(report)
}

/// Name of the base's tensor that a module's update is added to. A tied head is the embedding.
fn base_weight(weights: &Weights, path: &str) -> String {
    let own = format!("{path}.weight");
    if path == HEAD && !weights.contains(&own) { format!("{EMBEDDING}.weight") } else { own }
}

/// Checks that every module of the adapter has a weight of its shape in the base.
fn check_modules(files: &ModelFiles, adapter: &Adapter) -> Result<()> {
    for module in &adapter.modules {
        let place = || format!("adapter module {}", module.path);
        let Some(shape) = files.weights.shape(&base_weight(&files.weights, &module.path)) else {
            let message = "is not in this model; the adapter belongs to another one";
            return Err(Error::invalid(place(), message));
        };
        let (rows, columns) = (module.b.shape()[0], module.a.shape()[1]);
        let expected = if module.is_embedding { [columns, rows] } else { [rows, columns] };
        if shape != expected {
            let message = format!(
                "is for a weight of shape {expected:?}, but the model's has {shape:?}; the adapter belongs to another \
                 model"
            );
            return Err(Error::invalid(place(), message));
        }
    }
    Ok(())
}

/// All tensors of the merged model, and how exactly their updates are stored. `step` is told the share that is done
/// before every tensor, and its error ends the work.
fn sums(
    files: &ModelFiles,
    adapter: &Adapter,
    untied: bool,
    dtype: DType,
    step: &dyn Fn(f64) -> Result<()>,
) -> Result<(Vec<(String, HostTensor)>, MergeReport)> {
    let weights = &files.weights;
    let mut names: Vec<(String, String)> =
        weights.names().map(|name| (name.to_owned(), name.to_owned())).collect();
    // The head that an adapter parts from the embedding begins as the embedding.
    let head = format!("{HEAD}.weight");
    if untied && !weights.contains(&head) {
        names.push((head, format!("{EMBEDDING}.weight")));
    }
    let mut report =
        MergeReport { modules: 0, worst_error: 0.0, worst_module: String::new(), logits_error: 0.0, untied };
    let (mut tensors, mut kept) = (Vec::new(), Kept::default());
    for (index, (name, source)) in names.iter().enumerate() {
        step(index as f64 / names.len() as f64)?;
        let Some(shape) = weights.shape(source).map(<[usize]>::to_vec) else { continue };
        let path = name.strip_suffix(".weight");
        let Some(module) = adapter.modules.iter().find(|module| path == Some(module.path.as_str())) else {
            tensors.push((name.clone(), weights.load(source, &shape, dtype)?));
            continue;
        };
        let base = weights.load(source, &shape, DType::F32)?;
        let (stored, error) = stored(&base, module, &shape, dtype, &mut kept)?;
        if error >= report.worst_error {
            (report.worst_error, report.worst_module) = (error, module.path.clone());
        }
        report.modules += 1;
        tensors.push((name.clone(), stored));
    }
    kept.check(&report, dtype)?;
    Ok((tensors, report))
}

/// How much of the updates is left in the stored weights: the projection of what changed on the updates. Independent
/// rounding leaves it near 1, however large the rounding is. Updates that are too small to move a weight to the next
/// number of the dtype leave it near 0.
#[derive(Debug, Default)]
struct Kept {
    /// Sum of change · update.
    projection: f64,
    /// Sum of update².
    norm: f64,
}

impl Kept {
    fn share(&self) -> f64 {
        if self.norm > 0.0 { self.projection / self.norm } else { 1.0 }
    }

    /// Refuses a merge of which almost nothing is left, and warns where rounding is as large as the update.
    fn check(&self, report: &MergeReport, dtype: DType) -> Result<()> {
        if self.share() < LEAST_KEPT {
            let message = format!(
                "is smaller than the rounding of {dtype}: {:.0} % of it would be left in the stored weights; store the \
                 model as f32, or keep the adapter apart",
                100.0 * self.share().max(0.0)
            );
            return Err(Error::invalid("the adapter's update", message));
        }
        if report.worst_error > MOSTLY_LOST {
            tracing::warn!(
                "the update of {} is stored in {dtype} with a relative error of {:.2}: rounding is as large as the \
                 update. Store the model as f32, or keep the adapter apart",
                report.worst_module,
                report.worst_error
            );
        }
        Ok(())
    }
}

/// A merged weight as it is stored, and the relative error of its update.
fn stored(
    base: &HostTensor,
    module: &AdapterModule,
    shape: &[usize],
    dtype: DType,
    kept: &mut Kept,
) -> Result<(HostTensor, f64)> {
    let (sums, update) = merged(base, module)?;
    let stored = HostTensor::from_slice(&sums, shape)?.cast(dtype);
    let (back, rounded) = (stored.cast(DType::F32), base.cast(dtype).cast(DType::F32));
    let (back, rounded) = (back.as_slice::<f32>()?, rounded.as_slice::<f32>()?);
    if let Some(at) = back.iter().position(|x| !x.is_finite()) {
        let message =
            format!("becomes {}, which {dtype} cannot hold; store the model as bf16 or f32", sums[at]);
        return Err(Error::invalid(format!("merged weight of {}", module.path), message));
    }
    let (mut lost, mut norm) = (0.0, 0.0);
    for (index, (base, update)) in base.as_slice::<f32>()?.iter().zip(&update).enumerate() {
        lost += (f64::from(back[index]) - f64::from(*base) - update).powi(2);
        norm += update * update;
        kept.projection += (f64::from(back[index]) - f64::from(rounded[index])) * update;
    }
    kept.norm += norm;
    Ok((stored, if norm > 0.0 { (lost / norm).sqrt() } else { 0.0 }))
}

/// Opens the written folder and compares its tokens and logits with those of base + adapter. Returns the relative error
/// of the logits.
fn verify(
    files: &ModelFiles,
    adapter: &Adapter,
    folder: &Path,
    dtype: DType,
    check_stop: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    let failed = |message: String| Error::invalid("the merged folder, read back,", message);
    let written = ModelFiles::open(folder).map_err(|error| failed(error.to_string()))?;
    for text in ["Hello, world! 12 345", " <s>é\n\tx"] {
        if files.tokenizer.encode(text, true)? != written.tokenizer.encode(text, true)? {
            return Err(failed("makes other tokens of a text than its base; please report this".to_owned()));
        }
    }
    check_stop()?;
    let device = Device::cpu(0)?;
    let ids = probe(&files.config);
    let expected = {
        let model = load(&files.config, &files.weights, &device)?;
        adapter.check(&model.linear_modules())?;
        logits(&model, Some(&adapter.on(&device)?), &ids)?
    };
    check_stop()?;
    let found = logits(&load(&written.config, &written.weights, &device)?, None, &ids)?;
    let (expected, found) = (expected.as_slice::<f32>()?, found.as_slice::<f32>()?);
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut expected.iter().zip(found).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = square(&mut expected.iter().map(|x| f64::from(*x)));
    let error = if difference == 0.0 { 0.0 } else { (difference / size.max(f64::MIN_POSITIVE)).sqrt() };
    let limit = limit(dtype, files.config.layers);
    if error.is_nan() || error > limit {
        let message = format!(
            "gives other logits than base and adapter: their relative error is {error:.2e}, and {dtype} explains at most \
             {limit:.0e}; store the model as f32"
        );
        return Err(failed(message));
    }
    Ok(error)
}

/// The greatest error that rounding explains. Every weight is wrong by at most half a unit in its last place, each of the
/// two branches of a layer adds an error of its own, and independent errors add up by their squares; eight times
/// that leaves room for activations that amplify them. In f32 the sums of both models are in another order, which
/// alone gives some 1e-5.
fn limit(dtype: DType, layers: usize) -> f64 {
    let unit = match dtype {
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
        _ => 2.0_f64.powi(-24),
    };
    (8.0 * unit * (2.0 * layers as f64 + 1.0).sqrt()).max(1e-4)
}

/// Tokens from all over the vocabulary.
fn probe(config: &ModelConfig) -> Vec<u32> {
    let count = PROBE.min(config.context).min(config.vocab);
    (0..count).map(|index| ((2 * index + 1) * config.vocab / (2 * count)) as u32).collect()
}

fn load(config: &ModelConfig, weights: &Weights, device: &Device) -> Result<Decoder> {
    Decoder::load(config.clone(), weights, device, DType::F32, &|_| ())
}

fn logits(model: &Decoder, adapter: Option<&AdapterParameters>, tokens: &[u32]) -> Result<HostTensor> {
    let graph = Graph::new();
    let spec = TensorSpec::u32([tokens.len()]);
    let (ids, positions) = (graph.input("ids", spec.clone()), graph.input("positions", spec));
    let hidden = model.record_sequences(&graph, &ids, &positions, 1, adapter, None, false)?;
    let logits = model.record_logits(&graph, &hidden, adapter)?;
    let (graph, fused) = graph.fused(&[logits])?;
    let order: Vec<u32> = (0..tokens.len() as u32).collect();
    let inputs = [tokens, &order].map(|values| HostTensor::from_slice(values, [tokens.len()]));
    let [ids, positions] = inputs;
    Ok(model.device().compile(&graph, &fused, &[])?.run(&[&ids?, &positions?])?.remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: [usize; 2]) -> HostTensor {
        HostTensor::from_slice(values, shape).unwrap()
    }

    fn module(a: HostTensor, b: HostTensor) -> AdapterModule {
        AdapterModule { path: "x".into(), a, b, scale: 2.0, is_embedding: false }
    }

    #[test]
    fn the_update_is_scale_times_b_times_a() {
        let weight = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let (a, b) = (tensor(&[1.0, 0.0, -1.0], [1, 3]), tensor(&[0.5, 2.0], [2, 1]));
        let (sums, update) = merged(&weight, &module(a.clone(), b.clone())).unwrap();
        assert_eq!(update, [1.0, 0.0, -1.0, 4.0, 0.0, -4.0]);
        assert_eq!(sums, [2.0, 2.0, 2.0, 8.0, 5.0, 2.0]);
        // Three tokens of width 2: the transposed update.
        let embedding = AdapterModule { is_embedding: true, ..module(a, b) };
        let (sums, update) = merged(&tensor(&[0.0; 6], [3, 2]), &embedding).unwrap();
        assert_eq!(update, [1.0, 4.0, 0.0, 0.0, -1.0, -4.0]);
        assert_eq!(sums, [1.0, 4.0, 0.0, 0.0, -1.0, -4.0]);
    }

    #[test]
    fn what_a_dtype_cannot_hold_or_swallows_is_told() {
        let with = |start: f32, size: f32, dtype| {
            let (a, b) = (tensor(&[size; 1000], [1, 1000]), tensor(&[1.0], [1, 1]));
            // Weights from 1 to 2, between which bf16 numbers are 2^-7 apart.
            let weights: Vec<f32> = (0..1000).map(|i| start + i as f32 / 1000.0).collect();
            let weights = HostTensor::from_slice(&weights, [1, 1000])?;
            // As a folder of that dtype holds them.
            let base = if start == 1.0 { weights.cast(dtype).cast(DType::F32) } else { weights };
            let mut kept = Kept::default();
            let (_, error) = stored(&base, &module(a, b), &[1, 1000], dtype, &mut kept)?;
            Ok::<_, Error>((error, kept.share()))
        };
        let error = with(1.0, 40_000.0, DType::F16).unwrap_err().to_string();
        assert!(error.contains("merged weight of x: becomes 80001, which f16"), "{error}");
        // Twice 1e-3 is a quarter of the distance: no weight moves.
        let (error, kept) = with(1.0, 1e-3, DType::BF16).unwrap();
        assert!((error - 1.0).abs() < 1e-5 && kept == 0.0, "{error} {kept}");
        let report = |error| MergeReport {
            modules: 1,
            worst_error: error,
            worst_module: "x".into(),
            logits_error: 0.0,
            untied: false,
        };
        let refused = Kept { projection: 0.01, norm: 1.0 }.check(&report(1.0), DType::BF16).unwrap_err();
        assert!(refused.to_string().contains("smaller than the rounding of bf16: 1 % of it"), "{refused}");
        Kept::default().check(&report(0.0), DType::BF16).unwrap();
        // In f32 it is exact to a unit in the last place, 2^-23, of a half.
        let (error, kept) = with(1.0, 1e-3, DType::F32).unwrap();
        assert!(error < 1e-4 && (kept - 1.0).abs() < 1e-4, "{error} {kept}");
        // Between bf16 numbers a quarter of the weights moves by the whole distance, so that the mean is right.
        let (error, kept) = with(1.0 + 1e-6, 1e-3, DType::BF16).unwrap();
        assert!(error > 1.0 && (kept - 1.0).abs() < 0.2, "{error} {kept}");
        Kept { projection: kept, norm: 1.0 }.check(&report(error), DType::BF16).unwrap();
    }
}
