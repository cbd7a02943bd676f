//! Weights on disk: a Hugging Face folder of safetensors, or a GGUF file, by the names of Hugging Face.
//!
//! Files are memory-mapped. A tensor that is stored as the dtype asked for is used in place; any other is
//! converted or dequantized. Every tensor is checked for values that are not finite as it is loaded.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use candle_core::quantized::GgmlDType;
use safetensors::{Dtype, SafeTensors};

use super::convert;
use super::gguf::{Gguf, GgufType};
use super::read::check_fetched;
use super::shards::{self, Shard};
use crate::tensor::{DType, HostTensor, MappedFile, TensorSpec};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model on disk.
#[derive(Debug, Clone)]
pub struct Weights {
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
    /// Tensors that an index lists, with the shard that lacks them: an error only for whoever needs one.
    absent: BTreeMap<String, PathBuf>,
    /// A file of the split model that is not there, though the index does without it.
    missing_shard: Option<PathBuf>,
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone)]
struct Stored {
    file: usize,
    /// The file's own name for it, if that differs.
    own_name: Option<String>,
    kind: Kind,
    shape: Vec<usize>,
    start: usize,
    bytes: usize,
    /// The rows of each of so many heads are in the order of interleaved rotation pairs.
    interleaved_heads: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Float(DType),
    Blocks(GgmlDType),
    /// The name of a type that cannot be read.
    Foreign(String),
}

