//! What was measured of a whole model.

use serde::Serialize;

use crate::bench::process::Missing;
use crate::bench::report::Spread;
use crate::bench::table::{Table, number};

/// Something that takes time.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Quantity {
    pub(crate) name: &'static str,
    /// Tokens that it does.
    pub(crate) tokens: usize,
}

/// A measured peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// How it holds the weights.
    pub(crate) form: String,
    /// Where it says that it ran.
    pub(crate) device: String,
    pub(crate) synchronised: String,
    /// How its results agree with ours.
    pub(crate) agreement: String,
    /// Seconds of each quantity.
    pub(crate) seconds: Vec<Spread>,
    /// Divided by ours, round by round.
    pub(crate) ratios: Vec<Spread>,
    pub(crate) peak_bytes: Option<u64>,
}

/// What became of a peer.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Measured(Entry),
    /// Why there is no ratio.
    Refused {
        name: String,
        form: String,
        why: String,
    },
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ModelReport {
    pub(crate) version: String,
    pub(crate) machine: String,
    pub(crate) device: String,
    pub(crate) model: String,
    pub(crate) dtype: String,
    pub(crate) rounds: usize,
    pub(crate) quantities: Vec<Quantity>,
    /// Our seconds of each quantity.
    pub(crate) ours: Vec<Spread>,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) peers: Vec<Outcome>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) notes: Vec<String>,
}

impl ModelReport {
    fn table(&self) -> Table {
        let mut table = Table::new(["", "weights"]);
        for quantity in &self.quantities {
            table.columns([format!("{}, tokens/s", quantity.name), "its time / ours".to_owned()]);
        }
        table.columns(["peak memory, MiB".to_owned()]);
        let memory = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |b| (b >> 20).to_string());
        let rate = |tokens: usize, s: Spread| {
            let of = |seconds: f64| number(tokens as f64 / seconds);
            format!("{} ({}-{})", of(s.median), of(s.high), of(s.low))
        };
        let mut cells = vec!["ours".to_owned(), self.dtype.clone()];
        for (quantity, &seconds) in self.quantities.iter().zip(&self.ours) {
            cells.extend([rate(quantity.tokens, seconds), "1".to_owned()]);
        }
        cells.push(memory(self.peak_bytes));
        table.row(cells);
        for outcome in &self.peers {
            let cells = match outcome {
                Outcome::Measured(entry) => {
                    let mut cells = vec![entry.name.clone(), entry.form.clone()];
                    for ((quantity, &seconds), ratio) in
                        self.quantities.iter().zip(&entry.seconds).zip(&entry.ratios)
                    {
                        cells.extend([rate(quantity.tokens, seconds), ratio.ratio()]);
                    }
                    cells.push(memory(entry.peak_bytes));
                    cells
                }
                Outcome::Refused { name, form, .. } => {
                    let mut cells = vec![name.clone(), form.clone()];
                    self.quantities.iter().for_each(|_| cells.extend(["refused".into(), "-".into()]));
                    cells.push("-".to_owned());
                    cells
                }
            };
            table.row(cells);
        }
        table
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for outcome in &self.peers {
            notes.push(match outcome {
                Outcome::Measured(entry) => format!(
                    "{} ({}, {}): {}; {}",
                    entry.name, entry.device, entry.form, entry.agreement, entry.synchronised
                ),
                Outcome::Refused { name, why, .. } => format!("{name}: {why}"),
            });
        }
        notes.extend(self.missing.iter().map(Missing::message));
        notes.extend(self.notes.iter().cloned());
        notes
    }

    /// For documents, or for a terminal.
    pub(crate) fn show(&self, markdown: bool) -> String {
        let (table, item) =
            if markdown { (self.table().markdown(), "- ") } else { (self.table().text(), "") };
        let mut text = format!(
            "metal-candle {} on {}, {}; {}; {} rounds\n\n{table}",
            self.version, self.device, self.machine, self.model, self.rounds
        );
        for note in self.notes() {
            text += &format!("\n{item}{note}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_tokens_over_seconds_and_a_refused_peer_has_none() {
        let spread = |median| Spread { median, low: median / 2.0, high: median * 2.0 };
        let entry = Entry {
            name: "torch".into(),
            form: "f32".into(),
            device: "cpu".into(),
            synchronised: "at the end".into(),
            agreement: "equal".into(),
            seconds: vec![spread(4.0)],
            ratios: vec![spread(2.0)],
            peak_bytes: Some(3 << 20),
        };
        let refused = Outcome::Refused { name: "mlx".into(), form: "f32".into(), why: "refused: NaN".into() };
        let report = ModelReport {
            version: "2".into(),
            machine: "m".into(),
            device: "cpu".into(),
            model: "tiny".into(),
            dtype: "f32".into(),
            rounds: 1,
            quantities: vec![Quantity { name: "step", tokens: 512 }],
            ours: vec![spread(2.0)],
            peak_bytes: None,
            peers: vec![Outcome::Measured(entry), refused],
            missing: Vec::new(),
            notes: vec!["how".into()],
        };
        let text = report.show(true);
        assert!(text.contains("| ours | f32 | 256 (128-512) | 1 | - |"), "{text}");
        assert!(text.contains("| torch | f32 | 128 (64.0-256) | 2.00 (1.00-4.00) | 3 |"), "{text}");
        assert!(
            text.contains("| mlx | f32 | refused | - | - |") && text.contains("- mlx: refused: NaN"),
            "{text}"
        );
    }
}
