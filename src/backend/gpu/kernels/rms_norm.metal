// Root-mean-square norm, optionally of a sum, and its gradient. One threadgroup a row; rows of up to 4096 elements are
// held in registers, 4 neighbours a thread, longer ones are read twice.

struct RmsNormSizes {
    uint n;
    uint x_stride;
    uint r_stride;
    uint residual;  // s = x + r is normed
    uint store_y;
    uint store_s;
    float eps;
};

template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void rms_norm_row(
    device const T* x [[buffer(0)]],
    device const T* r [[buffer(1)]],
    device const W* w [[buffer(2)]],
    device T* y [[buffer(3)]],
    device T* s [[buffer(4)]],
    constant RmsNormSizes& sizes [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    ulong x_row = ulong(row) * sizes.x_stride;
    ulong r_row = ulong(row) * sizes.r_stride;
    ulong to = ulong(row) * sizes.n;
    uint first = 4 * thread_index;
    float v[4];
    float total = 0.0f;
    for (uint i = 0; i < 4; i++) {
        v[i] = 0.0f;
        if (first + i < sizes.n) {
            v[i] = float(x[x_row + first + i]);
            if (sizes.residual == 1) {
                v[i] += float(r[r_row + first + i]);
            }
        }
        total = fma(v[i], v[i], total);
    }
    total = group_sum(total, shared, lane, group, groups);
    float scale = precise::rsqrt(total / float(sizes.n) + sizes.eps);
    for (uint i = 0; i < 4; i++) {
        if (first + i < sizes.n) {
            if (sizes.store_s == 1) {
                s[to + first + i] = T(v[i]);
            }
            if (sizes.store_y == 1) {
                y[to + first + i] = T(v[i] * scale * float(w[first + i]));
            }
        }
    }
}

template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void rms_norm_long(
    device const T* x [[buffer(0)]],
    device const T* r [[buffer(1)]],
    device const W* w [[buffer(2)]],
    device T* y [[buffer(3)]],
    device T* s [[buffer(4)]],
    constant RmsNormSizes& sizes [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    ulong x_row = ulong(row) * sizes.x_stride;
    ulong r_row = ulong(row) * sizes.r_stride;
    ulong to = ulong(row) * sizes.n;
    float total = 0.0f;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float v = float(x[x_row + i]) + (sizes.residual == 1 ? float(r[r_row + i]) : 0.0f);
        total = fma(v, v, total);
    }
    total = group_sum(total, shared, lane, group, groups);
    float scale = precise::rsqrt(total / float(sizes.n) + sizes.eps);
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float v = float(x[x_row + i]) + (sizes.residual == 1 ? float(r[r_row + i]) : 0.0f);
        if (sizes.store_s == 1) {
            s[to + i] = T(v);
        }
        if (sizes.store_y == 1) {
            y[to + i] = T(v * scale * float(w[i]));
        }
    }
}

struct RmsNormGradSizes {
    uint n;
    uint dy_stride;
    uint s_stride;
    uint u_stride;
    uint upstream;  // a gradient that arrives at s is added
    uint store_ds;
    float eps;
};

// ds = rho (g - s rho^2 mean(g s)) + upstream, with g = dy w; rho of the row is kept for the weight's gradient.
template <typename T, typename W>
[[kernel, max_total_threads_per_threadgroup(1024)]] void rms_norm_grad(
    device const T* dy [[buffer(0)]],
    device const T* s [[buffer(1)]],
    device const W* w [[buffer(2)]],
    device const T* u [[buffer(3)]],
    device T* ds [[buffer(4)]],
    device float* scales [[buffer(5)]],
    constant RmsNormGradSizes& sizes [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    ulong dy_row = ulong(row) * sizes.dy_stride;
    ulong s_row = ulong(row) * sizes.s_stride;
    ulong u_row = ulong(row) * sizes.u_stride;
    float squares = 0.0f;
    float products = 0.0f;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float v = float(s[s_row + i]);
        squares = fma(v, v, squares);
        products = fma(float(dy[dy_row + i]) * float(w[i]), v, products);
    }
    squares = group_sum(squares, shared, lane, group, groups);
    products = group_sum(products, shared, lane, group, groups);
    float scale = precise::rsqrt(squares / float(sizes.n) + sizes.eps);
    // In this order the square of a small scale does not vanish before large products meet it.
    float mean = (products / float(sizes.n) * scale) * scale;
    if (thread_index == 0) {
        scales[row] = scale;
    }
    if (sizes.store_ds == 1) {
        for (uint i = thread_index; i < sizes.n; i += threads) {
            float g = float(dy[dy_row + i]) * float(w[i]);
            float d = scale * (g - float(s[s_row + i]) * mean);
            if (sizes.upstream == 1) {
                d += float(u[u_row + i]);
            }
            ds[ulong(row) * sizes.n + i] = T(d);
        }
    }
}

struct ColumnSizes {
    uint rows;
    uint n;
    uint dy_stride;
    uint s_stride;
};

// dw = sum over rows of dy s rho. A threadgroup does 32 columns by 8 groups of rows.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void rms_norm_weight(
    device const T* dy [[buffer(0)]],
    device const T* s [[buffer(1)]],
    device const float* scales [[buffer(2)]],
    device float* dw [[buffer(3)]],
    constant ColumnSizes& sizes [[buffer(4)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[256];
    uint column = 32 * block.x + thread_at.x;
    float total = 0.0f;
    if (column < sizes.n) {
        for (uint row = thread_at.y; row < sizes.rows; row += 8) {
            float g = float(dy[ulong(row) * sizes.dy_stride + column]) * scales[row];
            total = fma(g, float(s[ulong(row) * sizes.s_stride + column]), total);
        }
    }
    shared[32 * thread_at.y + thread_at.x] = total;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_at.y == 0 && column < sizes.n) {
        for (uint part = 1; part < 8; part++) {
            total += shared[32 * part + thread_at.x];
        }
        dw[column] = total;
    }
}

#define INSTANTIATE_PAIR(T, W)                                                                                    \
    template [[host_name("rms_norm_row_" #T "_" #W)]] [[kernel]] void rms_norm_row<T, W>(                         \
        device const T*, device const T*, device const W*, device T*, device T*, constant RmsNormSizes&, uint,    \
        uint, uint, uint, uint);                                                                                  \
    template [[host_name("rms_norm_long_" #T "_" #W)]] [[kernel]] void rms_norm_long<T, W>(                       \
        device const T*, device const T*, device const W*, device T*, device T*, constant RmsNormSizes&, uint,    \
        uint, uint, uint, uint, uint);                                                                            \
    template [[host_name("rms_norm_grad_" #T "_" #W)]] [[kernel]] void rms_norm_grad<T, W>(                       \
        device const T*, device const T*, device const W*, device const T*, device T*, device float*,             \
        constant RmsNormGradSizes&, uint, uint, uint, uint, uint, uint);
#define INSTANTIATE(T)           \
    INSTANTIATE_PAIR(T, float)   \
    INSTANTIATE_PAIR(T, half)    \
    INSTANTIATE_PAIR(T, bfloat)  \
    template [[host_name("rms_norm_weight_" #T)]] [[kernel]] void rms_norm_weight<T>( \
        device const T*, device const T*, device const float*, device float*, constant ColumnSizes&, uint2, uint2);
FOR_FLOATS(INSTANTIATE)
