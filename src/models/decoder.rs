//! The decoder-only transformer of the Llama, Mistral, Qwen2 and Qwen3 families: its parameters on a device, and
//! the recording of its layers.
//!
//! A layer is `x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)))`, then
//! `x += down(silu(gate(norm x)) · up(norm x))`. The weights of q, k and v lie side by side in one buffer, as do
//! gate and up, so that the graph's rewrites can join their products. Families differ only by their
//! [`ModelConfig`]: biases (Qwen2), norms of each query and key head (Qwen3), a sliding window (Mistral).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ModelConfig, Weights};
use crate::Result;
use crate::backend::Device;
use crate::content_hash::ContentHash;
use crate::graph::{Graph, LazyTensor};
use crate::ops::{Attention, Real};
use crate::tensor::{DType, HostTensor, MappedFile, Parameter, TensorSpec};

/// Path of the embedding as a module.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";
/// Path of the output head as a module.
pub(crate) const HEAD: &str = "lm_head";
/// Stream of the dropout on the head's input, which no layer uses.
const HEAD_STREAM: u32 = u32::MAX;

/// A model's parameters on a device.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Parameter,
    layers: Vec<Layer>,
    norm: Parameter,
    head: Parameter,
    rope: Arc<Mutex<Option<RopeTables>>>,
    /// Files whose bytes are used in place.
    files: Vec<MappedFile>,
}

/// Cosines and sines of the rotary angles, each `[positions, head_dim / 2]`.
#[derive(Debug, Clone)]
struct RopeTables {
    cos: Parameter,
    sin: Parameter,
}

/// Minimum number of positions of the rotary tables. They grow by powers of two with the sequences that are recorded.
const MIN_POSITIONS: usize = 256;

#[derive(Debug, Clone)]
struct Layer {
    attention_norm: Parameter,
    qkv: Joined,
    q_norm: Option<Parameter>,
    k_norm: Option<Parameter>,
    output: Joined,
    mlp_norm: Parameter,
    gate_up: Joined,
    down: Joined,
}

/// Linear layers with one input whose weights lie one after the other in a parameter `[Σ rows, columns]`.
#[derive(Debug, Clone)]
struct Joined {
    weight: Parameter,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// The module's path in the model, e.g. `model.layers.0.self_attn.q_proj`.
    path: String,
    start: usize,
    rows: usize,
    bias: Option<Parameter>,
}

/// A linear layer or the embedding of a model, as an adapter sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    /// Path in the model, e.g. `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Columns of the weight; of the embedding, the number of tokens.
    pub in_features: usize,
    /// Rows of the weight; of the embedding, the width of the residual stream.
    pub out_features: usize,
    /// The layer that it belongs to.
    pub layer: Option<usize>,
    /// Whether it is the output head, which `all-linear` leaves out.
    pub is_head: bool,
    /// Whether it is the embedding, which `all-linear` leaves out.
    pub is_embedding: bool,
}

/// An adapter on the device: for each module's path A `[r, in]`, B `[out, r]` and the scale. A of the embedding is
/// `[tokens, r]`, so that its rows can be picked by token.
#[derive(Debug, Clone, Default)]
pub struct AdapterParameters {
    pairs: HashMap<String, (Parameter, Parameter, f32)>,
}

impl AdapterParameters {
    /// Adds the pair of one module.
    pub fn insert(&mut self, path: impl Into<String>, a: Parameter, b: Parameter, scale: f32) {
        self.pairs.insert(path.into(), (a, b, scale));
    }
}

/// Keys and values of the tokens so far, for every layer `[kv_heads, capacity, head_dim]`.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<(Parameter, Parameter)>,
    capacity: usize,
}

impl KvCache {
    /// How many tokens fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| k.spec().bytes() + v.spec().bytes()).sum()
    }
}

/// What a recording of the layers needs beside the tokens.
struct Recording<'a> {
    model: &'a Decoder,
    adapter: Option<&'a AdapterParameters>,
    graph: &'a Graph,
    positions: LazyTensor,
    context: Context<'a>,
    dropout: Option<(f32, LazyTensor)>,
    streams: u32,
}

