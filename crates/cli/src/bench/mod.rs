//! Measurements: ours, and our peers' beside them.

pub(crate) mod candle_peer;
pub(crate) mod fill;
pub(crate) mod ops;
pub(crate) mod peers;
pub(crate) mod report;
