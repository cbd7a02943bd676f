//! What was measured of single operations, for people, for documents and for programs.

use serde::Serialize;

use crate::bench::process::Missing;
use crate::bench::table::{Table, number};

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

    /// As a ratio with its spread.
    pub(crate) fn ratio(self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.low, self.high)
    }
}

/// Seconds an operation, by the three readings of [`metal_candle::bench`].
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) latency: Spread,
    pub(crate) throughput: Spread,
    pub(crate) chain: Option<Spread>,
}

impl Times {
    fn of(&self, reading: &str) -> Option<Spread> {
        match reading {
            "latency" => Some(self.latency),
            "throughput" => Some(self.throughput),
            _ => self.chain,
        }
    }
}

/// A peer's times and how many times as long as ours they are: the ratio is taken round by round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Where the peer says that its result is.
    pub(crate) device: String,
    /// Which of its forms was timed: the fastest.
    pub(crate) form: String,
    /// What was waited for before the clock stopped.
    pub(crate) synchronised: String,
    /// The greatest difference of an element from ours, relative to the greatest element.
    pub(crate) difference: f64,
    pub(crate) times: Times,
    pub(crate) ratios: Times,
}

/// What became of a peer.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Measured(Box<Peer>),
    /// Why there is no ratio.
    Refused {
        name: String,
        why: String,
    },
}

impl Outcome {
    fn name(&self) -> &str {
        match self {
            Self::Measured(peer) => &peer.name,
            Self::Refused { name, .. } => name,
        }
    }
}

/// One case.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) op: String,
    pub(crate) shape: String,
    pub(crate) dtype: String,
    /// Operations and bytes of one result.
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
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
    /// How our figures were synchronised, and what the columns are.
    pub(crate) notes: Vec<String>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) rows: Vec<Row>,
}

const READINGS: [(&str, &str); 3] = [
    ("latency", "one result, waited for"),
    ("throughput", "one of eight independent results, all computed"),
    ("chain", "one of eight results, each made of the one before"),
];

impl Report {
    /// The peers in the order in which they were asked for.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.rows.iter().flat_map(|row| &row.peers).map(Outcome::name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Why peers were refused, numbered as the cells refer to them.
    fn refusals(&self) -> Vec<(&str, &str)> {
        let mut list: Vec<(&str, &str)> = Vec::new();
        for outcome in self.rows.iter().flat_map(|row| &row.peers) {
            if let Outcome::Refused { name, why } = outcome
                && !list.contains(&(name, why))
            {
                list.push((name, why));
            }
        }
        list
    }

    fn table(&self, reading: &str) -> Option<Table> {
        let names = self.names();
        let refusals = self.refusals();
        let mut table = Table::new(["operation", "shape", "dtype", "ours, µs"]);
        table.columns(names.iter().map(|name| format!("{name} / ours")));
        for row in &self.rows {
            let Some(ours) = row.ours.of(reading) else { continue };
            let mut cells = vec![row.op.clone(), row.shape.clone(), row.dtype.clone()];
            cells.push(format!(
                "{} ({}-{})",
                number(1e6 * ours.median),
                number(1e6 * ours.low),
                number(1e6 * ours.high)
            ));
            for name in &names {
                cells.push(match row.peers.iter().find(|outcome| outcome.name() == *name) {
                    Some(Outcome::Measured(peer)) => {
                        peer.ratios.of(reading).map_or_else(|| "-".to_owned(), Spread::ratio)
                    }
                    Some(Outcome::Refused { name, why }) => {
                        let index = refusals.iter().position(|known| *known == (name.as_str(), why.as_str()));
                        format!("refused [{}]", index.map_or(0, |index| index + 1))
                    }
                    None => "-".to_owned(),
                });
            }
            table.row(cells);
        }
        table.filled()
    }

