//! Shows what today's transforms make of past records: reads a range without a group, runs its
//! records through the transforms of a sink or of a separate transform, and passes each result as a
//! line of JSON.
//! Nothing is committed and nothing is written.

use std::ops::ControlFlow;

use trunkline_connector::{Batch, Reason, RecordRef, Result, TopicPartition};

use super::run::PartitionRange;
use crate::condition::Condition;
use crate::dead_letters::Failed;
use crate::kafka::{Cluster, topic_reader};
use crate::record_tests::TestRecord;
use crate::stage::InspectedStage;

/// Records and bytes that pass the transforms at once. Fewer than the first are read at once if
/// fewer lines are left, but not fewer than the second: a condition may select few of them.
const BATCH_RECORDS: usize = 1_000;
const SMALL_BATCH_RECORDS: usize = 50;
const BATCH_BYTES: usize = 1 << 20;

/// See the module's header.
pub struct Inspection {
    stage: InspectedStage,
    condition: Option<Condition>,
    /// Lines that are left; no limit if `None`.
    left: Option<u64>,
    /// Records that were read.
    pub read: u64,
    /// Results that were passed.
    pub passed: u64,
    /// Rejected records that were passed.
    pub rejected: u64,
}

impl Inspection {
    /// An inspection that passes at most `limit` lines.
    pub fn new(stage: InspectedStage, condition: Option<Condition>, limit: Option<u64>) -> Self {
        Self { stage, condition, left: limit, read: 0, passed: 0, rejected: 0 }
    }

