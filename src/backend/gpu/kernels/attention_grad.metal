// The gradient of attention from the log-sum-exp: P = exp(scale q k^T - lse), dP = dout v^T, dS = scale P (dP - delta),
// dq = dS k, dk = dS^T q, dv = P^T dout, with delta = sum dout out of a query.
//
// attention_delta: a SIMD group a query of a head. attention_dq: a threadgroup of 8 SIMD groups does 8 queries of a head over
// tiles of 32 keys. attention_dkv: the same with 8 keys of a key head over tiles of 32 queries of each of its query heads.
// A lane does one score; 64 elements of a head stand in threadgroup memory at a time. Head sizes up to 256. Sums are taken
// in the same order at every run.

#define TILE 32
#define CHUNK 64
#define PITCH 65
#define OWN 8
#define MOST 8

struct AttentionGradSizes {
    uint batch;
    uint t;
    uint s;
    uint heads;
    uint group;
    uint d;
    uint q_batch;
    uint q_token;
    uint q_head;
    uint k_batch;
    uint k_token;
    uint k_head;
    uint v_batch;
    uint v_token;
    uint v_head;
    uint o_batch;
    uint o_token;
    uint o_head;
    uint g_batch;   // dout
    uint g_token;
    uint g_head;
    uint causal;
    uint window;
    uint segmented;
    uint store_dk;
    uint store_dv;
    float scale;
    uint first_block; // of attention_dq and attention_dkv
};

inline uint2 visible(constant AttentionGradSizes& sizes, uint batch, uint query, device const uint* starts) {
    uint end = sizes.causal == 1 ? min(query + 1, sizes.s) : sizes.s;
    uint start = sizes.window > 0 && query + 1 > sizes.window ? query + 1 - sizes.window : 0;
    if (sizes.segmented == 1) {
        start = max(start, starts[batch * sizes.t + query]);
    }
    return uint2(min(start, end), end);
}

