// <metal_math>, <metal_integer> and <metal_common>. Functions of half and bfloat are computed in float.
namespace metal {
template <class T> using softmetal_real = conditional_t<is_floating_point_v<T>, T, float>;
template <class A, class B> using softmetal_common = __decay(decltype(true ? declval<A>() : declval<B>()));
template <class T> using softmetal_scalar = enable_if_t<is_arithmetic_v<T>>;

#define SOFTMETAL_UNARY(name, value) \
  template <class T, class = softmetal_scalar<T>> METAL_FUNC softmetal_real<T> name(T v) { \
    float x = float(v); \
    return softmetal_real<T>(value); \
  } \
  template <class T, int N> METAL_FUNC vec<T, N> name(vec<T, N> v) { \
    for (int i = 0; i < N; i++) v[i] = name(v[i]); \
    return v; \
  }
#define SOFTMETAL_UNARIES \
  SOFTMETAL_UNARY(acos, __builtin_acosf(x)) SOFTMETAL_UNARY(acosh, __builtin_acoshf(x)) \
  SOFTMETAL_UNARY(asin, __builtin_asinf(x)) SOFTMETAL_UNARY(asinh, __builtin_asinhf(x)) \
  SOFTMETAL_UNARY(atan, __builtin_atanf(x)) SOFTMETAL_UNARY(atanh, __builtin_atanhf(x)) \
  SOFTMETAL_UNARY(ceil, __builtin_ceilf(x)) SOFTMETAL_UNARY(floor, __builtin_floorf(x)) \
  SOFTMETAL_UNARY(trunc, __builtin_truncf(x)) SOFTMETAL_UNARY(rint, __builtin_rintf(x)) \
  SOFTMETAL_UNARY(round, __builtin_roundf(x)) SOFTMETAL_UNARY(fract, x - __builtin_floorf(x)) \
  SOFTMETAL_UNARY(cos, __builtin_cosf(x)) SOFTMETAL_UNARY(cosh, __builtin_coshf(x)) \
  SOFTMETAL_UNARY(sin, __builtin_sinf(x)) SOFTMETAL_UNARY(sinh, __builtin_sinhf(x)) \
  SOFTMETAL_UNARY(tan, __builtin_tanf(x)) SOFTMETAL_UNARY(tanh, __builtin_tanhf(x)) \
  SOFTMETAL_UNARY(cospi, __builtin_cosf(x * M_PI_F)) SOFTMETAL_UNARY(sinpi, __builtin_sinf(x * M_PI_F)) \
  SOFTMETAL_UNARY(exp, __builtin_expf(x)) SOFTMETAL_UNARY(exp2, __builtin_exp2f(x)) \
  SOFTMETAL_UNARY(exp10, __builtin_powf(10.0f, x)) SOFTMETAL_UNARY(log, __builtin_logf(x)) \
  SOFTMETAL_UNARY(log2, __builtin_log2f(x)) SOFTMETAL_UNARY(log10, __builtin_log10f(x)) \
  SOFTMETAL_UNARY(sqrt, __builtin_sqrtf(x)) SOFTMETAL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) \
  SOFTMETAL_UNARY(fabs, __builtin_fabsf(x)) SOFTMETAL_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f) \
  SOFTMETAL_UNARY(saturate, x > 0 ? (x < 1 ? x : 1.0f) : 0.0f)
SOFTMETAL_UNARIES

#define SOFTMETAL_BINARY(name, value) \
  template <class A, class B, class = softmetal_scalar<A>, class = softmetal_scalar<B>> \
  METAL_FUNC softmetal_real<softmetal_common<A, B>> name(A a, B b) { \
    float x = float(a), y = float(b); \
    return softmetal_real<softmetal_common<A, B>>(value); \
  } \
  template <class T, int N> METAL_FUNC vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = name(a[i], b[i]); \
    return a; \
  }
