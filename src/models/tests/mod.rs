//! Tests of the model files, with small files written by hand.

mod chat_template;
mod config;
mod files;
mod gguf;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

use crate::tensor::DType;

/// A value of a GGUF file's metadata.
#[derive(Clone)]
pub(super) enum Meta {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor of a GGUF file: name, row-major shape, type number, bytes.
pub(super) type GgufPart = (&'static str, Vec<u64>, u32, Vec<u8>);

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The bytes of a GGUF file of version 3.
pub(super) fn gguf_bytes(metadata: &[(&str, Meta)], tensors: &[GgufPart]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        let mut array = |kind: u32, len: usize| {
            out.extend(9_u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match value {
            Meta::U32(x) => out.extend([4_u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::I32(x) => out.extend([5_u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::F32(x) => out.extend([6_u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::Bool(x) => out.extend([&7_u32.to_le_bytes()[..], &[u8::from(*x)]].concat()),
            Meta::Text(x) => {
                out.extend(8_u32.to_le_bytes());
                put_text(&mut out, x);
            }
            Meta::Texts(items) => {
                array(8, items.len());
                items.iter().for_each(|item| put_text(&mut out, item));
            }
            Meta::I32s(items) => {
                array(5, items.len());
                items.iter().for_each(|item| out.extend(item.to_le_bytes()));
            }
            Meta::F32s(items) => {
                array(6, items.len());
                items.iter().for_each(|item| out.extend(item.to_le_bytes()));
            }
        }
    }
    let mut offset = 0_u64;
    for (name, shape, kind, bytes) in tensors {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (bytes.len() as u64).next_multiple_of(32);
    }
    for (_, _, _, bytes) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(bytes);
    }
    out
}

pub(super) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A Llama without layers' weights but with everything the configuration needs.
pub(super) fn llama_metadata() -> Vec<(&'static str, Meta)> {
    vec![
        ("general.architecture", Meta::Text("llama")),
        ("llama.block_count", Meta::U32(1)),
        ("llama.context_length", Meta::U32(64)),
        ("llama.embedding_length", Meta::U32(8)),
        ("llama.feed_forward_length", Meta::U32(16)),
        ("llama.attention.head_count", Meta::U32(2)),
        ("llama.attention.head_count_kv", Meta::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.vocab_size", Meta::U32(5)),
    ]
}

/// A file in a new folder that goes away with the guard.
pub(super) fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Writes a safetensors file.
pub(super) fn write_safetensors(path: &Path, tensors: &[(&str, DType, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let dtype = match dtype {
            DType::F32 => safetensors::Dtype::F32,
            DType::F16 => safetensors::Dtype::F16,
            DType::BF16 => safetensors::Dtype::BF16,
            DType::U32 => safetensors::Dtype::U32,
        };
        (*name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
