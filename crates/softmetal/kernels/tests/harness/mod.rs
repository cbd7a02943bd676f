//! Buffers of Rust values for kernels, and a cache folder of the tests' own.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use softmetal_kernels::{Argument, CompileOptions, Dispatch, Fault, Library, Pipeline, Report};

/// The cache stays in the target folder, so `cargo clean` makes the next run a cold one.
pub(crate) fn options() -> CompileOptions {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    CompileOptions { cache: Some(cache), ..CompileOptions::default() }
}

pub(crate) fn library(source: &str) -> Arc<Library> {
    let source = format!("#include <metal_stdlib>\nusing namespace metal;\n{source}");
    Library::from_source(&source, &options()).unwrap_or_else(|e| panic!("{e}\n{}", e.details))
}

pub(crate) fn kernel(source: &str, name: &str) -> Arc<Pipeline> {
    pipeline(&library(source), name, &[])
}

pub(crate) fn pipeline(library: &Library, name: &str, constants: &[(u32, &[u8])]) -> Arc<Pipeline> {
    let constants: BTreeMap<u32, Vec<u8>> = constants.iter().map(|(i, v)| (*i, v.to_vec())).collect();
    library.pipeline(name, &constants).unwrap_or_else(|e| panic!("{e}\n{}", e.details))
}

pub(crate) fn buffer<T>(values: &mut [T]) -> Argument {
    Argument::Buffer { start: values.as_mut_ptr().cast(), len: size_of_val(values) }
}

/// A value as its bytes.
pub(crate) fn bytes<T: Copy>(value: T) -> Argument {
    // SAFETY: the tests pass plain numbers and arrays of them.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
    Argument::Bytes(bytes.to_vec())
}

pub(crate) fn run(p: &Pipeline, arguments: &[Argument], grid: [u32; 3], threadgroup: [u32; 3]) -> Report {
    run_with(p, arguments, &[], grid, threadgroup, 0).unwrap_or_else(|f| panic!("{f}"))
}

pub(crate) fn run_with(
    p: &Pipeline,
    arguments: &[Argument],
    threadgroup_lengths: &[usize],
    grid: [u32; 3],
    threadgroup: [u32; 3],
    seed: u64,
) -> Result<Report, Fault> {
    p.dispatch(&Dispatch { arguments, threadgroup_lengths, grid, threadgroup, seed, record_accesses: true })
}

/// Numbers in -1..1 that are the same in every run.
pub(crate) fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

pub(crate) fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        // Written so that a NaN is a difference.
        let near = (g - w).abs() <= tolerance * (1.0 + w.abs());
        assert!(near, "element {i}: got {g}, want {w}");
    }
}

/// Source of candle-metal-kernels 0.11.1, where cargo has fetched it.
pub(crate) fn candle_folder() -> Option<std::path::PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home =
        home.or_else(|| std::env::var_os("HOME").map(|h| std::path::PathBuf::from(h).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
    let mut folders =
        registries.flatten().map(|r| r.path().join("candle-metal-kernels-0.11.1/src/metal_src"));
    folders.find(|f| f.is_dir())
}
