//! Small kernels against plain computations.

mod harness;

use harness::*;
use softmetal_kernels::Access;

#[test]
fn add() {
    let p = kernel(
        "kernel void add(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         device float* c [[buffer(2)]], constant uint& n [[buffer(3)]],
                         uint i [[thread_position_in_grid]]) { if (i < n) c[i] = a[i] + b[i]; }",
        "add",
    );
    let (mut a, mut b, mut c) = (numbers(1000, 1), numbers(1000, 2), vec![0.0; 1000]);
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    for seed in 0..3 {
        c.fill(0.0);
        let arguments = [buffer(&mut a), buffer(&mut b), buffer(&mut c), bytes(1000u32)];
        let report = run_with(&p, &arguments, &[], [1024, 1, 1], [64, 1, 1], seed).unwrap();
        assert_eq!(c, want);
        assert_eq!((report.threads, report.switches), (1024, 1024));
        let access = |argument, reads: &[_], writes: &[_]| Access {
            argument,
            buffer: argument,
            reads: reads.to_vec(),
            writes: writes.to_vec(),
        };
        let all = [0..4000];
        assert_eq!(
            report.accesses,
            [access(0, &all, &[]), access(1, &all, &[]), access(2, &[], &all), access(3, &[0..4], &[])]
        );
    }
}

const SOFTMAX: &str = "
kernel void softmax(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& n [[buffer(2)]],
                    uint row [[threadgroup_position_in_grid]], uint t [[thread_position_in_threadgroup]],
                    uint size [[threads_per_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                    uint group [[simdgroup_index_in_threadgroup]], uint groups [[simdgroups_per_threadgroup]]) {
  threadgroup float most[32], sums[32];
  x += row * n; y += row * n;
  float m = -INFINITY;
  for (uint i = t; i < n; i += size) m = max(m, x[i]);
  m = simd_max(m);
  if (lane == 0) most[group] = m;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  m = simd_max(lane < groups ? most[lane] : -INFINITY);
  float s = 0;
  for (uint i = t; i < n; i += size) s += exp(x[i] - m);
  s = simd_sum(s);
  if (lane == 0) sums[group] = s;
  BARRIER
  s = simd_sum(lane < groups ? sums[lane] : 0.0f);
  for (uint i = t; i < n; i += size) y[i] = exp(x[i] - m) / s;
}";

fn softmax(x: &[f32], n: usize) -> Vec<f32> {
    let rows = x.chunks(n).flat_map(|row| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
        row.iter().map(move |v| (f64::from(v - most).exp() / sum) as f32)
    });
    rows.collect()
}

#[test]
fn softmax_with_threadgroup_memory() {
    let source = SOFTMAX.replace("BARRIER", "threadgroup_barrier(mem_flags::mem_threadgroup);");
    let p = kernel(&source, "softmax");
    assert_eq!(p.static_threadgroup_bytes(), 256);
    let (mut x, mut y) = (numbers(3 * 300, 3), vec![0.0; 900]);
    let want = softmax(&x, 300);
    for seed in 0..5 {
        let arguments = [buffer(&mut x), buffer(&mut y), bytes(300u32)];
        let report = run_with(&p, &arguments, &[], [3 * 128, 1, 1], [128, 1, 1], seed).unwrap();
        // Sums of 300 terms in float: 1e-6 is a few units in the last place.
        close(&y, &want, 1e-6);
        assert_eq!((report.barriers, report.divergent), (6, 0));
        assert_eq!(report.simd_ops, 3 * 4 * 4);
    }
}

#[test]
fn missing_barrier_shows_within_five_seeds() {
    let p = kernel(&SOFTMAX.replace("BARRIER", ""), "softmax");
    let (mut x, mut y) = (numbers(900, 3), vec![0.0f32; 900]);
    let want = softmax(&x, 300);
    let wrong = (0..5).find(|seed| {
        y.fill(0.0);
        let arguments = [buffer(&mut x), buffer(&mut y), bytes(300u32)];
        run_with(&p, &arguments, &[], [3 * 128, 1, 1], [128, 1, 1], *seed).unwrap();
        // Poisoned threadgroup memory makes NaNs, which compare as not near.
        !y.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5)
    });
    assert!(wrong.is_some());
}

#[test]
fn race_that_the_natural_order_hides() {
    // Thread i reads what thread i - 1 wrote, without a barrier: right only where threads run in order.
    let p = kernel(
        "kernel void shift(device int* y [[buffer(0)]], uint t [[thread_position_in_threadgroup]]) {
           threadgroup int x[64];
           x[t] = t;
           y[t] = t == 0 ? 0 : x[t - 1];
         }",
        "shift",
    );
    let want: Vec<i32> = (0..64).map(|i| (i - 1).max(0)).collect();
    let mut y = vec![0i32; 64];
    let mut right = |seed| {
        run_with(&p, &[buffer(&mut y)], &[], [64, 1, 1], [64, 1, 1], seed).unwrap();
        y == want
    };
    assert!(right(0));
    assert!((1..5).any(|seed| !right(seed)));
}

