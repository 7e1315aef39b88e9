//! The table of results: each figure with its limit or peer, and with the spread of equal runs.

use std::process::ExitCode;

use crate::measure::{median, percentile};

/// A line of the table. It compares medians.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// The limit or the peer, one value per run; empty if the row has none.
    pub(crate) reference: Vec<f64>,
    /// Trunkline, one value per run.
    pub(crate) measured: Vec<f64>,
    pub(crate) target: Target,
}

/// The target of a figure.
pub(crate) enum Target {
    /// No target: the figure is for comparison.
    None,
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// At least this share of the reference.
    Share(f64),
    /// At most this share of the reference.
    AtMostShare(f64),
    /// At most this much above the reference.
    AtMostAbove(f64),
}

/// All rows.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// Rows that this machine does not support, each with the reason.
    skipped: Vec<String>,
}

impl Table {
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    pub(crate) fn skip(&mut self, name: &str, reason: &dyn std::fmt::Display) {
        self.skipped.push(format!("skipped: {name}: {reason}"));
    }

    /// Prints the table; the exit code is 0 if all targets are met.
    pub(crate) fn show(&self) -> ExitCode {
        println!("| | unit | limit or peer | A/A | worker | A/A | ratio | target | |");
        println!("|---|---|---|---|---|---|---|---|---|");
        let targets = self.rows.iter().filter(|row| !matches!(row.target, Target::None)).count();
        let missed = self.rows.iter().map(Row::show).filter(|met| *met == Some(false)).count();
        self.skipped.iter().for_each(|line| println!("{line}"));
        println!("{} of {targets} targets met", targets - missed);
        ExitCode::from(u8::from(missed > 0))
    }
}

impl Row {
    /// Prints the line; returns whether the target is met, if the row has one.
    fn show(&self) -> Option<bool> {
        let worker = median(&self.measured);
        let reference = (!self.reference.is_empty()).then(|| median(&self.reference));
        let of_it = reference.map_or_else(String::new, |reference| match self.target {
            Target::AtMostAbove(_) => format!("{:+}", Figure(worker - reference)),
            _ => format!("{:.2}", worker / reference),
        });
        let reference = reference.unwrap_or(f64::NAN);
        let (target, met) = match self.target {
            Target::None => (String::new(), None),
            Target::AtLeast(least) => (format!(">= {}", Figure(least)), Some(worker >= least)),
            Target::AtMost(most) => (format!("<= {}", Figure(most)), Some(worker <= most)),
            Target::Share(share) => (format!(">= {share} of the limit"), Some(worker >= share * reference)),
            Target::AtMostShare(share) => (format!("<= {share} of the limit"), Some(worker <= share * reference)),
            Target::AtMostAbove(most) => (format!("<= +{}", Figure(most)), Some(worker - reference <= most)),
        };
        let verdict = match met {
            None => "",
            Some(true) => "met",
            Some(false) => "NOT MET",
        };
        let (left, right) = (spread(&self.reference), spread(&self.measured));
        let (left_floor, right_floor) = (floor(&self.reference), floor(&self.measured));
        println!(
            "| {:<38} | {:<13} | {left:>20} | {left_floor:>4} | {right:>20} | {right_floor:>4} | {of_it:>5} | {target:<13} | {verdict} |",
            self.name, self.unit
        );
        met
    }
}

/// The median, with the lowest and the highest value if there are several.
pub(crate) fn spread(values: &[f64]) -> String {
    match values {
        [] => String::new(),
        [one] => Figure(*one).to_string(),
        _ => format!(
            "{} ({}-{})",
            Figure(median(values)),
            Figure(percentile(values, 0.0)),
            Figure(percentile(values, 1.0))
        ),
    }
}

/// By how much the highest of several equal runs exceeds the lowest. A smaller difference between
/// two arms is not significant.
pub(crate) fn floor(values: &[f64]) -> String {
    let (low, high) = match values {
        [] | [_] => return String::new(),
        _ => (percentile(values, 0.0), percentile(values, 1.0)),
    };
    if low > 0.0 { format!("{:.0} %", (high / low - 1.0) * 100.0) } else { String::new() }
}

/// A number with its significant digits.
pub(crate) struct Figure(pub(crate) f64);

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (value, sign) = (self.0, if f.sign_plus() && self.0 >= 0.0 { "+" } else { "" });
        match value.abs() {
            size if size >= 1e6 => write!(f, "{sign}{:.2}M", value / 1e6),
            size if size >= 1e4 => write!(f, "{sign}{:.0}k", value / 1e3),
            size if size >= 20.0 || value.fract() == 0.0 => write!(f, "{sign}{value:.0}"),
            _ => write!(f, "{sign}{value:.2}"),
        }
    }
}
