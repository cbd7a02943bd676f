// Looks for a number that is not below a limit: one threadgroup. The flag gets the first such number plus one, or 0.

struct CheckSizes {
    uint count;
    uint limit;
};

[[kernel, max_total_threads_per_threadgroup(32)]] void check_indices(
    device const uint* indices [[buffer(0)]],
    device uint* flag [[buffer(1)]],
    constant CheckSizes& sizes [[buffer(2)]],
    uint thread_index [[thread_position_in_threadgroup]]) {
    if (thread_index > 0) {
        return;
    }
    uint found = 0;
    for (uint i = 0; i < sizes.count && found == 0; i++) {
        // The greatest number has no successor; it stays the greatest.
        found = indices[i] < sizes.limit ? 0 : max(indices[i], indices[i] + 1);
    }
    flag[0] = found;
}