enum Context<'a> {
    /// Whole sequences side by side.
    Sequences { batch: usize },
    /// New tokens of one sequence at a position given at every run.
    Cached { cache: &'a KvCache, pos: LazyTensor },
}

impl Decoder {
    /// Reads a model's weights onto a device. Matrices are stored as `dtype`, norms and biases as f32.
    ///
    /// `progress` is told the share that is done, from 0 to 1.
    pub fn load(
        config: ModelConfig,
        weights: &Weights,
        device: &Device,
        dtype: DType,
        progress: &dyn Fn(f64),
    ) -> Result<Self> {
        config.check_weights(weights)?;
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        // Loading a tensor of another shape fails before memory is allocated by the configuration's sizes.
        let check = |name: &str, shape: &[usize]| -> Result<()> {
            if weights.shape(name) == Some(shape) {
                Ok(())
            } else {
                weights.load(name, shape, dtype).map(drop)
            }
        };
        let files = RefCell::new(Vec::<MappedFile>::new());
        let placed = |name: &str, shape: &[usize], dtype: DType| -> Result<Parameter> {
            let tensor = weights.load(name, shape, dtype)?;
            let mut files = files.borrow_mut();
            if let Some(file) = tensor.mapped_file()
                && files.iter().all(|known| known.path() != file.path())
            {
                files.push(file.clone());
            }
            device.parameter(name, &tensor, false)
        };
        let vector = |name: &str, len: usize| placed(name, &[len], DType::F32);
        let matrix = |name: &str, rows: usize, columns: usize| placed(name, &[rows, columns], dtype);
        let joined = |modules: &[(String, usize, bool)], columns: usize| -> Result<Joined> {
            for (path, rows, _) in modules {
                check(&format!("{path}.weight"), &[*rows, columns])?;
            }
            let total: usize = modules.iter().map(|(_, rows, _)| rows).sum();
            let buffer = device.allocate(total * columns * dtype.size())?;
            let mut parts = Vec::new();
            let mut start = 0;
            for (path, rows, has_bias) in modules {
                let tensor = weights.load(&format!("{path}.weight"), &[*rows, columns], dtype)?;
                buffer.write(start * columns * dtype.size(), tensor.bytes())?;
                tensor.release_pages();
                let bias = if *has_bias { Some(vector(&format!("{path}.bias"), *rows)?) } else { None };
                parts.push(Part { path: path.clone(), start, rows: *rows, bias });
                start += rows;
            }
            let names: Vec<&str> = modules.iter().map(|(path, _, _)| path.as_str()).collect();
            let weight =
                Parameter::new(names.join("+"), TensorSpec::new(dtype, [total, columns]), false, buffer, 0)?;
            Ok(Joined { weight, parts })
        };
        let embedding = matrix("model.embed_tokens.weight", config.vocab, hidden)?;
        let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        let mut layers = Vec::new();
        for index in 0..config.layers {
            progress(index as f64 / config.layers as f64);
            let path = |name: &str| format!("model.layers.{index}.{name}");
            let bias = config.attention_bias;
            let head_norm = |name: &str| -> Result<Option<Parameter>> {
                if config.qk_norm { Ok(Some(vector(&path(name), head_dim)?)) } else { Ok(None) }
            };
            layers.push(Layer {
                attention_norm: vector(&path("input_layernorm.weight"), hidden)?,
                qkv: joined(
                    &[
                        (path("self_attn.q_proj"), q, bias),
                        (path("self_attn.k_proj"), kv, bias),
                        (path("self_attn.v_proj"), kv, bias),
                    ],
                    hidden,
                )?,
                q_norm: head_norm("self_attn.q_norm.weight")?,
                k_norm: head_norm("self_attn.k_norm.weight")?,
                output: joined(&[(path("self_attn.o_proj"), hidden, config.output_bias)], q)?,
                mlp_norm: vector(&path("post_attention_layernorm.weight"), hidden)?,
                gate_up: joined(
                    &[
                        (path("mlp.gate_proj"), config.intermediate, config.mlp_bias),
                        (path("mlp.up_proj"), config.intermediate, config.mlp_bias),
                    ],
                    hidden,
                )?,
                down: joined(&[(path("mlp.down_proj"), hidden, config.mlp_bias)], config.intermediate)?,
            });
        }
        let norm = vector("model.norm.weight", hidden)?;
        let head = if config.tie_embeddings {
            embedding.clone()
        } else {
            matrix("lm_head.weight", config.vocab, hidden)?
        };
        progress(1.0);
        // What was copied out of a file that changed meanwhile is of two models.
        weights.check()?;
        let files = files.into_inner();
        Ok(Self {
            device: device.clone(),
            embedding,
            layers,
            norm,
            head,
            rope: Arc::default(),
            files,
            config,
        })
    }

