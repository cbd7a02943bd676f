// One element of each row, drawn by its probability: one threadgroup a row. After philox.metal.
//
// What is kept is found by halving: the least logit that is still kept, as an integer of the same order, bit by bit, with
// one look of the threadgroup at the row for each. Then every thread scores its elements by Gumbel's trick. exp and log are
// the build's default variants, whose last digits are not the CPU's: where two scores or a threshold differ by less, another
// token than the CPU's may be drawn.

#define NONE 0xffffffffu

struct SampleSizes {
    uint n;
    uint top_k;
    uint stream;
};

// A number whose order as an integer is that of the logit; 0 for what is never drawn.
inline uint ordered(float x) {
    if (isnan(x) || x == -INFINITY) {
        return 0;
    }
    uint bits = as_type<uint>(x == 0.0f ? 0.0f : x);
    return (bits >> 31) == 1 ? ~bits : (bits | 0x80000000u);
}

inline float shifted(float x, float greatest, float temperature) {
    return x == greatest ? 0.0f : (x - greatest) / temperature;
}

// Whether a candidate comes before another: a greater score, of equals the lower index.
inline bool first_of(float a, uint a_index, float b, uint b_index) {
    if (a_index == NONE || b_index == NONE) {
        return a_index != NONE && b_index == NONE;
    }
    return a > b || (a == b && a_index < b_index);
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void sample(
    device const T* logits [[buffer(0)]],
    device const float* settings [[buffer(1)]],
    device const uint* seed [[buffer(2)]],
    device uint* drawn [[buffer(3)]],
    constant SampleSizes& sizes [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared[GROUPS];
    threadgroup uint shared_indices[GROUPS];
    device const T* from = logits + ulong(row) * sizes.n;
    float temperature = settings[0];
    float top_p = settings[1];
    float min_p = settings[2];
    float greatest = -INFINITY;
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float x = float(from[i]);
        if (!isnan(x)) {
            greatest = max(greatest, x);
        }
    }
    greatest = group_max(greatest, shared, lane, group, groups);
    uint least = 1;
    if (sizes.top_k > 0 && sizes.top_k < sizes.n) {
        uint found = 0;
        for (uint bit = 32; bit > 0; bit--) {
            uint next = found | (1u << (bit - 1));
            float count = 0.0f;
            for (uint i = thread_index; i < sizes.n; i += threads) {
                count += ordered(float(from[i])) >= next ? 1.0f : 0.0f;
            }
            count = group_sum(count, shared, lane, group, groups);
            if (count >= float(sizes.top_k)) {
                found = next;
            }
        }
        least = max(found, 1u);
    }
    if (top_p < 1.0f) {
        float wanted = 0.0f;
        uint found = 0;
        // The first look is at all that top-k keeps.
        for (uint bit = 33; bit > 0; bit--) {
            uint next = bit == 33 ? 0u : (found | (1u << (bit - 1)));
            float sum = 0.0f;
            for (uint i = thread_index; i < sizes.n; i += threads) {
                float x = float(from[i]);
                if (ordered(x) >= max(next, least)) {
                    sum += exp(shifted(x, greatest, temperature));
                }
            }
            sum = group_sum(sum, shared, lane, group, groups);
            if (bit == 33) {
                wanted = top_p * sum;
            } else if (sum >= wanted) {
                found = next;
            }
        }
        least = max(least, found);
    }
    float best = 0.0f;
    uint best_index = NONE;
    uint2 key = uint2(seed[0], seed[1]);
    for (uint i = thread_index; i < sizes.n; i += threads) {
        float x = float(from[i]);
        float away = shifted(x, greatest, temperature);
        if (ordered(x) < least || (x != greatest && exp(away) < min_p)) {
            continue;
        }
        float score = x;
        if (temperature != 0.0f) {
            uint4 words = philox(uint4(i / 4, row, sizes.stream, 2), key);
            uint word = i % 4 == 0 ? words.x : (i % 4 == 1 ? words.y : (i % 4 == 2 ? words.z : words.w));
            float u = (float(word >> 9) + 0.5f) / 8388608.0f;
            score = away - log(-log(u));
        }
        if (first_of(score, i, best, best_index)) {
            best = score;
            best_index = i;
        }
    }
    for (ushort step = 16; step > 0; step /= 2) {
        float other = simd_shuffle_xor(best, step);
        uint other_index = simd_shuffle_xor(best_index, step);
        if (first_of(other, other_index, best, best_index)) {
            best = other;
            best_index = other_index;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[group] = best;
        shared_indices[group] = best_index;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        for (uint other = 1; other < groups; other++) {
            if (first_of(shared[other], shared_indices[other], best, best_index)) {
                best = shared[other];
                best_index = shared_indices[other];
            }
        }
        drawn[row] = best_index;
    }
}

#define INSTANTIATE(T)                                                   \
    template [[host_name("sample_" #T)]] [[kernel]] void sample<T>(      \
        device const T*, device const float*, device const uint*, device uint*, constant SampleSizes&, uint, \
        uint, uint, uint, uint, uint);
FOR_FLOATS(INSTANTIATE)
