//! Numbers that a kernel declares, and this project's own requirements.

use crate::kernel::Kernel;
use crate::library::Library;

use super::{Finding, Requirements, about};

/// Largest index of a buffer or of threadgroup memory.
pub const MAX_BUFFER_INDEX: u32 = 30;
/// Largest number of threads of a threadgroup.
pub const MAX_THREADS: u32 = 1024;
/// Bytes of threadgroup memory that a kernel can have.
pub const MAX_THREADGROUP_BYTES: usize = 32 * 1024;

pub(super) fn check(kernel: &Kernel, requirements: Requirements, findings: &mut Vec<Finding>) {
    let line = kernel.location.line;
    match &kernel.max_threads {
        // An expression of template parameters is evaluated where the types are checked.
        Some(value) => {
            let number = value.trim_end_matches(['u', 'U']).parse::<u32>().ok();
            if number.is_some_and(|n| !(1..=MAX_THREADS).contains(&n)) {
                let reason =
                    format!("max_total_threads_per_threadgroup({value}): it must be 1 to {MAX_THREADS}");
                findings.push(about(kernel, line, "max-threads", reason));
            }
        }
        None if requirements.max_threads => {
            let reason = "it declares no [[max_total_threads_per_threadgroup(n)]]: without it, the pipeline's limit may \
                          be lower than the launch";
            findings.push(about(kernel, line, "max-threads", reason));
        }
        None => {}
    }
    for variable in kernel.threadgroup_variables.iter().filter(|v| v.initialized) {
        let reason = format!("threadgroup variable `{}` cannot have an initializer", variable.name);
        findings.push(about(kernel, variable.line, "threadgroup-initializer", reason));
    }
}

pub(super) fn check_instantiated(library: &Library, findings: &mut Vec<Finding>) {
    for kernel in &library.uninstantiated {
        let reason = "the template has no explicit instantiation with a host_name, so no host can find it";
        findings.push(about(kernel, kernel.location.line, "instantiated", reason));
    }
}
