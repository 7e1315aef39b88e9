//! The last lines of a run: what it counted, what the pipelines counted since they began, and what
//! to look at.

use std::collections::BTreeMap;

use serde::Serialize;

use super::output::{print_data, print_error};
use super::{Exit, RunArgs};
use crate::worker::{PipelineSummary, RunReport, Summary};

/// The report for programs.
#[derive(Serialize)]
struct Report<'r> {
    /// Totals since each pipeline began.
    pipelines: &'r BTreeMap<String, PipelineSummary>,
    /// Counters of this run.
    run: &'r Summary,
}

/// Prints the counters to stdout, and everything that needs attention to stderr.
pub(super) fn report(args: &RunArgs, outcome: &RunReport) -> Exit {
    let printed = print_counters(args, outcome);
    let unbalanced = outcome.summary.unbalanced();
    for component in &unbalanced {
        print_error(format_args!(
            "error: the counters of {component} do not balance: records were lost or counted twice (please report this)"
        ));
    }
    print_idle_transforms(outcome);
    let dead_lettered = print_dead_letters(outcome);
    for (component, error) in &outcome.failed {
        print_error(format_args!("error: {component} stopped: {error}"));
    }
    let mut exit = if outcome.failed.is_empty() && unbalanced.is_empty() { printed } else { Exit::Runtime };
    if let Some(limit) = args.fail_on_dead_letters
        && dead_lettered >= limit
    {
        print_error(format_args!(
            "error: {dead_lettered} records went to the dead letters in this run (--fail-on-dead-letters={limit})"
        ));
        exit = Exit::Runtime;
    }
    exit
}

fn print_counters(args: &RunArgs, outcome: &RunReport) -> Exit {
    if args.json {
        return match serde_json::to_string(&Report { pipelines: &outcome.summary.pipelines, run: &outcome.run }) {
            Ok(json) => print_data(&format!("{json}\n")),
            Err(error) => {
                print_error(format_args!("error: the summary cannot be written as JSON: {error}"));
                Exit::Runtime
            }
        };
    }
    let mut text = String::new();
    for (name, run) in &outcome.run.pipelines {
        text.push_str(&format!("{name} (this run): {run}\n"));
        // In the first run the two are equal.
        if let Some(total) = outcome.summary.pipelines.get(name).filter(|total| *total != run) {
            text.push_str(&format!("{name} (since it began): {total}\n"));
        }
    }
    print_data(&text)
}

/// Transforms that select fields by name and changed no record: the names may match nothing.
fn print_idle_transforms(outcome: &RunReport) {
    for pipeline in &outcome.pipelines {
        let Some(summary) = outcome.run.pipelines.get(&pipeline.name) else { continue };
        let selecting = pipeline.transforms_with_field_names();
        for (name, component) in summary.in_order().into_iter().filter(|(name, _)| selecting.contains(name)) {
            let counters = component.counters;
            if counters.records_in > 0 && counters.unchanged == counters.records_in {
                print_error(format_args!(
                    "warning: {}.{name} matched 0 of {} records and passed all of them on unchanged; check the names of \
                     fields in its `config`",
                    pipeline.name, counters.records_in
                ));
            }
        }
    }
}

/// Names the components that dead-lettered records in this run; returns their number.
fn print_dead_letters(outcome: &RunReport) -> u64 {
    let mut total = 0;
    for pipeline in &outcome.pipelines {
        let Some(summary) = outcome.run.pipelines.get(&pipeline.name) else { continue };
        let (pipeline, topic) = (&pipeline.name, &pipeline.dead_letters);
        for (name, component) in summary.in_order() {
            let counters = component.counters;
            if counters.dead_lettered == 0 {
                continue;
            }
            total += counters.dead_lettered;
            print_error(format_args!(
                "warning: {pipeline}.{name} rejected {} of {} records: they are in the topic `{topic}`, each with its reason",
                counters.dead_lettered, counters.records_in
            ));
        }
    }
    total
}
