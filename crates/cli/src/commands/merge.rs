//! `metal-candle merge`.

use std::cell::RefCell;

use metal_candle::models::ModelFiles;
use metal_candle::training::{Adapter, merge};
use serde_json::json;

use crate::args::MergeArgs;
use crate::failure::Failure;
use crate::fetch;
use crate::session::{Session, print_line};
use crate::settings::dtype;

pub(crate) fn run(args: &MergeArgs, session: &Session) -> anyhow::Result<()> {
    let Some(folder) = &args.model.adapter else {
        return Err(Failure::input("merge needs an adapter", "pass one: --adapter adapters/shell").into());
    };
    let adapter = Adapter::load(folder)?;
    let dtype = dtype(&args.model.dtype)?;
    let path = fetch::resolve(&args.model.model, fetch::Options::default(), session)?.path;
    let files = ModelFiles::open(&path)?;
    let meter = RefCell::new(session.progress.count("merging", 100));
    let progress = |share: f64| meter.borrow_mut().set((share * 100.0) as u64);
    let report = merge(&files, &adapter, &args.out, dtype, &progress)?;
    drop(meter);
    if args.json {
        let result = json!({
            "out": args.out,
            "modules": report.modules,
            "worst_error": report.worst_error,
            "worst_module": report.worst_module,
        });
        return print_line(&result.to_string());
    }
    print_line(&format!(
        "{} modules merged into {}; stored as {dtype}, the greatest relative error of an update is {:.2e} ({})",
        report.modules,
        args.out.display(),
        report.worst_error,
        report.worst_module
    ))
}
