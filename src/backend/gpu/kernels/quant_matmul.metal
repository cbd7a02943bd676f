// y = x W^T for few rows of x, and W stored [n, k] in blocks of ggml: Q4_0, Q4_1, Q8_0, Q4_K or Q6_K. And W's elements
// by themselves, for products of many rows.
//
// A SIMD group does 4 neighbouring columns of y for ROWS rows of x, 4 SIMD groups a threadgroup. A lane takes every 32nd
// run of a row of W: 16 elements that share bytes, 8 neighbours and the 8 that lie GAP after them. They become floats in
// registers, once for all rows of x. Limits: k is whole blocks; rows of W begin at even addresses.

#define COLUMNS 4
#define RUN 16

struct QuantizedSizes {
    uint m;
    uint n;
    uint k;
    uint x_stride;
    uint y_stride;
    uint w_stride;  // bytes
};

inline float half_at(device const uchar* bytes) {
    return float(*(device const half*)bytes);
}

// The halves of 8 bytes that begin at an even address: the low ones, then the high ones.
inline void nibbles(device const uchar* bytes, thread uint* q) {
    device const ushort* pairs = (device const ushort*)bytes;
    for (uint i = 0; i < 4; i++) {
        uint pair = pairs[i];
        q[2 * i] = pair & 15;
        q[2 * i + 1] = (pair >> 8) & 15;
        q[2 * i + 8] = (pair >> 4) & 15;
        q[2 * i + 9] = pair >> 12;
    }
}

// For each kind of block: where run i of a row begins, in elements, and its elements.

// 32 elements d (q - 8): d, then bytes with element i below element i + 16.
struct Q4_0 {
    static constant constexpr const uint GAP = 16;
    static uint first(uint i) { return 32 * (i / 2) + 8 * (i % 2); }
    static void decode(device const uchar* row, uint i, thread float* w) {
        device const uchar* block = row + 18 * ulong(i / 2);
        float d = half_at(block);
        uint q[RUN];
        nibbles(block + 2 + 8 * (i % 2), q);
        for (uint e = 0; e < RUN; e++) {
            w[e] = d * float(int(q[e]) - 8);
        }
    }
};

// 32 elements d q + m: d, m, then bytes as above.
struct Q4_1 {
    static constant constexpr const uint GAP = 16;
    static uint first(uint i) { return 32 * (i / 2) + 8 * (i % 2); }
    static void decode(device const uchar* row, uint i, thread float* w) {
        device const uchar* block = row + 20 * ulong(i / 2);
        float d = half_at(block);
        float m = half_at(block + 2);
        uint q[RUN];
        nibbles(block + 4 + 8 * (i % 2), q);
        for (uint e = 0; e < RUN; e++) {
            w[e] = fma(d, float(q[e]), m);
        }
    }
};

// 32 elements d q: d, then signed bytes.
struct Q8_0 {
    static constant constexpr const uint GAP = 8;
    static uint first(uint i) { return 16 * i; }
    static void decode(device const uchar* row, uint i, thread float* w) {
        device const uchar* block = row + 34 * ulong(i / 2);
        float d = half_at(block);
        device const ushort* pairs = (device const ushort*)(block + 2 + 16 * (i % 2));
        for (uint e = 0; e < RUN / 2; e++) {
            uint pair = pairs[e];
            w[2 * e] = d * float(int8_t(pair & 255));
            w[2 * e + 1] = d * float(int8_t(pair >> 8));
        }
    }
};

// 256 elements in 8 parts of 32, each d s q - dmin m: d, dmin, 12 bytes with the 6 bits of every s and m, then 32 bytes
// for each two parts, the first of them below the second.
struct Q4_K {
    static constant constexpr const uint GAP = 32;
    static uint first(uint i) { return 64 * (i / 4) + 8 * (i % 4); }
    static void decode(device const uchar* row, uint i, thread float* w) {
        device const uchar* block = row + 144 * ulong(i / 16);
        device const uchar* scales = block + 4;
        uint pair = i % 16 / 4;
        uint q[RUN];
        nibbles(block + 16 + 32 * pair + 8 * (i % 4), q);
        for (uint part = 0; part < 2; part++) {
            uint at = 2 * pair + part;
            uint s;
            uint m;
            if (at < 4) {
                s = scales[at] & 63;
                m = scales[at + 4] & 63;
            } else {
                s = (scales[at + 4] & 15) | (scales[at - 4] >> 6 << 4);
                m = (scales[at + 4] >> 4) | (scales[at] >> 6 << 4);
            }
            float scale = half_at(block) * float(s);
            float offset = half_at(block + 2) * float(m);
            for (uint e = 0; e < 8; e++) {
                w[8 * part + e] = fma(scale, float(q[8 * part + e]), -offset);
            }
        }
    }
};

