// Sums, means and maxima along an axis of [outer, axis, inner], and the norm of many tensors.
//
// inner == 1: one threadgroup a row. Otherwise: one thread a slice. A maximum with a NaN is NaN.

struct ReduceSizes {
    uint slices;
    uint axis;
    uint inner;
    uint function;  // 0 sum, 1 mean, 2 max
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void reduce_row(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant ReduceSizes& sizes [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.axis;
    float result = sizes.function == 2 ? -INFINITY : 0.0f;
    float broken = 0.0f;
    for (uint i = thread_index; i < sizes.axis; i += threads) {
        float v = float(from[i]);
        if (sizes.function == 2) {
            result = max(result, v);
            broken = isnan(v) ? 1.0f : broken;
        } else {
            result += v;
        }
    }
    if (sizes.function == 2) {
        broken = group_sum(broken, shared, lane, group, groups);
        result = group_max(result, shared, lane, group, groups);
        result = broken > 0.0f ? NAN : result;
    } else {
        result = group_sum(result, shared, lane, group, groups);
        result = sizes.function == 1 ? result / float(sizes.axis) : result;
    }
    if (thread_index == 0) {
        y[row] = T(result);
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void reduce_axis(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant ReduceSizes& sizes [[buffer(2)]],
    uint slice [[thread_position_in_grid]]) {
    if (slice >= sizes.slices) {
        return;
    }
    ulong first = ulong(slice / sizes.inner) * sizes.axis * sizes.inner + slice % sizes.inner;
    float result = sizes.function == 2 ? -INFINITY : 0.0f;
    for (uint i = 0; i < sizes.axis; i++) {
        float v = float(x[first + ulong(i) * sizes.inner]);
        if (sizes.function == 2) {
            result = isnan(v) || isnan(result) ? NAN : max(result, v);
        } else {
            result += v;
        }
    }
    y[slice] = T(sizes.function == 1 ? result / float(sizes.axis) : result);
}

#define INSTANTIATE(T)                                                                 \
    template [[host_name("reduce_row_" #T)]] [[kernel]] void reduce_row<T>(            \
        device const T*, device T*, constant ReduceSizes&, uint, uint, uint, uint, uint, uint); \
    template [[host_name("reduce_axis_" #T)]] [[kernel]] void reduce_axis<T>(          \
        device const T*, device T*, constant ReduceSizes&, uint);
FOR_FLOATS(INSTANTIATE)
