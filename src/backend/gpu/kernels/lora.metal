// Low-rank adapters on slots (ranges of output columns) of a linear layer, and their gradients. Up to 4 slots a launch.
//
// Every thread does 4 ranks of a slot, or 4 rows, at a time, so that what it loads serves several sums. Sums over k, over
// columns and over tokens are taken in the same order at every run.

#define SLOTS 4
// Ranks of a tile. A tile belongs to one slot; its last ranks may be missing.
#define RANKS 4
// SIMD groups that share a sum, or groups of tokens.
#define SHARES 8

struct Slots {
    uint count;
    uint total;         // ranks of all slots of the layer: the row length of h and t
    uint start[SLOTS];  // first column
    uint len[SLOTS];    // columns
    uint rank[SLOTS];
    uint first[SLOTS];  // where the slot's ranks begin within h and t
    float scale[SLOTS];
};

struct LoraSizes {
    uint m;
    uint k;        // columns of x
    uint x_stride;
    uint y_stride;
    uint columns;  // lora_up: columns of all slots
    uint add;      // lora_dx: the result is added
    Slots slots;
};

struct Tile {
    uint slot;
    uint rank;   // the first, counted within the slot
    uint ranks;  // how many
};

inline Tile tile_of(constant Slots& slots, uint index) {
    Tile tile;
    tile.slot = 0;
    uint tiles = (slots.rank[0] + RANKS - 1) / RANKS;
    while (index >= tiles) {
        index -= tiles;
        tile.slot++;
        tiles = (slots.rank[tile.slot] + RANKS - 1) / RANKS;
    }
    tile.rank = RANKS * index;
    tile.ranks = min(uint(RANKS), slots.rank[tile.slot] - tile.rank);
    return tile;
}

template <typename A>
inline device A* pick(device A* p0, device A* p1, device A* p2, device A* p3, uint slot) {
    return slot == 0 ? p0 : (slot == 1 ? p1 : (slot == 2 ? p2 : p3));
}