    /// The fastest peer of every case against ours: the geometric mean, and the case where ours stands worst.
    pub(crate) fn summary(&self, reading: &str) -> Option<String> {
        let fastest = |row: &Row| {
            let ratios = row.peers.iter().filter_map(|outcome| match outcome {
                Outcome::Measured(peer) => Some((peer.ratios.of(reading)?.median, peer.name.clone())),
                Outcome::Refused { .. } => None,
            });
            ratios.min_by(|a, b| a.0.total_cmp(&b.0))
        };
        let found: Vec<(f64, String, &Row)> =
            self.rows.iter().filter_map(|row| fastest(row).map(|(r, name)| (r, name, row))).collect();
        let (worst, name, row) = found.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        let mean = (found.iter().map(|(ratio, ..)| ratio.ln()).sum::<f64>() / found.len() as f64).exp();
        Some(format!(
            "{reading}: the fastest peer takes {mean:.2} times as long as ours in the geometric mean of {} cases; the least \
             is {worst:.2} ({name}, {} {})",
            found.len(),
            row.op,
            row.shape
        ))
    }

    fn head(&self) -> String {
        format!("metal-candle {} on {}, {}; {} rounds", self.version, self.device, self.machine, self.rounds)
    }

    /// Everything below the tables.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> =
            READINGS.iter().filter_map(|(reading, _)| self.summary(reading)).collect();
        for (index, (name, why)) in self.refusals().into_iter().enumerate() {
            notes.push(format!("[{}] {name}: {why}", index + 1));
        }
        notes.extend(self.missing.iter().map(Missing::message));
        notes.extend(self.notes.iter().cloned());
        for name in self.names() {
            let mut places: Vec<String> = Vec::new();
            for outcome in self.rows.iter().flat_map(|row| &row.peers) {
                if let Outcome::Measured(peer) = outcome
                    && peer.name == name
                {
                    let text = format!("{} ({}): {}", peer.name, peer.device, peer.synchronised);
                    if !places.contains(&text) {
                        places.push(text);
                    }
                }
            }
            notes.extend(places);
        }
        notes
    }

    /// Tables for documents.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("{}\n", self.head());
        for (reading, what) in READINGS {
            if let Some(table) = self.table(reading) {
                text += &format!("\n{reading}: {what}\n\n{}", table.markdown());
            }
        }
        for note in self.notes() {
            text += &format!("\n- {note}");
        }
        text + "\n"
    }

    /// Tables for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.head());
        for (reading, what) in READINGS {
            if let Some(table) = self.table(reading) {
                text += &format!("\n{reading}: {what}\n\n{}", table.text());
            }
        }
        for note in self.notes() {
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

    fn times(value: f64) -> Times {
        let spread = Spread::of(vec![value]);
        Times { latency: spread, throughput: spread, chain: None }
    }

    fn peer(name: &str, ratio: f64) -> Outcome {
        Outcome::Measured(Box::new(Peer {
            name: name.into(),
            device: "cpu".into(),
            form: "fused".into(),
            synchronised: "at once".into(),
            difference: 0.0,
            times: times(1e-5 * ratio),
            ratios: times(ratio),
        }))
    }

    fn report() -> Report {
        let refused = Outcome::Refused { name: "b".into(), why: "refused: too early".into() };
        let row = |op: &str, peers| Row {
            op: op.into(),
            shape: "1x4".into(),
            dtype: "f32".into(),
            flops: 8,
            bytes: 32,
            ours: times(1e-5),
            peers,
        };
        Report {
            rows: vec![
                row("x", vec![peer("a", 2.0), peer("b", 8.0)]),
                row("y", vec![peer("a", 4.5), refused]),
            ],
            missing: vec![Missing { name: "mlx", why: "no module".into(), install: Some("pip".into()) }],
            ..Report::default()
        }
    }

    #[test]
    fn the_fastest_peer_of_each_case_counts() {
        assert_eq!(
            report().summary("latency").unwrap(),
            "latency: the fastest peer takes 3.00 times as long as ours in the geometric mean of 2 cases; the least is \
             2.00 (a, x 1x4)"
        );
        assert_eq!(report().summary("chain"), None);
    }

    #[test]
    fn a_refused_peer_has_no_ratio_and_a_missing_one_its_command() {
        for text in [report().text(), report().markdown()] {
            let line = text.lines().find(|line| line.contains("refused [1]")).unwrap();
            assert!(line.contains('y') && line.contains("4.50 (4.50-4.50)"), "{line}");
            assert!(text.contains("[1] b: refused: too early"), "{text}");
            assert!(text.contains("mlx is missing (no module); install it with: pip"), "{text}");
            assert!(text.contains("a (cpu): at once"), "{text}");
            assert!(!text.contains("chain:"), "a table without a line is left out: {text}");
        }
    }
}