impl Weights {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, or a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_gguf(&Gguf::open(path)?);
        }
        let mut weights = Self {
            path: path.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            absent: BTreeMap::new(),
            missing_shard: None,
        };
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        let used = if index.is_file() && !(single.is_file() && is_left_over(&index)) {
            let used = weights.add_shards(&index)?;
            weights.missing_shard = shards::first_missing(path, used.iter().map(String::as_str));
            used
        } else if single.is_file() {
            let tensors = weights.add_safetensors(&single)?;
            weights.tensors = tensors.into_iter().collect();
            vec![SINGLE.to_owned()]
        } else {
            weights.add_shards_without_index(path)?
        };
        announce_unused(path, &used)?;
        weights.add_missing_prefix();
        Ok(weights)
    }

    /// Lists the tensors of a split model that has lost its index, and returns the names of its files.
    fn add_shards_without_index(&mut self, folder: &Path) -> Result<Vec<String>> {
        let names = names_in(folder)?;
        let is_shard = |name: &&String| name.ends_with(".safetensors") && Shard::parse(name).is_some();
        let Some(name) = names.iter().find(is_shard) else {
            let advice = advice_on_other_files(&names);
            return Err(Error::file(folder, format!("has neither {SINGLE} nor {INDEX}{advice}")));
        };
        let shard = Shard::parse(name).into_iter().flat_map(|shard| shard.all().collect::<Vec<_>>());
        let used: Vec<String> = shard.collect();
        if let Some(missing) = shards::first_missing(folder, [name.as_str()]) {
            let message =
                format!("is missing, though {name} is there, and so is {INDEX}; fetch the model again");
            return Err(Error::file(missing, message));
        }
        for name in &used {
            let path = folder.join(name);
            for (tensor, stored) in self.add_safetensors(&path)? {
                if self.tensors.insert(tensor.clone(), stored).is_some() {
                    let message = "is in an earlier file of the split model too; fetch the model again";
                    return Err(Error::file_at(path, tensor, message));
                }
            }
        }
        tracing::warn!("{}: {INDEX} is missing; all {} files are read", folder.display(), used.len());
        Ok(used)
    }

    /// Names the tensors of a model that was saved without its head as if it had been saved whole: its paths lack
    /// `model.`.
    fn add_missing_prefix(&mut self) {
        let compiled = |name: &str| name.contains("_orig_mod.");
        let is_bare = |name: &str| name.starts_with("layers.") || name.starts_with("embed_tokens.");
        let bare = self.tensors.keys().any(|name| is_bare(name));
        if !bare && !self.tensors.keys().any(|name| compiled(name)) {
            return;
        }
        let rename = |own: String, mut stored: Stored| {
            let name = own.replace("_orig_mod.", "");
            let name = if bare && !name.starts_with("lm_head.") && !name.starts_with("model.") {
                format!("model.{name}")
            } else {
                name
            };
            stored.own_name = Some(own);
            (name, stored)
        };
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(own, s)| rename(own, s)).collect();
    }

    /// The tensors of an open GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        // The converter of architecture "llama" reorders the rows of q and k for interleaved rotation.
        let heads = if gguf.text("general.architecture")? == Some("llama") {
            let q = gguf.integer("llama.attention.head_count")?.unwrap_or(1);
            Some((q, gguf.integer("llama.attention.head_count_kv")?.unwrap_or(q)))
        } else {
            None
        };
        let tensors = gguf.tensors().iter().map(|(own_name, tensor)| {
            let name = hf_name(own_name).unwrap_or_else(|| own_name.clone());
            let interleaved_heads = heads.and_then(|(q, k)| match name.rsplit('.').nth(1) {
                Some("q_proj") => Some(q),
                Some("k_proj") => Some(k),
                _ => None,
            });
            let kind = match tensor.kind {
                GgufType::Known(GgmlDType::F32) => Kind::Float(DType::F32),
                GgufType::Known(GgmlDType::F16) => Kind::Float(DType::F16),
                GgufType::Known(GgmlDType::BF16) => Kind::Float(DType::BF16),
                GgufType::Known(dtype) => Kind::Blocks(dtype),
                unknown @ GgufType::Unknown(_) => Kind::Foreign(unknown.to_string()),
            };
            let stored = Stored {
                file: tensor.file,
                own_name: Some(own_name.clone()),
                kind,
                shape: tensor.shape.clone(),
                start: tensor.start,
                bytes: tensor.bytes,
                interleaved_heads,
            };
            (name, stored)
        });
        Ok(Self {
            path: gguf.path().to_owned(),
            tensors: tensors.collect(),
            files: gguf.files().to_vec(),
            absent: BTreeMap::new(),
            missing_shard: None,
        })
    }

    /// Fails if one of the files was changed since it was opened.
    pub(crate) fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(MappedFile::check)
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// How a tensor is stored, e.g. `bf16` or `Q4_1`.
    pub fn storage(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|stored| match &stored.kind {
            Kind::Float(dtype) => dtype.to_string(),
            Kind::Blocks(dtype) => format!("{dtype:?}"),
            Kind::Foreign(name) => name.clone(),
        })
    }

    /// Returns true if two tensors hold the same numbers.
    pub(crate) fn equal(&self, one: &str, other: &str) -> Result<bool> {
        let (Some(a), Some(b)) = (self.tensors.get(one), self.tensors.get(other)) else { return Ok(false) };
        if a.shape != b.shape {
            return Ok(false);
        }
        if a.kind == b.kind {
            let bytes = |stored: &Stored| {
                let range = stored.start..stored.start + stored.bytes;
                (&self.files[stored.file], range)
            };
            let ((first, x), (second, y)) = (bytes(a), bytes(b));
            let equal = first[x.clone()] == second[y.clone()];
            first.release(x);
            second.release(y);
            return Ok(equal);
        }
        let load = |name: &str| self.load(name, &a.shape, DType::F32);
        Ok(load(one)?.bytes() == load(other)?.bytes())
    }

    /// What quantized a module's weight, by the tensors that lie beside it.
    fn quantized_by(&self, name: &str) -> Option<&'static str> {
        let module = name.strip_suffix(".weight")?;
        let has = |suffix: &str| self.tensors.contains_key(&format!("{module}.{suffix}"));
        let has_state = || {
            let state = format!("{name}.quant_state.");
            self.tensors.range(state.clone()..).next().is_some_and(|(found, _)| found.starts_with(&state))
        };
        Some(match () {
            () if has("scales") && has("biases") => "MLX",
            () if has("qweight") && has("g_idx") => "GPTQ",
            () if has("qweight") => "AWQ or GPTQ",
            () if has("weight.absmax") || has("SCB") || has_state() => "bitsandbytes",
            () if has("weight_packed") => "compressed-tensors",
            () if has("weight_scale_inv") => "fp8 (blockwise)",
            () if has("weight_scale") => "fp8 or compressed-tensors",
            () if has("scales") => "a tool that stores scales beside the weights (MLX, for example)",
            () => return None,
        })
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> usize {
        self.files.iter().map(|file| file.len()).sum()
    }

    /// Reads a tensor as `dtype`, which must be a float type.
    ///
    /// Errors name the file and the tensor: it is missing, has another shape, is stored in a way that cannot
    /// be read, or holds a value that is not finite or does not fit the dtype.
    pub fn load(&self, name: &str, shape: &[usize], dtype: DType) -> Result<HostTensor> {
        let quantized =
            |tool: &str| format!("is quantized by {tool}, which is not read; {}", super::read::UNQUANTIZED);
        let Some(stored) = self.tensors.get(name) else {
            let place = format!("tensor '{name}'");
            if let Some(tool) = self.quantized_by(name) {
                return Err(Error::file_at(&self.path, place, quantized(tool)));
            }
            if let Some(shard) = self.absent.get(name) {
                let message = format!("is missing, but {INDEX} says that it is here; fetch the model again");
                return Err(Error::file_at(shard, place, message));
            }
            if let Some(shard) = &self.missing_shard {
                let message = "is in none of the other files, and this one is missing; fetch the model again";
                return Err(Error::file_at(shard, place, message));
            }
            let message =
                format!("is missing among the {} tensors; is the model complete?", self.tensors.len());
            return Err(Error::file_at(&self.path, place, message));
        };
        let file = &self.files[stored.file];
        let error = |message: String| {
            let place = match &stored.own_name {
                Some(own) if own != name => format!("tensor '{name}', stored as '{own}'"),
                _ => format!("tensor '{name}'"),
            };
            Error::file_at(file.path(), place, message)
        };
        let unreadable = stored.shape != shape || matches!(stored.kind, Kind::Foreign(_));
        if let Some(tool) = self.quantized_by(name).filter(|_| unreadable) {
            let kind = self.storage(name).unwrap_or_default();
            return Err(error(format!("{} (it is stored as {kind})", quantized(tool))));
        }
        if stored.shape != shape {
            return Err(error(format!(
                "has shape {:?}, but the configuration asks for {shape:?}; configuration and weights do not belong \
                 together",
                stored.shape
            )));
        }
        if !dtype.is_float() {
            return Err(Error::dtype("load weights", "weights are read as f32, f16 or bf16", &[dtype]));
        }
        let spec = TensorSpec::new(dtype, shape);
        let range = stored.start..stored.start + stored.bytes;
        let bytes = &file[range.clone()];
        let mut tensor = match &stored.kind {
            Kind::Foreign(kind) => {
                return Err(error(format!(
                    "is stored as {kind}, which is not supported; use F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or a \
                     K type"
                )));
            }
            Kind::Float(stored_as) if *stored_as == dtype && stored.start.is_multiple_of(dtype.size()) => {
                convert::check_finite(bytes, dtype).map_err(|fault| error(fault.message(dtype)))?;
                HostTensor::from_map(file.clone(), stored.start, spec)?
            }
            Kind::Float(stored_as) => {
                let mut tensor = HostTensor::try_zeros(spec, name)?;
                convert::from_floats(bytes, *stored_as, tensor.bytes_mut(), dtype)
                    .map_err(|fault| error(fault.message(dtype)))?;
                tensor
            }
            Kind::Blocks(blocks) => {
                let mut tensor = HostTensor::try_zeros(spec, name)?;
                convert::from_blocks(bytes, *blocks, tensor.bytes_mut(), dtype)
                    .map_err(|fault| error(fault.message(dtype)))?;
                tensor
            }
        };
        if !tensor.is_mapped() {
            file.release(range);
        }
        if let Some(heads) = stored.interleaved_heads {
            if !heads.checked_mul(2).is_some_and(|pairs| pairs > 0 && shape[0].is_multiple_of(pairs)) {
                return Err(error(format!("{} rows cannot be shared by {heads} heads in pairs", shape[0])));
            }
            convert::halves_from_pairs(&mut tensor, heads);
        }
        Ok(tensor)
    }

    /// Maps a safetensors file and lists its tensors.
    fn add_safetensors(&mut self, path: &Path) -> Result<HashMap<String, Stored>> {
        let mapped = MappedFile::open(path)?;
        check_fetched(path, &mapped)?;
        let (header, metadata) = SafeTensors::read_metadata(&mapped).map_err(|e| {
            Error::file(
                path,
                format!("not a whole safetensors file ({e}); it is truncated or damaged: fetch it again"),
            )
        })?;
        let base = size_of::<u64>() + header;
        let file = self.files.len();
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let kind = match info.dtype {
                Dtype::F32 => Kind::Float(DType::F32),
                Dtype::F16 => Kind::Float(DType::F16),
                Dtype::BF16 => Kind::Float(DType::BF16),
                other => Kind::Foreign(format!("{other:?}")),
            };
            let stored = Stored {
                file,
                own_name: None,
                kind,
                shape: info.shape.clone(),
                start: base + info.data_offsets.0,
                bytes: info.data_offsets.1 - info.data_offsets.0,
                interleaved_heads: None,
            };
            (name, stored)
        });
        let tensors = tensors.collect();
        self.files.push(mapped);
        Ok(tensors)
    }

    /// Lists the tensors of an index's shards, each of which must be there, and returns their names. A tensor that is not
    /// in the shard that the index names may be one that nobody needs.
    fn add_shards(&mut self, index: &Path) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, "read", e))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Error::file(index, format!("is not JSON: {e}")))?;
        let Some(weight_map) = json.get("weight_map").and_then(|map| map.as_object()) else {
            return Err(Error::file_at(index, "weight_map", "is missing or no object"));
        };
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut shards: HashMap<&str, HashMap<String, Stored>> = HashMap::new();
        for (name, shard) in weight_map {
            let place = || format!("weight_map, '{name}'");
            let Some(shard) = shard.as_str().filter(|shard| is_file_name(shard)) else {
                return Err(Error::file_at(
                    index,
                    place(),
                    format!("{shard} is no name of a file in this folder"),
                ));
            };
            if !shards.contains_key(shard) {
                let path = folder.join(shard);
                if !path.is_file() {
                    return Err(Error::file_at(
                        index,
                        place(),
                        format!("lies in {shard}, which is not there; is the download complete?"),
                    ));
                }
                let tensors = self.add_safetensors(&path)?;
                shards.insert(shard, tensors);
            }
            match shards.get_mut(shard).and_then(|tensors| tensors.remove(name)) {
                Some(stored) => drop(self.tensors.insert(name.clone(), stored)),
                None => drop(self.absent.insert(name.clone(), folder.join(shard))),
            }
        }
        Ok(shards.into_keys().map(str::to_owned).collect())
    }
}

