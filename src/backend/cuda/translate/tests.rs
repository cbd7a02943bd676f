//! The translation of small files, whole.

use super::*;

/// Returns what follows the prelude.
fn translated(text: &str, functions: &[&str], constants: &[Constant]) -> Result<String, String> {
    let file = KernelFile::read("k", text, false).map_err(|error| error.to_string())?;
    let text = file.translate(functions, constants).map_err(|error| error.to_string())?;
    Ok(text.strip_prefix(PRELUDE).unwrap().to_owned())
}

#[test]
fn a_kernel_becomes_a_function_and_an_entry_point() {
    let text = "#define N 32
struct Sizes { uint count; };
[[kernel, max_total_threads_per_threadgroup(256)]] void twice(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant Sizes& sizes [[buffer(2)]],
    uint i [[thread_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[N];
    threadgroup float* to = shared;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = 2.0h * x[i];
}
";
    let expected = "
namespace metal {
#line 1 \"k.metal\"

struct Sizes { uint count; };
static __forceinline__ void twice(
     const float* x ,
     float* y ,
    const Sizes& sizes ,
    uint i ,
    uint lane ) {
    __shared__ float shared[32];
     float* to = shared;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = half(2.0f) * x[i];
}

namespace entry {
extern \"C\" __global__ void __launch_bounds__(256) kernel_twice(
    const float* x,
    float* y,
    const __grid_constant__ Sizes sizes) {
    metal::twice(x, y, sizes, uint(blockIdx.x * blockDim.x + threadIdx.x), \
                    uint(((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % 32));
}
}  // namespace entry
}  // namespace metal
";
    assert_eq!(translated(text, &["twice"], &[]).unwrap(), expected);
}

#[test]
fn instantiations_become_entry_points_for_those_that_are_asked_for() {
    let text = "template <typename T, uint N>
[[kernel]] void fill(device T* y [[buffer(0)]], uint2 at [[threadgroup_position_in_grid]]) { y[at.x] = T(N); }
#define INSTANTIATE(T) template [[host_name(\"fill_\" #T)]] [[kernel]] void fill<T, 4>(device T*, uint2);
INSTANTIATE(float)
INSTANTIATE(half)
";
    let expected = "
namespace metal {
#line 1 \"k.metal\"
template <typename T, uint N>
static __forceinline__ void fill( T* y , uint2 at ) { y[at.x] = T(N); }




namespace entry {
extern \"C\" __global__ void __launch_bounds__(1024) kernel_fill_half(
    half* y) {
    metal::fill<half, 4>(y, uint2(blockIdx.x, blockIdx.y));
}
}  // namespace entry
}  // namespace metal
";
    assert_eq!(translated(text, &["fill_half"], &[]).unwrap(), expected);
}

#[test]
fn constants_keep_their_meaning() {
    let text = "constant float table[2] = {1.0f, 2.0f};
constant bool wide [[function_constant(3)]];
constant bool narrow = !wide;
struct S { static constant constexpr const uint GAP = 4; };
inline float at(constant S& s, const constant float* x, uint i) { return x[i]; }
";
    let expected = "
namespace metal {
#line 1 \"k.metal\"
__constant__ float table[2] = {1.0f, 2.0f};
constexpr bool wide = true;
constexpr bool narrow = !wide;
struct S { static  constexpr const uint GAP = 4; };
inline float at(const S& s, const  float* x, uint i) { return x[i]; }

namespace entry {
}  // namespace entry
}  // namespace metal
";
    assert_eq!(translated(text, &[], &[Constant::Bool(3, true)]).unwrap(), expected);
}

#[test]
fn what_has_no_translation_is_named_with_file_and_line() {
    let kernel = |arguments: &str| format!("\nkernel void f({arguments}) {{}}\n");
    for (text, message) in [
        ("\nsimdgroup_float8x8 m;\n".to_owned(), "k.metal:2: `simdgroup_float8x8`: has no translation to CUDA"),
        (
            kernel("threadgroup float* x [[threadgroup(0)]]"),
            "k.metal:2: kernel `f`: [[threadgroup(0)]] has no translation; declare the array in the kernel",
        ),
        (
            kernel("device float* x [[buffer(1)]]"),
            "k.metal:2: kernel `f`: buffer 0 is missing before buffer 1",
        ),
        (
            "\n\nconstant bool c [[function_constant(7)]];\nkernel void f(device float* x [[buffer(0)]]) {}\n".to_owned(),
            "k.metal:3: function constant `c`: index 7 has no value",
        ),
        (kernel(""), "k.metal:1: kernel `g`: the file has no such kernel"),
    ] {
        let function = if message.contains("`g`") { "g" } else { "f" };
        assert_eq!(translated(&text, &[function], &[]).unwrap_err(), message);
    }
}

#[test]
fn the_declared_maximum_of_threads_is_read() {
    let file =
        KernelFile::read("softmax", "[[kernel, max_total_threads_per_threadgroup(64)]] void f() {}", false);
    let file = file.unwrap();
    assert_eq!(file.max_threads("f").unwrap(), 64);
}
