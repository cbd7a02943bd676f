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

// 1 - exp(x) for x <= 0, without cancellation near 0.
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
