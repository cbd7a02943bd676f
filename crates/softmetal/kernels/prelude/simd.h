// Barriers, SIMD-group operations, simdgroup_matrix and atomics.
namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
enum class thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

// Not inlined, so that the return address tells which call a thread waits at.
SOFTMETAL_CONVERGENT __attribute__((noinline)) static void threadgroup_barrier(mem_flags, uint line = __builtin_LINE()) {
  softmetal_barrier(__builtin_return_address(0), line);
}
SOFTMETAL_CONVERGENT __attribute__((noinline)) static void simdgroup_barrier(mem_flags) {
  softmetal_simd(nullptr, nullptr, __builtin_return_address(0));
}

// `Block` holds a lane's operand and result; `Block::run` computes all results of the active lanes.
template <class Block> SOFTMETAL_CONVERGENT __attribute__((noinline)) static void softmetal_collect(Block *block) {
  softmetal_simd(+[](void **lanes) { Block::run(reinterpret_cast<Block **>(lanes)); }, block, __builtin_return_address(0));
}

template <class T, class Operation> struct softmetal_reduction {
  T in, out;
  static void run(softmetal_reduction **lanes) {
    T sum = T(0);
    bool first = true;
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      sum = first ? lanes[i]->in : Operation::apply(sum, lanes[i]->in);
      first = false;
    }
    for (int i = 0; i < 32; i++)
      if (lanes[i]) lanes[i]->out = sum;
  }
};
template <class T, class Operation, bool inclusive> struct softmetal_prefix {
  T in, out;
  static void run(softmetal_prefix **lanes) {
    T sum = Operation::template neutral<T>();
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      T next = Operation::apply(sum, lanes[i]->in);
      lanes[i]->out = inclusive ? next : sum;
      sum = next;
    }
  }
};
#define SOFTMETAL_OPERATION(name, value) \
  struct name { template <class T> static T apply(T a, T b) { return value; } };
struct softmetal_sum { template <class T> static T apply(T a, T b) { return T(a + b); } template <class T> static T neutral() { return T(0); } };
struct softmetal_product { template <class T> static T apply(T a, T b) { return T(a * b); } template <class T> static T neutral() { return T(1); } };
SOFTMETAL_OPERATION(softmetal_minimum, min(a, b))
SOFTMETAL_OPERATION(softmetal_maximum, max(a, b))
SOFTMETAL_OPERATION(softmetal_and, T(a & b))
SOFTMETAL_OPERATION(softmetal_or, T(a | b))
SOFTMETAL_OPERATION(softmetal_xor, T(a ^ b))
#undef SOFTMETAL_OPERATION
#define SOFTMETAL_REDUCTION(name, block) \
  template <class T> SOFTMETAL_CONVERGENT METAL_FUNC T name(T v) { \
    block s{v, v}; \
    softmetal_collect(&s); \
    return s.out; \
  }
#define SOFTMETAL_ARGS(...) __VA_ARGS__
SOFTMETAL_REDUCTION(simd_sum, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_sum>))
SOFTMETAL_REDUCTION(simd_product, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_product>))
SOFTMETAL_REDUCTION(simd_min, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_minimum>))
SOFTMETAL_REDUCTION(simd_max, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_maximum>))
SOFTMETAL_REDUCTION(simd_and, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_and>))
SOFTMETAL_REDUCTION(simd_or, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_or>))
SOFTMETAL_REDUCTION(simd_xor, SOFTMETAL_ARGS(softmetal_reduction<T, softmetal_xor>))
SOFTMETAL_REDUCTION(simd_prefix_inclusive_sum, SOFTMETAL_ARGS(softmetal_prefix<T, softmetal_sum, true>))
SOFTMETAL_REDUCTION(simd_prefix_exclusive_sum, SOFTMETAL_ARGS(softmetal_prefix<T, softmetal_sum, false>))
SOFTMETAL_REDUCTION(simd_prefix_inclusive_product, SOFTMETAL_ARGS(softmetal_prefix<T, softmetal_product, true>))
SOFTMETAL_REDUCTION(simd_prefix_exclusive_product, SOFTMETAL_ARGS(softmetal_prefix<T, softmetal_product, false>))
#undef SOFTMETAL_REDUCTION
#undef SOFTMETAL_ARGS

// A lane that asks for an inactive or absent one keeps its own value (Metal leaves it undefined).
template <class T, class Source> struct softmetal_move {
  T in, out;
  uint by;
  static void run(softmetal_move **lanes) {
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      int from = Source::lane(i, int(lanes[i]->by));
      lanes[i]->out = from >= 0 && from < 32 && lanes[from] ? lanes[from]->in : lanes[i]->in;
    }
  }
};
#define SOFTMETAL_MOVE(name, value) \
  struct softmetal_from_##name { static int lane(int i, int by) { return value; } }; \
  template <class T> SOFTMETAL_CONVERGENT METAL_FUNC T name(T v, ushort by) { \
    softmetal_move<T, softmetal_from_##name> s{v, v, by}; \
    softmetal_collect(&s); \
    return s.out; \
  }