/// Whether an index is left over from shards that are not there any more.
fn is_left_over(index: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(index) else { return false };
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
    let folder = index.parent().unwrap_or(Path::new("."));
    let shards = json["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    !shards.filter_map(|shard| shard.as_str()).any(|shard| folder.join(shard).is_file())
}

/// The names of a folder's files, sorted.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "read", e))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// What to do with a folder whose weights are stored in another way.
fn advice_on_other_files(names: &[String]) -> String {
    let with = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending)))
    };
    if let Some(gguf) = with(&[".gguf"]) {
        return format!("; it has {gguf}: pass that file instead of the folder");
    }
    if let Some(pickle) = with(&[".bin", ".pth", ".pt"]) {
        return format!(
            "; it has {pickle}, which can run code and is not read: save the model again with \
             save_pretrained(safe_serialization=True)"
        );
    }
    if let Some(other) = with(&[".safetensors"]).filter(|name| !name.starts_with("adapter")) {
        return format!("; if {other} holds the weights, rename it to {SINGLE}");
    }
    "; is the download complete?".to_owned()
}

/// Warns of weight files in a folder that are not used, which may be what the user expects to run.
fn announce_unused(folder: &Path, used: &[String]) -> Result<()> {
    let unused: Vec<String> = names_in(folder)?
        .into_iter()
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter") && !used.contains(name))
        .collect();
    if unused.is_empty() {
        return Ok(());
    }
    let what = if used.iter().any(|name| name == SINGLE) { SINGLE } else { "the files that its index names" };
    tracing::warn!("{}: {} not used; the weights are those of {what}", folder.display(), listed(&unused));
    Ok(())
}

/// `a is`, or `a, b and 3 more are`.
fn listed(names: &[String]) -> String {
    match names {
        [one] => format!("{one} is"),
        [one, two] => format!("{one} and {two} are"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more are", rest.len()),
        [] => String::new(),
    }
}

/// Whether the name is that of a file in the same folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('\\')
}

/// The Hugging Face name of a GGUF tensor of the supported architectures.
fn hf_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}
