//! The table of what runs where, which docs/SUPPORT_CPU.md, docs/SUPPORT_METAL.md and docs/SUPPORT_CUDA.md contain.

use std::collections::BTreeMap;

use metal_candle::Error;
use metal_candle::backend::Device;
use metal_candle::ops::Op;
use metal_candle::tensor::DType;

use super::cases::{Sizes, all};
use super::run;

/// "yes", or what the device says.
fn support(device: &Device, dtype: DType) -> BTreeMap<&'static str, bool> {
    let mut table = BTreeMap::new();
    for mut case in all(Sizes { m: 3, n: 8, k: 4, b: 1 }, 1) {
        let specs = |case: &super::Case| case.inputs.iter().map(|x| x.spec().clone()).collect::<Vec<_>>();
        let stays_f32 = super::edges::f32_inputs(&case.op);
        for index in 0..case.inputs.len() {
            // Inputs that are f32 whatever the storage stay so; of some, the shape rule says which.
            let old = case.inputs[index].clone();
            if old.dtype() == DType::F32 && !stays_f32.contains(&index) {
                case.inputs[index] = old.cast(dtype);
            }
        }
        if case.op.contract().infer(&specs(&case)).is_err() {
            for index in (0..case.inputs.len()).rev() {
                let old = case.inputs[index].clone();
                case.inputs[index] =
                    old.cast(if old.dtype() == DType::U32 { DType::U32 } else { DType::F32 });
                if case.op.contract().infer(&specs(&case)).is_ok() {
                    break;
                }
            }
        }
        let works = match run(device, &case) {
            Ok(_) => true,
            Err(Error::Unsupported { .. } | Error::DType { .. }) => false,
            Err(error) => panic!("{:?}: {error}", case.op),
        };
        *table.entry(name(&case.op)).or_insert(true) &= works;
    }
    table
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Unary(_) => "unary",
        Op::UnaryGrad(_) => "unary_grad",
        Op::Binary(_) => "binary",
        Op::Reduce(_) => "reduce",
        other => other.name(),
    }
}

fn table() -> String {
    let (device, name) = (super::device(), super::test_device::kind());
    let columns = [DType::F32, DType::F16, DType::BF16].map(|dtype| support(&device, dtype));
    let mut text = format!(
        "# What runs on {name}\n\nWritten by the test `ops` (set `UPDATE_SUPPORT=1` to write it anew). A dtype is that \
         of the storage; sums are f32.\n\n| operation | f32 | f16 | bf16 |\n|---|---|---|---|\n"
    );
    for name in columns[0].keys() {
        let cell = |column: &BTreeMap<&str, bool>| if column[name] { "yes" } else { "no" };
        let [a, b, c] = columns.each_ref().map(cell);
        text += &format!("| {name} | {a} | {b} | {c} |\n");
    }
    text
}

#[test]
fn the_table_in_the_documents_is_what_runs() {
    let name = format!("docs/SUPPORT_{}.md", super::test_device::kind().to_uppercase());
    let path = std::path::Path::new(env!("METAL_CANDLE_ROOT")).join(&name);
    let found = table();
    if std::env::var_os("UPDATE_SUPPORT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, found, "run the test `ops` with UPDATE_SUPPORT=1 and commit {name}");
}
