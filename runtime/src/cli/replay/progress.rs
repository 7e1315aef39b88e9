//! The progress and the result of a replay: a line that is rewritten on a terminal, lines of JSON,
//! or nothing but the result.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use serde_json::json;
use trunkline_connector::Result;

use super::super::output::{Exit, print_data, print_error};
use crate::kafka::Cluster;
use crate::replay::execution::{Progress, Watch};
use crate::replay::run::{Run, RunState, Step, Superseding};
use crate::units::counted;

/// See the module's header.
pub(super) struct Reporter {
    id: String,
    as_json: bool,
    is_terminal: bool,
    /// The first progress of this process, and its time.
    first: Option<(Instant, u64)>,
    last: Progress,
}

impl Reporter {
    pub(super) fn new(run: &Run, as_json: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal() && !as_json;
        Self { id: run.id.clone(), as_json, is_terminal, first: None, last: Progress::default() }
    }

    pub(super) fn begin(&self, run: &Run) {
        print_error(format_args!(
            "run {}: {}.{} into {}; it survives kill -9, and the same command or `--resume {}` continues it",
            run.id, run.pipeline, run.sink, run.destination, run.id
        ));
    }

    pub(super) fn joined(&self, run: &Run) {
        print_error(format_args!(
            "run {}: helping to process {}.{} into {}; this process may end at any time, and the others continue",
            run.id, run.pipeline, run.sink, run.destination
        ));
    }

    /// Reports that this process has left a run that is not finished.
    pub(super) fn left(&self, run: &Run, is_processed: bool) -> Exit {
        self.end_line();
        let note = match is_processed {
            true => "the range is processed; the command that executes the run replaces the output now",
            false => "this process has left the run",
        };
        if self.as_json {
            return print_data(&format!("{}\n", json!({ "run": run.id, "state": run.state.name(), "left": true })));
        }
        print_error(format_args!("run {}: {note}", run.id));
        Exit::Ok
    }

    /// Reports that the run waits.
    pub(super) fn paused(&self) {
        if self.as_json {
            // A reader that has gone does not end the run.
            let _ = print_data(&format!("{}\n", json!({ "run": self.id, "state": "paused" })));
        } else {
            self.end_line();
            print_error(format_args!("run {0} is paused; `trunkline runs resume {0}` continues it", self.id));
        }
    }

    /// Reports that the range is processed, and that output is replaced now.
    pub(super) fn publishing(&self) {
        if self.as_json {
            // A reader that has gone does not end the run.
            let _ = print_data(&format!("{}\n", json!({ "run": self.id, "state": "publishing" })));
        } else {
            self.end_line();
            print_error(format_args!("run {}: all new output is prepared; it replaces the earlier one now", self.id));
        }
    }

    fn end_line(&self) {
        if self.is_terminal && self.first.is_some() {
            print_error(format_args!(""));
        }
    }

    /// Shows a progress that has changed.
    pub(super) fn progress(&mut self, progress: &Progress) {
        if *progress == self.last {
            return;
        }
        let (since, begun) = *self.first.get_or_insert((Instant::now(), progress.done));
        self.last = progress.clone();
        let seconds = since.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { (progress.done - begun.min(progress.done)) as f64 / seconds } else { 0.0 };
        let left = (progress.total - progress.done) as f64;
        let eta = (rate > 0.0).then(|| (left / rate) as u64);
        if self.as_json {
            // A reader that has gone does not end the run.
            let _ = print_data(&format!(
                "{}\n",
                json!({
                    "run": self.id, "state": "running", "offsets_done": progress.done, "offsets_total": progress.total,
                    "offsets_per_second": rate as u64, "seconds_left": eta, "counters": progress.counters,
                })
            ));
        } else if self.is_terminal {
            let left = eta.map_or_else(String::new, |eta| format!(", {eta} s left"));
            // Nothing can be reported when stderr fails.
            let _ = write!(
                std::io::stderr().lock(),
                "\r\x1b[K{}% ({} of {} offsets, {rate:.0}/s{left})",
                progress.done * 100 / progress.total.max(1),
                progress.done,
                progress.total
            );
        }
    }

    /// Prints the result.
    pub(super) fn end(&self, cluster: &Cluster, cluster_name: &str, run: &Run) -> Result<Exit> {
        self.end_line();
        let watch = Watch::new(cluster, cluster_name, run)?;
        let (progress, counters) = (watch.read()?, watch.counters()?);
        let unbalanced: Vec<&str> =
            counters.0.iter().filter(|(_, counted)| !counted.balanced()).map(|(name, _)| name.as_str()).collect();
        let own = progress.counters;
        let printed = if self.as_json {
            print_data(&format!(
                "{}\n",
                json!({
                    "run": run.id, "state": run.state.name(), "error": run.error, "offsets_done": progress.done,
                    "offsets_total": progress.total, "counters": own, "components": counters.0,
                    "supersede": run.supersede,
                })
            ))
        } else {
            print_data(&format!(
                "run {} {}: {} in, {} out, {} dropped, {} dead-lettered, into {}\n",
                run.id,
                run.state.name(),
                own.records_in,
                own.out,
                own.dropped,
                own.dead_lettered,
                run.destination
            ))
        };
        if let Some(superseding) = &run.supersede {
            print_error(format_args!("{}", replaced(run, superseding)));
        }
        for component in &unbalanced {
            print_error(format_args!(
                "error: the counters of {component} do not balance: records were lost or counted twice (please report this)"
            ));
        }
        if let Some(error) = &run.error {
            print_error(format_args!("error: {error}"));
        }
        Ok(if run.state == RunState::Finished && unbalanced.is_empty() { printed } else { Exit::Runtime })
    }
}

/// How far a run is with the output that it replaces, in one line.
pub(in crate::cli) fn replaced(run: &Run, superseding: &Superseding) -> String {
    let resume = format!("`trunkline replay PIPELINES {} --resume {}`", run.pipeline, run.id);
    let files = superseding.files;
    let overlap = superseding.overlap().unwrap_or(0);
    if let Some(rows) = superseding.rows {
        let rows = counted(rows as usize, "row");
        return match superseding.step {
            Step::Staging => "no row was replaced: new rows are staged, and nothing is visible".to_owned(),
            Step::Publishing => {
                format!("{rows} are replaced in one transaction, which is done or not: complete the run with {resume}")
            }
            Step::Removing => {
                format!("{rows} were replaced: complete the run with {resume}")
            }
            Step::Done => format!("{rows} replaced in one transaction"),
        };
    }
    match superseding.step {
        Step::Staging => "no file was replaced: new files are prepared, and nothing is visible".to_owned(),
        Step::Publishing | Step::Removing => {
            format!("readers may see {files} earlier files and the new ones: complete the run with {resume}")
        }
        Step::Done => format!("{files} files replaced; readers may have seen earlier and new files for {overlap} ms"),
    }
}
