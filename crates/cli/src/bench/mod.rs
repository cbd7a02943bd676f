//! Measurements: ours, and our peers' beside them.

pub(crate) mod args;
pub(crate) mod candle_peer;
pub(crate) mod fill;
pub(crate) mod model_report;
pub(crate) mod models;
pub(crate) mod ops;
pub(crate) mod peers;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod table;
