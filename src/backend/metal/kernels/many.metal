// Work on all tensors of an optimizer at once. A table lists them, a threadgroup does 1024 elements of one: 256 threads
// of 4. The tensors of a role lie in one buffer.

#define BLOCK 1024

struct Entry {
    uint first_block;
    uint count;       // elements
    uint at[4];       // where each role's tensor begins, in elements
};

// The tensor that a block belongs to.
inline uint entry_of(device const Entry* entries, uint tensors, uint block) {
    uint low = 0;
    uint high = tensors;
    while (low + 1 < high) {
        uint middle = (low + high) / 2;
        if (entries[middle].first_block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

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

struct SquaresSizes {
    uint tensors;
    uint first_partial;
};

// The sum of squares of every block.
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

// The root of the sum of all blocks, by one threadgroup.
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

struct AdamWSizes {
    uint tensors;
    float beta1;
    float beta2;
    float log_beta1;
    float log_beta2;
    float eps;
    float weight_decay;
    float max_norm;
};

// 1 - exp(x) for x <= 0 without the loss of digits near 0.
inline float one_minus_exp(float x) {
    if (x < -0.5f) {
        return 1.0f - precise::exp(x);
    }
    float term = -x;
    float sum = term;
    for (int n = 2; n < 10; n++) {
        term *= x / float(n);
        sum += term;
    }
    return sum;
}

[[kernel, max_total_threads_per_threadgroup(256)]] void adamw(
    device float* parameters [[buffer(0)]],
    device const float* gradients [[buffer(1)]],
    device float* means [[buffer(2)]],
    device float* squares_means [[buffer(3)]],
    device const Entry* entries [[buffer(4)]],
    device const float* hyper [[buffer(5)]],
    device const float* norm_of_all [[buffer(6)]],
    constant AdamWSizes& sizes [[buffer(7)]],
    uint block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]]) {
    float rate = hyper[0];
    float step = hyper[1];
    float factor = hyper[2];
    float limit = sizes.max_norm / (factor * norm_of_all[0] + 1e-6f);
    factor *= limit >= 1.0f ? 1.0f : limit;
    if (!isfinite(factor * norm_of_all[0])) {
        return;
    }
    float correction1 = one_minus_exp(step * sizes.log_beta1);
    float correction2 = one_minus_exp(step * sizes.log_beta2);
    uint tensor = entry_of(entries, sizes.tensors, block);
    uint first = (block - entries[tensor].first_block) * BLOCK + thread_index;
    uint count = entries[tensor].count;
    uint p_at = entries[tensor].at[0];
    uint g_at = entries[tensor].at[1];
    uint m_at = entries[tensor].at[2];
    uint v_at = entries[tensor].at[3];
    for (uint i = first; i < min(first + BLOCK, count); i += 256) {
        float g = gradients[g_at + i] * factor;
        float m = sizes.beta1 * means[m_at + i] + (1.0f - sizes.beta1) * g;
        float v = sizes.beta2 * squares_means[v_at + i] + (1.0f - sizes.beta2) * g * g;
        means[m_at + i] = m;
        squares_means[v_at + i] = v;
        float root = precise::sqrt(v / correction2);
        float p = parameters[p_at + i] * (1.0f - rate * sizes.weight_decay);
        parameters[p_at + i] = p - rate / correction1 * m / (root + sizes.eps);
    }
}