    /// Rotary tables for at least so many positions. A configuration's context may be far longer than any sequence that
    /// is run, so the tables are as long as the longest recorded sequence needs.
    fn rope_tables(&self, positions: usize) -> Result<RopeTables> {
        let mut current = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = current.as_ref().filter(|tables| tables.cos.spec().shape[0] >= positions) {
            return Ok(tables.clone());
        }
        let grown = positions.next_power_of_two().max(MIN_POSITIONS);
        let rows = grown.min(self.config.context.max(positions));
        let (cos, sin) = self.config.rope_tables(rows);
        let table = |name: &str, values: Vec<f32>| {
            let tensor = HostTensor::from_slice(&values, [rows, self.config.head_dim / 2])?;
            self.device.parameter(name, &tensor, false)
        };
        let tables = RopeTables { cos: table("rope.cos", cos)?, sin: table("rope.sin", sin)? };
        Ok(current.insert(tables).clone())
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Fails if a file whose bytes are used in place was changed since it was opened; see [`MappedFile::check`]. The
    /// embedding, the head and the norms are used in place where the file stores them in the dtype of the model.
    pub fn check_files(&self) -> Result<()> {
        self.files.iter().try_for_each(MappedFile::check)
    }

    /// Bytes of all parameters.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            [&layer.qkv, &layer.output, &layer.gate_up, &layer.down]
                .map(|joined| joined.weight.spec().bytes())
        });
        let head = if self.config.tie_embeddings { 0 } else { self.head.spec().bytes() };
        self.embedding.spec().bytes() + head + layers.flatten().sum::<usize>()
    }

    /// Number of parameters in matrices.
    pub fn matrix_parameters(&self) -> usize {
        self.bytes() / self.embedding.spec().dtype.size()
    }

    /// Storage of the matrices.
    pub fn dtype(&self) -> DType {
        self.embedding.spec().dtype
    }

    /// Returns a hash of all parameters as they are stored on the device: equal for equal models of one dtype.
    pub fn content_hash(&self) -> Result<String> {
        const CHUNK: usize = 1 << 20;
        let mut hash = ContentHash::new();
        let mut chunk = vec![0; CHUNK];
        let mut add = |parameter: &Parameter| -> Result<()> {
            hash.add(parameter.name().as_bytes());
            let (buffer, start) = parameter.location();
            let bytes = parameter.spec().bytes();
            for offset in (0..bytes).step_by(CHUNK) {
                let part = &mut chunk[..CHUNK.min(bytes - offset)];
                buffer.read(start + offset, part)?;
                hash.add(part);
            }
            Ok(())
        };
        add(&self.embedding)?;
        for layer in &self.layers {
            let norms = [Some(&layer.attention_norm), layer.q_norm.as_ref(), layer.k_norm.as_ref()];
            for norm in norms.into_iter().chain([Some(&layer.mlp_norm)]).flatten() {
                add(norm)?;
            }
            for joined in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                add(&joined.weight)?;
                for bias in joined.parts.iter().filter_map(|part| part.bias.as_ref()) {
                    add(bias)?;
                }
            }
        }
        let head = (!self.config.tie_embeddings).then_some(&self.head);
        for parameter in [&self.norm].into_iter().chain(head) {
            add(parameter)?;
        }
        // The rotary tables follow from the frequencies and are as long as the sequences so far.
        for frequency in self.config.rope_frequencies() {
            hash.add(&frequency.to_le_bytes());
        }
        Ok(hash.finish())
    }

    /// Every module that can have an adapter, in the order of the model: the embedding, the linear layers of all layers,
    /// and the output head, which is a module of its own also where it shares the embedding's weight.
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        let (vocab, hidden) = (self.config.vocab, self.config.hidden);
        let top = |path: &str, in_features, out_features| LinearModule {
            path: path.to_owned(),
            in_features,
            out_features,
            layer: None,
            is_head: path == HEAD,
            is_embedding: path == EMBEDDING,
        };
        let mut modules = vec![top(EMBEDDING, vocab, hidden)];
        for (index, layer) in self.layers.iter().enumerate() {
            for joined in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                modules.extend(joined.parts.iter().map(|part| LinearModule {
                    path: part.path.clone(),
                    in_features: joined.weight.spec().shape[1],
                    out_features: part.rows,
                    layer: Some(index),
                    is_head: false,
                    is_embedding: false,
                }));
            }
        }
        modules.push(top(HEAD, hidden, vocab));
        modules
    }

    /// The weight of a linear layer, in f32 `[out, in]`.
    pub fn linear_weight(&self, path: &str) -> Option<Result<HostTensor>> {
        if path == HEAD {
            return Some(self.head.read().map(|weight| weight.cast(DType::F32)));
        }
        let all = self.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let (joined, part) = all
            .flat_map(|joined| joined.parts.iter().map(move |part| (joined, part)))
            .find(|(_, p)| p.path == path)?;
        let spec = joined.weight.spec();
        let columns = spec.shape[1];
        let mut tensor = HostTensor::zeros(TensorSpec::new(spec.dtype, [part.rows, columns]));
        let (buffer, offset) = joined.weight.location();
        let read = buffer.read(offset + part.start * columns * spec.dtype.size(), tensor.bytes_mut());
        Some(read.map(|()| tensor.cast(DType::F32)))
    }

    /// An empty cache for `capacity` tokens, stored as `dtype`.
    pub fn cache(&self, capacity: usize, dtype: DType) -> Result<KvCache> {
        let spec = TensorSpec::new(dtype, [self.config.kv_heads, capacity, self.config.head_dim]);
        let layers = (0..self.layers.len())
            .map(|index| {
                let state = |name: &str| self.device.state(format!("cache.{index}.{name}"), spec.clone());
                Ok((state("k")?, state("v")?))
            })
            .collect::<Result<_>>()?;
        Ok(KvCache { layers, capacity })
    }

    /// Records the final hidden states `[batch·t, hidden]` of whole sequences.
    ///
    /// `ids` and `positions` are u32 `[batch·t]`; each position is less than t. `dropout` is the probability and the seed for the adapters'
    /// inputs.
    pub fn record_sequences(
        &self,
        graph: &Graph,
        ids: &LazyTensor,
        positions: &LazyTensor,
        batch: usize,
        adapter: Option<&AdapterParameters>,
        dropout: Option<(f32, LazyTensor)>,
        checkpoint: bool,
    ) -> Result<LazyTensor> {
        let recording = Recording {
            model: self,
            adapter,
            graph,
            positions: positions.clone(),
            context: Context::Sequences { batch },
            dropout,
            streams: 0,
        };
        recording.run(ids, checkpoint)
    }

    /// Records the final hidden states `[t, hidden]` of new tokens of one sequence, whose keys and values are
    /// written to the cache from position `pos` (u32 `[1]`) on.
    pub fn record_cached(
        &self,
        graph: &Graph,
        ids: &LazyTensor,
        positions: &LazyTensor,
        pos: &LazyTensor,
        cache: &KvCache,
        adapter: Option<&AdapterParameters>,
    ) -> Result<LazyTensor> {
        let recording = Recording {
            model: self,
            adapter,
            graph,
            positions: positions.clone(),
            context: Context::Cached { cache, pos: pos.clone() },
            dropout: None,
            streams: 0,
        };
        recording.run(ids, false)
    }

    /// Records logits `[rows, vocab]` of hidden states.
    pub fn record_logits(
        &self,
        graph: &Graph,
        hidden: &LazyTensor,
        adapter: Option<&AdapterParameters>,
    ) -> Result<LazyTensor> {
        match adapter.and_then(|adapter| adapter.pairs.get(HEAD)) {
            Some(pair) => self.adapted_logits(graph, hidden, pair, None),
            None => hidden.linear(&graph.parameter(&self.head)),
        }
    }

    fn adapted_logits(
        &self,
        graph: &Graph,
        hidden: &LazyTensor,
        (a, b, scale): &(Parameter, Parameter, f32),
        dropout: Option<&(f32, LazyTensor)>,
    ) -> Result<LazyTensor> {
        let dropped = dropout.map(|(p, seed)| hidden.dropout(*p, HEAD_STREAM, seed)).transpose()?;
        let (a, b) = (graph.parameter(a), graph.parameter(b));
        hidden.lora(&graph.parameter(&self.head), dropped.as_ref(), &a, &b, *scale)
    }

    /// Records the summed cross-entropy of hidden states `[m, hidden]` against targets; see
    /// [`crate::ops::CrossEntropy`]. With an adapter on the head the logits of all m rows are held at once.
    pub fn record_loss(
        &self,
        graph: &Graph,
        hidden: &LazyTensor,
        targets: &LazyTensor,
        weights: &LazyTensor,
        adapter: Option<&AdapterParameters>,
        dropout: Option<&(f32, LazyTensor)>,
    ) -> Result<LazyTensor> {
        match adapter.and_then(|adapter| adapter.pairs.get(HEAD)) {
            Some(pair) => self.adapted_logits(graph, hidden, pair, dropout)?.cross_entropy(targets, weights),
            None => hidden.head_cross_entropy(&graph.parameter(&self.head), targets, weights),
        }
    }
}