// Writes scale times the sums of a tile over the SIMD groups of the threadgroup.
template <uint ROWS>
inline void store_tile(
    thread float* sums,
    threadgroup float* shared,
    device float* to,
    uint stride,
    Tile tile,
    uint rows,
    float scale,
    uint lane,
    uint group) {
    for (uint i = 0; i < RANKS * ROWS; i++) {
        float sum = simd_sum(sums[i]);
        if (lane == 0) {
            shared[group * RANKS * ROWS + i] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint i = LANES * group + lane;
    if (i < RANKS * ROWS && i / ROWS < tile.ranks && i % ROWS < rows) {
        float sum = 0.0f;
        for (uint share = 0; share < SHARES; share++) {
            sum += shared[share * RANKS * ROWS + i];
        }
        to[ulong(i % ROWS) * stride + i / ROWS] = scale * sum;
    }
}

// h = x A^T: a tile of ranks by ROWS rows a threadgroup, whose SIMD groups share k.
template <typename T, typename A, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_down(
    device const T* x [[buffer(0)]],
    device const A* a0 [[buffer(1)]],
    device const A* a1 [[buffer(2)]],
    device const A* a2 [[buffer(3)]],
    device const A* a3 [[buffer(4)]],
    device float* h [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float shared[SHARES * RANKS * ROWS];
    Tile tile = tile_of(sizes.slots, block.x);
    uint row = ROWS * block.y;
    uint rows = min(ROWS, sizes.m - row);
    device const A* a = pick(a0, a1, a2, a3, tile.slot) + ulong(tile.rank) * sizes.k;
    device const T* from = x + ulong(row) * sizes.x_stride;
    ulong offsets[RANKS];
    for (uint r = 0; r < RANKS; r++) {
        offsets[r] = ulong(min(r, tile.ranks - 1)) * sizes.k;
    }
    float sums[RANKS * ROWS];
    for (uint i = 0; i < RANKS * ROWS; i++) {
        sums[i] = 0.0f;
    }
    uint quads = sizes.k / 4;
    uint first = LANES * group + lane;
    for (uint i = first; i < quads; i += SHARES * LANES) {
        add_products<T, A, ROWS, RANKS, 4>(from + 4 * i, sizes.x_stride, rows, a + 4 * i, offsets, sums);
    }
    for (uint i = 4 * quads + first; i < sizes.k; i += SHARES * LANES) {
        add_products<T, A, ROWS, RANKS, 1>(from + i, sizes.x_stride, rows, a + i, offsets, sums);
    }
    device float* to = h + ulong(row) * sizes.slots.total + sizes.slots.first[tile.slot] + tile.rank;
    store_tile<ROWS>(sums, shared, to, sizes.slots.total, tile, rows, 1.0f, lane, group);
}

// t = scale dy[:, slot] B: as above, with the slot's columns in the place of k.
template <typename T, typename A, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_t(
    device const T* dy [[buffer(0)]],
    device const A* b0 [[buffer(1)]],
    device const A* b1 [[buffer(2)]],
    device const A* b2 [[buffer(3)]],
    device const A* b3 [[buffer(4)]],
    device float* t [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float shared[SHARES * RANKS * ROWS];
    Tile tile = tile_of(sizes.slots, block.x);
    uint row = ROWS * block.y;
    uint rows = min(ROWS, sizes.m - row);
    device const A* b = pick(b0, b1, b2, b3, tile.slot) + tile.rank;
    device const T* from = dy + ulong(row) * sizes.y_stride + sizes.slots.start[tile.slot];
    // The ranks of a column of y are neighbours.
    ulong offsets[RANKS];
    for (uint r = 0; r < RANKS; r++) {
        offsets[r] = min(r, tile.ranks - 1);
    }
    float sums[RANKS * ROWS];
    for (uint i = 0; i < RANKS * ROWS; i++) {
        sums[i] = 0.0f;
    }
    uint rank = sizes.slots.rank[tile.slot];
    for (uint i = LANES * group + lane; i < sizes.slots.len[tile.slot]; i += SHARES * LANES) {
        add_products<T, A, ROWS, RANKS, 1>(from + i, sizes.y_stride, rows, b + ulong(i) * rank, offsets, sums);
    }
    device float* to = t + ulong(row) * sizes.slots.total + sizes.slots.first[tile.slot] + tile.rank;
    float scale = sizes.slots.scale[tile.slot];
    store_tile<ROWS>(sums, shared, to, sizes.slots.total, tile, rows, scale, lane, group);
}

// y[:, slot] += scale h B^T: a thread a column of a slot in ROWS rows.
template <typename T, typename A, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_up(
    device const float* h [[buffer(0)]],
    device const A* b0 [[buffer(1)]],
    device const A* b1 [[buffer(2)]],
    device const A* b2 [[buffer(3)]],
    device const A* b3 [[buffer(4)]],
    device T* y [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    uint row = ROWS * (index / sizes.columns);
    uint column = index % sizes.columns;
    if (row >= sizes.m) {
        return;
    }
    uint rows = min(ROWS, sizes.m - row);
    uint slot = 0;
    while (slot + 1 < sizes.slots.count && column >= sizes.slots.len[slot]) {
        column -= sizes.slots.len[slot];
        slot++;
    }
    uint rank = sizes.slots.rank[slot];
    device const A* b = pick(b0, b1, b2, b3, slot) + ulong(column) * rank;
    device const float* from = h + ulong(row) * sizes.slots.total + sizes.slots.first[slot];
    float sums[ROWS];
    for (uint i = 0; i < ROWS; i++) {
        sums[i] = 0.0f;
    }
    for (uint r = 0; r < rank; r++) {
        float factor = float(b[r]);
        for (uint i = 0; i < rows; i++) {
            sums[i] = fma(from[ulong(i) * sizes.slots.total + r], factor, sums[i]);
        }
    }
    for (uint i = 0; i < rows; i++) {
        ulong at = ulong(row + i) * sizes.y_stride + sizes.slots.start[slot] + column;
        y[at] = T(fma(sizes.slots.scale[slot], sums[i], float(y[at])));
    }
}

// dx = t A, or dx += t A: a thread a column in ROWS rows.
template <typename T, typename A, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_dx(
    device const float* t [[buffer(0)]],
    device const A* a0 [[buffer(1)]],
    device const A* a1 [[buffer(2)]],
    device const A* a2 [[buffer(3)]],
    device const A* a3 [[buffer(4)]],
    device T* dx [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    uint row = ROWS * (index / sizes.k);
    uint column = index % sizes.k;
    if (row >= sizes.m) {
        return;
    }
    uint rows = min(ROWS, sizes.m - row);
    device T* to = dx + ulong(row) * sizes.k + column;
    float sums[ROWS];
    for (uint i = 0; i < ROWS; i++) {
        sums[i] = sizes.add == 1 && i < rows ? float(to[ulong(i) * sizes.k]) : 0.0f;
    }
    for (uint slot = 0; slot < sizes.slots.count; slot++) {
        device const A* a = pick(a0, a1, a2, a3, slot) + column;
        device const float* from = t + ulong(row) * sizes.slots.total + sizes.slots.first[slot];
        for (uint r = 0; r < sizes.slots.rank[slot]; r++) {
            float factor = float(a[ulong(r) * sizes.k]);
            for (uint i = 0; i < rows; i++) {
                sums[i] = fma(from[ulong(i) * sizes.slots.total + r], factor, sums[i]);
            }
        }
    }
    for (uint i = 0; i < rows; i++) {
        to[ulong(i) * sizes.k] = T(sums[i]);
    }
}

// Sums over tokens of the products of a tile of `low` (h or t) and a column of x or dy, by groups of tokens; the first
// group's threads get the totals. `low` and `high` begin at the tile and the column.
template <typename T>
inline void over_tokens(
    device const float* low,
    uint low_stride,
    device const T* high,
    uint high_stride,
    uint m,
    bool inside,
    Tile tile,
    threadgroup float* shared,
    thread float* sums,
    uint2 thread_at) {
    for (uint r = 0; r < RANKS; r++) {
        sums[r] = 0.0f;
    }
    if (inside) {
        for (uint row = thread_at.y; row < m; row += SHARES) {
            float value = float(high[ulong(row) * high_stride]);
            for (uint r = 0; r < RANKS; r++) {
                sums[r] = fma(low[ulong(row) * low_stride + min(r, tile.ranks - 1)], value, sums[r]);
            }
        }
    }
    uint thread_index = LANES * thread_at.y + thread_at.x;
    for (uint r = 0; r < RANKS; r++) {
        shared[SHARES * LANES * r + thread_index] = sums[r];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_at.y == 0) {
        for (uint r = 0; r < RANKS; r++) {
            for (uint share = 1; share < SHARES; share++) {
                sums[r] += shared[SHARES * LANES * r + LANES * share + thread_at.x];
            }
        }
    }
}

// dA[tile, :] = sum over tokens of t[:, tile] x: 32 columns by 8 groups of tokens a threadgroup.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_da(
    device const float* t [[buffer(0)]],
    device const T* x [[buffer(1)]],
    device float* a0 [[buffer(2)]],
    device float* a1 [[buffer(3)]],
    device float* a2 [[buffer(4)]],
    device float* a3 [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[SHARES * LANES * RANKS];
    Tile tile = tile_of(sizes.slots, block.y);
    uint column = LANES * block.x + thread_at.x;
    bool inside = column < sizes.k;
    device const float* low = t + sizes.slots.first[tile.slot] + tile.rank;
    float sums[RANKS];
    over_tokens(low, sizes.slots.total, x + column, sizes.x_stride, sizes.m, inside, tile, shared, sums, thread_at);
    if (thread_at.y == 0 && inside) {
        device float* to = pick(a0, a1, a2, a3, tile.slot) + ulong(tile.rank) * sizes.k + column;
        for (uint r = 0; r < tile.ranks; r++) {
            to[ulong(r) * sizes.k] = sums[r];
        }
    }
}

// dB[:, tile] = scale times the sum over tokens of dy[:, slot] h[:, tile]: as above.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void lora_db(
    device const float* h [[buffer(0)]],
    device const T* dy [[buffer(1)]],
    device float* b0 [[buffer(2)]],
    device float* b1 [[buffer(3)]],
    device float* b2 [[buffer(4)]],
    device float* b3 [[buffer(5)]],
    constant LoraSizes& sizes [[buffer(6)]],
    uint2 block [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
    threadgroup float shared[SHARES * LANES * RANKS];
    Tile tile = tile_of(sizes.slots, block.y);
    uint column = LANES * block.x + thread_at.x;
    bool inside = column < sizes.slots.len[tile.slot];
    device const float* low = h + sizes.slots.first[tile.slot] + tile.rank;
    device const T* high = dy + sizes.slots.start[tile.slot] + column;
    float sums[RANKS];
    over_tokens(low, sizes.slots.total, high, sizes.y_stride, sizes.m, inside, tile, shared, sums, thread_at);
    if (thread_at.y == 0 && inside) {
        device float* to = pick(b0, b1, b2, b3, tile.slot) + ulong(column) * sizes.slots.rank[tile.slot] + tile.rank;
        for (uint r = 0; r < tile.ranks; r++) {
            to[r] = sizes.slots.scale[tile.slot] * sums[r];
        }
    }
}

#define INSTANTIATE_ROWS(T, A, R)                                                                               \
    template [[host_name("lora_down_" #T "_" #A "_" #R)]] [[kernel]] void lora_down<T, A, R>(                   \
        device const T*, device const A*, device const A*, device const A*, device const A*, device float*,     \
        constant LoraSizes&, uint2, uint, uint);
#define INSTANTIATE_PAIR(T, A)                                                                                  \
    INSTANTIATE_ROWS(T, A, 1)                                                                                   \
    INSTANTIATE_ROWS(T, A, 4)                                                                                   \
    template [[host_name("lora_t_" #T "_" #A)]] [[kernel]] void lora_t<T, A, 4>(                                \
        device const T*, device const A*, device const A*, device const A*, device const A*, device float*,     \
        constant LoraSizes&, uint2, uint, uint);                                                                \
    template [[host_name("lora_up_" #T "_" #A)]] [[kernel]] void lora_up<T, A, 4>(                              \
        device const float*, device const A*, device const A*, device const A*, device const A*, device T*,     \
        constant LoraSizes&, uint);                                                                             \
    template [[host_name("lora_dx_" #T "_" #A)]] [[kernel]] void lora_dx<T, A, 4>(                              \
        device const float*, device const A*, device const A*, device const A*, device const A*, device T*,     \
        constant LoraSizes&, uint);
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat) \
    template [[host_name("lora_da_" #T)]] [[kernel]] void lora_da<T>(                                           \
        device const float*, device const T*, device float*, device float*, device float*, device float*,       \
        constant LoraSizes&, uint2, uint2);                                                                     \
    template [[host_name("lora_db_" #T)]] [[kernel]] void lora_db<T>(                                           \
        device const float*, device const T*, device float*, device float*, device float*, device float*,       \
        constant LoraSizes&, uint2, uint2);
FOR_FLOATS(INSTANTIATE)