SOFTMETAL_BINARY(pow, __builtin_powf(x, y))
SOFTMETAL_BINARY(powr, __builtin_powf(x, y))
SOFTMETAL_BINARY(fmod, __builtin_fmodf(x, y))
SOFTMETAL_BINARY(atan2, __builtin_atan2f(x, y))
SOFTMETAL_BINARY(copysign, __builtin_copysignf(x, y))
SOFTMETAL_BINARY(fdim, __builtin_fdimf(x, y))
SOFTMETAL_BINARY(divide, x / y)
SOFTMETAL_BINARY(step, y < x ? 0.0f : 1.0f)

// Of a number and a NaN, Metal's min and max return the number, as C's fmin and fmax do.
#define SOFTMETAL_EXTREME(name, other, less) \
  template <class A, class B, class = softmetal_scalar<A>, class = softmetal_scalar<B>> \
  METAL_FUNC constexpr softmetal_common<A, B> name(A a, B b) { \
    using T = softmetal_common<A, B>; \
    T x = T(a), y = T(b); \
    return x != x ? y : y != y ? x : y less x ? y : x; \
  } \
  template <class T, int N> METAL_FUNC constexpr vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a[i] = name(a[i], b[i]); \
    return a; \
  } \
  template <class A, class B> METAL_FUNC constexpr auto other(A a, B b) { return name(a, b); } \
  template <class T> METAL_FUNC constexpr T name##3(T a, T b, T c) { return name(name(a, b), c); }
SOFTMETAL_EXTREME(min, fmin, <)
SOFTMETAL_EXTREME(max, fmax, >)