#[test]
fn simd_operations() {
    let p = kernel(
        "kernel void ops(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
           float x = float(i) + 1;
           device float* o = y + i * 10;
           o[0] = simd_sum(x);
           o[1] = simd_max(x);
           o[2] = simd_shuffle_down(x, 4);
           o[3] = simd_shuffle_xor(x, 1);
           o[4] = simd_prefix_exclusive_sum(x);
           o[5] = simd_broadcast(x, 7);
           o[6] = float(ulong(simd_ballot(i % 2 == 0)) & 0xff);
           o[7] = i < 16 ? simd_sum(x) : -1.0f;
           o[8] = simd_sum(half(1));
           o[9] = simd_all(i < 32) ? 1 : 0;
         }",
        "ops",
    );
    let mut y = vec![0f32; 320];
    for seed in 0..3 {
        run_with(&p, &[buffer(&mut y)], &[], [32, 1, 1], [32, 1, 1], seed).unwrap();
        for i in 0..32usize {
            let x = i as f32 + 1.0;
            let down = if i + 4 < 32 { x + 4.0 } else { x };
            let swapped = ((i ^ 1) + 1) as f32;
            let before = (i * (i + 1) / 2) as f32;
            let some = if i < 16 { 136.0 } else { -1.0 };
            assert_eq!(
                y[i * 10..i * 10 + 10],
                [528.0, 32.0, down, swapped, before, 8.0, 85.0, some, 32.0, 1.0]
            );
        }
    }
}

#[test]
fn matmul_with_simdgroup_matrix() {
    let p = kernel(
        "kernel void matmul(device const float* a [[buffer(0)]], device const half* b [[buffer(1)]],
                            device float* c [[buffer(2)]], constant uint3& size [[buffer(3)]],
                            uint2 tile [[threadgroup_position_in_grid]]) {
           simdgroup_float8x8 sum(0), left;
           simdgroup_half8x8 right;
           for (uint k = 0; k < size.z; k += 8) {
             simdgroup_load(left, a + tile.y * 8 * size.z + k, size.z);
             simdgroup_load(right, b, size.x, ulong2(tile.x * 8, k));
             simdgroup_multiply_accumulate(sum, left, right, sum);
           }
           simdgroup_store(sum, c + tile.y * 8 * size.x + tile.x * 8, size.x);
         }",
        "matmul",
    );
    let (m, n, k) = (24usize, 16usize, 40usize);
    let mut a = numbers(m * k, 5);
    // Multiples of 1/4 below 2 are exact in half: 0x3c00 is 1, and integers are simple to write.
    let integers: Vec<i32> = (0..k * n).map(|i| (i * 7 % 5) as i32 - 2).collect();
    let half = |v: i32| [0xc000u16, 0xbc00, 0, 0x3c00, 0x4000][(v + 2) as usize];
    let mut b: Vec<u16> = integers.iter().map(|v| half(*v)).collect();
    let mut c = vec![0f32; m * n];
    let size = [n as u32, m as u32, k as u32, 0];
    run(&p, &[buffer(&mut a), buffer(&mut b), buffer(&mut c), bytes(size)], [2 * 32, 3, 1], [32, 1, 1]);
    let mut want = vec![0f32; m * n];
    for (i, w) in want.iter_mut().enumerate() {
        *w = (0..k).map(|j| a[i / n * k + j] * integers[j * n + i % n] as f32).sum();
    }
    close(&c, &want, 1e-5);
}

