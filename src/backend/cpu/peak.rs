//! What the processor does at its best: a probe of its arithmetic and of its memory, a tenth of a second each.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use super::kernel::{In, Kernel, Out, run};
use super::pool::Pool;
use super::vector::{Isa, LANES, V};
use crate::backend::profile::Peak;

/// Chains of multiply-adds side by side: enough to hide their latency, few enough for sixteen registers of 256 bits.
const CHAINS: usize = 3;
/// Links of each chain in a probe.
const LINKS: usize = 200_000;
/// Elements that are read: far more than a cache holds.
const ELEMENTS: usize = 64 << 20;
/// How often each is probed; the best counts, since others may be at work too.
const REPEATS: usize = 5;

/// Multiply-adds that stay in registers.
struct Arithmetic {
    sums: Out<f32>,
}

impl Kernel for Arithmetic {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let (factor, addend) = (V::<I>::splat(black_box(0.999)), V::splat(black_box(0.001)));
            let mut sums = [V::<I>::splat(1.0); CHAINS];
            for _ in 0..LINKS {
                for sum in &mut sums {
                    *sum = sum.fma(factor, addend);
                }
            }
            let total = sums.into_iter().reduce(|a, b| a + b).expect("there are chains");
            // SAFETY: every item has LANES elements of its own.
            unsafe { total.store(self.sums.at(item * LANES), LANES) };
        }
    }
}

/// Reading that adds everything up, in pieces.
struct Reading {
    from: In<f32>,
    piece: usize,
    sums: Out<f32>,
}

impl Kernel for Reading {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let mut sums = [V::<I>::splat(0.0); 4];
            for at in (0..self.piece).step_by(4 * LANES) {
                for (index, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the piece is one of the kernel's, and a multiple of four groups of lanes.
                    let x =
                        unsafe { V::load(self.from.at(item * self.piece + at + index * LANES), LANES, 0.0) };
                    *sum = *sum + x;
                }
            }
            let total = sums.into_iter().reduce(|a, b| a + b).expect("there are sums");
            // SAFETY: every item has LANES elements of its own.
            unsafe { total.store(self.sums.at(item * LANES), LANES) };
        }
    }
}

fn best(pool: &Pool, mut work: impl FnMut()) -> f64 {
    let _awake = pool.awake();
    let time = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        begun.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| time(&mut work)).fold(f64::INFINITY, f64::min)
}

/// Probes the processor with the pool's threads.
pub(super) fn measure(pool: &Pool) -> Peak {
    let threads = pool.threads();
    let mut sums = vec![0.0_f32; threads * LANES];
    let arithmetic = Arithmetic { sums: Out(sums.as_mut_ptr()) };
    // SAFETY: there are LANES elements for each item, and no other user of them.
    let seconds = best(pool, || unsafe { run(pool, threads, usize::MAX, &arithmetic) });
    black_box(&sums);
    let flops = (2 * LANES * CHAINS * LINKS * threads) as f64 / seconds;

    let piece = (ELEMENTS / threads).next_multiple_of(4 * LANES);
    // Not zeros: pages of zeros may be one page.
    let memory = vec![1.0_f32; piece * threads];
    let reading = Reading { from: In(memory.as_ptr()), piece, sums: Out(sums.as_mut_ptr()) };
    // SAFETY: the memory has `threads` pieces, and there are LANES sums for each.
    let seconds = best(pool, || unsafe { run(pool, threads, usize::MAX, &reading) });
    black_box(&sums);
    let bytes = (4 * piece * threads) as f64 / seconds;
    let source = format!("measured: multiply-adds in registers and reading of 256 MiB, {threads} threads");
    Peak { flops, bytes, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_computes_more_than_a_billion_and_reads_more_than_a_hundred_million() {
        let peak = measure(&Pool::new(1));
        // Any machine of this century; and none does more in one thread than these.
        assert!(peak.flops > 1e9 && peak.flops < 1e13, "{peak:?}");
        assert!(peak.bytes > 1e8 && peak.bytes < 1e13, "{peak:?}");
    }
}
