struct AccumulateSizes {
    uint tensors;
};

// sum = keep sum + g; with keep = 0 the old content does not matter.
[[kernel, max_total_threads_per_threadgroup(256)]] void accumulate(
    device float* sums [[buffer(0)]],
    device const float* gradients [[buffer(1)]],
    device const Entry* entries [[buffer(2)]],
    device const float* keep [[buffer(3)]],
    constant AccumulateSizes& sizes [[buffer(4)]],
    uint block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]]) {
    uint tensor = entry_of(entries, sizes.tensors, block);
    uint first = (block - entries[tensor].first_block) * BLOCK + thread_index;
    uint count = entries[tensor].count;
    uint to = entries[tensor].at[0];
    uint from = entries[tensor].at[1];
    float factor = keep[0];
    for (uint i = first; i < min(first + BLOCK, count); i += 256) {
        float g = gradients[from + i];
        sums[to + i] = factor == 0.0f ? g : fma(factor, sums[to + i], g);
    }
}
