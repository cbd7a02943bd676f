// Functions of one or two numbers, element by element, on any strides: y = f(a, b). One thread an element.
// Results of NaN are NaN, except for >=.

struct ElementwiseSizes {
    uint count;
    uint function;  // as `FUNCTIONS` in elementwise.rs
    float mul;      // affine: mul a + add
    float add;
    Walk a;
    Walk b;
};

#define GELU_SCALE 0.7978845608f
#define GELU_CUBE 0.044715f

// The error function within 2e-7: its Maclaurin series below 2, beyond that one minus exp(-x^2) times a fit of erfc by
// Chebyshev's form (Numerical Recipes, section 6.2, erfccheb of low order); single precision needs no more.
inline float error_function(float x) {
    float z = fabs(x);
    if (z < 2.0f) {
        float square = z * z;
        float term = z;
        float sum = z;
        for (int n = 1; n < 30; n++) {
            term *= -square / float(n);
            sum += term / float(2 * n + 1);
        }
        return copysign(sum * 1.1283791671f, x);
    }
    // The continued fraction of erfc (Abramowitz and Stegun 7.1.14), from the inside.
    float fraction = z;
    for (int n = 24; n > 0; n--) {
        fraction = z + 0.5f * float(n) / fraction;
    }
    float complement = precise::exp(-z * z) * 0.5641895835f / fraction;
    return isnan(x) ? x : copysign(z > 6.0f ? 1.0f : 1.0f - complement, x);
}

inline float logistic(float x) {
    return 1.0f / (1.0f + precise::exp(-x));
}

// Beyond 9 the hyperbolic tangent is 1 in single precision.
inline float hyperbolic_tangent(float x) {
    return isnan(x) ? x : precise::tanh(clamp(x, -9.5f, 9.5f));
}

inline float unary(uint function, float x) {
    switch (function) {
        case 0: return -x;
        case 1: return fabs(x);
        case 2: return precise::exp(x);
        case 3: return precise::log(x);
        case 4: return precise::sqrt(x);
        case 5: return 1.0f / precise::sqrt(x);
        case 6: return 1.0f / x;
        case 7: return x * x;
        case 8: return hyperbolic_tangent(x);
        case 9: return logistic(x);
        case 10: return isnan(x) ? x : max(x, 0.0f);
        case 11: return x * logistic(x);
        case 12: return 0.5f * x * (1.0f + hyperbolic_tangent(GELU_SCALE * (x + GELU_CUBE * x * x * x)));
        default: return 0.5f * x * (1.0f + error_function(0.7071067812f * x));
    }
}

inline float derivative(uint function, float x) {
    switch (function) {
        case 0: return -1.0f;
        case 1: return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x);
        case 2: return precise::exp(x);
        case 3: return 1.0f / x;
        case 4: return 0.5f / precise::sqrt(x);
        case 5: return -0.5f / (x * precise::sqrt(x));
        case 6: return -1.0f / (x * x);
        case 7: return 2.0f * x;
        case 8: {
            float t = hyperbolic_tangent(x);
            return 1.0f - t * t;
        }
        case 9: {
            float s = logistic(x);
            return s * (1.0f - s);
        }
        case 10: return x > 0.0f ? 1.0f : 0.0f;
        case 11: {
            float s = logistic(x);
            return s * (1.0f + x * (1.0f - s));
        }
        case 12: {
            float t = hyperbolic_tangent(GELU_SCALE * (x + GELU_CUBE * x * x * x));
            float inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
        }
        default: {
            float density = precise::exp(-0.5f * x * x) * 0.3989422804f;
            return 0.5f * (1.0f + error_function(0.7071067812f * x)) + x * density;
        }
    }
}

inline float binary(uint function, float a, float b) {
    switch (function) {
        case 0: return a + b;
        case 1: return a - b;
        case 2: return a * b;
        case 3: return a / b;
        case 4: return isnan(a) || isnan(b) ? NAN : max(a, b);
        case 5: return isnan(a) || isnan(b) ? NAN : min(a, b);
        default: return a >= b ? 1.0f : 0.0f;
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void elementwise(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
    device const float* factor [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant ElementwiseSizes& sizes [[buffer(4)]],
    uint i [[thread_position_in_grid]]) {
    if (i >= sizes.count) {
        return;
    }
    float x = float(a[walk(sizes.a, i)]);
    float result;
    if (sizes.function < 100) {
        result = unary(sizes.function, x);
    } else if (sizes.function < 200) {
        result = derivative(sizes.function - 100, float(b[walk(sizes.b, i)])) * x;
    } else if (sizes.function < 300) {
        result = binary(sizes.function - 200, x, float(b[walk(sizes.b, i)]));
    } else if (sizes.function == 300) {
        result = fma(sizes.mul, x, sizes.add);
    } else {
        result = factor[0] * x;
    }
    y[i] = T(result);
}

struct FillSizes {
    uint count;
    float value;
};

template <typename T>
[[kernel, max_total_threads_per_threadgroup(256)]] void fill(
    device T* y [[buffer(0)]],
    constant FillSizes& sizes [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
    if (i < sizes.count) {
        y[i] = T(sizes.value);
    }
}

#define INSTANTIATE_FILL(T) \
    template [[host_name("fill_" #T)]] [[kernel]] void fill<T>(device T*, constant FillSizes&, uint);
#define INSTANTIATE(T)                                                                  \
    template [[host_name("elementwise_" #T)]] [[kernel]] void elementwise<T>(           \
        device const T*, device const T*, device const float*, device T*, constant ElementwiseSizes&, uint); \
    INSTANTIATE_FILL(T)
FOR_FLOATS(INSTANTIATE)
INSTANTIATE_FILL(uint)
