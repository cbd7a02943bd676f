//! The MPS classes over random shapes, strides, offsets, origins, batches and types, each compared with its formula
//! element by element, and every other byte of the result's buffer with what it was.
#![allow(missing_docs)]

mod bench;
mod operands;

use bench::{Bench, Commands, SHARED, broken};
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::NSArray;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use operands::{Kind, Operand, Random};

const ROUNDS: usize = 60;
const F16_TO_F32: [(Kind, Kind); 3] =
    [(Kind::F32, Kind::F32), (Kind::F16, Kind::F16), (Kind::F16, Kind::F32)];

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

fn origin(row: usize, column: usize) -> MTLOrigin {
    MTLOrigin { x: row, y: column, z: 0 }
}

/// The matrices of a random part of a batch.
fn part(random: &mut Random, matrices: usize) -> (usize, usize) {
    let start = random.below(matrices);
    (start, 1 + random.below(matrices - start))
}

#[test]
fn products() {
    rounds(21, |bench, r, round| {
        let [m, n, k] = std::array::from_fn(|_| 1 + r.below(17));
        let (ta, tb, (input, output)) = (r.flag(), r.flag(), r.of(&F16_TO_F32));
        let (alpha, beta) = (r.of(&[1.0, 0.5, -2.0]), r.of(&[0.0, 1.0, 0.25]));
        let matrices = 1 + r.below(4);
        let (start, size) = part(r, matrices);
        let origins: [[usize; 2]; 3] = std::array::from_fn(|_| [r.below(3), r.below(3)]);
        let shape = |rows, columns, swapped: bool| if swapped { [columns, rows] } else { [rows, columns] };
        let shapes = [shape(m, k, ta), shape(k, n, tb), [m, n]];
        let [a, b, c] = std::array::from_fn(|i| {
            let kind = if i == 2 { output } else { input };
            let dims = [matrices, origins[i][0] + shapes[i][0], origins[i][1] + shapes[i][1]];
            Operand::new(bench, r, kind, dims, SHARED, values)
        });
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let product = MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
                MPSMatrixMultiplication::alloc(), &bench.device, ta, tb, m, n, k, alpha, beta,
            );
            let [left, right, result] = origins.map(|[row, column]| origin(row, column));
            product.setLeftMatrixOrigin(left);
            product.setRightMatrixOrigin(right);
            product.setResultMatrixOrigin(result);
            product.setBatchStart(start);
            product.setBatchSize(size);
            product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
                commands,
                &a.matrix(),
                &b.matrix(),
                &c.matrix(),
            );
        });
        let at = |of: &Operand, [x, y]: [usize; 2], matrix, [i, j]: [usize; 2], swapped: bool| {
            let [i, j] = if swapped { [j, i] } else { [i, j] };
            of.was([matrix, x + i, y + j])
        };
        c.check(&format!("round {round}"), |place @ [matrix, row, column]| {
            let (i, j) = (row.checked_sub(origins[2][0])?, column.checked_sub(origins[2][1])?);
            let terms = (0..k)
                .map(|l| at(&a, origins[0], matrix, [i, l], ta) * at(&b, origins[1], matrix, [l, j], tb));
            let value = alpha * terms.sum::<f64>() + if beta == 0.0 { 0.0 } else { beta * c.was(place) };
            (start..start + size).contains(&matrix).then_some(value)
        });
    });
}

#[test]
fn products_with_a_vector() {
    rounds(22, |bench, r, round| {
        let [m, k] = std::array::from_fn(|_| 1 + r.below(17));
        let (transpose, (input, output)) = (r.flag(), r.of(&F16_TO_F32));
        let (alpha, beta) = (r.of(&[1.0, 0.5, -2.0]), r.of(&[0.0, 1.0, 0.25]));
        let batch = 1 + r.below(4);
        let (start, size) = part(r, batch);
        let [x0, y0] = [r.below(3), r.below(3)];
        let [rows, columns] = if transpose { [k, m] } else { [m, k] };
        let a = Operand::new(bench, r, input, [batch, rows, columns], SHARED, values);
        let x = Operand::new(bench, r, input, [1, batch, x0 + k], SHARED, values);
        let y = Operand::new(bench, r, output, [1, batch, y0 + m], SHARED, values);
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let product = MPSMatrixVectorMultiplication::initWithDevice_transpose_rows_columns_alpha_beta(
                MPSMatrixVectorMultiplication::alloc(),
                &bench.device,
                transpose,
                m,
                k,
                alpha,
                beta,
            );
            product.setSecondarySourceMatrixOrigin(origin(x0, 0));
            product.setResultMatrixOrigin(origin(y0, 0));
            product.setBatchStart(start);
            product.setBatchSize(size);
            product.encodeToCommandBuffer_inputMatrix_inputVector_resultVector(
                commands,
                &a.matrix(),
                &x.vector(),
                &y.vector(),
            );
        });
        y.check(&format!("round {round}"), |place @ [_, vector, element]| {
            let i = element.checked_sub(y0)?;
            let at = |l| if transpose { a.was([vector, l, i]) } else { a.was([vector, i, l]) };
            let sum: f64 = (0..k).map(|l| at(l) * x.was([0, vector, x0 + l])).sum();
            let value = alpha * sum + if beta == 0.0 { 0.0 } else { beta * y.was(place) };
            (start..start + size).contains(&vector).then_some(value)
        });
    });
}

