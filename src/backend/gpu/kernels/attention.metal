// softmax(scale q k^T + mask) v, one head at a time, without holding the scores.
//
// attention_rows: a threadgroup of 8 SIMD groups does 8 neighbouring queries of a head, each SIMD group one. Tiles of 32
// keys and then of their values stand in threadgroup memory; a lane computes the score of one key, and holds every 32nd
// element of the result. attention_few: a threadgroup of 16 SIMD groups does one query of a head over a part of its keys,
// each SIMD group every 16th; a lane holds every 32nd element of the head. With several parts the results are merged by
// another launch. Head sizes up to 256. A query that sees no key gives zeros and -infinity.

#define TILE 32
#define CHUNK 128   // elements of a head in threadgroup memory at a time
#define PITCH 129   // apart from a power of two, so that lanes meet different banks
#define QUERIES 8
#define MOST 8      // elements of a head that a lane holds: 256 / 32
#define FEW 16      // SIMD groups of attention_few

struct AttentionSizes {
    uint batch;
    uint t;
    uint s;
    uint heads;
    uint group;       // query heads a key head
    uint d;
    uint q_batch;     // strides in elements
    uint q_token;
    uint q_head;
    uint k_batch;
    uint k_token;
    uint k_head;
    uint v_batch;
    uint v_token;
    uint v_head;
    uint causal;
    uint window;      // 0: none
    uint cached;
    uint segmented;
    uint store_lse;
    uint parts;
    float scale;
    uint first_block; // of attention_rows: 8 queries; of attention_few: a query of a head
};

// The keys that a query sees: from .x up to, but without, .y.
inline uint2 visible(
    constant AttentionSizes& sizes, uint batch, uint query, device const uint* pos, device const uint* starts) {
    uint position = query + (sizes.cached == 1 ? pos[0] : 0);
    uint end = sizes.causal == 1 ? min(position + 1, sizes.s) : sizes.s;
    uint start = sizes.window > 0 && position + 1 > sizes.window ? position + 1 - sizes.window : 0;
    if (sizes.segmented == 1) {
        start = max(start, starts[batch * sizes.t + query]);
    }
    return uint2(min(start, end), end);
}