impl Recording<'_> {
    fn run(mut self, ids: &LazyTensor, checkpoint: bool) -> Result<LazyTensor> {
        let (graph, model) = (self.graph, self.model);
        let mut x = graph.parameter(&model.embedding).embedding(ids, DType::F32)?;
        if let Some((a, b, scale)) = self.adapter.and_then(|adapter| adapter.pairs.get(EMBEDDING)) {
            let picked = graph.parameter(a).embedding(ids, DType::F32)?;
            x = x.add(&picked.linear(&graph.parameter(b))?.affine(*scale, 0.0)?)?;
        }
        for (index, layer) in model.layers.iter().enumerate() {
            x = if checkpoint {
                graph.checkpointed(|| self.layer(&x, index, layer))?
            } else {
                self.layer(&x, index, layer)?
            };
        }
        x.rms_norm(&graph.parameter(&model.norm), model.config.rms_eps as f32)
    }

    fn layer(&mut self, x: &LazyTensor, index: usize, layer: &Layer) -> Result<LazyTensor> {
        let eps = self.model.config.rms_eps as f32;
        let h = x.rms_norm(&self.graph.parameter(&layer.attention_norm), eps)?;
        let mut qkv = self.joined(&h, &layer.qkv)?;
        let v = qkv.pop().expect("three parts");
        let k = self.head_norm(qkv.pop().expect("three parts"), layer.k_norm.as_ref())?;
        let q = self.head_norm(qkv.pop().expect("three parts"), layer.q_norm.as_ref())?;
        let out = self.attention(index, &q, &k, &v)?;
        let x = x.add(&self.joined(&out, &layer.output)?.remove(0))?;
        let h = x.rms_norm(&self.graph.parameter(&layer.mlp_norm), eps)?;
        let gate_up = self.joined(&h, &layer.gate_up)?;
        let inner = gate_up[0].silu()?.mul(&gate_up[1])?;
        x.add(&self.joined(&inner, &layer.down)?.remove(0))
    }

    /// The outputs of linear layers that share the input x `[n, columns]`.
    fn joined(&mut self, x: &LazyTensor, joined: &Joined) -> Result<Vec<LazyTensor>> {
        let weight = self.graph.parameter(&joined.weight);
        let whole = joined.parts.len() == 1;
        let mut dropped = None;
        let mut outputs = Vec::with_capacity(joined.parts.len());
        for part in &joined.parts {
            let w = if whole { weight.clone() } else { weight.slice(0, part.start, part.rows)? };
            let pair = self.adapter.and_then(|adapter| adapter.pairs.get(&part.path));
            let mut y = match pair {
                None => x.linear(&w)?,
                Some((a, b, scale)) => {
                    // Modules that share an input share its dropout, so that their products can be joined.
                    if let (None, Some((p, seed))) = (&dropped, &self.dropout) {
                        dropped = Some(x.dropout(*p, self.streams, seed)?);
                        self.streams += 1;
                    }
                    let (a, b) = (self.graph.parameter(a), self.graph.parameter(b));
                    x.lora(&w, dropped.as_ref(), &a, &b, *scale)?
                }
            };
            if let Some(bias) = &part.bias {
                y = y.add(&self.graph.parameter(bias))?;
            }
            outputs.push(y);
        }
        Ok(outputs)
    }

    /// `[n, heads·d]` as `[n, heads, d]`, normed if the family does so.
    fn head_norm(&self, x: LazyTensor, weight: Option<&Parameter>) -> Result<LazyTensor> {
        let (shape, d) = (x.shape(), self.model.config.head_dim);
        let x = x.reshape([shape[0], shape[1] / d, d])?;
        match weight {
            Some(weight) => x.rms_norm(&self.graph.parameter(weight), self.model.config.rms_eps as f32),
            None => Ok(x),
        }
    }

    fn attention(&self, index: usize, q: &LazyTensor, k: &LazyTensor, v: &LazyTensor) -> Result<LazyTensor> {
        let config = &self.model.config;
        let (tokens, d) = (q.shape()[0], config.head_dim);
        let positions = match &self.context {
            Context::Sequences { batch } => tokens / (*batch).max(1),
            // Tokens that pad a chunk may come after the cache's last position.
            Context::Cached { cache, .. } => cache.capacity + tokens,
        };
        let tables = self.model.rope_tables(positions)?;
        let (cos, sin) = (self.graph.parameter(&tables.cos), self.graph.parameter(&tables.sin));
        let q = q.rope(&cos, &sin, &self.positions)?;
        let k = k.rope(&cos, &sin, &self.positions)?;
        let op = Attention {
            scale: Real(1.0 / (d as f32).sqrt()),
            causal: true,
            window: config.sliding_window,
            cached: matches!(self.context, Context::Cached { .. }),
            segmented: false,
        };
        let out = match &self.context {
            Context::Sequences { batch } => {
                let sequence = |x: &LazyTensor, heads| x.reshape([*batch, tokens / batch, heads, d]);
                let (k, v) = (sequence(&k, config.kv_heads)?, sequence(v, config.kv_heads)?);
                sequence(&q, config.heads)?.attention(&k, &v, op, &[])?
            }
            Context::Cached { cache, pos } => {
                let (k_cache, v_cache) = &cache.layers[index];
                let write = |state: &Parameter, new: &LazyTensor| -> Result<LazyTensor> {
                    let written = self.graph.parameter(state).kv_write(new, pos)?;
                    written.permute(&[1, 0, 2])?.reshape([1, cache.capacity, config.kv_heads, d])
                };
                let v = v.reshape([tokens, config.kv_heads, d])?;
                let (k, v) = (write(k_cache, &k)?, write(v_cache, &v)?);
                q.reshape([1, tokens, config.heads, d])?.attention(&k, &v, op, &[pos])?
            }
        };
        out.reshape([tokens, config.heads * d])
    }
}
