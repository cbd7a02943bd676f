// Layer norm and its gradient. One threadgroup a row: the mean first, then the variance of the differences from it. Rows
// of up to 4096 elements are held in registers, longer ones are read again from the cache.

struct LayerNormSizes {
    uint n;
    uint x_stride;
    uint bias;
    float eps;
};

template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void layer_norm_row(
    device const T* x [[buffer(0)]],
    device const W* w [[buffer(1)]],
    device const W* b [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant LayerNormSizes& sizes [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.x_stride;
    uint first = 4 * thread_index;
    float v[4];
    float total = 0.0f;
    for (uint i = 0; i < 4; i++) {
        v[i] = first + i < sizes.n ? float(from[first + i]) : 0.0f;
        total += v[i];
    }
    float mean = group_sum(total, shared, lane, group, groups) / float(sizes.n);
    float squares = 0.0f;
    for (uint i = 0; i < 4; i++) {
        v[i] = first + i < sizes.n ? v[i] - mean : 0.0f;
        squares = fma(v[i], v[i], squares);
    }
    float variance = group_sum(squares, shared, lane, group, groups) / float(sizes.n);
    float scale = precise::rsqrt(variance + sizes.eps);
    for (uint i = 0; i < 4; i++) {
        if (first + i < sizes.n) {
            float bias = sizes.bias == 1 ? float(b[first + i]) : 0.0f;
            y[ulong(row) * sizes.n + first + i] = T(fma(v[i] * scale, float(w[first + i]), bias));
        }
    }
}

// Mean and scale of a row that is read again and again.
template <typename T>
inline float2 moments(
    device const T* from,
    uint n,
    float eps,
    threadgroup float* shared,
    uint thread_index,
    uint threads,
    uint lane,
    uint group,
    uint groups) {
    float total = 0.0f;
    for (uint i = thread_index; i < n; i += threads) {
        total += float(from[i]);
    }
    float mean = group_sum(total, shared, lane, group, groups) / float(n);
    float squares = 0.0f;
    for (uint i = thread_index; i < n; i += threads) {
        float d = float(from[i]) - mean;
        squares = fma(d, d, squares);
    }
    float variance = group_sum(squares, shared, lane, group, groups) / float(n);
    return float2(mean, precise::rsqrt(variance + eps));
}

template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void layer_norm_long(
    device const T* x [[buffer(0)]],
    device const W* w [[buffer(1)]],
    device const W* b [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant LayerNormSizes& sizes [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.x_stride;
    float2 m = moments(from, sizes.n, sizes.eps, shared, thread_index, threads, lane, group, groups);
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float bias = sizes.bias == 1 ? float(b[i]) : 0.0f;
        y[ulong(row) * sizes.n + i] = T(fma((float(from[i]) - m.x) * m.y, float(w[i]), bias));
    }
}

struct LayerNormGradSizes {
    uint n;
    uint dy_stride;
    uint x_stride;
    uint store_dx;
    float eps;
};

// dx = rho (g - mean g - xhat mean(g xhat)) with g = dy w; mean and rho of the row are kept for dw and db.
template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void layer_norm_grad(
    device const T* dy [[buffer(0)]],
    device const T* x [[buffer(1)]],
    device const W* w [[buffer(2)]],
    device T* dx [[buffer(3)]],
    device float* kept [[buffer(4)]],
    constant LayerNormGradSizes& sizes [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    device const T* from = x + ulong(row) * sizes.x_stride;
    device const T* upstream = dy + ulong(row) * sizes.dy_stride;
    float2 m = moments(from, sizes.n, sizes.eps, shared, thread_index, threads, lane, group, groups);
    float sum_g = 0.0f;
    float sum_gx = 0.0f;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float g = float(upstream[i]) * float(w[i]);
        sum_g += g;
        sum_gx = fma(g, (float(from[i]) - m.x) * m.y, sum_gx);
    }
    float mean_g = group_sum(sum_g, shared, lane, group, groups) / float(sizes.n);
    float mean_gx = group_sum(sum_gx, shared, lane, group, groups) / float(sizes.n);
    if (thread_index == 0) {
        kept[2 * row] = m.x;
        kept[2 * row + 1] = m.y;
    }
    if (sizes.store_dx == 1) {
        for (uint i = thread_index; i < sizes.n; i += threads) {
            float g = float(upstream[i]) * float(w[i]);
            float normed = (float(from[i]) - m.x) * m.y;
            dx[ulong(row) * sizes.n + i] = T(m.y * (g - mean_g - normed * mean_gx));
        }
    }
}

struct LayerNormColumns {
    uint rows;
    uint n;
    uint dy_stride;
    uint x_stride;
    uint store_dw;
    uint store_db;
};

// dw = sum over rows of dy xhat, db = sum of dy. A threadgroup does 32 columns by 8 groups of rows.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void layer_norm_weight(
    device const T* dy [[buffer(0)]],
    device const T* x [[buffer(1)]],
    device const float* kept [[buffer(2)]],
    device float* dw [[buffer(3)]],
    device float* db [[buffer(4)]],
    constant LayerNormColumns& sizes [[buffer(5)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[512];
    uint column = 32 * block.x + thread_at.x;
    float weight = 0.0f;
    float bias = 0.0f;
    if (column < sizes.n) {
        for (uint row = thread_at.y; row < sizes.rows; row += 8) {
            float g = float(dy[ulong(row) * sizes.dy_stride + column]);
            float v = float(x[ulong(row) * sizes.x_stride + column]);
            weight = fma(g, (v - kept[2 * row]) * kept[2 * row + 1], weight);
            bias += g;
        }
    }
    uint at = 32 * thread_at.y + thread_at.x;
    shared[at] = weight;
    shared[256 + at] = bias;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_at.y == 0 && column < sizes.n) {
        for (uint part = 1; part < 8; part++) {
            weight += shared[32 * part + thread_at.x];
            bias += shared[256 + 32 * part + thread_at.x];
        }
        if (sizes.store_dw == 1) {
            dw[column] = weight;
        }
        if (sizes.store_db == 1) {
            db[column] = bias;
        }
    }
}

#define INSTANTIATE_PAIR(T, W)                                                                                  \
    template [[host_name("layer_norm_row_" #T "_" #W)]] [[kernel]] void layer_norm_row<T, W>(                   \
        device const T*, device const W*, device const W*, device T*, constant LayerNormSizes&, uint, uint,     \
        uint, uint, uint);                                                                                      \
    template [[host_name("layer_norm_long_" #T "_" #W)]] [[kernel]] void layer_norm_long<T, W>(                 \
        device const T*, device const W*, device const W*, device T*, constant LayerNormSizes&, uint, uint,     \
        uint, uint, uint, uint);                                                                                \
    template [[host_name("layer_norm_grad_" #T "_" #W)]] [[kernel]] void layer_norm_grad<T, W>(                 \
        device const T*, device const T*, device const W*, device T*, device float*,                            \
        constant LayerNormGradSizes&, uint, uint, uint, uint, uint, uint);
#define INSTANTIATE(T)           \
    INSTANTIATE_PAIR(T, float)   \
    INSTANTIATE_PAIR(T, half)    \
    INSTANTIATE_PAIR(T, bfloat)  \
    template [[host_name("layer_norm_weight_" #T)]] [[kernel]] void layer_norm_weight<T>( \
        device const T*, device const T*, device const float*, device float*, device float*, \
        constant LayerNormColumns&, uint2, uint2);
FOR_FLOATS(INSTANTIATE)
