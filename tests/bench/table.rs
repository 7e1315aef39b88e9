//! The one table that the benchmarks end in: each figure beside what it is held against, and beside how far apart equal runs are.

use std::process::ExitCode;

use crate::measure::{median, percentile};

/// A line of the table. The medians are compared.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// The limit or the peer, one value a run; empty where there is none.
    pub(crate) beside: Vec<f64>,
    /// Trunkline, one value a run.
    pub(crate) measured: Vec<f64>,
    pub(crate) demand: Demand,
}

/// What is demanded of what was measured.
pub(crate) enum Demand {
    /// Nothing: it is told for comparison.
    None,
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
    /// At least this share of what stands beside it.
    Share(f64),
    /// At most so much more than what stands beside it.
    MostMore(f64),
}

/// What came of the rows.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// Rows that this machine cannot have, each with the reason.
    skipped: Vec<String>,
}

impl Table {
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    pub(crate) fn skip(&mut self, name: &str, reason: &dyn std::fmt::Display) {
        self.skipped.push(format!("skipped: {name}: {reason}"));
    }

    /// Prints it; the exit code says whether all demands are met.
    pub(crate) fn show(&self) -> ExitCode {
        println!("| | unit | limit or peer | A/A | worker | A/A | of it | demanded | |");
        println!("|---|---|---|---|---|---|---|---|---|");
        let demands = self.rows.iter().filter(|row| !matches!(row.demand, Demand::None)).count();
        let missed = self.rows.iter().map(Row::show).filter(|met| *met == Some(false)).count();
        self.skipped.iter().for_each(|line| println!("{line}"));
        println!("{} of {demands} demands met", demands - missed);
        ExitCode::from(u8::from(missed > 0))
    }
}

impl Row {
    /// Prints the line; whether the demand is met, if there is one.
    fn show(&self) -> Option<bool> {
        let worker = median(&self.measured);
        let beside = (!self.beside.is_empty()).then(|| median(&self.beside));
        let of_it = beside.map_or_else(String::new, |beside| match self.demand {
            Demand::MostMore(_) => format!("{:+}", Figure(worker - beside)),
            _ => format!("{:.2}", worker / beside),
        });
        let beside = beside.unwrap_or(f64::NAN);
        let (demanded, met) = match self.demand {
            Demand::None => (String::new(), None),
            Demand::Least(least) => (format!(">= {}", Figure(least)), Some(worker >= least)),
            Demand::Most(most) => (format!("<= {}", Figure(most)), Some(worker <= most)),
            Demand::Share(share) => (format!(">= {share} of it"), Some(worker >= share * beside)),
            Demand::MostMore(most) => (format!("<= +{}", Figure(most)), Some(worker - beside <= most)),
        };
        let verdict = match met {
            None => "",
            Some(true) => "met",
            Some(false) => "NOT MET",
        };
        let (left, right) = (spread(&self.beside), spread(&self.measured));
        let (left_floor, right_floor) = (floor(&self.beside), floor(&self.measured));
        println!(
            "| {:<38} | {:<13} | {left:>20} | {left_floor:>4} | {right:>20} | {right_floor:>4} | {of_it:>5} | {demanded:<13} | {verdict} |",
            self.name, self.unit
        );
        met
    }
}

/// The median, and the lowest and the highest where there are several.
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

/// By how much the highest of several equal runs passes the lowest: a difference between two arms that is no greater says nothing.
pub(crate) fn floor(values: &[f64]) -> String {
    let (low, high) = match values {
        [] | [_] => return String::new(),
        _ => (percentile(values, 0.0), percentile(values, 1.0)),
    };
    if low > 0.0 { format!("{:.0} %", (high / low - 1.0) * 100.0) } else { String::new() }
}

/// A number with as many digits as it deserves.
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