template <typename T, typename K>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_rows(
    device const T* q [[buffer(0)]],
    device const K* k [[buffer(1)]],
    device const K* v [[buffer(2)]],
    device const uint* pos [[buffer(3)]],
    device const uint* starts [[buffer(4)]],
    device T* out [[buffer(5)]],
    device float* lse [[buffer(6)]],
    constant AttentionSizes& sizes [[buffer(7)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float tile[TILE * PITCH];
    threadgroup float queries[QUERIES * 256];
    uint batch = block.z;
    uint head = block.y;
    uint d = sizes.d;
    uint first = QUERIES * (sizes.first_block + block.x);
    uint query = first + group;
    bool active = query < sizes.t;
    for (uint i = thread_index; i < QUERIES * d; i += 32 * QUERIES) {
        uint at = first + i / d;
        ulong from = ulong(batch) * sizes.q_batch + ulong(min(at, sizes.t - 1)) * sizes.q_token;
        queries[i] = sizes.scale * float(q[from + ulong(head) * sizes.q_head + i % d]);
    }
    uint2 mine = active ? visible(sizes, batch, query, pos, starts) : uint2(0, 0);
    // What any query of the threadgroup sees.
    uint start = sizes.s;
    uint end = 0;
    for (uint i = 0; i < QUERIES; i++) {
        if (first + i < sizes.t) {
            uint2 other = visible(sizes, batch, first + i, pos, starts);
            if (other.x < other.y) {
                start = min(start, other.x);
                end = max(end, other.y);
            }
        }
    }
    device const K* keys = k + ulong(batch) * sizes.k_batch + ulong(head / sizes.group) * sizes.k_head;
    device const K* values = v + ulong(batch) * sizes.v_batch + ulong(head / sizes.group) * sizes.v_head;
    float greatest = -INFINITY;
    float total = 0.0f;
    float result[MOST];
    for (uint i = 0; i < MOST; i++) {
        result[i] = 0.0f;
    }
    for (uint from = start / TILE * TILE; from < end; from += TILE) {
        float score = 0.0f;
        for (uint chunk = 0; chunk < d; chunk += CHUNK) {
            uint width = min(uint(CHUNK), d - chunk);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = thread_index; i < TILE * width; i += 32 * QUERIES) {
                uint key = from + i / width;
                bool inside = key < sizes.s;
                tile[i / width * PITCH + i % width] =
                    inside ? float(keys[ulong(key) * sizes.k_token + chunk + i % width]) : 0.0f;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = 0; i < width; i++) {
                score = fma(queries[group * d + chunk + i], tile[lane * PITCH + i], score);
            }
        }
        uint key = from + lane;
        bool seen = key >= mine.x && key < mine.y;
        bool any = from + TILE > mine.x && from < mine.y && mine.x < mine.y;
        float weight = 0.0f;
        float factor = 1.0f;
        if (any) {
            float higher = max(greatest, simd_max(seen ? score : -INFINITY));
            weight = seen ? precise::exp(score - higher) : 0.0f;
            factor = greatest == higher ? 1.0f : precise::exp(greatest - higher);
            total = fma(total, factor, simd_sum(weight));
            greatest = higher;
        }
        for (uint chunk = 0; chunk < d; chunk += CHUNK) {
            uint width = min(uint(CHUNK), d - chunk);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = thread_index; i < TILE * width; i += 32 * QUERIES) {
                uint at = from + i / width;
                bool inside = at < sizes.s;
                tile[i / width * PITCH + i % width] =
                    inside ? float(values[ulong(at) * sizes.v_token + chunk + i % width]) : 0.0f;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (any) {
                for (uint i = 0; i < CHUNK / LANES; i++) {
                    uint element = lane + LANES * i;
                    uint slot = chunk / LANES + i;
                    if (element < width) {
                        result[slot] *= factor;
                    }
                }
                // Keys that the query does not see are left out: their values may be anything.
                uint low = max(mine.x, from) - from;
                uint high = min(mine.y, from + TILE) - from;
                for (uint j = low; j < high; j++) {
                    float p = simd_shuffle(weight, ushort(j));
                    for (uint i = 0; i < CHUNK / LANES; i++) {
                        uint element = lane + LANES * i;
                        if (element < width) {
                            uint slot = chunk / LANES + i;
                            result[slot] = fma(p, tile[j * PITCH + element], result[slot]);
                        }
                    }
                }
            }
        }
    }
    if (active) {
        bool none = mine.x >= mine.y;
        ulong to = ((ulong(batch) * sizes.t + query) * sizes.heads + head) * d;
        for (uint i = 0; i < MOST; i++) {
            uint element = lane + LANES * i;
            if (element < d) {
                out[to + element] = T(none ? 0.0f : result[i] / total);
            }
        }
        if (lane == 0 && sizes.store_lse == 1) {
            ulong at = (ulong(batch) * sizes.heads + head) * sizes.t + query;
            lse[at] = none ? -INFINITY : greatest + precise::log(total);
        }
    }
}

// One part of the keys of one query: its sum of weighted values, greatest score and sum of weights go to `partial`, d + 2
// numbers a part, or, if there is one part only, the result to `out`.
template <typename T, typename K>
[[kernel, max_total_threads_per_threadgroup(512)]] void attention_few(
    device const T* q [[buffer(0)]],
    device const K* k [[buffer(1)]],
    device const K* v [[buffer(2)]],
    device const uint* pos [[buffer(3)]],
    device const uint* starts [[buffer(4)]],
    device T* out [[buffer(5)]],
    device float* lse [[buffer(6)]],
    device float* partial [[buffer(7)]],
    constant AttentionSizes& sizes [[buffer(8)]],
    uint3 block [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
    threadgroup float sums[FEW * 256];
    threadgroup float peaks[FEW];
    threadgroup float totals[FEW];
    uint index = sizes.first_block + block.y;
    uint head = index % sizes.heads;
    uint query = index / sizes.heads % sizes.t;
    uint batch = index / sizes.heads / sizes.t;
    uint d = sizes.d;
    uint2 range = visible(sizes, batch, query, pos, starts);
    uint share = (range.y - range.x + sizes.parts - 1) / sizes.parts;
    uint start = min(range.x + block.x * share, range.y);
    uint end = min(start + share, range.y);
    device const T* from = q + ulong(batch) * sizes.q_batch + ulong(query) * sizes.q_token + ulong(head) * sizes.q_head;
    device const K* keys = k + ulong(batch) * sizes.k_batch + ulong(head / sizes.group) * sizes.k_head;
    device const K* values = v + ulong(batch) * sizes.v_batch + ulong(head / sizes.group) * sizes.v_head;
    float mine[MOST];
    float result[MOST];
    for (uint i = 0; i < MOST; i++) {
        uint element = lane + LANES * i;
        mine[i] = element < d ? sizes.scale * float(from[element]) : 0.0f;
        result[i] = 0.0f;
    }
    float greatest = -INFINITY;
    float total = 0.0f;
    for (uint key = start + group; key < end; key += FEW) {
        float score = 0.0f;
        for (uint i = 0; i < MOST; i++) {
            uint element = lane + LANES * i;
            if (element < d) {
                score = fma(mine[i], float(keys[ulong(key) * sizes.k_token + element]), score);
            }
        }
        score = simd_sum(score);
        float higher = max(greatest, score);
        float weight = precise::exp(score - higher);
        float factor = greatest == higher ? 1.0f : precise::exp(greatest - higher);
        total = fma(total, factor, weight);
        greatest = higher;
        for (uint i = 0; i < MOST; i++) {
            uint element = lane + LANES * i;
            if (element < d) {
                result[i] = fma(weight, float(values[ulong(key) * sizes.v_token + element]), result[i] * factor);
            }
        }
    }
    for (uint i = 0; i < MOST; i++) {
        uint element = lane + LANES * i;
        if (element < d) {
            sums[group * d + element] = result[i];
        }
    }
    if (lane == 0) {
        peaks[group] = greatest;
        totals[group] = total;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint groups = min(uint(FEW), end - start);
    float peak = -INFINITY;
    for (uint i = 0; i < groups; i++) {
        peak = max(peak, peaks[i]);
    }
    float sum = 0.0f;
    for (uint i = 0; i < groups; i++) {
        sum = fma(totals[i], peaks[i] == peak ? 1.0f : precise::exp(peaks[i] - peak), sum);
    }
    ulong row = index;
    for (uint element = thread_index; element < d; element += 32 * FEW) {
        float value = 0.0f;
        for (uint i = 0; i < groups; i++) {
            value = fma(sums[i * d + element], peaks[i] == peak ? 1.0f : precise::exp(peaks[i] - peak), value);
        }
        if (sizes.parts == 1) {
            out[row * d + element] = T(range.x >= range.y ? 0.0f : value / sum);
        } else {
            partial[(row * sizes.parts + block.x) * (d + 2) + element] = value;
        }
    }
    if (thread_index == 0) {
        if (sizes.parts > 1) {
            partial[(row * sizes.parts + block.x) * (d + 2) + d] = peak;
            partial[(row * sizes.parts + block.x) * (d + 2) + d + 1] = sum;
        } else if (sizes.store_lse == 1) {
            ulong at = (ulong(batch) * sizes.heads + head) * sizes.t + query;
            lse[at] = range.x >= range.y ? -INFINITY : peak + precise::log(sum);
        }
    }
}

// Merges the parts of a query: a threadgroup a row of a head.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(64)]] void attention_merge(
    device const float* partial [[buffer(0)]],
    device T* out [[buffer(1)]],
    device float* lse [[buffer(2)]],
    constant AttentionSizes& sizes [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]]) {
    uint d = sizes.d;
    device const float* parts = partial + ulong(row) * sizes.parts * (d + 2);
    float peak = -INFINITY;
    for (uint i = 0; i < sizes.parts; i++) {
        peak = max(peak, parts[i * (d + 2) + d]);
    }
    float sum = 0.0f;
    for (uint i = 0; i < sizes.parts; i++) {
        // A part without keys has a sum of 0 and no greatest score.
        float total = parts[i * (d + 2) + d + 1];
        float own = parts[i * (d + 2) + d];
        sum += own == peak ? total : (total == 0.0f ? 0.0f : total * precise::exp(own - peak));
    }
    for (uint element = thread_index; element < d; element += threads) {
        float value = 0.0f;
        for (uint i = 0; i < sizes.parts; i++) {
            float own = parts[i * (d + 2) + d];
            float total = parts[i * (d + 2) + d + 1];
            float factor = own == peak ? 1.0f : (total == 0.0f ? 0.0f : precise::exp(own - peak));
            value = fma(parts[i * (d + 2) + element], factor, value);
        }
        out[ulong(row) * d + element] = T(sum == 0.0f ? 0.0f : value / sum);
    }
    if (thread_index == 0 && sizes.store_lse == 1) {
        uint head = row % sizes.heads;
        uint query = row / sizes.heads % sizes.t;
        uint batch = row / sizes.heads / sizes.t;
        ulong at = (ulong(batch) * sizes.heads + head) * sizes.t + query;
        lse[at] = sum == 0.0f ? -INFINITY : peak + precise::log(sum);
    }
}

// What a causal mask adds to scores [t, s]: 0 for keys up to the query, -infinity after it.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void causal_mask(
    device T* mask [[buffer(0)]],
    constant uint2& sizes [[buffer(1)]],
    uint at [[thread_position_in_grid]]) {
    uint t = sizes.x;
    uint s = sizes.y;
    if (at >= t * s) {
        return;
    }
    mask[at] = T(at % s <= at / s ? 0.0f : -INFINITY);
}

#define INSTANTIATE_PAIR(T, K)                                                                                   \
    template [[host_name("attention_rows_" #T "_" #K)]] [[kernel]] void attention_rows<T, K>(                    \
        device const T*, device const K*, device const K*, device const uint*, device const uint*, device T*,    \
        device float*, constant AttentionSizes&, uint3, uint, uint, uint);                                       \
    template [[host_name("attention_few_" #T "_" #K)]] [[kernel]] void attention_few<T, K>(                      \
        device const T*, device const K*, device const K*, device const uint*, device const uint*, device T*,    \
        device float*, device float*, constant AttentionSizes&, uint3, uint, uint, uint);
#define INSTANTIATE(T)         \
    INSTANTIATE_PAIR(T, float) \
    INSTANTIATE_PAIR(T, half)  \
    INSTANTIATE_PAIR(T, bfloat) \
    template [[host_name("attention_merge_" #T)]] [[kernel]] void attention_merge<T>(                            \
        device const float*, device T*, device float*, constant AttentionSizes&, uint, uint, uint);              \
    template [[host_name("causal_mask_" #T)]] [[kernel]] void causal_mask<T>(device T*, constant uint2&, uint);
FOR_FLOATS(INSTANTIATE)