/// Activations with their parameters, by the words of the header.
const NEURONS: [(MPSCNNNeuronType, fn(f64) -> f64); 12] = [
    (MPSCNNNeuronType::None, |x| x),
    (MPSCNNNeuronType::ReLU, |x| if x >= 0.0 { x } else { 0.5 * x }),
    (MPSCNNNeuronType::Linear, |x| 0.5 * x + 2.0),
    (MPSCNNNeuronType::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
    (MPSCNNNeuronType::HardSigmoid, |x| (0.5 * x + 2.0).clamp(0.0, 1.0)),
    (MPSCNNNeuronType::TanH, |x| 0.5 * (2.0 * x).tanh()),
    (MPSCNNNeuronType::Absolute, f64::abs),
    (MPSCNNNeuronType::SoftPlus, |x| 0.5 * (1.0 + (2.0 * x).exp()).ln()),
    (MPSCNNNeuronType::SoftSign, |x| x / (1.0 + x.abs())),
    (MPSCNNNeuronType::ELU, |x| if x >= 0.0 { x } else { 0.5 * (x.exp() - 1.0) }),
    (MPSCNNNeuronType::ReLUN, |x| if x >= 0.0 { x.min(2.0) } else { (0.5 * x).min(2.0) }),
    (MPSCNNNeuronType::Exponential, |x| 3f64.powf(0.5 * x + 2.0)),
];

#[test]
fn neurons() {
    rounds(23, |bench, r, round| {
        let [rows, columns] = std::array::from_fn(|_| 1 + r.below(9));
        let (kind, (neuron, f)) = (r.of(&[Kind::F32, Kind::F16]), r.of(&NEURONS));
        let (alpha, biased, limited) = (r.of(&[1.0, 0.5, -2.0]), r.flag(), r.flag());
        let batch = 1 + r.below(3);
        let (start, size) = part(r, batch);
        let [x0, x1, y0, y1] = std::array::from_fn(|_| r.below(3));
        // The source is larger than what is taken, if the kernel is told how much that is.
        let more = if limited { r.below(3) } else { 0 };
        let x = Operand::new(bench, r, kind, [batch, x0 + rows + more, x1 + columns + more], SHARED, values);
        let y = Operand::new(bench, r, kind, [batch, y0 + rows + 1, y1 + columns + 1], SHARED, values);
        let bias = Operand::new(bench, r, kind, [1, 1, columns + 1], SHARED, values);
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let class = MPSMatrixNeuron::initWithDevice(MPSMatrixNeuron::alloc(), &bench.device);
            assert_eq!((class.alpha(), class.neuronType()), (1.0, MPSCNNNeuronType::None));
            class.setNeuronType_parameterA_parameterB_parameterC(neuron, 0.5, 2.0, 3.0);
            class.setAlpha(alpha);
            if limited {
                class.setSourceNumberOfFeatureVectors(rows);
                class.setSourceInputFeatureChannels(columns);
            }
            class.setSourceMatrixOrigin(origin(x0, x1));
            class.setResultMatrixOrigin(origin(y0, y1));
            class.setBatchStart(start);
            class.setBatchSize(size);
            class.encodeToCommandBuffer_inputMatrix_biasVector_resultMatrix(
                commands,
                &x.matrix(),
                biased.then(|| bias.vector()).as_deref(),
                &y.matrix(),
            );
        });
        y.check(&format!("round {round}, {neuron:?}"), |[matrix, row, column]| {
            let (i, j) = (row.checked_sub(y0)?, column.checked_sub(y1)?);
            let inside = i < rows && j < columns && (start..start + size).contains(&matrix);
            inside.then(|| {
                let added = if biased { bias.was([0, 0, j]) } else { 0.0 };
                f(alpha * x.was([matrix, x0 + i, x1 + j]) + added)
            })
        });
    });
}

