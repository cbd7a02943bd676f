//! What was measured, for people, for documents and for programs.

use serde::Serialize;

/// Several readings of one thing: seconds, or a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Default)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// The lowest and the highest of the middle half.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Self { median: values[values.len() / 2], low: values[last / 4], high: values[last - last / 4] }
    }
}

/// Seconds an operation, by the three readings of [`metal_candle::bench`].
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) latency: Spread,
    pub(crate) throughput: Spread,
    pub(crate) chain: Option<Spread>,
}

/// A peer's times and how many times as long as ours they are: the ratio is taken round by round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Where the peer says that it ran.
    pub(crate) device: String,
    /// The greatest difference of an element from ours, relative to the greatest element.
    pub(crate) difference: f64,
    pub(crate) times: Times,
    pub(crate) ratios: Times,
}

/// What became of a peer.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Measured(Peer),
    /// Why there is no ratio.
    Refused {
        name: String,
        why: String,
    },
}

/// One case.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) op: String,
    pub(crate) shape: String,
    pub(crate) dtype: String,
    pub(crate) ours: Times,
    pub(crate) peers: Vec<Outcome>,
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) version: String,
    /// The processor, the system, threads.
    pub(crate) machine: String,
    pub(crate) device: String,
    pub(crate) rounds: usize,
    /// How every figure was synchronised, and which peers are missing and how they are installed.
    pub(crate) notes: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

fn micros(spread: Spread) -> String {
    let us = 1e6 * spread.median;
    match us {
        ..10.0 => format!("{us:.2}"),
        ..100.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

impl Report {
    fn cells(&self) -> Vec<Vec<String>> {
        let mut names: Vec<&str> = Vec::new();
        for outcome in self.rows.iter().flat_map(|row| &row.peers) {
            let (Outcome::Measured(Peer { name, .. }) | Outcome::Refused { name, .. }) = outcome;
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let mut head: Vec<String> =
            ["operation", "shape", "dtype", "latency µs", "throughput µs", "chain µs"]
                .map(str::to_owned)
                .into();
        head.extend(names.iter().map(|name| format!("{name} / ours")));
        let mut table = vec![head];
        for row in &self.rows {
            let chain = |times: &Times| times.chain.map_or_else(|| "-".to_owned(), micros);
            let mut cells = vec![row.op.clone(), row.shape.clone(), row.dtype.clone()];
            cells.extend([micros(row.ours.latency), micros(row.ours.throughput), chain(&row.ours)]);
            for name in &names {
                let cell = row.peers.iter().find_map(|outcome| match outcome {
                    Outcome::Measured(peer) if peer.name == *name => {
                        let ratio = |spread: Spread| {
                            format!("{:.2} ({:.2}-{:.2})", spread.median, spread.low, spread.high)
                        };
                        Some(ratio(peer.ratios.latency))
                    }
                    Outcome::Refused { name: found, why } if found == name => Some(why.clone()),
                    _ => None,
                });
                cells.push(cell.unwrap_or_else(|| "-".to_owned()));
            }
            table.push(cells);
        }
        table
    }

    fn head(&self) -> String {
        format!("metal-candle {} on {}, {}; {} rounds", self.version, self.device, self.machine, self.rounds)
    }

    /// A table for documents.
    pub(crate) fn markdown(&self) -> String {
        let cells = self.cells();
        let mut text = format!("{}\n\n", self.head());
        for (index, row) in cells.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if index == 0 {
                text += &format!("|{}\n", "---|".repeat(row.len()));
            }
        }
        for note in &self.notes {
            text += &format!("\n- {note}");
        }
        text + "\n"
    }

    /// A table for a terminal.
    pub(crate) fn text(&self) -> String {
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let mut text = format!("{}\n\n", self.head());
        for row in &cells {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            text += line.join("  ").trim_end();
            text.push('\n');
        }
        for note in &self.notes {
            text += &format!("\n{note}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_half_is_the_spread() {
        let spread = Spread::of(vec![9.0, 1.0, 2.0, 3.0, 100.0]);
        assert_eq!((spread.median, spread.low, spread.high), (3.0, 2.0, 9.0));
        assert_eq!(Spread::of(vec![4.0]), Spread { median: 4.0, low: 4.0, high: 4.0 });
    }
}
