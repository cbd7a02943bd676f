//! Every kernel file, translated and compiled for the architectures of A100 and H100.

use metal_candle::backend::CudaCompiler;

/// True if the compiler is here; otherwise the test is skipped.
fn has_compiler() -> bool {
    match CudaCompiler::version() {
        Ok((major, minor)) => {
            println!("NVRTC {major}.{minor}");
            true
        }
        Err(error) => {
            println!("SKIPPED the compilation of kernels: {error}");
            false
        }
    }
}

/// Compiles all files, also those after one that fails, so that one run shows every fault.
fn compile_for(architecture: u32) {
    if !has_compiler() {
        return;
    }
    let mut failures = Vec::new();
    for file in CudaCompiler::files() {
        match CudaCompiler::compile(file, architecture) {
            Ok(bytes) if bytes > 0 => {}
            Ok(_) => failures.push(format!("{file}: no machine code")),
            Err(error) => failures.push(error.to_string()),
        }
    }
    assert!(failures.is_empty(), "{} files do not compile:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn nvrtc_compiles_every_kernel_for_architecture_80() {
    compile_for(80);
}

#[test]
fn nvrtc_compiles_every_kernel_for_architecture_90() {
    compile_for(90);
}

/// The record is that of Metal's own tests, so a kernel that the reader does not find is missed here.
#[test]
fn the_translator_finds_the_functions_on_record() {
    let record = std::path::Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden/kernel_functions.txt");
    let record = std::fs::read_to_string(record).unwrap();
    let recorded: std::collections::BTreeSet<&str> =
        record.lines().filter(|line| !line.starts_with("mlx_gemm ")).collect();
    let mut found = std::collections::BTreeSet::new();
    for file in CudaCompiler::files() {
        for function in CudaCompiler::functions(file).unwrap() {
            found.insert(format!("{file} {function}"));
        }
    }
    assert_eq!(found.iter().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), recorded);
}

#[test]
fn an_unknown_file_is_an_error_that_lists_the_files() {
    let error = CudaCompiler::functions("sotfmax").unwrap_err().to_string();
    assert!(error.starts_with("sotfmax: not a kernel file; there are accumulate, "), "{error}");
}
