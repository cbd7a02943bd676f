struct SquaresSizes {
    uint tensors;
    uint first_partial;
};

// Computes the sum of squares of every block.
[[kernel, max_total_threads_per_threadgroup(256)]] void squares(
    device const float* gradients [[buffer(0)]],
    device const Entry* entries [[buffer(1)]],
    device float* partials [[buffer(2)]],
    constant SquaresSizes& sizes [[buffer(3)]],
    uint block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    uint tensor = entry_of(entries, sizes.tensors, block);
    uint first = (block - entries[tensor].first_block) * BLOCK + thread_index;
    uint count = entries[tensor].count;
    uint from = entries[tensor].at[0];
    float total = 0.0f;
    for (uint i = first; i < min(first + BLOCK, count); i += 256) {
        float g = gradients[from + i];
        total = fma(g, g, total);
    }
    total = group_sum(total, shared, lane, group, groups);
    if (thread_index == 0) {
        partials[sizes.first_partial + block] = total;
    }
}

struct NormSizes {
    uint partials;
};

// Computes the square root of the sum over all blocks, in one threadgroup.
[[kernel, max_total_threads_per_threadgroup(256)]] void norm(
    device const float* partials [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant NormSizes& sizes [[buffer(2)]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    float total = 0.0f;
    for (uint i = thread_index; i < sizes.partials; i += threads) {
        total += partials[i];
    }
    total = group_sum(total, shared, lane, group, groups);
    if (thread_index == 0) {
        y[0] = precise::sqrt(total);
    }
}
