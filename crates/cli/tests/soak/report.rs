//! What a soak did and found, as a table.

use std::collections::BTreeMap;

use crate::flat::Series;

/// Findings shown in full; the rest is counted.
const SHOWN: usize = 20;

#[derive(Default)]
pub(crate) struct Report {
    counts: BTreeMap<&'static str, u64>,
    pub(crate) findings: Vec<String>,
}

impl Report {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn finding(&mut self, text: String) {
        println!("FINDING {text}");
        self.findings.push(text);
    }

    /// Judges the series and prints everything.
    pub(crate) fn close(&mut self, series: &[&Series]) {
        println!("\n| what | count |\n|---|---|");
        for (what, count) in &self.counts {
            println!("| {what} | {count} |");
        }
        println!("\n| quantity | samples | at first | at last | slope a round | rise | bound | |");
        println!("|---|---|---|---|---|---|---|---|");
        for series in series {
            let samples = series.values.len();
            let Some(trend) = series.trend() else {
                println!("| {} | {samples} | too few samples to judge | | | | | |", series.name);
                continue;
            };
            let verdict = if trend.is_flat() { "flat" } else { "RISES" };
            println!(
                "| {}, {} | {samples} | {:.0} | {:.0} | {:.3} | {:.1} | {:.1} | {verdict} |",
                series.name, series.unit, trend.first, trend.last, trend.slope, trend.rise, trend.bound
            );
            if !trend.is_flat() {
                self.findings.push(format!("{} rises by {:.1} {}", series.name, trend.rise, series.unit));
            }
        }
        println!("\n{} findings", self.findings.len());
        for finding in self.findings.iter().take(SHOWN) {
            println!("- {finding}");
        }
    }
}
