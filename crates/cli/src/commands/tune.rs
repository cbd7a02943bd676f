//! `metal-candle tune`.

use metal_candle::backend::metal::device_info;
use metal_candle::backend::select::{Choices, Preference, Table};
use metal_candle::backend::{Device, tune};

use crate::args::TuneArgs;
use crate::bench::fill;
use crate::cache;
use crate::session::{Session, print_line};

pub(crate) fn run(args: &TuneArgs, session: &Session) -> anyhow::Result<()> {
    let gpu = device_info::read()?;
    fill::measurable("tune", &gpu)?;
    let path = match &args.out {
        Some(path) => path.clone(),
        None => cache::root()?.join(cache::TABLE),
    };
    let [mps, metal] = [Preference::Mps, Preference::Metal].map(|p| Device::metal_with(Choices::from(p)));
    let (mps, metal) = (mps?, metal?);
    let products = tune::products();
    let mut meter = session.progress.count("measuring products both ways", products.len() as u64);
    let mut measured = Vec::with_capacity(products.len());
    for (index, product) in products.iter().enumerate() {
        session.check_interrupt("measuring; the old table stays")?;
        measured.push(tune::measure(&mps, &metal, *product, args.repeats)?);
        meter.set(index as u64 + 1);
    }
    drop(meter);
    let better = measured.iter().filter(|row| row.mps < row.metal).count();
    let table = Table { device: gpu.name, version: env!("CARGO_PKG_VERSION").to_owned(), products: measured };
    table.save(&path)?;
    if args.json {
        return print_line(&serde_json::to_string(&table)?);
    }
    print_line(&format!(
        "{}: {} products measured, {better} of them faster through Metal Performance Shaders; written to {}",
        table.device,
        table.products.len(),
        path.display()
    ))
}