// The weight of a key, at most 1: the forward pass has rounded huge scores in another way. NaN stays NaN.
inline float probability(float score, float lse) {
    float x = score - lse;
    return precise::exp(x > 0.0f ? 0.0f : x);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_delta(
    device const T* out [[buffer(0)]],
    device const T* dout [[buffer(1)]],
    device float* delta [[buffer(2)]],
    constant AttentionGradSizes& sizes [[buffer(3)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    uint query = OWN * block.x + group;
    if (query >= sizes.t) {
        return;
    }
    ulong o = ulong(block.z) * sizes.o_batch + ulong(query) * sizes.o_token + ulong(block.y) * sizes.o_head;
    ulong g = ulong(block.z) * sizes.g_batch + ulong(query) * sizes.g_token + ulong(block.y) * sizes.g_head;
    float sum = 0.0f;
    for (uint i = lane; i < sizes.d; i += LANES) {
        sum = fma(float(out[o + i]), float(dout[g + i]), sum);
    }
    sum = simd_sum(sum);
    if (lane == 0) {
        delta[(ulong(block.z) * sizes.heads + block.y) * sizes.t + query] = sum;
    }
}

// Loads 32 rows of a chunk of a head; rows beyond the last are zeros.
template <typename T>
inline void load_tile(
    threadgroup float* tile,
    device const T* from,
    uint stride,
    uint first,
    uint rows,
    uint chunk,
    uint width,
    uint thread_index) {
    for (uint i = thread_index; i < TILE * width; i += 32 * OWN) {
        uint row = first + i / width;
        tile[i / width * PITCH + i % width] =
            row < rows ? float(from[ulong(row) * stride + chunk + i % width]) : 0.0f;
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_dq(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const T* dout [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const float* delta [[buffer(5)]],
    device const uint* starts [[buffer(6)]],
    device T* dq [[buffer(7)]],
    constant AttentionGradSizes& sizes [[buffer(8)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float left[TILE * PITCH];
    threadgroup float right[TILE * PITCH];
    uint batch = block.z;
    uint head = block.y;
    uint d = sizes.d;
    uint first = OWN * (sizes.first_block + block.x);
    uint query = min(first + group, sizes.t - 1);
    bool active = first + group < sizes.t;
    device const T* keys = k + ulong(batch) * sizes.k_batch + ulong(head / sizes.group) * sizes.k_head;
    device const T* values = v + ulong(batch) * sizes.v_batch + ulong(head / sizes.group) * sizes.v_head;
    device const T* mine = q + ulong(batch) * sizes.q_batch + ulong(query) * sizes.q_token + ulong(head) * sizes.q_head;
    device const T* upstream =
        dout + ulong(batch) * sizes.g_batch + ulong(query) * sizes.g_token + ulong(head) * sizes.g_head;
    uint2 range = active ? visible(sizes, batch, query, starts) : uint2(0, 0);
    uint start = sizes.s;
    uint end = 0;
    for (uint i = 0; i < OWN; i++) {
        if (first + i < sizes.t) {
            uint2 other = visible(sizes, batch, first + i, starts);
            if (other.x < other.y) {
                start = min(start, other.x);
                end = max(end, other.y);
            }
        }
    }
    ulong row = (ulong(batch) * sizes.heads + head) * sizes.t + query;
    float own_lse = lse[row];
    float own_delta = delta[row];
    float result[MOST];
    for (uint i = 0; i < MOST; i++) {
        result[i] = 0.0f;
    }
    for (uint from = start / TILE * TILE; from < end; from += TILE) {
        float score = 0.0f;
        float dp = 0.0f;
        for (uint chunk = 0; chunk < d; chunk += CHUNK) {
            uint width = min(uint(CHUNK), d - chunk);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            load_tile(left, keys, sizes.k_token, from, sizes.s, chunk, width, thread_index);
            load_tile(right, values, sizes.v_token, from, sizes.s, chunk, width, thread_index);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = 0; i < width; i++) {
                score = fma(float(mine[chunk + i]), left[lane * PITCH + i], score);
                dp = fma(float(upstream[chunk + i]), right[lane * PITCH + i], dp);
            }
        }
        uint key = from + lane;
        bool seen = key >= range.x && key < range.y;
        float ds = seen ? sizes.scale * probability(sizes.scale * score, own_lse) * (dp - own_delta) : 0.0f;
        uint low = min(max(range.x, from), from + TILE) - from;
        uint high = range.y > from ? min(range.y, from + TILE) - from : 0;
        for (uint chunk = 0; chunk < d; chunk += CHUNK) {
            uint width = min(uint(CHUNK), d - chunk);
            if (d > CHUNK) {
                threadgroup_barrier(mem_flags::mem_threadgroup);
                load_tile(left, keys, sizes.k_token, from, sizes.s, chunk, width, thread_index);
                threadgroup_barrier(mem_flags::mem_threadgroup);
            }
            for (uint j = low; j < high; j++) {
                float factor = simd_shuffle(ds, ushort(j));
                for (uint i = 0; i < CHUNK / LANES; i++) {
                    uint element = lane + LANES * i;
                    if (element < width) {
                        uint slot = chunk / LANES + i;
                        result[slot] = fma(factor, left[j * PITCH + element], result[slot]);
                    }
                }
            }
        }
    }
    if (active) {
        ulong to = ((ulong(batch) * sizes.t + query) * sizes.heads + head) * d;
        for (uint i = 0; i < MOST; i++) {
            if (lane + LANES * i < d) {
                dq[to + lane + LANES * i] = T(result[i]);
            }
        }
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_dkv(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const T* dout [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const float* delta [[buffer(5)]],
    device const uint* starts [[buffer(6)]],
    device T* dk [[buffer(7)]],
    device T* dv [[buffer(8)]],
    constant AttentionGradSizes& sizes [[buffer(9)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float left[TILE * PITCH];
    threadgroup float right[TILE * PITCH];
    uint batch = block.z;
    uint kv_head = block.y;
    uint kv_heads = sizes.heads / sizes.group;
    uint d = sizes.d;
    uint first = OWN * (sizes.first_block + block.x);
    uint key = min(first + group, sizes.s - 1);
    bool active = first + group < sizes.s;
    device const T* my_key = k + ulong(batch) * sizes.k_batch + ulong(key) * sizes.k_token + ulong(kv_head) * sizes.k_head;
    device const T* my_value =
        v + ulong(batch) * sizes.v_batch + ulong(key) * sizes.v_token + ulong(kv_head) * sizes.v_head;
    float key_result[MOST];
    float value_result[MOST];
    for (uint i = 0; i < MOST; i++) {
        key_result[i] = 0.0f;
        value_result[i] = 0.0f;
    }
    // With a causal mask the queries before the first key do not see any of these.
    uint begin = sizes.causal == 1 ? first / TILE * TILE : 0;
    for (uint head = kv_head * sizes.group; head < (kv_head + 1) * sizes.group; head++) {
        device const T* queries = q + ulong(batch) * sizes.q_batch + ulong(head) * sizes.q_head;
        device const T* upstream = dout + ulong(batch) * sizes.g_batch + ulong(head) * sizes.g_head;
        for (uint from = begin; from < sizes.t; from += TILE) {
            float score = 0.0f;
            float dp = 0.0f;
            for (uint chunk = 0; chunk < d; chunk += CHUNK) {
                uint width = min(uint(CHUNK), d - chunk);
                threadgroup_barrier(mem_flags::mem_threadgroup);
                load_tile(left, queries, sizes.q_token, from, sizes.t, chunk, width, thread_index);
                load_tile(right, upstream, sizes.g_token, from, sizes.t, chunk, width, thread_index);
                threadgroup_barrier(mem_flags::mem_threadgroup);
                for (uint i = 0; i < width; i++) {
                    score = fma(float(my_key[chunk + i]), left[lane * PITCH + i], score);
                    dp = fma(float(my_value[chunk + i]), right[lane * PITCH + i], dp);
                }
            }
            uint query = from + lane;
            float p = 0.0f;
            float ds = 0.0f;
            if (active && query < sizes.t) {
                uint2 range = visible(sizes, batch, query, starts);
                if (key >= range.x && key < range.y) {
                    ulong row = (ulong(batch) * sizes.heads + head) * sizes.t + query;
                    p = probability(sizes.scale * score, lse[row]);
                    ds = sizes.scale * p * (dp - delta[row]);
                }
            }
            uint rows = min(uint(TILE), sizes.t - from);
            for (uint chunk = 0; chunk < d; chunk += CHUNK) {
                uint width = min(uint(CHUNK), d - chunk);
                if (d > CHUNK) {
                    threadgroup_barrier(mem_flags::mem_threadgroup);
                    load_tile(left, queries, sizes.q_token, from, sizes.t, chunk, width, thread_index);
                    load_tile(right, upstream, sizes.g_token, from, sizes.t, chunk, width, thread_index);
                    threadgroup_barrier(mem_flags::mem_threadgroup);
                }
                for (uint j = 0; j < rows; j++) {
                    float weight = simd_shuffle(p, ushort(j));
                    float factor = simd_shuffle(ds, ushort(j));
                    for (uint i = 0; i < CHUNK / LANES; i++) {
                        uint element = lane + LANES * i;
                        if (element < width) {
                            uint slot = chunk / LANES + i;
                            // A query that does not see the key adds nothing, whatever it holds.
                            float grown = fma(factor, left[j * PITCH + element], key_result[slot]);
                            key_result[slot] = factor == 0.0f ? key_result[slot] : grown;
                            grown = fma(weight, right[j * PITCH + element], value_result[slot]);
                            value_result[slot] = weight == 0.0f ? value_result[slot] : grown;
                        }
                    }
                }
            }
        }
    }
    if (active) {
        ulong to = ((ulong(batch) * sizes.s + key) * kv_heads + kv_head) * d;
        for (uint i = 0; i < MOST; i++) {
            uint element = lane + LANES * i;
            if (element < d) {
                if (sizes.store_dk == 1) {
                    dk[to + element] = T(key_result[i]);
                }
                if (sizes.store_dv == 1) {
                    dv[to + element] = T(value_result[i]);
                }
            }
        }
    }
}

#define INSTANTIATE(T)                                                                                           \
    template [[host_name("attention_delta_" #T)]] [[kernel]] void attention_delta<T>(                            \
        device const T*, device const T*, device float*, constant AttentionGradSizes&, uint3, uint, uint);       \
    template [[host_name("attention_dq_" #T)]] [[kernel]] void attention_dq<T>(                                  \
        device const T*, device const T*, device const T*, device const T*, device const float*,                 \
        device const float*, device const uint*, device T*, constant AttentionGradSizes&, uint3, uint, uint,     \
        uint);                                                                                                   \
    template [[host_name("attention_dkv_" #T)]] [[kernel]] void attention_dkv<T>(                                \
        device const T*, device const T*, device const T*, device const T*, device const float*,                 \
        device const float*, device const uint*, device T*, device T*, constant AttentionGradSizes&, uint3,      \
        uint, uint, uint);
FOR_FLOATS(INSTANTIATE)