#[test]
fn sums() {
    rounds(24, |bench, r, round| {
        let [rows, columns] = std::array::from_fn(|_| 1 + r.below(9));
        let (kind, count, transpose, biased) =
            (r.of(&[Kind::F32, Kind::F16]), 1 + r.below(4), r.flag(), r.flag());
        let (start, [y0, y1]) = (r.below(3), [r.below(3), r.below(3)]);
        let offsets: Vec<[usize; 2]> = (0..start + count).map(|_| [r.below(3), r.below(3)]).collect();
        let sources: Vec<Operand> = (0..count)
            .map(|i| {
                let [row, column] = offsets[start + i];
                Operand::new(bench, r, kind, [1, row + rows, column + columns], SHARED, values)
            })
            .collect();
        let packed = [1, 1, 2 * offsets.len()];
        let offset_vector =
            Operand::new(bench, r, Kind::U32, packed, SHARED, |_, [_, _, i]| offsets[i / 2][i % 2] as f64);
        let scales = Operand::new(bench, r, Kind::F32, [1, 1, start + count], SHARED, |r, _| {
            r.of(&[1.0, 0.5, -2.0, 0.0])
        });
        let [height, width] = if transpose { [columns, rows] } else { [rows, columns] };
        let bias = Operand::new(bench, r, kind, [1, 1, width], SHARED, values);
        let y = Operand::new(bench, r, kind, [1, y0 + height + 1, y1 + width + 1], SHARED, values);
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let sum = MPSMatrixSum::initWithDevice_count_rows_columns_transpose(
                MPSMatrixSum::alloc(),
                &bench.device,
                count,
                rows,
                columns,
                transpose,
            );
            assert_eq!(
                (sum.count(), sum.rows(), sum.columns(), sum.transpose()),
                (count, rows, columns, transpose)
            );
            sum.setResultMatrixOrigin(origin(y0, y1));
            sum.setNeuronType_parameterA_parameterB_parameterC(MPSCNNNeuronType::ReLU, 0.5, 0.0, 0.0);
            let matrices: Vec<Retained<MPSMatrix>> = sources.iter().map(Operand::matrix).collect();
            sum.encodeToCommandBuffer_sourceMatrices_resultMatrix_scaleVector_offsetVector_biasVector_startIndex(
                commands,
                &NSArray::from_retained_slice(&matrices),
                &y.matrix(),
                Some(&scales.vector()),
                Some(&offset_vector.vector()),
                biased.then(|| bias.vector()).as_deref(),
                start,
            );
        });
        y.check(&format!("round {round}"), |[_, row, column]| {
            let (i, j) = (row.checked_sub(y0)?, column.checked_sub(y1)?);
            let [a, b] = if transpose { [j, i] } else { [i, j] };
            let term = |s: usize| {
                let [row, column] = offsets[start + s];
                scales.was([0, 0, start + s]) * sources[s].was([0, row + a, column + b])
            };
            (i < height && j < width).then(|| {
                let sum: f64 = (0..count).map(term).sum();
                let value = sum + if biased { bias.was([0, 0, j]) } else { 0.0 };
                if value >= 0.0 { value } else { 0.5 * value }
            })
        });
    });
}

/// `count` numbers below `bound`, no two of them equal.
fn places(random: &mut Random, count: usize, bound: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..bound).collect();
    (0..bound).for_each(|i| all.swap(i, i + random.below(bound - i)));
    all.truncate(count);
    all
}

