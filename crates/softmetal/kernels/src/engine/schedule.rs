//! The order in which threadgroups, SIMD groups and lanes run.
//!
//! Seed 0 is the natural order: a SIMD group runs to its next barrier before the next one starts. Any other
//! seed shuffles threadgroups, picks a SIMD group at random for every step (a step ends at a SIMD-group
//! operation), and shuffles the lanes within a step.

use std::ffi::c_void;

use super::{Context, Engine, Fiber, LANES, State, Stop, Triple};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

impl Engine<'_> {
    pub(super) fn threadgroups(&mut self) -> Result<(), Stop> {
        let (grid, size) = (self.job.grid, self.job.threadgroup);
        let groups: Triple = std::array::from_fn(|i| grid[i].div_ceil(size[i]));
        let count = groups.iter().map(|g| u64::from(*g)).product::<u64>();
        let position = |i: u64| {
            let (x, y) = (u64::from(groups[0]), u64::from(groups[1]));
            [(i % x) as u32, (i / x % y) as u32, (i / x / y) as u32]
        };
        let mut random = (self.job.seed != 0).then_some(Random(self.job.seed));
        let mut order: Vec<u64> = if random.is_some() { (0..count).collect() } else { Vec::new() };
        if let Some(random) = &mut random {
            random.shuffle(&mut order);
        }
        for i in 0..count {
            let at = order.get(i as usize).copied().unwrap_or(i);
            self.prepare(position(at), groups);
            self.threadgroup(position(at), &mut random)?;
        }
        Ok(())
    }

    /// Sets up the fibers of a threadgroup, which is smaller at the edge of the grid.
    fn prepare(&mut self, at: Triple, groups: Triple) {
        for (start, length) in self.job.shared {
            // SAFETY: the dispatch owns this memory for its whole length; no fiber runs.
            unsafe { start.write_bytes(0xff, *length) };
        }
        let (grid, full) = (self.job.grid, self.job.threadgroup);
        let origin: Triple = std::array::from_fn(|i| at[i] * full[i]);
        let size: Triple = std::array::from_fn(|i| full[i].min(grid[i] - origin[i]));
        let threads = size.iter().product::<u32>();
        self.counts.threads += u64::from(threads);
        self.fibers.clear();
        for index in 0..threads {
            let within = [index % size[0], index / size[0] % size[1], index / size[0] / size[1]];
            let context = Context {
                buffers: self.job.buffers.as_ptr(),
                threadgroups: self.job.threadgroups.as_ptr(),
                thread_position_in_grid: std::array::from_fn(|i| origin[i] + within[i]),
                thread_position_in_threadgroup: within,
                threadgroup_position_in_grid: at,
                threads_per_threadgroup: size,
                dispatch_threads_per_threadgroup: full,
                threadgroups_per_grid: groups,
                threads_per_grid: grid,
                thread_index_in_threadgroup: index,
                thread_index_in_simdgroup: index % LANES as u32,
                simdgroup_index_in_threadgroup: index / LANES as u32,
                simdgroups_per_threadgroup: threads.div_ceil(LANES as u32),
                dispatch_simdgroups_per_threadgroup: full.iter().product::<u32>().div_ceil(LANES as u32),
                threads_per_simdgroup: LANES as u32,
            };
            self.fibers.push(Fiber {
                state: State::Ready,
                stack: None,
                pointer: std::ptr::null_mut(),
                context,
                operation: None,
                block: std::ptr::null_mut(),
                site: 0,
                line: 0,
            });
        }
    }

    fn threadgroup(&mut self, at: Triple, random: &mut Option<Random>) -> Result<(), Stop> {
        let count = self.fibers.len().div_ceil(LANES);
        let mut runnable: Vec<usize> = Vec::with_capacity(count);
        loop {
            runnable.extend((0..count).rev());
            while let Some(last) = runnable.len().checked_sub(1) {
                let pick = random.as_mut().map_or(last, |r| r.below(runnable.len()));
                if !self.step(runnable[pick], random)? {
                    runnable.swap_remove(pick);
                }
            }
            if self.fibers.iter().all(|f| f.state == State::Done) {
                return Ok(());
            }
            self.release(at)?;
        }
    }

    /// Runs all ready lanes of a SIMD group, then one operation they wait for; false when none can go on.
    fn step(&mut self, group: usize, random: &mut Option<Random>) -> Result<bool, Stop> {
        let lanes = group * LANES..self.fibers.len().min((group + 1) * LANES);
        let mut order: [usize; LANES] = std::array::from_fn(|i| lanes.start + i);
        if let Some(random) = random {
            random.shuffle(&mut order[..lanes.len()]);
        }
        for lane in &order[..lanes.len()] {
            if self.fibers[*lane].state == State::Ready {
                self.resume(*lane)?;
            }
        }
        let waits = |f: &&Fiber| f.state == State::Simd;
        // Lanes that wait at different operations have diverged: the one earlier in the code is served first,
        // so that lanes meet again behind a branch.
        let Some(site) = self.fibers[lanes.clone()].iter().filter(waits).map(|f| f.site).min() else {
            return Ok(false);
        };
        self.counts.divergent +=
            u64::from(self.fibers[lanes.clone()].iter().filter(waits).any(|f| f.site != site));
        self.counts.simd_operations += 1;
        let mut blocks = [std::ptr::null_mut::<c_void>(); LANES];
        let mut operation = None;
        for lane in lanes.clone() {
            let fiber = &mut self.fibers[lane];
            if fiber.state == State::Simd && fiber.site == site {
                (blocks[lane - lanes.start], operation) = (fiber.block, fiber.operation);
                fiber.state = State::Ready;
            }
        }
        if let Some(operation) = operation {
            // SAFETY: the function belongs to the call site at which all these lanes wait, so their blocks, on
            // their suspended stacks, are of the type that it expects.
            unsafe { operation(blocks.as_mut_ptr()) };
        }
        Ok(true)
    }

    /// Lets all threads pass the barrier they wait at, if it is one barrier and all are there.
    fn release(&mut self, threadgroup: Triple) -> Result<(), Stop> {
        let waits = |f: &&Fiber| f.state == State::Barrier;
        let Some((site, line)) = self.fibers.iter().find(waits).map(|f| (f.site, f.line)) else {
            return Ok(());
        };
        let elsewhere: Vec<u32> =
            self.fibers.iter().filter(waits).filter(|f| f.site != site).map(|f| f.line).collect();
        let done = self.fibers.iter().filter(|f| f.state == State::Done).count();
        let (other, others) = match elsewhere.first() {
            Some(other) => (Some(*other), elsewhere.len()),
            None => (None, done),
        };
        if others > 0 {
            let waiting = (self.fibers.len() - done - elsewhere.len()) as u32;
            return Err(Stop::Barrier { threadgroup, line, waiting, other, others: others as u32 });
        }
        self.counts.barriers += 1;
        for fiber in &mut self.fibers {
            fiber.state = State::Ready;
        }
        Ok(())
    }
}
