// Dot products in registers, which the products of few rows and the adapters share.

// Adds to sums[c * ROWS + r] the products of N neighbours of row r of x and of the row of W that begins at offsets[c].
// Rows of x beyond the last repeat it; their sums are not to be stored.
template <typename T, typename W, uint ROWS, uint COLUMNS, uint N>
inline void add_products(
    device const T* x,
    uint x_stride,
    uint rows,
    device const W* w,
    thread const ulong* offsets,
    thread float* sums) {
    float from[ROWS * N];
    for (uint r = 0; r < ROWS; r++) {
        device const T* at = x + ulong(min(r, rows - 1)) * x_stride;
        for (uint e = 0; e < N; e++) {
            from[r * N + e] = float(at[e]);
        }
    }
    for (uint c = 0; c < COLUMNS; c++) {
        device const W* at = w + offsets[c];
        float weights[N];
        for (uint e = 0; e < N; e++) {
            weights[e] = float(at[e]);
        }
        for (uint r = 0; r < ROWS; r++) {
            for (uint e = 0; e < N; e++) {
                sums[c * ROWS + r] = fma(weights[e], from[r * N + e], sums[c * ROWS + r]);
            }
        }
    }
}