template <class T, class = softmetal_scalar<T>> METAL_FUNC constexpr T abs(T v) {
  if constexpr (is_floating_point_v<T>) return T(__builtin_fabsf(float(v)));
  else if constexpr (is_signed_v<T>) return v < T(0) ? T(-v) : v;
  else return v;
}
template <class T, int N> METAL_FUNC constexpr vec<T, N> abs(vec<T, N> v) {
  for (int i = 0; i < N; i++) v[i] = abs(v[i]);
  return v;
}
template <class T> METAL_FUNC T fma(T a, T b, T c) {
  if constexpr (is_arithmetic_v<T>) return T(__builtin_fmaf(float(a), float(b), float(c)));
  else {
    for (int i = 0; i < T::n; i++) a[i] = fma(a[i], b[i], c[i]);
    return a;
  }
}
METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
template <class T> METAL_FUNC constexpr T mad(T a, T b, T c) { return a * b + c; }
template <class T, class L, class H> METAL_FUNC constexpr T clamp(T v, L low, H high) { return T(min(max(v, T(low)), T(high))); }
template <class T, class U> METAL_FUNC constexpr T mix(T a, T b, U t) { return T(a + (b - a) * t); }
template <class T> METAL_FUNC constexpr T select(T a, T b, bool c) { return c ? b : a; }
template <class T, int N> METAL_FUNC constexpr vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; i++) a[i] = c[i] ? b[i] : a[i];
  return a;
}
template <class T> METAL_FUNC bool isnan(T v) { return v != v; }
template <class T> METAL_FUNC bool isinf(T v) { return __builtin_isinf(float(v)); }
template <class T> METAL_FUNC bool isfinite(T v) { return __builtin_isfinite(float(v)); }
template <class T> METAL_FUNC bool signbit(T v) { return __builtin_signbit(float(v)); }
template <class T> METAL_FUNC T sincos(T x, T &c) { c = cos(x); return sin(x); }
template <class T> METAL_FUNC T modf(T x, T &whole) { whole = trunc(x); return x - whole; }
template <class T> METAL_FUNC T ldexp(T x, int e) { return T(__builtin_ldexpf(float(x), e)); }
template <class T> METAL_FUNC T frexp(T x, int &e) { return T(__builtin_frexpf(float(x), &e)); }
template <class T, int N> METAL_FUNC constexpr T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(0);
  for (int i = 0; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <class T, int N> METAL_FUNC T length(vec<T, N> a) { return sqrt(dot(a, a)); }
template <int N> METAL_FUNC constexpr bool all(vec<bool, N> v) { bool r = true; for (int i = 0; i < N; i++) r &= v[i]; return r; }
template <int N> METAL_FUNC constexpr bool any(vec<bool, N> v) { bool r = false; for (int i = 0; i < N; i++) r |= v[i]; return r; }

// Integers.
template <class T> METAL_FUNC constexpr T clz(T v) {
  using U = make_unsigned_t<T>;
  return T(U(v) ? __builtin_clzl(ulong(U(v))) - (64 - 8 * int(sizeof(T))) : 8 * int(sizeof(T)));
}
template <class T> METAL_FUNC constexpr T ctz(T v) { return T(v ? __builtin_ctzl(ulong(v)) : 8 * int(sizeof(T))); }
template <class T> METAL_FUNC constexpr T popcount(T v) { return T(__builtin_popcountl(ulong(make_unsigned_t<T>(v)))); }
template <class T> METAL_FUNC constexpr T mulhi(T a, T b) {
  if constexpr (is_signed_v<T>) return T((__int128(a) * b) >> (8 * sizeof(T)));
  else return T((static_cast<unsigned __int128>(a) * b) >> (8 * sizeof(T)));
}
template <class T> METAL_FUNC constexpr T mul24(T a, T b) { return a * b; }
template <class T> METAL_FUNC constexpr T rotate(T v, T n) {
  constexpr T bits = 8 * sizeof(T);
  n = n % bits;
  return n ? T((v << n) | (make_unsigned_t<T>(v) >> (bits - n))) : v;
}
template <class T> METAL_FUNC constexpr T addsat(T a, T b) {
  T r = T(0);
  return __builtin_add_overflow(a, b, &r) ? (b < T(0) ? numeric_limits<T>::min() : numeric_limits<T>::max()) : r;
}
template <class T> METAL_FUNC constexpr T subsat(T a, T b) {
  T r = T(0);
  return __builtin_sub_overflow(a, b, &r) ? (b > T(0) ? numeric_limits<T>::min() : numeric_limits<T>::max()) : r;
}
template <class T> METAL_FUNC constexpr T extract_bits(T v, uint offset, uint bits) {
  return bits == 0 ? T(0) : T(T(v << (8 * sizeof(T) - bits - offset)) >> (8 * sizeof(T) - bits));
}
METAL_FUNC uint reverse_bits(uint v) { return __builtin_bitreverse32(v); }

// Neither Apple's fast approximations nor its rounding are imitated: both families are the plain functions.
#define SOFTMETAL_FAMILY \
  using metal::abs; using metal::acos; using metal::asin; using metal::atan; using metal::atan2; using metal::ceil; \
  using metal::clamp; using metal::cos; using metal::cosh; using metal::divide; using metal::exp; using metal::exp10; \
  using metal::exp2; using metal::fabs; using metal::floor; using metal::fma; using metal::fmax; using metal::fmin; \
  using metal::fmod; using metal::log; using metal::log10; using metal::log2; using metal::max; using metal::min; \
  using metal::pow; using metal::powr; using metal::rint; using metal::round; using metal::rsqrt; using metal::sin; \
  using metal::sincos; using metal::sinh; using metal::sqrt; using metal::tan; using metal::tanh; using metal::trunc; \
  using metal::isnan; using metal::isinf; using metal::isfinite;
namespace fast { SOFTMETAL_FAMILY }
namespace precise { SOFTMETAL_FAMILY }
#undef SOFTMETAL_FAMILY
#undef SOFTMETAL_EXTREME
#undef SOFTMETAL_BINARY
#undef SOFTMETAL_UNARIES
#undef SOFTMETAL_UNARY
} // namespace metal
