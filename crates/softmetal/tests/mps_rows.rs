//! Softmax, its logarithm, their gradients and the greatest values of rows, through the classes: random shapes, strides,
//! offsets, origins, batches and types, each compared with its formula, and every other byte with what it was.
#![allow(missing_docs)]

mod bench;
mod operands;

use bench::{Bench, Commands, SHARED, broken};
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use operands::{Kind, Operand, Random};

const ROUNDS: usize = 60;

fn run(bench: &Bench, encode: impl FnOnce(&Commands)) {
    let commands = bench.commands();
    encode(&commands);
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(commands.status(), MTLCommandBufferStatus::Completed, "{:?}", commands.error());
}

/// Runs the body so often with other numbers, and asks that no rule is broken.
fn rounds(seed: u64, mut body: impl FnMut(&Bench, &mut Random, usize)) {
    let mut random = Random(seed);
    for round in 0..ROUNDS {
        let found = broken(|bench| body(bench, &mut random, round));
        assert_eq!(found, Vec::<&str>::new(), "round {round}");
    }
}

fn values(random: &mut Random, _: [usize; 3]) -> f64 {
    random.value()
}

fn origin([row, column]: [usize; 2]) -> MTLOrigin {
    MTLOrigin { x: row, y: column, z: 0 }
}

/// What a kernel takes of its operands: rows and columns, matrices of the batch, and where each operand's part begins.
struct Window<const N: usize> {
    rows: usize,
    columns: usize,
    batch: usize,
    start: usize,
    size: usize,
    origins: [[usize; 2]; N],
    /// Rows and columns that the sources have behind what is taken.
    more: usize,
}

impl<const N: usize> Window<N> {
    fn new(r: &mut Random) -> Self {
        let batch = 1 + r.below(3);
        let start = r.below(batch);
        Self {
            rows: 1 + r.below(9),
            columns: 1 + r.below(12),
            batch,
            start,
            size: 1 + r.below(batch - start),
            origins: std::array::from_fn(|_| [r.below(3), r.below(3)]),
            more: r.below(3),
        }
    }

    /// An operand whose part begins at an origin, with `columns` of its own.
    fn operand(&self, bench: &Bench, r: &mut Random, kind: Kind, origin: usize, columns: usize) -> Operand {
        let [row, column] = self.origins[origin];
        let dims = [self.batch, row + self.rows + self.more, column + columns + self.more];
        Operand::new(bench, r, kind, dims, SHARED, values)
    }

    /// Row and column within the part that begins at an origin, if the place is in it.
    fn inside(&self, origin: usize, columns: usize, [matrix, row, column]: [usize; 3]) -> Option<[usize; 2]> {
        let at = [row.checked_sub(self.origins[origin][0])?, column.checked_sub(self.origins[origin][1])?];
        let batch = self.start..self.start + self.size;
        (batch.contains(&matrix) && at[0] < self.rows && at[1] < columns).then_some(at)
    }

    /// A row of an operand's part.
    fn row(&self, of: &Operand, origin: usize, matrix: usize, row: usize) -> Vec<f64> {
        let [i, j] = self.origins[origin];
        (0..self.columns).map(|column| of.was([matrix, i + row, j + column])).collect()
    }
}

#[test]
fn softmax_and_its_logarithm() {
    rounds(31, |bench, r, round| {
        let (w, kind, logarithm) = (Window::<2>::new(r), r.of(&[Kind::F32, Kind::F16]), r.flag());
        let [x, y] = [0, 1].map(|i| w.operand(bench, r, kind, i, w.columns));
        // SAFETY: the classes check what they are given. A log-softmax is a softmax.
        run(bench, |commands| unsafe {
            let softmax: Retained<MPSMatrixSoftMax> = if logarithm {
                Retained::cast_unchecked(MPSMatrixLogSoftMax::initWithDevice(
                    MPSMatrixLogSoftMax::alloc(),
                    &bench.device,
                ))
            } else {
                MPSMatrixSoftMax::initWithDevice(MPSMatrixSoftMax::alloc(), &bench.device)
            };
            softmax.setSourceRows(w.rows);
            softmax.setSourceColumns(w.columns);
            softmax.setSourceMatrixOrigin(origin(w.origins[0]));
            softmax.setResultMatrixOrigin(origin(w.origins[1]));
            softmax.setBatchStart(w.start);
            softmax.setBatchSize(w.size);
            assert_eq!((softmax.sourceRows(), softmax.sourceColumns()), (w.rows, w.columns));
            softmax.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &x.matrix(), &y.matrix());
        });
        y.check(&format!("round {round}, logarithm {logarithm}"), |at| {
            let [row, column] = w.inside(1, w.columns, at)?;
            let x = w.row(&x, 0, at[0], row);
            let share = x[column].exp() / x.iter().map(|x| x.exp()).sum::<f64>();
            Some(if logarithm { share.ln() } else { share })
        });
    });
}

