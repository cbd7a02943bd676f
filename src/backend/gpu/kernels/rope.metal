// Rotation of the pairs (i, i + half) of a head by the angle of its position. One thread a pair; a position beyond the
// table is reported by another kernel and takes the last one here, so that nothing is read outside.

struct RopeSizes {
    uint pairs;  // tokens heads half
    uint heads;
    uint half_size;
    uint positions;
    uint token_stride;
    uint head_stride;
    float direction;  // 1, or -1 for the inverse
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void rope(
    device const T* x [[buffer(0)]],
    device const float* cosines [[buffer(1)]],
    device const float* sines [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device T* y [[buffer(4)]],
    constant RopeSizes& sizes [[buffer(5)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= sizes.pairs) {
        return;
    }
    uint i = index % sizes.half_size;
    uint row = index / sizes.half_size;
    uint head = row % sizes.heads;
    uint token = row / sizes.heads;
    uint position = min(positions[token], sizes.positions - 1);
    float c = cosines[ulong(position) * sizes.half_size + i];
    float s = sines[ulong(position) * sizes.half_size + i] * sizes.direction;
    ulong from = ulong(token) * sizes.token_stride + ulong(head) * sizes.head_stride + i;
    float a = float(x[from]);
    float b = float(x[from + sizes.half_size]);
    ulong to = ulong(row) * 2 * sizes.half_size + i;
    y[to] = T(a * c - b * s);
    y[to + sizes.half_size] = T(b * c + a * s);
}

#define INSTANTIATE(T)                                                      \
    template [[host_name("rope_" #T)]] [[kernel]] void rope<T>(             \
        device const T*, device const float*, device const float*, device const uint*, device T*, \
        constant RopeSizes&, uint);
FOR_FLOATS(INSTANTIATE)

// A decode step's queries and keys are rotated, and keys and values written to their caches, in one launch: one thread a
// pair of q, then of k, then of v. Tokens beyond the capacity are dropped.
struct RopeCacheSizes {
    uint tokens;
    uint half_size;
    uint positions;
    uint capacity;
    uint q_heads;
    uint kv_heads;
    uint store_k;   // 0: only the cache gets the rotated keys
    uint q_token;
    uint q_head;
    uint k_token;
    uint k_head;
    uint v_token;
    uint v_head;
};

template <typename T, typename C>
[[kernel, max_total_threads_per_threadgroup(256)]] void rope_cache(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const float* cosines [[buffer(3)]],
    device const float* sines [[buffer(4)]],
    device const uint* positions [[buffer(5)]],
    device const uint* pos [[buffer(6)]],
    device T* q_out [[buffer(7)]],
    device T* k_out [[buffer(8)]],
    device C* k_cache [[buffer(9)]],
    device C* v_cache [[buffer(10)]],
    constant RopeCacheSizes& sizes [[buffer(11)]],
    uint index [[thread_position_in_grid]]) {
    uint half_size = sizes.half_size;
    uint heads = sizes.q_heads + 2 * sizes.kv_heads;
    if (index >= sizes.tokens * heads * half_size) {
        return;
    }
    uint i = index % half_size;
    uint head = index / half_size % heads;
    uint token = index / half_size / heads;
    ulong at = ulong(pos[0]) + token;
    uint position = min(positions[token], sizes.positions - 1);
    float c = cosines[ulong(position) * half_size + i];
    float s = sines[ulong(position) * half_size + i];
    if (head < sizes.q_heads) {
        ulong from = ulong(token) * sizes.q_token + ulong(head) * sizes.q_head + i;
        float a = float(q[from]);
        float b = float(q[from + half_size]);
        ulong to = (ulong(token) * sizes.q_heads + head) * 2 * half_size + i;
        q_out[to] = T(a * c - b * s);
        q_out[to + half_size] = T(b * c + a * s);
        return;
    }
    head -= sizes.q_heads;
    bool key = head < sizes.kv_heads;
    head = key ? head : head - sizes.kv_heads;
    ulong cached = (ulong(head) * sizes.capacity + at) * 2 * half_size + i;
    if (key) {
        ulong from = ulong(token) * sizes.k_token + ulong(head) * sizes.k_head + i;
        float a = float(k[from]);
        float b = float(k[from + half_size]);
        T x = T(a * c - b * s);
        T y = T(b * c + a * s);
        ulong to = (ulong(token) * sizes.kv_heads + head) * 2 * half_size + i;
        if (sizes.store_k != 0) {
            k_out[to] = x;
            k_out[to + half_size] = y;
        }
        if (at < sizes.capacity) {
            k_cache[cached] = C(float(x));
            k_cache[cached + half_size] = C(float(y));
        }
    } else if (at < sizes.capacity) {
        ulong from = ulong(token) * sizes.v_token + ulong(head) * sizes.v_head + i;
        v_cache[cached] = C(float(v[from]));
        v_cache[cached + half_size] = C(float(v[from + half_size]));
    }
}

#define INSTANTIATE_CACHE(T, C)                                                                              \
    template [[host_name("rope_cache_" #T "_" #C)]] [[kernel]] void rope_cache<T, C>(                        \
        device const T*, device const T*, device const T*, device const float*, device const float*,         \
        device const uint*, device const uint*, device T*, device T*, device C*, device C*,                  \
        constant RopeCacheSizes&, uint);
#define INSTANTIATE_CACHES(T)   \
    INSTANTIATE_CACHE(T, float) \
    INSTANTIATE_CACHE(T, half)  \
    INSTANTIATE_CACHE(T, bfloat)
FOR_FLOATS(INSTANTIATE_CACHES)