#[test]
fn copies() {
    rounds(25, |bench, r, round| {
        let [rows, columns] = std::array::from_fn(|_| 1 + r.below(9));
        let (kind, count, from_device) = (r.of(&[Kind::F32, Kind::F16]), 1 + r.below(3), r.flag());
        let (source_swapped, target_swapped) = (r.flag(), r.flag());
        let shape = |swapped: bool| if swapped { [columns, rows] } else { [rows, columns] };
        let ([sr, sc], [tr, tc]) = (shape(source_swapped), shape(target_swapped));
        // Row and column offsets are equal, since the header does not say which is which after a transpose.
        let offsets: Vec<[usize; 2]> = (0..count).map(|_| [r.below(3), r.below(3)]).collect();
        let permuted = [r.flag(), r.flag()];
        let order = [places(r, tr, tr + 2), places(r, tc, tc + 2)];
        let skip = r.below(3);
        let sources: Vec<Operand> = offsets
            .iter()
            .map(|[from, _]| Operand::new(bench, r, kind, [1, from + sr, from + sc], SHARED, values))
            .collect();
        let targets: Vec<Operand> = offsets
            .iter()
            .map(|[_, to]| Operand::new(bench, r, kind, [1, to + tr + 2, to + tc + 2], SHARED, values))
            .collect();
        let numbers: Vec<usize> = offsets.iter().flat_map(|&[from, to]| [from, from, to, to]).collect();
        let first = 4 * r.below(2);
        let packed = Operand::new(bench, r, Kind::U32, [1, 1, first + 4 * count], SHARED, |_, [_, _, i]| {
            i.checked_sub(first).map_or(0.0, |i| numbers[i] as f64)
        });
        let [row_order, column_order] = order.each_ref().map(|order| {
            Operand::new(bench, r, Kind::U32, [1, 1, skip + order.len()], SHARED, |_, [_, _, i]| {
                i.checked_sub(skip).map_or(0.0, |i| order[i] as f64)
            })
        });
        // SAFETY: the classes check what they are given.
        run(bench, |commands| unsafe {
            let copy = MPSMatrixCopy::initWithDevice_copyRows_copyColumns_sourcesAreTransposed_destinationsAreTransposed(
                MPSMatrixCopy::alloc(), &bench.device, rows, columns, source_swapped, target_swapped,
            );
            let [from, to] =
                [&sources, &targets].map(|list| list.iter().map(Operand::matrix).collect::<Vec<_>>());
            let descriptor = if from_device {
                MPSMatrixCopyDescriptor::initWithSourceMatrices_destinationMatrices_offsetVector_offset(
                    MPSMatrixCopyDescriptor::alloc(),
                    &NSArray::from_retained_slice(&from),
                    &NSArray::from_retained_slice(&to),
                    Some(&packed.vector()),
                    4 * first,
                )
            } else {
                described(bench, &offsets, &from, &to)
            };
            if permuted == [false; 2] {
                copy.encodeToCommandBuffer_copyDescriptor(commands, &descriptor);
            } else {
                let [rows, columns] = [&row_order, &column_order].map(Operand::vector);
                copy.encodeToCommandBuffer_copyDescriptor_rowPermuteIndices_rowPermuteOffset_columnPermuteIndices_columnPermuteOffset(
                    commands,
                    &descriptor,
                    permuted[0].then_some(&*rows),
                    skip,
                    permuted[1].then_some(&*columns),
                    skip,
                );
            }
        });
        for ((source, target), &[from, to]) in sources.iter().zip(&targets).zip(&offsets) {
            target.check(&format!("round {round}"), |[_, row, column]| {
                let find = |axis: usize, at: usize, count: usize| {
                    let at = at.checked_sub(to)?;
                    if permuted[axis] {
                        order[axis].iter().position(|&p| p == at)
                    } else {
                        (at < count).then_some(at)
                    }
                };
                let (c, d) = (find(0, row, tr)?, find(1, column, tc)?);
                let (i, j) = if target_swapped { (d, c) } else { (c, d) };
                let (a, b) = if source_swapped { (j, i) } else { (i, j) };
                Some(source.was([0, from + a, from + b]))
            });
        }
    });
}

/// A descriptor whose offsets the host knows.
fn described(
    bench: &Bench,
    offsets: &[[usize; 2]],
    from: &[Retained<MPSMatrix>],
    to: &[Retained<MPSMatrix>],
) -> Retained<MPSMatrixCopyDescriptor> {
    let of = |[from, to]: [usize; 2]| MPSMatrixCopyOffsets {
        sourceRowOffset: from as u32,
        sourceColumnOffset: from as u32,
        destinationRowOffset: to as u32,
        destinationColumnOffset: to as u32,
    };
    // SAFETY: the classes check what they are given.
    unsafe {
        if let [one] = offsets {
            return MPSMatrixCopyDescriptor::descriptorWithSourceMatrix_destinationMatrix_offsets(
                &from[0],
                &to[0],
                of(*one),
            );
        }
        let (new, count) = (MPSMatrixCopyDescriptor::alloc(), offsets.len());
        let descriptor = MPSMatrixCopyDescriptor::initWithDevice_count(new, &bench.device, count);
        for (index, offsets) in offsets.iter().enumerate() {
            descriptor.setCopyOperationAtIndex_sourceMatrix_destinationMatrix_offsets(
                index,
                &from[index],
                &to[index],
                of(*offsets),
            );
        }
        descriptor
    }
}