#[test]
fn gradients_of_softmax_and_of_its_logarithm() {
    rounds(32, |bench, r, round| {
        let (w, kind, logarithm) = (Window::<3>::new(r), r.of(&[Kind::F32, Kind::F16]), r.flag());
        // Of outputs that are no shares the formula holds, too.
        let [dy, y, dx] = [0, 1, 2].map(|i| w.operand(bench, r, kind, i, w.columns));
        // SAFETY: the classes check what they are given. The gradient of the logarithm is one of softmax.
        run(bench, |commands| unsafe {
            let gradient: Retained<MPSMatrixSoftMaxGradient> = if logarithm {
                Retained::cast_unchecked(MPSMatrixLogSoftMaxGradient::initWithDevice(
                    MPSMatrixLogSoftMaxGradient::alloc(),
                    &bench.device,
                ))
            } else {
                MPSMatrixSoftMaxGradient::initWithDevice(MPSMatrixSoftMaxGradient::alloc(), &bench.device)
            };
            gradient.setSourceRows(w.rows);
            gradient.setSourceColumns(w.columns);
            gradient.setPrimarySourceMatrixOrigin(origin(w.origins[0]));
            gradient.setSecondarySourceMatrixOrigin(origin(w.origins[1]));
            gradient.setResultMatrixOrigin(origin(w.origins[2]));
            gradient.setBatchStart(w.start);
            gradient.setBatchSize(w.size);
            assert_eq!((gradient.sourceRows(), gradient.sourceColumns()), (w.rows, w.columns));
            assert_eq!((gradient.batchStart(), gradient.batchSize()), (w.start, w.size));
            let origins = [
                gradient.primarySourceMatrixOrigin(),
                gradient.secondarySourceMatrixOrigin(),
                gradient.resultMatrixOrigin(),
            ];
            assert_eq!(origins, w.origins.map(origin));
            gradient.encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                commands,
                &dy.matrix(),
                &y.matrix(),
                &dx.matrix(),
            );
        });
        dx.check(&format!("round {round}, logarithm {logarithm}"), |at| {
            let [row, column] = w.inside(2, w.columns, at)?;
            let (d, y) = (w.row(&dy, 0, at[0], row), w.row(&y, 1, at[0], row));
            let dot: f64 = d.iter().zip(&y).map(|(d, y)| d * y).sum();
            Some(if logarithm {
                d[column] - y[column].exp() * d.iter().sum::<f64>()
            } else {
                y[column] * (d[column] - dot)
            })
        });
    });
}

#[test]
fn the_greatest_values_of_rows() {
    rounds(33, |bench, r, round| {
        let (w, kind) = (Window::<2>::new(r), r.of(&[Kind::F32, Kind::F16]));
        let (count, shift) = (1 + r.below(w.columns.min(16)), r.below(9));
        let x = w.operand(bench, r, kind, 0, w.columns);
        let [places, best] = [Kind::U32, kind].map(|kind| {
            let [row, column] = w.origins[1];
            let dims = [w.batch, row + w.rows + w.more, column + count + w.more];
            Operand::new(bench, r, kind, dims, SHARED, |r, _| r.below(9) as f64)
        });
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let new = MPSMatrixFindTopK::alloc();
            let top = MPSMatrixFindTopK::initWithDevice_numberOfTopKValues(new, &bench.device, count);
            assert_eq!(top.numberOfTopKValues(), count);
            top.setIndexOffset(shift);
            top.setSourceRows(w.rows);
            top.setSourceColumns(w.columns);
            top.setSourceMatrixOrigin(origin(w.origins[0]));
            top.setResultMatrixOrigin(origin(w.origins[1]));
            top.setBatchStart(w.start);
            top.setBatchSize(w.size);
            let told = (top.indexOffset(), top.sourceRows(), top.sourceColumns());
            assert_eq!(told, (shift, w.rows, w.columns));
            top.encodeToCommandBuffer_inputMatrix_resultIndexMatrix_resultValueMatrix(
                commands,
                &x.matrix(),
                &places.matrix(),
                &best.matrix(),
            );
        });
        // Of equal values the first.
        let rank = |at: [usize; 3], rank: usize| {
            let x = w.row(&x, 0, at[0], at[1]);
            let mut order: Vec<usize> = (0..w.columns).collect();
            order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
            (order[rank], x[order[rank]])
        };
        let found = |at: [usize; 3]| {
            let [row, column] = w.inside(1, count, at)?;
            Some(rank([at[0], row, 0], column))
        };
        places.check(&format!("round {round}, places"), |at| {
            found(at).map(|(place, _)| (place + shift) as f64)
        });
        best.check(&format!("round {round}, values"), |at| found(at).map(|(_, value)| value));
    });
}