#[test]
fn function_constants_and_disabled_arguments() {
    let l = library(
        "constant bool scaled [[function_constant(3)]];
         constant int count [[function_constant(1)]];
         constant int n = is_function_constant_defined(count) ? count : 2;
         kernel void k(device int* y [[buffer(0)]], device const int* s [[buffer(1), function_constant(scaled)]]) {
           y[0] = n * (scaled ? s[0] : 1);
           y[1] = is_function_constant_defined(count);
         }",
    );
    let mut y = [0i32; 2];
    let plain = pipeline(&l, "k", &[]);
    let all = pipeline(&l, "k", &[(1, &5i32.to_le_bytes()), (3, &[1])]);
    run(&plain, &[buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [2, 0]);
    run(&all, &[buffer(&mut y), bytes(7i32)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [35, 1]);
    run(&plain, &[buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [2, 0]);
    let wrong = l.pipeline("k", &[(1, vec![1])].into()).unwrap_err();
    assert_eq!(wrong.to_string(), "kernel `k`: function constant 1 has 4 bytes, not 1");
}

#[test]
fn atomics() {
    let p = kernel(
        "kernel void count(device atomic_uint* total [[buffer(0)]], device atomic_int* most [[buffer(1)]],
                           uint i [[thread_position_in_grid]]) {
           threadgroup atomic_uint local;
           if (i % 64 == 0) atomic_store_explicit(&local, 0u, memory_order_relaxed);
           threadgroup_barrier(mem_flags::mem_threadgroup);
           atomic_fetch_add_explicit(&local, i, memory_order_relaxed);
           threadgroup_barrier(mem_flags::mem_threadgroup);
           if (i % 64 == 0) atomic_fetch_add_explicit(total, atomic_load_explicit(&local, memory_order_relaxed), memory_order_relaxed);
           atomic_fetch_max_explicit(most, int(i), memory_order_relaxed);
         }",
        "count",
    );
    for seed in 0..3 {
        let (mut total, mut most) = ([0u32], [-1i32]);
        run_with(&p, &[buffer(&mut total), buffer(&mut most)], &[], [256, 1, 1], [64, 1, 1], seed).unwrap();
        assert_eq!((total[0], most[0]), (255 * 256 / 2, 255));
    }
}

#[test]
fn half_and_bfloat() {
    let l = library(
        "template <typename T> kernel void twice(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
           uint i [[thread_position_in_grid]]) { y[i] = static_cast<T>(float(x[i]) * 1.001f) + T(1); }
         template [[host_name(\"half\")]] [[kernel]] decltype(twice<half>) twice<half>;
         template [[host_name(\"bfloat\")]] [[kernel]] decltype(twice<bfloat>) twice<bfloat>;
         kernel void cross(device const half* x [[buffer(0)]], device bfloat* y [[buffer(1)]]) { y[0] = static_cast<bfloat>(x[0] + 0.5h); }",
    );
    // 1.5 is 0x3e00 in half and 0x3fc0 in bfloat; 1.5 * 1.001 rounds to 1.501953 and 1.5; plus 1.
    for (name, x, want) in
        [("half", 0x3e00u16, 0x4101u16), ("bfloat", 0x3fc0, 0x4020), ("cross", 0x3e00, 0x4000)]
    {
        let (mut x, mut y) = ([x], [0u16]);
        run(&pipeline(&l, name, &[]), &[buffer(&mut x), buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
        assert_eq!(y[0], want, "{name}: {:#x}", y[0]);
    }
}

#[test]
fn vectors_and_threadgroup_arguments() {
    let p = kernel(
        "struct Sizes { uint n; float4 scale; };
         kernel void k(device const packed_float3* x [[buffer(0)]], device float4* y [[buffer(1)]],
                       constant Sizes& s [[buffer(2)]], threadgroup float4* shared [[threadgroup(0)]],
                       uint2 at [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
           float3 v = x[t];
           shared[t] = float4(v.yz, v.x, 1) * s.scale;
           threadgroup_barrier(mem_flags::mem_threadgroup);
           y[t] = shared[s.n - 1 - t];
           y[t].xy += 1.0f;
         }",
        "k",
    );
    let mut x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut y = vec![0f32; 16];
    // float4 has an alignment of 16, so `scale` is at byte 16.
    let sizes = [f32::from_bits(4), 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0];
    let arguments = [buffer(&mut x), buffer(&mut y), bytes(sizes)];
    run_with(&p, &arguments, &[64], [2, 2, 1], [2, 2, 1], 0).unwrap();
    for t in 0..4 {
        let from = (3 - t) as f32 * 3.0;
        assert_eq!(y[t * 4..t * 4 + 4], [from + 1.0 + 1.0, (from + 2.0) * 2.0 + 1.0, from * 3.0, 4.0]);
    }
}

#[test]
fn positions_at_the_edge_of_a_grid() {
    let p = kernel(
        "kernel void k(device uint* y [[buffer(0)]], uint3 at [[thread_position_in_grid]], uint3 grid [[threads_per_grid]],
                       uint3 size [[threads_per_threadgroup]], uint3 full [[dispatch_threads_per_threadgroup]],
                       ushort3 groups [[threadgroups_per_grid]], uint width [[thread_execution_width]]) {
           device uint* o = y + 4 * (at.x + grid.x * (at.y + grid.y * at.z));
           o[0] = size.x * 100 + size.y * 10 + size.z;
           o[1] = full.x * 100 + full.y * 10 + full.z;
           o[2] = groups.x * 100 + groups.y * 10 + groups.z;
           o[3] = width;
         }",
        "k",
    );
    let mut y = vec![0u32; 4 * 5 * 3 * 2];
    run(&p, &[buffer(&mut y)], [5, 3, 2], [4, 2, 1]);
    assert_eq!(y[..4], [421, 421, 222, 32]);
    assert_eq!(y[y.len() - 4..], [111, 421, 222, 32]);
}

#[test]
fn threads_that_share_a_library() {
    let source = "kernel void k(device uint* y [[buffer(0)]], constant uint& v [[buffer(1)]], uint i [[thread_position_in_grid]])
                  { threadgroup uint x; if (i == 0) x = v; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = x + i; }";
    std::thread::scope(|scope| {
        for v in 0..8u32 {
            scope.spawn(move || {
                let p = kernel(source, "k");
                for round in 0..50u32 {
                    let mut y = [0u32; 64];
                    run_with(&p, &[buffer(&mut y), bytes(v)], &[], [64, 1, 1], [64, 1, 1], round.into())
                        .unwrap();
                    assert_eq!(y, std::array::from_fn(|i| v + i as u32));
                }
            });
        }
    });
}
