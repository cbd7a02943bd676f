//! The list of our kernel files.

use super::kernel::Source;
use super::{
    accumulate, adamw, attention, attention_grad, cross_entropy, dropout, elementwise, embedding, gemv,
    global_norm, kv_write, layer_norm, layout, lora, matmul, op, quant_matmul, reduce, rms_norm, rope,
    sample, silu_mul, softmax, top_k,
};

/// Every kernel file of ours.
pub(in crate::backend) const FILES: [Source; 24] = [
    accumulate::SOURCE,
    adamw::SOURCE,
    attention::SOURCE,
    attention_grad::SOURCE,
    op::CHECK,
    cross_entropy::SOURCE,
    dropout::SOURCE,
    elementwise::SOURCE,
    embedding::SOURCE,
    gemv::SOURCE,
    global_norm::SOURCE,
    kv_write::SOURCE,
    layer_norm::SOURCE,
    layout::SOURCE,
    lora::SOURCE,
    matmul::SOURCE,
    quant_matmul::SOURCE,
    reduce::SOURCE,
    rms_norm::SOURCE,
    rope::SOURCE,
    sample::SOURCE,
    silu_mul::SOURCE,
    softmax::SOURCE,
    top_k::SOURCE,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the declarations in the sources of this folder, so that a new kernel file cannot be left out.
    #[test]
    fn every_kernel_file_is_listed_once() {
        let folder = std::path::Path::new(env!("METAL_CANDLE_ROOT")).join("src/backend/gpu");
        let mut declared = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let declaration = |line: &&str| {
                    let line = line.strip_prefix("pub(super) ").unwrap_or(line);
                    line.starts_with("const ") && line.contains(": Source =")
                };
                declared += text.lines().filter(declaration).count();
            }
        }
        let names: std::collections::BTreeSet<&str> = FILES.iter().map(|file| file.name).collect();
        assert_eq!((declared, names.len()), (FILES.len(), FILES.len()), "{names:?}");
    }
}
