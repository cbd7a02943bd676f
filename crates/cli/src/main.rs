//! The `metal-candle` command-line tool.

fn main() {}
