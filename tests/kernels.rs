//! Every kernel file through the system's Metal compiler: Apple's on a Mac, also on a virtual one, and clang on the software
//! device. The functions that come out are those on record in `tests/golden/kernel_functions.txt`.
#![cfg(metal)]

#[cfg(softmetal)]
extern crate softmetal;

use std::path::{Path, PathBuf};

use metal_candle::backend::KernelCompiler;

fn record() -> PathBuf {
    Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden/kernel_functions.txt")
}

/// Compiles all files, also those after one that fails, so that one run shows every fault.
#[test]
fn every_kernel_file_compiles_to_the_functions_on_record() {
    let compiler = KernelCompiler::new().unwrap();
    println!("compiling on {}", compiler.device_name());
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    for file in KernelCompiler::files() {
        match compiler.functions(file) {
            Ok(functions) => {
                println!("{file}: {} functions", functions.len());
                lines.extend(functions.iter().map(|function| format!("{file} {function}")));
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of the kernel files do not compile:\n{}",
        failures.len(),
        failures.join("\n")
    );
    if cfg!(softmetal) && std::env::var_os("UPDATE_KERNELS").is_some() {
        std::fs::write(record(), lines.join("\n") + "\n").unwrap();
    }
    let recorded = std::fs::read_to_string(record()).unwrap();
    let recorded: Vec<&str> = recorded.lines().collect();
    let missing: Vec<&&str> =
        recorded.iter().filter(|line| !lines.iter().any(|found| found == **line)).collect();
    let new: Vec<&String> = lines.iter().filter(|line| !recorded.contains(&line.as_str())).collect();
    assert!(
        missing.is_empty() && new.is_empty(),
        "missing: {missing:?}\nnot on record: {new:?}\nRun this test on the software device with UPDATE_KERNELS=1 and \
         commit {}",
        record().display()
    );
}

/// Makes the pipeline of every function where the GPU is of family Apple7 or later: the back end of the compiler. The
/// software device compiles one file of the list; its other tests make the others' pipelines.
#[test]
fn every_function_becomes_a_pipeline() {
    let compiler = KernelCompiler::new().unwrap();
    if !compiler.makes_pipelines() {
        println!("SKIPPED pipelines: {} is below GPU family Apple7", compiler.device_name());
        return;
    }
    let mut failures = Vec::new();
    for file in KernelCompiler::files().filter(|file| !cfg!(softmetal) || *file == "silu_mul") {
        for function in compiler.functions(file).unwrap() {
            match compiler.pipeline(file, &function) {
                // A SIMD group has 32 threads; fewer than that cannot run any of the kernels.
                Ok(threads) if threads >= 32 => {}
                Ok(threads) => failures.push(format!("{file} {function}: only {threads} threads")),
                Err(error) => failures.push(error.to_string()),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn an_unknown_file_is_refused_by_name() {
    let error = KernelCompiler::new().unwrap().functions("sotfmax").unwrap_err().to_string();
    assert!(error.starts_with("sotfmax: not a kernel file; there are accumulate, "), "{error}");
}
