// y = x W^T for few rows of x and W stored [n, k], plus the low-rank part of adapters: y += scale h B^T.
//
// With `halves` the columns are those of a gate and, as many on, of what it gates: the SIMD group that has both also
// writes silu(gate) up. With `sums` a bias or a residual is added to some of the columns, and the sums written elsewhere.
//
// A SIMD group does 4 neighbouring columns of y for ROWS rows of x, and reads W once: a lane takes 4 neighbours of every
// 128 elements of the inner length, so that a load of the SIMD group is one run of memory. 4 SIMD groups a threadgroup.
//
// gemv_t is for W stored [k, n]: see there.

#define SLOTS 4
#define SUMS 3
#define GEMV_COLUMNS 4

struct GemvSizes {
    uint m;
    uint n;
    uint k;
    uint x_stride;
    uint w_stride;
    uint y_stride;
    uint slots;
    uint total;         // the row length of h
    uint halves;        // n / 2, or 0
    uint gated_stride;
    uint store_y;       // 0: only what is computed from y is stored
    uint start[SLOTS];
    uint len[SLOTS];
    uint rank[SLOTS];
    uint first[SLOTS];
    float scale[SLOTS];
    uint sums;
    uint sum_start[SUMS];
    uint sum_len[SUMS];
    uint addend_stride[SUMS];  // 0: one row for all, a bias
    uint sum_stride[SUMS];
};