    /// Reads the ranges, partition by partition, until `each` breaks or the limit is reached. With
    /// `failed`, only its records are read.
    pub fn run(
        &mut self,
        cluster: &Cluster,
        ranges: &[PartitionRange],
        failed: Option<&Failed>,
        each: &mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        for range in ranges {
            let (partition, ends) = (range.topic_partition(), (range.from, range.to));
            let mut batch = Batch::default();
            let mut flow = self.flow();
            if flow.is_break() {
                return Ok(());
            }
            topic_reader::scan_range_until(cluster, &range.topic, range.partition, ends, &mut |record| {
                if failed.is_none_or(|failed| failed.contains(&partition, record.entry().offset)) {
                    batch.push_copy(record);
                }
                if batch.len() >= self.batch_records() || batch.bytes() >= BATCH_BYTES {
                    flow = self.process(&partition, &mut batch, each)?;
                }
                Ok(flow)
            })?;
            if flow.is_continue() {
                flow = self.process(&partition, &mut batch, each)?;
            }
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the limit ended it.
    pub fn is_limited(&self) -> bool {
        self.left == Some(0)
    }

    /// What was not passed, one line each.
    pub fn notes(&self) -> Vec<String> {
        let dropped = self.stage.dropped();
        let mut notes: Vec<String> =
            dropped.map(|(component, dropped)| format!("{dropped} dropped by the transform `{component}`")).collect();
        notes.extend(self.condition.as_ref().and_then(Condition::note));
        notes
    }

    fn batch_records(&self) -> usize {
        let left = self.left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX);
        left.clamp(SMALL_BATCH_RECORDS, BATCH_RECORDS)
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.is_limited() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Passes the results of a batch in the order of their offsets, and clears it.
    fn process(
        &mut self,
        partition: &TopicPartition,
        batch: &mut Batch,
        each: &mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        if batch.is_empty() {
            return Ok(self.flow());
        }
        self.read += batch.len() as u64;
        let mut lines: Vec<(i64, bool, String)> = Vec::new();
        let condition = &mut self.condition;
        let mut results = Batch::default();
        self.stage.process(partition, batch, &mut |out| {
            if let Some(condition) = condition {
                condition.retain(out)?;
            }
            out.iter().for_each(|record| results.push_copy(record));
            Ok(())
        })?;
        for record in results.iter() {
            let topic = self.stage.topic_of(record);
            lines.push((record.entry().offset, false, result_line(record, topic.as_deref())));
        }
        for (component, record, reason) in self.stage.rejected() {
            if self.condition.as_mut().map_or(Ok(true), |condition| condition.holds(record))? {
                lines.push((record.entry().offset, true, line(record, Some((component, reason)))));
            }
        }
        batch.clear();
        lines.sort_by_key(|(offset, ..)| *offset);
        for (_, is_rejected, line) in lines {
            if self.is_limited() {
                break;
            }
            if each(&line)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.passed += u64::from(!is_rejected);
            self.rejected += u64::from(is_rejected);
            self.left = self.left.map(|left| left - 1);
        }
        Ok(self.flow())
    }
}

/// A record as a line of JSON, in the form of the records in tests.
pub fn line(record: RecordRef<'_>, rejection: Option<(&str, &Reason)>) -> String {
    match rejection {
        Some((component, Reason { code, message, .. })) => {
            line_with(record, &[("rejected", code), ("component", component), ("message", message)])
        }
        None => line_with(record, &[]),
    }
}

/// The same for a result, with the topic that a separate transform would write it to.
fn result_line(record: RecordRef<'_>, written_to: Option<&str>) -> String {
    match written_to {
        Some(topic) => line_with(record, &[("written_to", topic)]),
        None => line_with(record, &[]),
    }
}

fn line_with(record: RecordRef<'_>, more: &[(&str, &str)]) -> String {
    let (entry, text) = (record.entry(), |text: &str| serde_json::Value::from(text).to_string());
    let mut members = vec![
        format!("\"topic\":{}", text(record.topic())),
        format!("\"partition\":{}", entry.partition),
        format!("\"offset\":{}", entry.offset),
    ];
    members.extend(more.iter().map(|(name, value)| format!("\"{name}\":{}", text(value))));
    let parts = TestRecord::of(record).parts();
    let present =
        ["timestamp", "key", "value", "headers"].into_iter().filter_map(|name| Some((name, parts.get(name)?)));
    members.extend(present.map(|(name, json)| format!("\"{name}\":{json}")));
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::testing::pipeline;

    fn records(values: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for (value, offset) in values.iter().zip(5..) {
            let topic = batch.topic_index("t");
            let mut record = batch.record();
            record.read_from(topic, 3, offset).timestamp(7).value(value.as_bytes());
            record.finish();
        }
        batch
    }

    const VALUES: [&str; 5] = [
        r#"{"id":1,"card":"4111"}"#,
        r#"{"id":-1}"#,
        r#"{"id":"one"}"#,
        r#"{"id":2,"price":1.10}"#,
        r#"{"id":3,"price":9.99}"#,
    ];

    #[test]
    fn results_have_their_offset_and_rejections_their_reason() {
        let (host, pipeline) = pipeline();
        let sink = &pipeline.sinks[0];
        let lines = |condition: Option<&str>, limit| {
            let condition = condition.map(|text| Condition::compile(host, text).unwrap());
            let mut inspection = Inspection::new(InspectedStage::of_sink(sink).unwrap(), condition, limit);
            let mut lines = Vec::new();
            let topic = TopicPartition::new("t", 3);
            let mut each = |line: &str| {
                lines.push(line.to_owned());
                Ok(ControlFlow::Continue(()))
            };
            let flow = inspection.process(&topic, &mut records(&VALUES), &mut each).unwrap();
            (lines, inspection.notes(), flow.is_break())
        };
        let (all, notes, is_ended) = lines(None, None);
        assert_eq!(all.len(), 4, "{all:?}");
        assert_eq!(all[0], r#"{"topic":"t","partition":3,"offset":5,"timestamp":7,"value":{"id":1,"card":"***"}}"#);
        // The transform would stop the live sink here.
        assert!(all[1].starts_with(r#"{"topic":"t","partition":3,"offset":7,"rejected":"filter.condition","component":"positive","message":"#), "{}", all[1]);
        assert!(all[2].contains(r#""offset":8"#) && all[3].contains(r#""price":9.99"#), "{all:?}");
        assert_eq!((notes, is_ended), (vec!["1 dropped by the transform `positive`".to_owned()], false));

        let (limited, _, is_ended) = lines(None, Some(2));
        assert_eq!((&limited[..], is_ended), (&all[..2], true));

        let (chosen, notes, _) = lines(Some("value.price > 1.1"), None);
        assert_eq!(chosen, all[3..], "decimals are exact");
        assert!(notes[1].starts_with("2 for which --where is neither true nor false"), "{notes:?}");
        // The condition applies to rejected records, too.
        assert_eq!(lines(Some("value.id = 'one'"), None).0, all[1..2]);
    }

    #[test]
    fn an_error_in_a_condition_has_its_column() {
        for (expression, column) in [("value.id == 1 && id == 2", 18), ("value.id = 1 && id = 2", 17)] {
            let error = Condition::compile(&pipeline().0, expression).err().unwrap();
            assert_eq!(error.code, "replay.bad_where");
            assert!(error.to_string().contains(&format!("column {column}")), "{error}");
        }
    }
}
