//! `trunkline replay --to-stdout`: prints what the transforms make of past records.

use std::io::{ErrorKind, Write as _, stdout};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use trunkline_connector::{Result, io_error};

use super::super::dlq::connect;
use super::super::output::{Exit, print_error};
use super::super::record::record_reading;
use super::super::selection;
use super::plan::{Replay, range};
use super::target::{Choice, Refusal, host};
use super::transform::TransformChoice;
use crate::condition::Condition;
use crate::dead_letters::Failed;
use crate::kafka::Cluster;
use crate::plan::Input;
use crate::replay::inspection::Inspection;
use crate::replay::run::PartitionRange;
use crate::stage::InspectedStage;

/// A stage whose results are printed.
struct Inspected {
    cluster: Cluster,
    failed: Option<Failed>,
    stage: InspectedStage,
    name: String,
    inputs: Vec<Input>,
}

impl Replay<'_> {
    /// Prints what the transforms make of the records in the range.
    pub(super) fn inspect(&self) -> Result<Exit, Refusal> {
        let request = self.request()?;
        let file = request.pipeline_file.as_deref();
        let host = host(self.settings)?;
        let condition = self.args.condition.as_ref().map(|text| Condition::compile(&host, text)).transpose()?;
        let (pipeline, into) = (self.pipeline, "");
        let inspected = match self.args.transform.as_deref() {
            Some(transform) => {
                let choice = TransformChoice { pipeline, transform, into, file, appends: false };
                let (pipeline, plan) = choice.plan(self.pipelines, self.settings)?;
                let cluster = connect(self.settings)?;
                let failed = self.failed_of_transform(&cluster, &pipeline, &plan, &request)?;
                let stage = InspectedStage::of_transform(&plan, &cluster)?;
                Inspected { cluster, failed, stage, name: plan.name, inputs: plan.inputs }
            }
            None => {
                let choice = Choice { pipeline, sink: self.args.sink.as_deref(), into, file, supersede: false };
                let (live, pipeline) = choice.pipelines(self.pipelines, self.settings)?;
                let sink = selection::sink(&pipeline, Some(&live.name))?.clone();
                let cluster = connect(self.settings)?;
                let stages = [live, &sink].map(|sink| (sink.name.as_str(), sink.inputs.as_slice()));
                let failed = self.failed(&cluster, &pipeline, &stages, &request)?;
                let stage = InspectedStage::of_sink(&sink)?;
                Inspected { cluster, failed, stage, name: sink.name, inputs: sink.inputs }
            }
        };
        let Inspected { cluster, failed, stage, name, inputs } = inspected;
        let (_, ranges, notes) = self.ranges(&cluster, pipeline, (&name, &inputs), &request, failed.as_ref())?;
        notes.iter().for_each(|note| print_error(format_args!("{note}")));
        let arguments = json!({
            "pipeline": pipeline, "sink": name, "transform": self.args.transform.is_some(), "request": request,
            "where": self.args.condition, "limit": self.args.limit,
        });
        record_reading(&cluster, self.settings, "replay --to-stdout", arguments)?;
        let ranges: Vec<PartitionRange> = ranges.into_iter().map(range).collect();
        let mut inspection = Inspection::new(stage, condition, self.args.limit);
        Ok(print_records(&mut inspection, &cluster, &ranges, failed.as_ref())?)
    }
}

/// Prints a line for each record on stdout, and the other counts on stderr. A reader of stdout that
/// has gone ends it.
fn print_records(
    inspection: &mut Inspection,
    cluster: &Cluster,
    ranges: &[PartitionRange],
    failed: Option<&Failed>,
) -> Result<Exit> {
    inspection.run(
        cluster,
        ranges,
        failed,
        &mut |line| match stdout().lock().write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(io_error("write", Path::new("stdout"), &error)),
        },
    )?;
    let end = if inspection.is_limited() { "; --limit ended it" } else { "" };
    print_error(format_args!(
        "{} records read; {} results and {} rejected records printed{end}",
        inspection.read, inspection.passed, inspection.rejected
    ));
    inspection.notes().iter().for_each(|note| print_error(format_args!("{note}")));
    Ok(Exit::Ok)
}
