// Vectors with Metal's sizes and alignments, and small matrices.
namespace metal {
template <class T, int N> struct vec;

// A view of some components, in the storage of the vector that it is a member of.
template <class V, class T, int N, int... I> struct softmetal_swizzle {
  T all[N];
  constexpr operator V() const { return V(all[I]...); }
  constexpr softmetal_swizzle &operator=(const V &v) {
    int k = 0;
    ((all[I] = v[k++]), ...);
    return *this;
  }
  constexpr softmetal_swizzle &operator+=(const V &v) { return *this = V(*this) + v; }
  constexpr softmetal_swizzle &operator-=(const V &v) { return *this = V(*this) - v; }
  constexpr softmetal_swizzle &operator*=(const V &v) { return *this = V(*this) * v; }
  constexpr softmetal_swizzle &operator/=(const V &v) { return *this = V(*this) / v; }
};

#define SOFTMETAL_BINARY(o) \
  friend constexpr vec operator o(const vec &a, const vec &b) { \
    vec r; \
    for (int i = 0; i < n; i++) r[i] = T(a[i] o b[i]); \
    return r; \
  } \
  constexpr vec &operator o##=(const vec &b) { return *this = *this o b; }
#define SOFTMETAL_COMPARE(o) \
  friend constexpr vec<bool, n> operator o(const vec &a, const vec &b) { \
    vec<bool, n> r; \
    for (int i = 0; i < n; i++) r[i] = a[i] o b[i]; \
    return r; \
  }
// Operators are friends within the class, so that scalars and swizzles convert to the vector.
#define SOFTMETAL_VECTOR(N, count) \
  static constexpr int n = count; \
  using element = T; \
  vec() = default; \
  template <class U> constexpr explicit vec(const vec<U, count> &o) : vec(T(0)) { \
    for (int i = 0; i < count; i++) all[i] = T(o[i]); \
  } \
  constexpr T &operator[](int i) { return all[i]; } \
  constexpr const T &operator[](int i) const { return all[i]; } \
  SOFTMETAL_BINARY(+) SOFTMETAL_BINARY(-) SOFTMETAL_BINARY(*) SOFTMETAL_BINARY(/) SOFTMETAL_BINARY(%) \
  SOFTMETAL_BINARY(&) SOFTMETAL_BINARY(|) SOFTMETAL_BINARY(^) SOFTMETAL_BINARY(<<) SOFTMETAL_BINARY(>>) \
  SOFTMETAL_COMPARE(==) SOFTMETAL_COMPARE(!=) SOFTMETAL_COMPARE(<) SOFTMETAL_COMPARE(>) \
  SOFTMETAL_COMPARE(<=) SOFTMETAL_COMPARE(>=) \
  friend constexpr vec operator-(const vec &a) { return vec(T(0)) - a; } \
  friend constexpr vec operator+(const vec &a) { return a; }

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T all[2];
    struct { T x, y; };
    struct { T r, g; };
    softmetal_swizzle<vec<T, 2>, T, 2, 0, 1> xy;
    softmetal_swizzle<vec<T, 2>, T, 2, 1, 0> yx;
  };
  constexpr vec(T s) : all{s, s} {}
  constexpr vec(T a, T b) : all{a, b} {}
  SOFTMETAL_VECTOR(2, 2)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T all[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
    softmetal_swizzle<vec<T, 2>, T, 3, 0, 1> xy;
    softmetal_swizzle<vec<T, 2>, T, 3, 1, 2> yz;
    softmetal_swizzle<vec<T, 2>, T, 3, 0, 2> xz;
    softmetal_swizzle<vec<T, 3>, T, 3, 0, 1, 2> xyz;
  };
  constexpr vec(T s) : all{s, s, s} {}
  constexpr vec(T a, T b, T c) : all{a, b, c} {}
  constexpr vec(const vec<T, 2> &a, T c) : all{a[0], a[1], c} {}
  SOFTMETAL_VECTOR(3, 3)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T all[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    softmetal_swizzle<vec<T, 2>, T, 4, 0, 1> xy;
    softmetal_swizzle<vec<T, 2>, T, 4, 1, 2> yz;
    softmetal_swizzle<vec<T, 2>, T, 4, 2, 3> zw;
    softmetal_swizzle<vec<T, 3>, T, 4, 0, 1, 2> xyz;
    softmetal_swizzle<vec<T, 3>, T, 4, 0, 1, 2> rgb;
    softmetal_swizzle<vec<T, 4>, T, 4, 0, 1, 2, 3> xyzw;
  };
  constexpr vec(T s) : all{s, s, s, s} {}
  constexpr vec(T a, T b, T c, T d) : all{a, b, c, d} {}
  constexpr vec(const vec<T, 2> &a, const vec<T, 2> &b) : all{a[0], a[1], b[0], b[1]} {}
  constexpr vec(const vec<T, 3> &a, T d) : all{a[0], a[1], a[2], d} {}
  constexpr vec(T a, const vec<T, 3> &b) : all{a, b[0], b[1], b[2]} {}
  constexpr vec(const vec<T, 2> &a, T c, T d) : all{a[0], a[1], c, d} {}
  constexpr vec(T a, T b, const vec<T, 2> &c) : all{a, b, c[0], c[1]} {}
  SOFTMETAL_VECTOR(4, 4)
};
#undef SOFTMETAL_VECTOR
#undef SOFTMETAL_COMPARE
#undef SOFTMETAL_BINARY

