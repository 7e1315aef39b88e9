//! The table of results.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline_tests::BrokerKind;

use crate::fixture::Tally;
use crate::plan::{Path, Plan};

/// One row per path, broker and fault.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<(Path, BrokerKind, usize), Row>,
    /// The commands that repeat the failed runs.
    repeat: Vec<String>,
}

struct Row {
    name: &'static str,
    passed: u64,
    failed: u64,
    skips: u64,
    skipped: Option<String>,
    tally: Tally,
}

impl Table {
    /// Adds a run.
    pub(crate) fn add(&mut self, plan: &Plan, tally: &Tally, passed: bool) {
        let row = self.row(plan);
        *(if passed { &mut row.passed } else { &mut row.failed }) += 1;
        row.tally.add(tally);
        if !passed {
            self.repeat.push(plan.command());
        }
    }

    /// Adds a run that this machine or this broker does not support.
    pub(crate) fn skip(&mut self, plan: &Plan, reason: String) {
        let row = self.row(plan);
        row.skips += 1;
        row.skipped = Some(reason);
    }

    fn row(&mut self, plan: &Plan) -> &mut Row {
        let position = crate::faults::FAULTS.iter().position(|fault| fault.name == plan.fault.name).unwrap_or_default();
        let new =
            || Row { name: plan.fault.name, passed: 0, failed: 0, skips: 0, skipped: None, tally: Tally::default() };
        self.rows.entry((plan.path, plan.broker, position)).or_insert_with(new)
    }

    /// The number of failed runs.
    pub(crate) fn failed(&self) -> u64 {
        self.rows.values().map(|row| row.failed).sum()
    }

    /// Prints the table, and the line that `tests/run` counts.
    pub(crate) fn print(&self) {
        println!(
            "\n{:<15}{:<10}{:<23}{:>5}{:>7}{:>7}{:>10}{:>20}{:>10}  verdict",
            "path", "broker", "fault", "runs", "kills", "faults", "records", "recovery med/max", "peak RSS"
        );
        for ((path, broker, _), row) in &self.rows {
            let tally = &row.tally;
            let verdict = match (&row.skipped, row.failed) {
                (Some(reason), 0) if row.passed == 0 => format!("skipped: {reason}"),
                (_, 0) => "ok".to_owned(),
                (_, failed) => format!("FAILED {failed}"),
            };
            println!(
                "{:<15}{:<10}{:<23}{:>5}{:>7}{:>7}{:>10}{:>20}{:>10}  {verdict}",
                path.to_string(),
                broker.to_string(),
                row.name,
                row.passed + row.failed,
                tally.kills,
                tally.faults,
                tally.records,
                recovery(&tally.recoveries),
                if tally.peak_rss > 0 { format!("{} MB", tally.peak_rss / 1_000_000) } else { String::new() },
            );
        }
        self.repeat.iter().for_each(|command| println!("repeat: {command}"));
        // A skipped run counts as passed, as with cargo: tests/run subtracts the lines that begin
        // with SKIP.
        let passed: u64 = self.rows.values().map(|row| row.passed + row.skips).sum();
        let verdict = if self.failed() == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored", self.failed());
    }
}

fn recovery(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(longest)) => format!("{:.1} / {:.1} s", median.as_secs_f64(), longest.as_secs_f64()),
        _ => String::new(),
    }
}
