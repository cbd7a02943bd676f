// Softmax and log-softmax, and their gradients.
//
// Along the last axis: one threadgroup a row; each thread holds up to 4 neighbouring elements, so that rows of up to
// 4096 are read once. Longer rows are read twice, with a running maximum. Along another axis: one thread a slice.
// A row with a NaN or +infinity, or of nothing but -infinity, becomes NaN.

struct SoftmaxSizes {
    uint n;          // elements of a row
    uint x_stride;   // elements from row to row of the input
    uint y_stride;   // of the second input, for gradients
    uint logarithm;  // 1: log-softmax
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void softmax_row(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant SoftmaxSizes& sizes [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.x_stride;
    device T* to = y + ulong(row) * sizes.n;
    uint first = 4 * thread_index;
    float v[4];
    float greatest = -INFINITY;
    for (uint i = 0; i < 4; i++) {
        v[i] = first + i < sizes.n ? float(from[first + i]) : -INFINITY;
        greatest = max(greatest, v[i]);
    }
    greatest = group_max(greatest, shared, lane, group, groups);
    float e[4];
    float total = 0.0f;
    for (uint i = 0; i < 4; i++) {
        e[i] = first + i < sizes.n ? precise::exp(v[i] - greatest) : 0.0f;
        total += e[i];
    }
    total = group_sum(total, shared, lane, group, groups);
    float scale = sizes.logarithm == 1 ? precise::log(total) : 1.0f / total;
    for (uint i = 0; i < 4; i++) {
        if (first + i < sizes.n) {
            to[first + i] = T(sizes.logarithm == 1 ? v[i] - greatest - scale : e[i] * scale);
        }
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void softmax_long(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant SoftmaxSizes& sizes [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.x_stride;
    device T* to = y + ulong(row) * sizes.n;
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
    total = group_sum(total * precise::exp(greatest - all), shared, lane, group, groups);
    total = isinf(all) ? NAN : total;
    float scale = sizes.logarithm == 1 ? precise::log(total) : 1.0f / total;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float v = float(from[i]) - all;
        to[i] = T(sizes.logarithm == 1 ? v - scale : precise::exp(v) * scale);
    }
}

// dx = y (dy - sum dy y), or dx = dy - exp(y) sum dy.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void softmax_grad_row(
    device const T* dy [[buffer(0)]],
    device const T* y [[buffer(1)]],
    device T* dx [[buffer(2)]],
    constant SoftmaxSizes& sizes [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* g = dy + ulong(row) * sizes.x_stride;
    device const T* value = y + ulong(row) * sizes.y_stride;
    device T* to = dx + ulong(row) * sizes.n;
    float total = 0.0f;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        total += sizes.logarithm == 1 ? float(g[i]) : float(g[i]) * float(value[i]);
    }
    total = group_sum(total, shared, lane, group, groups);
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float d = float(g[i]);
        float v = float(value[i]);
        to[i] = T(sizes.logarithm == 1 ? d - precise::exp(v) * total : v * (d - total));
    }
}

struct SoftmaxAxis {
    uint slices;     // how many
    uint axis;       // elements of a slice
    uint inner;      // elements from one to the next
    uint logarithm;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void softmax_axis(
    device const T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant SoftmaxAxis& sizes [[buffer(2)]],
    uint slice [[thread_position_in_grid]]) {
    if (slice >= sizes.slices) {
        return;
    }
    ulong first = ulong(slice / sizes.inner) * sizes.axis * sizes.inner + slice % sizes.inner;
    float greatest = -INFINITY;
    for (uint i = 0; i < sizes.axis; i++) {
        greatest = max(greatest, float(x[first + ulong(i) * sizes.inner]));
    }
    float total = 0.0f;
    for (uint i = 0; i < sizes.axis; i++) {
        total += precise::exp(float(x[first + ulong(i) * sizes.inner]) - greatest);
    }
    float scale = sizes.logarithm == 1 ? precise::log(total) : 1.0f / total;
    for (uint i = 0; i < sizes.axis; i++) {
        ulong at = first + ulong(i) * sizes.inner;
        float v = float(x[at]) - greatest;
        y[at] = T(sizes.logarithm == 1 ? v - scale : precise::exp(v) * scale);
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void softmax_grad_axis(
    device const T* dy [[buffer(0)]],
    device const T* y [[buffer(1)]],
    device T* dx [[buffer(2)]],
    constant SoftmaxAxis& sizes [[buffer(3)]],
    uint slice [[thread_position_in_grid]]) {
    if (slice >= sizes.slices) {
        return;
    }
    ulong first = ulong(slice / sizes.inner) * sizes.axis * sizes.inner + slice % sizes.inner;
    float total = 0.0f;
    for (uint i = 0; i < sizes.axis; i++) {
        ulong at = first + ulong(i) * sizes.inner;
        total += sizes.logarithm == 1 ? float(dy[at]) : float(dy[at]) * float(y[at]);
    }
    for (uint i = 0; i < sizes.axis; i++) {
        ulong at = first + ulong(i) * sizes.inner;
        float d = float(dy[at]);
        float v = float(y[at]);
        dx[at] = T(sizes.logarithm == 1 ? d - precise::exp(v) * total : v * (d - total));
    }
}

#define INSTANTIATE(T)                                                                                          \
    template [[host_name("softmax_row_" #T)]] [[kernel]] void softmax_row<T>(                                   \
        device const T*, device T*, constant SoftmaxSizes&, uint, uint, uint, uint, uint);                      \
    template [[host_name("softmax_long_" #T)]] [[kernel]] void softmax_long<T>(                                 \
        device const T*, device T*, constant SoftmaxSizes&, uint, uint, uint, uint, uint, uint);                \
    template [[host_name("softmax_grad_row_" #T)]] [[kernel]] void softmax_grad_row<T>(                         \
        device const T*, device const T*, device T*, constant SoftmaxSizes&, uint, uint, uint, uint, uint, uint); \
    template [[host_name("softmax_axis_" #T)]] [[kernel]] void softmax_axis<T>(                                 \
        device const T*, device T*, constant SoftmaxAxis&, uint);                                               \
    template [[host_name("softmax_grad_axis_" #T)]] [[kernel]] void softmax_grad_axis<T>(                       \
        device const T*, device const T*, device T*, constant SoftmaxAxis&, uint);
FOR_FLOATS(INSTANTIATE)