SOFTMETAL_MOVE(simd_shuffle, by)
SOFTMETAL_MOVE(simd_broadcast, by)
SOFTMETAL_MOVE(simd_shuffle_down, i + by)
SOFTMETAL_MOVE(simd_shuffle_up, i - by)
SOFTMETAL_MOVE(simd_shuffle_xor, i ^ by)
SOFTMETAL_MOVE(simd_shuffle_rotate_down, (i + by) % 32)
SOFTMETAL_MOVE(simd_shuffle_rotate_up, (i + 32 - by % 32) % 32)
SOFTMETAL_MOVE(quad_shuffle, (i & ~3) + (by & 3))
SOFTMETAL_MOVE(quad_broadcast, (i & ~3) + (by & 3))
SOFTMETAL_MOVE(quad_shuffle_xor, i ^ (by & 3))
#undef SOFTMETAL_MOVE

struct softmetal_vote {
  bool in;
  uint lane;
  ulong yes, active;
  static void run(softmetal_vote **lanes) {
    ulong yes = 0, active = 0;
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      active |= 1ul << i;
      if (lanes[i]->in) yes |= 1ul << i;
    }
    for (int i = 0; i < 32; i++)
      if (lanes[i]) { lanes[i]->yes = yes; lanes[i]->active = active; lanes[i]->lane = i; }
  }
};
struct simd_vote {
  ulong bits;
  explicit constexpr operator ulong() const { return bits; }
  constexpr bool all() const { return bits == 0xffffffff; }
  constexpr bool any() const { return bits != 0; }
};
SOFTMETAL_CONVERGENT METAL_FUNC softmetal_vote softmetal_votes(bool v) {
  softmetal_vote s{v, 0, 0, 0};
  softmetal_collect(&s);
  return s;
}
SOFTMETAL_CONVERGENT METAL_FUNC simd_vote simd_ballot(bool v) { return simd_vote{softmetal_votes(v).yes}; }
SOFTMETAL_CONVERGENT METAL_FUNC simd_vote simd_active_threads_mask() { return simd_vote{softmetal_votes(true).yes}; }
SOFTMETAL_CONVERGENT METAL_FUNC bool simd_any(bool v) { return softmetal_votes(v).yes != 0; }
SOFTMETAL_CONVERGENT METAL_FUNC bool simd_all(bool v) { softmetal_vote s = softmetal_votes(v); return s.yes == s.active; }
SOFTMETAL_CONVERGENT METAL_FUNC bool simd_is_first() {
  softmetal_vote s = softmetal_votes(true);
  return s.lane == uint(__builtin_ctzl(s.active));
}
template <class T> SOFTMETAL_CONVERGENT METAL_FUNC T simd_broadcast_first(T v) {
  return simd_broadcast(v, ushort(__builtin_ctzl(softmetal_votes(true).active)));
}
// MLX asks whether a type may be the operand of a SIMD-group operation.
template <class T> struct __is_valid_simdgroup_type {
  static constexpr bool value = (is_integral_v<T> && sizeof(T) <= 4 && !is_same_v<T, bool>) || is_same_v<T, float> || is_same_v<T, half>;
};

// Lane l of a SIMD group holds the elements (row, column) and (row, column + 1) of an 8x8 matrix. Apple does
// not document the layout; this is the one that MLX (steel/gemm/mma.h) computes with on Apple's devices.
METAL_FUNC int softmetal_row(int lane) { return ((lane >> 2) & 4) + ((lane >> 1) & 3); }
METAL_FUNC int softmetal_column(int lane) { return ((lane >> 2) & 2) * 2 + (lane & 1) * 2; }

