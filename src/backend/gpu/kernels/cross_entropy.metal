// Loss and gradient of rows of logits: loss = log-sum-exp - logit of the target, d = weight (softmax - one at the
// target). One threadgroup a row; a row of weight 0 gives zeros. The gradient may take the place of the logits.

struct CrossEntropySizes {
    uint n;
    uint stride;    // elements from row to row of the logits
    uint store_dx;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void cross_entropy(
    device const T* logits [[buffer(0)]],
    device const uint* targets [[buffer(1)]],
    device const float* weights [[buffer(2)]],
    device float* losses [[buffer(3)]],
    device T* dx [[buffer(4)]],
    constant CrossEntropySizes& sizes [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = logits + ulong(row) * sizes.stride;
    device T* to = dx + ulong(row) * sizes.n;
    float weight = weights[row];
    if (weight == 0.0f) {
        if (thread_index == 0) {
            losses[row] = 0.0f;
        }
        if (sizes.store_dx == 1) {
            for (uint i = thread_index; i < sizes.n; i += threads) {
                to[i] = T(0.0f);
            }
        }
        return;
    }
    uint target = min(targets[row], sizes.n - 1);
    float at_target = float(from[target]);
    float greatest = -INFINITY;
    float total = 0.0f;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float v = float(from[i]);
        if (v > greatest) {
            total = total * precise::exp(greatest - v) + 1.0f;
            greatest = v;
        } else if (v != -INFINITY) {
            total += precise::exp(v - greatest);
        }
    }
    float all = group_max(greatest, shared, lane, group, groups);
    total = group_sum(greatest == all ? total : total * precise::exp(greatest - all), shared, lane, group, groups);
    total = isinf(all) ? NAN : total;
    // Every thread has read the target's logit before the gradient is written over it: the sums are barriers.
    if (thread_index == 0) {
        losses[row] = all - at_target + precise::log(total);
    }
    if (sizes.store_dx == 1) {
        for (uint i = thread_index; i < sizes.n; i += threads) {
            float p = precise::exp(float(from[i]) - all) / total;
            to[i] = T(weight * (i == target ? p - 1.0f : p));
        }
    }
}

struct LossSizes {
    uint m;
};

// The weighted sum of all losses, by one threadgroup. A row of weight 0 does not count, whatever its loss.
[[kernel, max_total_threads_per_threadgroup(256)]] void weighted_loss(
    device const float* losses [[buffer(0)]],
    device const float* weights [[buffer(1)]],
    device float* loss [[buffer(2)]],
    constant LossSizes& sizes [[buffer(3)]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    float total = 0.0f;
    for (uint i = thread_index; i < sizes.m; i += threads) {
        total += weights[i] == 0.0f ? 0.0f : weights[i] * losses[i];
    }
    total = group_sum(total, shared, lane, group, groups);
    if (thread_index == 0) {
        loss[0] = total;
    }
}

#define INSTANTIATE(T)                                                                     \
    template [[host_name("cross_entropy_" #T)]] [[kernel]] void cross_entropy<T>(          \
        device const T*, device const uint*, device const float*, device float*, device T*, \
        constant CrossEntropySizes&, uint, uint, uint, uint, uint, uint);
FOR_FLOATS(INSTANTIATE)
