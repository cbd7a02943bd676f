// The k greatest elements of each row in descending order: one threadgroup a row, k rounds, each finding the first after
// the one found before. NaN is greater than any number; of equals the lower index comes first.

struct TopKSizes {
    uint n;
    uint k;
    uint store_values;
    uint store_indices;
};

struct Candidate {
    float value;
    uint index;
};

// Whether a comes before b. An index of 0xffffffff is no candidate.
inline bool before(Candidate a, Candidate b) {
    if (b.index == 0xffffffffu || a.index == 0xffffffffu) {
        return b.index == 0xffffffffu && a.index != 0xffffffffu;
    }
    bool a_nan = isnan(a.value);
    bool b_nan = isnan(b.value);
    if (a_nan != b_nan) {
        return a_nan;
    }
    if (a_nan || a.value == b.value) {
        return a.index < b.index;
    }
    return a.value > b.value;
}

// The first of the candidates of a SIMD group, in every lane.
inline Candidate first_of_group(Candidate mine) {
    for (ushort step = 16; step > 0; step /= 2) {
        Candidate other;
        other.value = simd_shuffle_xor(mine.value, step);
        other.index = simd_shuffle_xor(mine.index, step);
        if (before(other, mine)) {
            mine = other;
        }
    }
    return mine;
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void top_k(
    device const T* x [[buffer(0)]],
    device T* values [[buffer(1)]],
    device uint* indices [[buffer(2)]],
    constant TopKSizes& sizes [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float shared_values[GROUPS];
    threadgroup uint shared_indices[GROUPS];
    device const T* from = x + ulong(row) * sizes.n;
    Candidate last;
    last.value = 0.0f;
    last.index = 0xffffffffu;
    for (uint rank = 0; rank < sizes.k; rank++) {
        Candidate best;
        best.value = 0.0f;
        best.index = 0xffffffffu;
        for (uint i = thread_index; i < sizes.n; i += threads) {
            Candidate candidate;
            candidate.value = float(from[i]);
            candidate.index = i;
            if ((rank == 0 || before(last, candidate)) && before(candidate, best)) {
                best = candidate;
            }
        }
        best = first_of_group(best);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) {
            shared_values[group] = best.value;
            shared_indices[group] = best.index;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        best.value = lane < groups ? shared_values[lane] : 0.0f;
        best.index = lane < groups ? shared_indices[lane] : 0xffffffffu;
        last = first_of_group(best);
        if (thread_index == 0) {
            ulong to = ulong(row) * sizes.k + rank;
            if (sizes.store_values == 1) {
                values[to] = from[last.index];
            }
            if (sizes.store_indices == 1) {
                indices[to] = last.index;
            }
        }
    }
}

#define INSTANTIATE(T)                                                 \
    template [[host_name("top_k_" #T)]] [[kernel]] void top_k<T>(      \
        device const T*, device T*, device uint*, constant TopKSizes&, uint, uint, uint, uint, uint, uint);
FOR_FLOATS(INSTANTIATE)
