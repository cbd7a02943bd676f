//! Accesses as the engine sees them, and address spaces as C++ does not.

mod harness;

use harness::*;
use softmetal_kernels::Fault;

/// Such copies are calls of memcpy or wide vectors to the compiler, which its own coverage leaves out.
#[test]
fn copies_of_structures_and_vectors_are_seen() {
    let p = kernel(
        "struct Block { half d; char q[62]; };
         kernel void k(device const Block* x [[buffer(0)]], device Block* y [[buffer(1)]],
                       device const float4* v [[buffer(2)]], device float4* w [[buffer(3)]], device int* z [[buffer(4)]]) {
           y[1] = x[2];
           w[1] = v[0];
           for (int i = 0; i < 40; i++) z[i] = 0;
         }",
        "k",
    );
    let (mut x, mut y, mut v, mut w, mut z) = ([1u8; 192], [0u8; 128], [2f32; 4], [0f32; 8], [1i32; 40]);
    let arguments = [buffer(&mut x), buffer(&mut y), buffer(&mut v), buffer(&mut w), buffer(&mut z)];
    let report = run(&p, &arguments, [1, 1, 1], [1, 1, 1]);
    let seen: Vec<_> = report.accesses.iter().map(|a| [a.reads.clone(), a.writes.clone()].concat()).collect();
    assert_eq!(seen, [vec![128..192], vec![64..128], vec![0..16], vec![16..32], vec![0..160]]);
    assert_eq!((y[64], y[63], w[4], z[39]), (1, 0, 2.0, 0));
    let short = softmetal_kernels::Argument::Buffer { start: x.as_mut_ptr(), len: 190 };
    let arguments = [short, buffer(&mut y), buffer(&mut v), buffer(&mut w), buffer(&mut z)];
    let fault = run_with(&p, &arguments, &[], [1, 1, 1], [1, 1, 1], 0).unwrap_err();
    assert!(matches!(fault, Fault::Access { argument: Some(0), distance: 2, size: 64, .. }), "{fault}");
}

#[test]
fn vectors_at_half_their_alignment() {
    let p = kernel(
        "kernel void k(device const float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
           *(device float4*)(y + 1) = *(device const float4*)(x + 1) * 2; }",
        "k",
    );
    let (mut x, mut y) = ([0f32, 1.0, 2.0, 3.0, 4.0], [0f32; 5]);
    run(&p, &[buffer(&mut x), buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [0.0, 2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn arguments_that_share_memory() {
    let p = kernel(
        "kernel void k(device const int* x [[buffer(0)]], device int* y [[buffer(1)]], uint i [[thread_position_in_grid]]) { y[i] = x[i] + 1; }",
        "k",
    );
    let mut x = [5i32; 8];
    let same = buffer(&mut x);
    let report = run(&p, &[same.clone(), same], [8, 1, 1], [8, 1, 1]);
    let seen: Vec<_> = report.accesses.iter().map(|a| (a.buffer, a.reads.len(), a.writes.len())).collect();
    assert_eq!(seen, [(0, 1, 0), (1, 0, 1)]);
    assert_eq!(x, [6; 8]);
}

#[test]
fn overloads_that_differ_in_address_space() {
    let p = kernel(
        "struct Pair { int a, b; Pair() thread = default; Pair() threadgroup = default; Pair() constant = default;
           int sum() const thread { return a + b; } int sum() const device { return a + b; } };
         template <typename T> struct is_device { static constexpr int value = 1; };
         template <typename T> METAL_FUNC int first(const device T* x) { return x[0]; }
         template <typename T> METAL_FUNC int first(const threadgroup T* x) { return x[0]; }
         template <typename T> METAL_FUNC int first(const thread T* x) { return x[0]; }
         kernel void k(device const Pair* x [[buffer(0)]], device int* y [[buffer(1)]]) {
           threadgroup int t[1];
           t[0] = 7;
           thread Pair p = x[0];
           y[0] = x[0].sum() + p.sum() + first(t) + first(y);
         }",
        "k",
    );
    let (mut x, mut y) = ([1i32, 2], [100i32]);
    run(&p, &[buffer(&mut x), buffer(&mut y)], [1, 1, 1], [1, 1, 1]);
    assert_eq!(y, [113]);
}

#[test]
fn constants_of_the_library_are_not_arguments() {
    let p = kernel(
        "constant int table[8] = {1, 2, 4, 8, 16, 32, 64, 128};
         kernel void k(device int* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { int local[8]; local[i] = table[7 - i]; y[i] = local[i]; }",
        "k",
    );
    let mut y = [0i32; 8];
    run(&p, &[buffer(&mut y)], [8, 1, 1], [8, 1, 1]);
    assert_eq!(y, [128, 64, 32, 16, 8, 4, 2, 1]);
}
