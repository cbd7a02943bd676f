// What a translated kernel and the engine (src/engine) agree on. The engine's `Context` and `Hooks` mirror it.

// Neither duplicated into branches nor merged from them: which call a thread waits at matters.
#define SOFTMETAL_CONVERGENT __attribute__((convergent, nomerge))
#define SOFTMETAL_EXPORT extern "C" __attribute__((visibility("default"), used))
#define METAL_FUNC inline __attribute__((always_inline))

struct softmetal_triple {
  uint x, y, z;
};

// One per thread of the GPU; it lies at the top of the fiber's stack.
struct softmetal_context {
  void *const *buffers;
  void *const *threadgroups;
  softmetal_triple thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  softmetal_triple threads_per_threadgroup, dispatch_threads_per_threadgroup, threadgroups_per_grid;
  softmetal_triple threads_per_grid;
  uint thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  uint simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup, threads_per_simdgroup;
};

struct softmetal_constant {
  uint index, size;
  void *value;
  uchar *defined;
};

// Set by the engine when the object is loaded. The functions below are declared only: their bodies, calls
// through this table, are added after optimisation. LLVM keeps `convergent` on a function only while it
// cannot see a body without convergent calls; without it, barriers would be duplicated into branches.
struct softmetal_hook_table {
  void (*load)(const void *, ulong);
  void (*store)(const void *, ulong);
  void (*simd)(void (*)(void **), void *, const void *);
  void (*barrier)(const void *, uint);
  uint (*lane)();
};
SOFTMETAL_EXPORT softmetal_hook_table softmetal_hooks = {};

extern "C" {
// All lanes of the SIMD group park here; then the operation runs once, with the blocks of lanes (0: inactive).
SOFTMETAL_CONVERGENT void softmetal_simd(void (*operation)(void **), void *block, const void *site);
SOFTMETAL_CONVERGENT void softmetal_barrier(const void *site, uint line);
__attribute__((const)) uint softmetal_lane();
void softmetal_load(const void *, ulong);
void softmetal_store(const void *, ulong);
void *memcpy(void *, const void *, ulong);
void *memset(void *, int, ulong);
}
// The optimiser must not find these unused: loads and stores are added later.
SOFTMETAL_EXPORT void softmetal_keep() {
  softmetal_load(nullptr, 0);
  softmetal_store(nullptr, 0);
}

// Conversions that compilers leave to their runtime library, and that Debian 12's does not have.
#define SOFTMETAL_RUNTIME extern "C" __attribute__((weak, visibility("hidden")))
SOFTMETAL_RUNTIME bfloat __truncsfbf2(float x) {
  uint bits = __builtin_bit_cast(uint, x);
  ushort high = x != x ? ushort((bits >> 16) | 0x40) : ushort((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  return __builtin_bit_cast(bfloat, high);
}
SOFTMETAL_RUNTIME bfloat __truncdfbf2(double x) {
  // To a float that keeps in its last bit whether anything was lost, so that the second rounding is right.
  float nearest = float(x);
  uint bits = __builtin_bit_cast(uint, nearest);
  if (double(nearest) != x && x == x) bits = (bits - (__builtin_fabs(double(nearest)) > __builtin_fabs(x))) | 1;
  return __truncsfbf2(__builtin_bit_cast(float, bits));
}

// Threadgroup variables lie in a section of their own, so that the engine can measure and poison them.
#define SOFTMETAL_SHARED static __attribute__((used, aligned(16), section("softmetal_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_softmetal_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) char __stop_softmetal_shared[];
SOFTMETAL_EXPORT char *softmetal_shared_start() { return __start_softmetal_shared; }
SOFTMETAL_EXPORT char *softmetal_shared_stop() { return __stop_softmetal_shared; }
