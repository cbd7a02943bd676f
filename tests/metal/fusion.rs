//! What a product of few rows does on the way: the result is that of the separate operations, in one dispatch.

use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::tensor::{DType, HostTensor};

fn values(shape: [usize; 2], salt: usize) -> HostTensor {
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 50.5 - 1.0).collect();
    HostTensor::from_slice(&values, shape).unwrap()
}

/// Records on parameters, compares with the definitions, and gives the number of dispatches.
fn check(
    shapes: &[[usize; 2]],
    dtype: DType,
    record: impl Fn(&[LazyTensor]) -> metal_candle::Result<Vec<LazyTensor>>,
) -> usize {
    let run = |device: &Device| {
        let graph = Graph::new();
        let tensors: Vec<LazyTensor> = shapes
            .iter()
            .enumerate()
            .map(|(index, &shape)| {
                let value = values(shape, index).cast(dtype);
                graph.parameter(&device.parameter(format!("x{index}"), &value, false).unwrap())
            })
            .collect();
        let program = device.compile(&graph, &record(&tensors).unwrap(), &[]).unwrap();
        (program.run(&[]).unwrap(), program.launches())
    };
    let (found, launches) = run(&Device::metal_with(Preference::Metal).unwrap());
    let (expected, _) = run(&Device::reference());
    // Rounded at every step, as the separate operations do.
    let tolerance = if dtype == DType::F32 { 1e-4 } else { 0.1 };
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.spec(), expected.spec());
        for (a, b) in found.to_f64().iter().zip(expected.to_f64()) {
            assert!((a - b).abs() <= tolerance, "{a}, must be {b}");
        }
    }
    launches
}

#[test]
fn a_bias_and_a_residual_are_added_on_the_way() {
    let _alone = crate::alone();
    for dtype in [DType::F32, DType::BF16] {
        for m in [1, 3, 8] {
            let bias = check(&[[m, 40], [24, 40], [1, 24]], dtype, |t| {
                Ok(vec![t[0].linear(&t[1])?.add(&t[2].reshape([24])?)?])
            });
            let residual =
                check(&[[m, 40], [24, 40], [m, 24]], dtype, |t| Ok(vec![t[2].add(&t[0].linear(&t[1])?)?]));
            assert_eq!((bias, residual), (1, 1), "{dtype}, {m} rows");
        }
    }
}

/// Queries, keys and values of one product, each with its bias; and an adapter before a bias.
#[test]
fn biases_of_parts_and_of_adapted_layers_are_added_on_the_way() {
    let _alone = crate::alone();
    for m in [1, 5] {
        let shapes = [[m, 32], [26, 32], [1, 10], [1, 8], [1, 8]];
        let parts = |x: &LazyTensor, t: &[LazyTensor]| {
            let y = x.linear(&t[1])?;
            let part = |start, len, bias: usize| y.slice(1, start, len)?.add(&t[bias].reshape([len])?);
            Ok(vec![part(0, 10, 2)?, part(10, 8, 3)?, part(18, 8, 4)?])
        };
        assert_eq!(check(&shapes, DType::F32, |t| parts(&t[0], t)), 1, "{m} rows");
        // A later sum may be planned into the memory of x, which the product still reads: then it waits.
        let launches = check(&shapes, DType::F32, |t| parts(&t[0].affine(1.0, 0.5)?, t));
        assert!((2..=4).contains(&launches), "{m} rows: {launches}");
        let shapes = [[m, 32], [26, 32], [4, 32], [26, 4], [1, 26]];
        let launches = check(&shapes, DType::F32, |t| {
            Ok(vec![t[0].lora(&t[1], None, &t[2], &t[3], 0.5)?.add(&t[4].reshape([26])?)?])
        });
        assert_eq!(launches, 2, "{m} rows");
    }
}

/// Many rows go to tiles, and what is no sum of the result stays a step of its own.
#[test]
fn other_steps_stay_apart() {
    let _alone = crate::alone();
    let many = check(&[[20, 40], [24, 40], [1, 24]], DType::F32, |t| {
        Ok(vec![t[0].linear(&t[1])?.add(&t[2].reshape([24])?)?])
    });
    assert_eq!(many, 2);
    let product =
        check(&[[2, 40], [24, 40], [2, 24]], DType::F32, |t| Ok(vec![t[0].linear(&t[1])?.mul(&t[2])?]));
    assert_eq!(product, 2);
    // The result is read again: by the sum, and as an output.
    let both = check(&[[2, 40], [24, 40], [2, 24]], DType::F32, |t| {
        let y = t[0].linear(&t[1])?;
        Ok(vec![y.add(&t[2])?, y])
    });
    assert_eq!(both, 1);
    let squared = check(&[[2, 40], [24, 40]], DType::F32, |t| {
        let y = t[0].linear(&t[1])?;
        Ok(vec![y.add(&y)?])
    });
    assert_eq!(squared, 2);
}
