//! Traces one record: what today's transforms make of it in each stage that reads its topic, and
//! where it ended.

use serde::Serialize;
use trunkline_connector::{Batch, Error, RecordRef, Rejections, Result};
use trunkline_transform_host::StateStore;

use crate::plan::{Input, Route, Step, TransformPlan};
use crate::record_tests::{ExpectedRecord, TestRecord, difference};
use crate::stage::LookupTable;

/// The path of a record through one stage.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageTrace {
    /// The stage, as `pipeline.component`.
    pub component: String,
    /// Its kind.
    pub kind: &'static str,
    /// What each transform makes of the record, in order.
    pub steps: Vec<StepTrace>,
    /// Number of records that the sink receives, or that the transform writes.
    pub results: u64,
    /// The committed offset of the stage.
    pub committed: Option<i64>,
    /// The stage has processed the record: its committed offset is after it.
    pub is_processed: bool,
    /// Files of the sink whose offsets include the record.
    pub files: Vec<String>,
    /// Tables with rows of the record, each with the number of these rows. `None`: the sink writes
    /// no rows that name their records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<(String, u64)>>,
    /// What the destination has of each result of the record. `None`: the sink cannot look it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<Vec<String>>,
    /// Dead letters of the record.
    pub dead_letters: Vec<LetterTrace>,
}

/// What a transform makes of a record: one entry for each record that it outputs, or one entry if
/// it outputs none.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepTrace {
    /// The transform.
    pub transform: String,
    /// The verdict: `passed`, `changed`, `dropped` or `rejected`.
    pub verdict: &'static str,
    /// The output port, unless it is the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The error code and the message of a rejection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<(String, String)>,
    /// The lines of the difference between input and output: `-` is the input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

/// A dead letter of the record.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct LetterTrace {
    /// The component that rejected the record.
    pub component: String,
    /// Its partition in the topic of dead letters.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// The error code.
    pub code: String,
    /// The reason.
    pub message: String,
    /// The run that rejected it, if it was a replay.
    pub replay: Option<String>,
    /// It was returned to its topic.
    pub is_redriven: bool,
}

impl StageTrace {
    /// Runs the record through the fused transforms of the inputs that select its topic, and then
    /// through `own`, the transform of the stage itself, with its table. The records that a sink
    /// receives are added to `results`.
    pub fn run(
        &mut self,
        inputs: &[Input],
        mut own: Option<(&TransformPlan, Option<LookupTable>)>,
        record: RecordRef<'_>,
        results: &mut Batch,
    ) -> Result<()> {
        if let Some(input) = inputs.iter().find(|input| input.topics.selects(record.topic())) {
            self.results += follow(&input.route, &mut own, record, &mut self.steps, results)?;
        }
        Ok(())
    }
}

/// Follows a record along a route. Returns the number of records that reach its end.
fn follow(
    route: &Route,
    own: &mut Option<(&TransformPlan, Option<LookupTable>)>,
    record: RecordRef<'_>,
    steps: &mut Vec<StepTrace>,
    delivered: &mut Batch,
) -> Result<u64> {
    let mut results = match own {
        _ if !route.deliver => 0,
        Some((plan, table)) => {
            let mut empty = plan.state.map(|limit| StateStore::new(limit.max_bytes));
            let state = table.as_mut().map(LookupTable::store).or(empty.as_mut());
            apply(&plan.step, state, record, steps)?.len() as u64
        }
        None => {
            delivered.push_copy(record);
            1
        }
    };
    for branch in &route.branches {
        for output in apply(&branch.step, None, record, steps)?.iter() {
            for (_, next) in branch.outputs.iter().filter(|(port, _)| *port == output.entry().port) {
                results += follow(next, own, output, steps, delivered)?;
            }
        }
    }
    Ok(results)
}