template <typename T, typename W, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(128)]] void gemv(
    device const T* x [[buffer(0)]],
    device const W* w [[buffer(1)]],
    device const float* h [[buffer(2)]],
    device const float* b0 [[buffer(3)]],
    device const float* b1 [[buffer(4)]],
    device const float* b2 [[buffer(5)]],
    device const float* b3 [[buffer(6)]],
    device T* y [[buffer(7)]],
    device T* gated [[buffer(8)]],
    device const T* a0 [[buffer(9)]],
    device const T* a1 [[buffer(10)]],
    device const T* a2 [[buffer(11)]],
    device T* s0 [[buffer(12)]],
    device T* s1 [[buffer(13)]],
    device T* s2 [[buffer(14)]],
    constant GemvSizes& sizes [[buffer(15)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    bool paired = sizes.halves > 0;
    // Column c of a SIMD group is at `column + c`, or with halves at `column + c % 2` of half c / 2.
    uint width = paired ? GEMV_COLUMNS / 2 : GEMV_COLUMNS;
    uint limit = paired ? sizes.halves : sizes.n;
    uint column = width * (4 * block.x + group);
    uint row = ROWS * block.y;
    if (column >= limit) {
        return;
    }
    uint at_column[GEMV_COLUMNS];
    ulong offsets[GEMV_COLUMNS];
    bool stored[GEMV_COLUMNS];
    for (uint c = 0; c < GEMV_COLUMNS; c++) {
        uint inner = column + c % width;
        stored[c] = inner < limit;
        at_column[c] = min(inner, limit - 1) + c / width * sizes.halves;
        offsets[c] = ulong(at_column[c]) * sizes.w_stride;
    }
    uint rows = min(ROWS, sizes.m - row);
    float sums[GEMV_COLUMNS * ROWS];
    for (uint i = 0; i < GEMV_COLUMNS * ROWS; i++) {
        sums[i] = 0.0f;
    }
    device const T* from = x + ulong(row) * sizes.x_stride;
    uint quads = sizes.k / 4;
    for (uint i = lane; i < quads; i += LANES) {
        add_products<T, W, ROWS, GEMV_COLUMNS, 4>(from + 4 * i, sizes.x_stride, rows, w + 4 * i, offsets, sums);
    }
    for (uint i = 4 * quads + lane; i < sizes.k; i += LANES) {
        add_products<T, W, ROWS, GEMV_COLUMNS, 1>(from + i, sizes.x_stride, rows, w + i, offsets, sums);
    }
    for (uint slot = 0; slot < sizes.slots; slot++) {
        device const float* b = slot == 0 ? b0 : (slot == 1 ? b1 : (slot == 2 ? b2 : b3));
        uint rank = sizes.rank[slot];
        for (uint c = 0; c < GEMV_COLUMNS; c++) {
            uint at = at_column[c] - sizes.start[slot];
            // Below the start it wraps around to a number beyond the length.
            if (at < sizes.len[slot]) {
                for (uint r = lane; r < rank; r += LANES) {
                    float factor = sizes.scale[slot] * b[ulong(at) * rank + r];
                    for (uint i = 0; i < rows; i++) {
                        float low = h[ulong(row + i) * sizes.total + sizes.first[slot] + r];
                        sums[c * ROWS + i] = fma(factor, low, sums[c * ROWS + i]);
                    }
                }
            }
        }
    }
    for (uint r = 0; r < ROWS; r++) {
        float results[GEMV_COLUMNS];
        for (uint c = 0; c < GEMV_COLUMNS; c++) {
            results[c] = simd_sum(sums[c * ROWS + r]);
            if (sizes.store_y != 0 && lane == 0 && stored[c] && r < rows) {
                y[ulong(row + r) * sizes.y_stride + at_column[c]] = T(results[c]);
            }
        }
        for (uint s = 0; s < sizes.sums && lane == 0 && r < rows; s++) {
            device const T* addend = s == 0 ? a0 : (s == 1 ? a1 : a2);
            device T* sum = s == 0 ? s0 : (s == 1 ? s1 : s2);
            for (uint c = 0; c < GEMV_COLUMNS; c++) {
                uint at = at_column[c] - sizes.sum_start[s];
                if (stored[c] && at < sizes.sum_len[s]) {
                    // As if read back from y.
                    float term = float(addend[ulong(row + r) * sizes.addend_stride[s] + at]);
                    sum[ulong(row + r) * sizes.sum_stride[s] + at] = T(float(T(results[c])) + term);
                }
            }
        }
        if (paired && lane == 0 && r < rows) {
            for (uint c = 0; c < GEMV_COLUMNS / 2; c++) {
                if (stored[c]) {
                    // As if read back from y.
                    float gate = float(T(results[c]));
                    float up = float(T(results[c + GEMV_COLUMNS / 2]));
                    ulong to = ulong(row + r) * sizes.gated_stride + at_column[c];
                    gated[to] = T(gate / (1.0f + precise::exp(-gate)) * up);
                }
            }
        }
    }
}

struct GemvTSizes {
    uint m;
    uint n;
    uint k;
    uint x_stride;
    uint w_stride;
    uint y_stride;
};

// y = x W for few rows of x and W stored [k, n]: 32 columns a threadgroup of 8 SIMD groups. 8 lanes do 4 neighbouring
// columns each; the 4 lanes over a column, and the SIMD groups, share the inner length.
template <typename T, typename W, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(256)]] void gemv_t(
    device const T* x [[buffer(0)]],
    device const W* w [[buffer(1)]],
    device T* y [[buffer(2)]],
    constant GemvTSizes& sizes [[buffer(3)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float shared[8 * LANES * ROWS];
    uint first = 4 * (lane % 8);
    uint column = LANES * block.x + first;
    uint row = ROWS * block.y;
    uint rows = min(ROWS, sizes.m - row);
    uint columns = column < sizes.n ? min(4u, sizes.n - column) : 0;
    float sums[4 * ROWS];
    for (uint i = 0; i < 4 * ROWS; i++) {
        sums[i] = 0.0f;
    }
    for (uint i = 4 * group + lane / 8; i < sizes.k && columns > 0; i += LANES) {
        device const W* at = w + ulong(i) * sizes.w_stride + column;
        float weights[4];
        if (columns == 4) {
            for (uint c = 0; c < 4; c++) {
                weights[c] = float(at[c]);
            }
        } else {
            for (uint c = 0; c < 4; c++) {
                weights[c] = float(at[min(c, columns - 1)]);
            }
        }
        for (uint r = 0; r < ROWS; r++) {
            float from = float(x[ulong(row + min(r, rows - 1)) * sizes.x_stride + i]);
            for (uint c = 0; c < 4; c++) {
                sums[4 * r + c] = fma(weights[c], from, sums[4 * r + c]);
            }
        }
    }
    for (uint r = 0; r < ROWS; r++) {
        for (uint c = 0; c < 4; c++) {
            float sum = sums[4 * r + c];
            sum += simd_shuffle_xor(sum, 8);
            sum += simd_shuffle_xor(sum, 16);
            if (lane < 8) {
                shared[(8 * r + group) * LANES + first + c] = sum;
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // A SIMD group does every eighth row.
    uint to = LANES * block.x + lane;
    for (uint r = group; r < rows; r += 8) {
        float sum = 0.0f;
        for (uint share = 0; share < 8; share++) {
            sum += shared[(8 * r + share) * LANES + lane];
        }
        if (to < sizes.n) {
            y[ulong(row + r) * sizes.y_stride + to] = T(sum);
        }
    }
}

#define INSTANTIATE_ROWS(T, W, R)                                                                          \
    template [[host_name("gemv_" #T "_" #W "_" #R)]] [[kernel]] void gemv<T, W, R>(                        \
        device const T*, device const W*, device const float*, device const float*, device const float*,   \
        device const float*, device const float*, device T*, device T*, device const T*, device const T*,  \
        device const T*, device T*, device T*, device T*, constant GemvSizes&, uint2, uint, uint);         \
    template [[host_name("gemv_t_" #T "_" #W "_" #R)]] [[kernel]] void gemv_t<T, W, R>(                    \
        device const T*, device const W*, device T*, constant GemvTSizes&, uint2, uint, uint);
#define INSTANTIATE_PAIR(T, W)  \
    INSTANTIATE_ROWS(T, W, 1)   \
    INSTANTIATE_ROWS(T, W, 4)   \
    INSTANTIATE_ROWS(T, W, 8)
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat)
FOR_FLOATS(INSTANTIATE)