// Vectors in memory without padding.
template <class T, int N> struct packed_vec {
  T all[N];
  packed_vec() = default;
  constexpr packed_vec(const vec<T, N> &v) {
    for (int i = 0; i < N; i++) all[i] = v[i];
  }
  constexpr operator vec<T, N>() const {
    vec<T, N> r(T(0));
    for (int i = 0; i < N; i++) r[i] = all[i];
    return r;
  }
  constexpr T &operator[](int i) { return all[i]; }
  constexpr const T &operator[](int i) const { return all[i]; }
};
template <class T> struct packed_vec<T, 3> {
  T x, y, z;
  packed_vec() = default;
  constexpr packed_vec(T a, T b, T c) : x(a), y(b), z(c) {}
  constexpr packed_vec(const vec<T, 3> &v) : x(v[0]), y(v[1]), z(v[2]) {}
  constexpr operator vec<T, 3>() const { return vec<T, 3>(x, y, z); }
  constexpr T &operator[](int i) { return i == 0 ? x : i == 1 ? y : z; }
  constexpr const T &operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; }
};

template <class T> struct vec_elements { static constexpr ushort value = 1; };
template <class T, int N> struct vec_elements<vec<T, N>> { static constexpr ushort value = N; };

template <class T, int C, int R> struct matrix {
  vec<T, R> columns[C];
  matrix() = default;
  constexpr explicit matrix(T diagonal) {
    for (int c = 0; c < C; c++)
      for (int r = 0; r < R; r++) columns[c][r] = c == r ? diagonal : T(0);
  }
  template <class... V, class = enable_if_t<sizeof...(V) == C && (C > 1)>>
  constexpr matrix(const V &...v) : columns{vec<T, R>(v)...} {}
  template <class U> constexpr explicit matrix(const matrix<U, C, R> &o) {
    for (int c = 0; c < C; c++) columns[c] = vec<T, R>(o.columns[c]);
  }
  constexpr vec<T, R> &operator[](int c) { return columns[c]; }
  constexpr const vec<T, R> &operator[](int c) const { return columns[c]; }
  friend constexpr vec<T, R> operator*(const matrix &m, const vec<T, C> &v) {
    vec<T, R> sum(T(0));
    for (int c = 0; c < C; c++) sum += m.columns[c] * vec<T, R>(v[c]);
    return sum;
  }
  friend constexpr vec<T, C> operator*(const vec<T, R> &v, const matrix &m) {
    vec<T, C> out(T(0));
    for (int c = 0; c < C; c++)
      for (int r = 0; r < R; r++) out[c] += v[r] * m.columns[c][r];
    return out;
  }
};
} // namespace metal
using metal::vec;
using metal::matrix;

#define SOFTMETAL_NAMES(t) \
  namespace metal { \
  using t##2 = vec<t, 2>; using t##3 = vec<t, 3>; using t##4 = vec<t, 4>; \
  using packed_##t##2 = packed_vec<t, 2>; using packed_##t##3 = packed_vec<t, 3>; using packed_##t##4 = packed_vec<t, 4>; \
  } \
  using metal::t##2; using metal::t##3; using metal::t##4; \
  using metal::packed_##t##2; using metal::packed_##t##3; using metal::packed_##t##4;
SOFTMETAL_NAMES(float) SOFTMETAL_NAMES(half) SOFTMETAL_NAMES(bfloat) SOFTMETAL_NAMES(bool)
SOFTMETAL_NAMES(char) SOFTMETAL_NAMES(uchar) SOFTMETAL_NAMES(short) SOFTMETAL_NAMES(ushort)
SOFTMETAL_NAMES(int) SOFTMETAL_NAMES(uint) SOFTMETAL_NAMES(long) SOFTMETAL_NAMES(ulong)
#undef SOFTMETAL_NAMES
#define SOFTMETAL_MATRICES(t) \
  namespace metal { \
  using t##2x2 = matrix<t, 2, 2>; using t##2x3 = matrix<t, 2, 3>; using t##2x4 = matrix<t, 2, 4>; \
  using t##3x2 = matrix<t, 3, 2>; using t##3x3 = matrix<t, 3, 3>; using t##3x4 = matrix<t, 3, 4>; \
  using t##4x2 = matrix<t, 4, 2>; using t##4x3 = matrix<t, 4, 3>; using t##4x4 = matrix<t, 4, 4>; \
  } \
  using metal::t##2x2; using metal::t##2x3; using metal::t##2x4; using metal::t##3x2; using metal::t##3x3; \
  using metal::t##3x4; using metal::t##4x2; using metal::t##4x3; using metal::t##4x4;
SOFTMETAL_MATRICES(float) SOFTMETAL_MATRICES(half)
#undef SOFTMETAL_MATRICES

// clang has no conversion between half and bfloat; Metal goes through float. `static_cast` becomes this.
template <class To, class From> METAL_FUNC constexpr To softmetal_cast(From &&from) {
  using A = __remove_cv(__remove_reference_t(From));
  using B = __remove_cv(To);
  constexpr bool crossed = (metal::is_same_v<A, half> && metal::is_same_v<B, bfloat>) ||
                           (metal::is_same_v<A, bfloat> && metal::is_same_v<B, half>);
  if constexpr (crossed) return To(float(from));
  else return static_cast<To>(static_cast<From &&>(from));
}