// 256 elements in 16 parts of 16, each d s (q - 32): 128 bytes with the lower 4 bits of q, 64 with the upper 2, a signed
// byte s for each part, d. Each half of the block has its own half of each of them.
struct Q6_K {
    static constant constexpr const uint GAP = 64;
    static uint first(uint i) { return 128 * (i / 8) + 8 * (i % 8); }
    static void decode(device const uchar* row, uint i, thread float* w) {
        device const uchar* block = row + 210 * ulong(i / 16);
        uint side = i % 16 / 8;
        uint strip = i % 8 / 4;
        uint from = 8 * (i % 4);
        uint q[RUN];
        nibbles(block + 64 * side + 32 * strip + from, q);
        device const ushort* upper = (device const ushort*)(block + 128 + 32 * side + from);
        device const uchar* scales = block + 192 + 8 * side + 2 * strip + from / 16;
        float d = half_at(block + 208);
        for (uint part = 0; part < 2; part++) {
            float scale = d * float(int8_t(scales[4 * part]));
            uint shift = 2 * strip + 4 * part;
            for (uint e = 0; e < 8; e++) {
                uint bits = uint(upper[e / 2]) >> (8 * (e % 2) + shift) & 3;
                w[8 * part + e] = scale * float(int(q[8 * part + e] | bits << 4) - 32);
            }
        }
    }
};

template <typename T, typename Blocks, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(128)]] void gemv_quantized(
    device const T* x [[buffer(0)]],
    device const uchar* w [[buffer(1)]],
    device T* y [[buffer(2)]],
    constant QuantizedSizes& sizes [[buffer(3)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    uint column = COLUMNS * (4 * block.x + group);
    uint row = ROWS * block.y;
    if (column >= sizes.n) {
        return;
    }
    uint rows = min(ROWS, sizes.m - row);
    float sums[COLUMNS * ROWS];
    for (uint i = 0; i < COLUMNS * ROWS; i++) {
        sums[i] = 0.0f;
    }
    for (uint i = lane; i < sizes.k / RUN; i += LANES) {
        uint first = Blocks::first(i);
        float from[ROWS * RUN];
        for (uint r = 0; r < ROWS; r++) {
            // Rows beyond the last repeat it; their sums are not stored.
            device const T* at = x + ulong(row + min(r, rows - 1)) * sizes.x_stride + first;
            for (uint e = 0; e < 8; e++) {
                from[r * RUN + e] = float(at[e]);
                from[r * RUN + 8 + e] = float(at[Blocks::GAP + e]);
            }
        }
        for (uint c = 0; c < COLUMNS; c++) {
            float weights[RUN];
            Blocks::decode(w + ulong(min(column + c, sizes.n - 1)) * sizes.w_stride, i, weights);
            for (uint r = 0; r < ROWS; r++) {
                for (uint e = 0; e < RUN; e++) {
                    sums[c * ROWS + r] = fma(weights[e], from[r * RUN + e], sums[c * ROWS + r]);
                }
            }
        }
    }
    for (uint c = 0; c < COLUMNS; c++) {
        for (uint r = 0; r < ROWS; r++) {
            float sum = simd_sum(sums[c * ROWS + r]);
            if (lane == 0 && column + c < sizes.n && r < rows) {
                y[ulong(row + r) * sizes.y_stride + column + c] = T(sum);
            }
        }
    }
}

// W's elements, [n, k]: one thread a run.
template <typename T, typename Blocks>
[[kernel, max_total_threads_per_threadgroup(256)]] void dequantize(
    device const uchar* w [[buffer(0)]],
    device T* y [[buffer(1)]],
    constant QuantizedSizes& sizes [[buffer(2)]],
    uint at [[thread_position_in_grid]]) {
    uint runs = sizes.k / RUN;
    if (at >= sizes.n * runs) {
        return;
    }
    uint row = at / runs;
    uint i = at % runs;
    float elements[RUN];
    Blocks::decode(w + ulong(row) * sizes.w_stride, i, elements);
    device T* to = y + ulong(row) * sizes.k + Blocks::first(i);
    for (uint e = 0; e < 8; e++) {
        to[e] = T(elements[e]);
        to[Blocks::GAP + e] = T(elements[8 + e]);
    }
}

#define INSTANTIATE_ROWS(T, Q, R)                                                                          \
    template [[host_name("gemv_" #Q "_" #T "_" #R)]] [[kernel]] void gemv_quantized<T, Q, R>(              \
        device const T*, device const uchar*, device T*, constant QuantizedSizes&, uint2, uint, uint);
#define INSTANTIATE_BLOCKS(T, Q)                                                          \
    INSTANTIATE_ROWS(T, Q, 1)                                                             \
    INSTANTIATE_ROWS(T, Q, 4)                                                             \
    template [[host_name("dequantize_" #Q "_" #T)]] [[kernel]] void dequantize<T, Q>(     \
        device const uchar*, device T*, constant QuantizedSizes&, uint);
#define INSTANTIATE(T)          \
    INSTANTIATE_BLOCKS(T, Q4_0) \
    INSTANTIATE_BLOCKS(T, Q4_1) \
    INSTANTIATE_BLOCKS(T, Q8_0) \
    INSTANTIATE_BLOCKS(T, Q4_K) \
    INSTANTIATE_BLOCKS(T, Q6_K)
FOR_FLOATS(INSTANTIATE)