template <class T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8x8 matrices only");
  using storage_type = vec<T, 2>;
  storage_type elements;
  simdgroup_matrix() = default;
  METAL_FUNC explicit simdgroup_matrix(T diagonal) {
    int lane = softmetal_lane(), row = softmetal_row(lane), column = softmetal_column(lane);
    elements = storage_type(row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0));
  }
  storage_type &thread_elements() { return elements; }
  const storage_type &thread_elements() const { return elements; }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class D, class A, class B, class C> struct softmetal_product8x8 {
  vec<D, 2> d;
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  static void run(softmetal_product8x8 **lanes) {
    float a[8][8] = {}, b[8][8] = {}, c[8][8] = {};
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      for (int e = 0; e < 2; e++) {
        int row = softmetal_row(i), column = softmetal_column(i) + e;
        a[row][column] = float(lanes[i]->a[e]);
        b[row][column] = float(lanes[i]->b[e]);
        c[row][column] = float(lanes[i]->c[e]);
      }
    }
    for (int row = 0; row < 8; row++)
      for (int k = 0; k < 8; k++)
        for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
    for (int i = 0; i < 32; i++)
      if (lanes[i])
        for (int e = 0; e < 2; e++) lanes[i]->d[e] = D(c[softmetal_row(i)][softmetal_column(i) + e]);
  }
};
template <class D, class A, class B, class C>
SOFTMETAL_CONVERGENT METAL_FUNC void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a, const simdgroup_matrix<B, 8, 8> &b,
    const simdgroup_matrix<C, 8, 8> &c) {
  softmetal_product8x8<D, A, B, C> s{vec<D, 2>(D(0)), a.elements, b.elements, c.elements};
  softmetal_collect(&s);
  d.elements = s.d;
}
template <class D, class A, class B>
SOFTMETAL_CONVERGENT METAL_FUNC void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a, const simdgroup_matrix<B, 8, 8> &b) {
  softmetal_product8x8<D, A, B, D> s{vec<D, 2>(D(0)), a.elements, b.elements, vec<D, 2>(D(0))};
  softmetal_collect(&s);
  d.elements = s.d;
}
template <class T, int R = 8, int C = 8> METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(v);
  return m;
}
template <class U> METAL_FUNC U *softmetal_place(U *p, int e, ulong stride, ulong2 origin, bool transposed) {
  int lane = softmetal_lane();
  ulong row = softmetal_row(lane), column = softmetal_column(lane) + e;
  return transposed ? p + (origin.y + column) * stride + origin.x + row : p + (origin.y + row) * stride + origin.x + column;
}
template <class T, class U>
METAL_FUNC void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const U *p, ulong stride = 8, ulong2 origin = ulong2(0), bool transposed = false) {
  for (int e = 0; e < 2; e++) m.elements[e] = T(*softmetal_place(p, e, stride, origin, transposed));
}
template <class T, class U>
METAL_FUNC void simdgroup_store(const simdgroup_matrix<T, 8, 8> &m, U *p, ulong stride = 8, ulong2 origin = ulong2(0), bool transposed = false) {
  for (int e = 0; e < 2; e++) *softmetal_place(p, e, stride, origin, transposed) = U(m.elements[e]);
}

// The fibers of a dispatch run on one thread of the CPU and yield at barriers only: plain accesses are atomic.
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
template <class T> struct atomic { T value; };
template <class T> using _atomic = atomic<T>;
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;
template <class T> METAL_FUNC T atomic_load_explicit(const volatile atomic<T> *a, memory_order) { return a->value; }
template <class T, class U> METAL_FUNC void atomic_store_explicit(volatile atomic<T> *a, U v, memory_order) { a->value = T(v); }
#define SOFTMETAL_ATOMIC(name, next) \
  template <class T, class U> METAL_FUNC T atomic_##name##_explicit(volatile atomic<T> *a, U u, memory_order) { \
    T old = a->value, v = T(u); \
    a->value = T(next); \
    return old; \
  }
SOFTMETAL_ATOMIC(exchange, v)
SOFTMETAL_ATOMIC(fetch_add, old + v)
SOFTMETAL_ATOMIC(fetch_sub, old - v)
SOFTMETAL_ATOMIC(fetch_min, v < old ? v : old)
SOFTMETAL_ATOMIC(fetch_max, v > old ? v : old)
SOFTMETAL_ATOMIC(fetch_and, old & v)
SOFTMETAL_ATOMIC(fetch_or, old | v)
SOFTMETAL_ATOMIC(fetch_xor, old ^ v)
#undef SOFTMETAL_ATOMIC
template <class T, class U>
METAL_FUNC bool atomic_compare_exchange_weak_explicit(volatile atomic<T> *a, T *expected, U v, memory_order, memory_order) {
  T old = a->value;
  if (old == *expected) { a->value = T(v); return true; }
  *expected = old;
  return false;
}
METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope::thread_scope_device) {}
} // namespace metal

// How the engine's values become the arguments of a kernel.
struct softmetal_pointer {
  void *at;
  template <class T> operator T *() const { return static_cast<T *>(at); }
};
struct softmetal_reference {
  void *at;
  template <class T> operator T &() const { return *static_cast<T *>(at); }
};
struct softmetal_position {
  softmetal_triple at;
  template <class T, class = metal::enable_if_t<metal::is_integral_v<T>>> operator T() const { return T(at.x); }
  template <class T> operator vec<T, 2>() const { return vec<T, 2>(T(at.x), T(at.y)); }
  template <class T> operator vec<T, 3>() const { return vec<T, 3>(T(at.x), T(at.y), T(at.z)); }
};

#define device
#define constant const
#define thread
#define threadgroup
#define ray_data
#define threadgroup_imageblock