/// The output of a transform, which is started for this record. If it keeps state, `state` is
/// empty.
fn apply(
    step: &Step,
    state: Option<&mut StateStore>,
    record: RecordRef<'_>,
    steps: &mut Vec<StepTrace>,
) -> Result<Batch> {
    let in_transform = |error: Error| error.context(format!("transform `{}`", step.component));
    let mut instance = step
        .plugin
        .start(&step.config, &step.limits)
        .map_err(|error| in_transform(Error::config("plugin.init", error.message)))?;
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    batch.push_copy(record);
    match state {
        Some(state) => instance.process_with_state(&mut batch, &mut rejected, state),
        None => instance.process(&mut batch, &mut rejected),
    }
    .map_err(in_transform)?;
    let entry = |verdict| StepTrace { transform: step.component.clone(), verdict, ..StepTrace::default() };
    if let Some((_, reason)) = rejected.iter().next() {
        let rejection = Some((reason.code.clone(), reason.message.clone()));
        steps.push(StepTrace { rejection, ..entry("rejected") });
    } else if batch.is_empty() {
        steps.push(entry("dropped"));
    }
    for output in batch.iter() {
        let port = step.ports.get(usize::from(output.entry().port)).filter(|_| output.entry().port > 0).cloned();
        let changes = changes(record, output);
        let verdict = if changes.is_empty() { "passed" } else { "changed" };
        steps.push(StepTrace { port, changes, ..entry(verdict) });
    }
    Ok(batch)
}

/// The lines of the difference between two records.
fn changes(before: RecordRef<'_>, after: RecordRef<'_>) -> Vec<String> {
    let part = |record| ExpectedRecord { parts: TestRecord::of(record).parts(), ..ExpectedRecord::default() };
    let (mut before, mut after) = (part(before), part(after));
    // Parts that one of them does not have are a part of the difference.
    let names: Vec<&'static str> = before.parts.keys().chain(after.parts.keys()).copied().collect();
    for parts in [&mut before.parts, &mut after.parts] {
        for name in &names {
            parts.entry(name).or_insert_with(|| "null".to_owned());
        }
    }
    if before.parts == after.parts {
        return Vec::new();
    }
    difference(&[before], &[after]).lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::testing::pipeline;

    #[test]
    fn each_transform_has_a_verdict_and_its_changes() {
        let inputs = &pipeline().1.sinks[0].inputs;
        let trace = |value: &str| {
            let mut batch = Batch::default();
            let topic = batch.topic_index("t");
            let mut record = batch.record();
            record.read_from(topic, 0, 5).value(value.as_bytes());
            record.finish();
            let mut trace = StageTrace::default();
            let mut results = Batch::default();
            trace.run(inputs, None, batch.get(0), &mut results).unwrap();
            assert_eq!(results.len() as u64, trace.results);
            let verdicts: Vec<(String, &str)> =
                trace.steps.iter().map(|step| (step.transform.clone(), step.verdict)).collect();
            (trace, verdicts)
        };
        let named = |verdicts: &[(&str, &'static str)]| -> Vec<(String, &'static str)> {
            verdicts.iter().map(|(name, verdict)| ((*name).to_owned(), *verdict)).collect()
        };

        let (masked, verdicts) = trace(r#"{"id":1,"card":"4111"}"#);
        assert_eq!((verdicts, masked.results), (named(&[("positive", "passed"), ("mask", "changed")]), 1));
        let changed: Vec<&str> = masked.steps[1]
            .changes
            .iter()
            .map(|line| line.trim())
            .filter(|line| line.starts_with(['-', '+']))
            .collect();
        assert_eq!(changed, [r#"-     "card": "4111""#, r#"+     "card": "***""#]);

        let (dropped, verdicts) = trace(r#"{"id":-1}"#);
        assert_eq!((verdicts, dropped.results), (named(&[("positive", "dropped")]), 0));

        let (rejected, verdicts) = trace(r#"{"id":"one"}"#);
        assert_eq!((verdicts, rejected.results), (named(&[("positive", "rejected")]), 0));
        assert_eq!(rejected.steps[0].rejection.as_ref().unwrap().0, "filter.condition");
    }
}
