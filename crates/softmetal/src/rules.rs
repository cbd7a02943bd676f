//! The rules of the Metal API that are checked where it is called.

use softmetal_objc::check::{Rule, Severity};

use crate::ordering;

macro_rules! rules {
    ($($name:ident $severity:ident $id:literal $text:literal $source:literal)*) => {
        $(
            #[doc = $text]
            pub static $name: Rule =
                Rule { id: $id, text: $text, severity: Severity::$severity, source: $source };
        )*
        static API: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    OUTLIVED Documented "objc-outlived"
        "no object outlives the test that made it"
        "Advanced Memory Management Programming Guide, Basic Memory Management Rules: ownership is given up"
    ENCODE_AFTER_COMMIT Documented "commit-then-encode"
        "nothing is encoded into a command buffer after its commit" "MTLCommandBuffer: commit"
    COMMIT_TWICE Documented "commit-twice"
        "a command buffer is committed once" "MTLCommandBuffer: commit"
    COMMIT_OPEN Documented "commit-with-open-encoder"
        "every encoder is ended before the commit" "MTLCommandEncoder: endEncoding"
    SECOND_ENCODER Documented "second-encoder"
        "a command buffer has one open encoder at a time" "MTLCommandBuffer: computeCommandEncoder"
    ENCODER_LEFT_OPEN Documented "encoder-left-open"
        "an encoder is ended before it is released" "MTLCommandEncoder: endEncoding"
    ENCODER_ENDED Documented "encoder-ended"
        "an encoder is not used after endEncoding" "MTLCommandEncoder: endEncoding"
    HANDLER_AFTER_COMMIT Documented "handler-after-commit"
        "completion handlers are added before the commit" "MTLCommandBuffer: addCompletedHandler:"
    WAIT_BEFORE_COMMIT Documented "wait-before-commit"
        "only a committed command buffer is waited for" "MTLCommandBuffer: waitUntilCompleted"
    EVENT_WITH_OPEN_ENCODER Documented "event-with-open-encoder"
        "events are signalled and waited for while no encoder is open" "MTLCommandBuffer: encodeSignalEvent:value:"
    MPS_WITH_OPEN_ENCODER Documented "mps-with-open-encoder"
        "an MPS kernel is encoded while no encoder is open" "MPSKernel: encodeToCommandBuffer:"
    BUFFER_INDEX Documented "buffer-index"
        "a buffer's index is 0 to 30" "Metal Feature Set Tables: buffers per compute function"
    BUFFER_OFFSET Documented "buffer-offset"
        "a buffer is bound at an offset within it" "MTLComputeCommandEncoder: setBuffer:offset:atIndex:"
    OFFSET_WITHOUT_BUFFER Documented "offset-without-buffer"
        "an offset is changed where a buffer is bound" "MTLComputeCommandEncoder: setBufferOffset:atIndex:"
    BYTES_LENGTH Documented "bytes-length"
        "setBytes takes at most 4096 bytes" "MTLComputeCommandEncoder: setBytes:length:atIndex: says up to 4 KB"
    BYTES_EMPTY Suspected "bytes-empty"
        "setBytes is given at least one byte; otherwise the argument is not set"
        "Metal's API validation counts an argument of 0 bytes as not set, and asserts that the pointer is not nil (mlx #4061); without validation it goes unnoticed, as in candle's sums of tensors without axes"
    THREADGROUP_MEMORY_UNIT Documented "threadgroup-memory-unit"
        "a length of threadgroup memory is a multiple of 16 bytes" "MTLComputeCommandEncoder: setThreadgroupMemoryLength:atIndex:"
    THREADGROUP_MEMORY_LIMIT Documented "threadgroup-memory-limit"
        "a threadgroup uses at most the device's 32 KiB" "MTLDevice: maxThreadgroupMemoryLength"
    NO_PIPELINE Documented "dispatch-without-pipeline"
        "a pipeline state is set before a dispatch" "MTLComputeCommandEncoder: setComputePipelineState:"
    THREADS_PER_THREADGROUP Documented "threads-per-threadgroup"
        "a threadgroup has 1 thread up to its pipeline's limit"
        "MTLComputePipelineState: maxTotalThreadsPerThreadgroup; Metal Shading Language Specification: max_total_threads_per_threadgroup"
    WHOLE_SIMD_GROUPS Documented "whole-simd-groups"
        "a threadgroup is whole SIMD groups where the pipeline's descriptor says so"
        "MTLComputePipelineDescriptor: threadGroupSizeIsMultipleOfThreadExecutionWidth"
    PIPELINE_WITHOUT_FUNCTION Documented "pipeline-without-function"
        "a compute pipeline's descriptor has a function" "MTLComputePipelineDescriptor: computeFunction"
    EMPTY_GRID Documented "empty-grid"
        "a dispatch has at least one threadgroup" "MTLComputeCommandEncoder: dispatchThreadgroups:threadsPerThreadgroup:"
    INDIRECT_OFFSET Documented "indirect-offset"
        "the numbers of an indirect dispatch lie within their buffer, at a multiple of 4"
        "MTLComputeCommandEncoder: dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:"
    UNSET_ARGUMENT Documented "unset-argument"
        "every argument that a kernel reads is set" "Metal Shading Language Specification, 4.3"
    PRIVATE_CONTENTS Documented "private-contents"
        "the host does not look into a private buffer" "MTLBuffer: contents"
    EMPTY_BUFFER Suspected "empty-buffer"
        "a buffer has at least one byte" "MTLDevice: newBufferWithLength:options:; API validation refuses 0"
    BUFFER_TOO_LONG Documented "buffer-too-long"
        "a buffer is no longer than the device allows" "MTLDevice: maxBufferLength"
    NO_COPY_ALIGNMENT Documented "no-copy-alignment"
        "memory used without a copy begins and ends at a page" "MTLDevice: newBufferWithBytesNoCopy:length:options:deallocator:"
    HEAP_EMPTY Suspected "heap-empty"
        "a heap has at least one byte" "MTLHeapDescriptor: size, which is 0 until it is set"
    HEAP_STORAGE Documented "heap-storage-mode"
        "a heap is shared or private" "MTLHeapDescriptor: storageMode"
    HEAP_TYPE Documented "heap-type"
        "the program says where a buffer lies in a placement heap, and only there"
        "MTLHeap: newBufferWithLength:options:offset:; MTLHeapType"
    HEAP_BUFFER_OPTIONS Documented "heap-buffer-options"
        "a buffer has the storage mode and the CPU cache mode of its heap" "MTLHeap: newBufferWithLength:options:"
    HEAP_BUFFER_TRACKING Documented "heap-buffer-tracking"
        "a buffer asks to be tracked only in a heap that is tracked" "MTLHeap: hazardTrackingMode"
    HEAP_ALIGNMENT Documented "heap-offset-alignment"
        "an offset in a heap is a multiple of what heapBufferSizeAndAlign says"
        "MTLHeap: newBufferWithLength:options:offset:"
    HEAP_RANGE Documented "heap-range"
        "a buffer lies within its heap" "MTLHeap: newBufferWithLength:options:offset:"
    NOT_OF_HEAP Documented "aliasable-without-heap"
        "only a buffer of a heap is made aliasable" "MTLResource: makeAliasable"
    BLIT_RANGE Documented "blit-range"
        "a copy or fill lies within its buffers" "MTLBlitCommandEncoder: copyFromBuffer:…"
    BLIT_ALIGNMENT Suspected "blit-alignment"
        "on macOS offsets and sizes of a copy are multiples of 4" "MTLBlitCommandEncoder: copyFromBuffer:…, for macOS"
    BLIT_OVERLAP Documented "blit-overlap"
        "a copy within one buffer does not overlap itself" "MTLBlitCommandEncoder: copyFromBuffer:…"
    RELEASED_UNRETAINED Documented "unretained-buffer-released"
        "a buffer outlives the command buffers with unretained references that use it"
        "MTLCommandQueue: commandBufferWithUnretainedReferences"
    NOT_RESIDENT Documented "residency-remove"
        "only an allocation that is in a residency set is removed from it" "MTLResidencySet: removeAllocation:"
    COUNTER_BOUNDARY Documented "counter-boundary"
        "counters are sampled only where the device supports it: here at the start and the end of an encoder"
        "MTLDevice: supportsCounterSampling:; Apple GPUs sample at stage boundaries"
    COUNTER_INDEX Documented "counter-index"
        "a sample lies within its sample buffer" "MTLCounterSampleBufferDescriptor: sampleCount"
    COUNTER_PRIVATE Documented "counter-private"
        "the host resolves samples of shared sample buffers only" "MTLCounterSampleBuffer: resolveCounterRange:"
    FENCE_ORDER Documented "fence-wait-after-update"
        "an encoder waits for a fence before it updates it"
        "MTLComputeCommandEncoder: waitForFence:, reuse a fence by waiting first and updating second"
    FENCE_BETWEEN_QUEUES Suspected "fence-between-queues"
        "a fence orders encoders of one queue; between queues an event does"
        "MTLFence: Apple, Synchronizing passes with a fence, speaks of one queue, then says that fences of Metal 3 work across queues"
    EVENT_BACKWARDS Suspected "event-backwards"
        "the values of an event grow" "MTLSharedEvent: signaledValue"
    DEBUG_GROUP Documented "debug-group"
        "debug groups are pushed and popped in pairs" "MTLCommandEncoder: popDebugGroup"
    OUT_OF_RANGE Documented "kernel-out-of-range"
        "a kernel stays within its buffers" "Metal Shading Language Specification, 4; shader validation"
    KERNEL_SHARED Documented "mps-kernel-shared"
        "an MPS kernel object is used by one thread at a time" "MPSKernel: thread safety"
    DIVERGENT_BARRIER Documented "divergent-barrier"
        "every thread of a threadgroup reaches the same barrier" "Metal Shading Language Specification, 6.9.1"
}

/// The rules of the runtime, of the API and of ordering.
pub fn own() -> Vec<Rule> {
    let api = API.iter().copied().chain(ordering::RULES).copied();
    softmetal_objc::RULES.iter().copied().chain(api).collect()
}

/// Every rule, those of the MPS formulas among them.
pub fn all() -> Vec<Rule> {
    own().into_iter().chain(softmetal_formulas::rules::RULES.iter().map(crate::mps::rule)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_every_rule_has_a_source() {
        let rules = all();
        let ids: std::collections::BTreeSet<&str> = rules.iter().map(|rule| rule.id).collect();
        assert_eq!(ids.len(), rules.len());
        assert!(rules.iter().all(|rule| !rule.text.is_empty() && !rule.source.is_empty()));
    }
}
