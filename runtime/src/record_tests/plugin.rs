//! Runs test records through one plugin.

use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Instance, StateStore};

use super::record::{ExpectedRecord, TestRecord};

/// Limit on the state in tests.
const MAX_STATE_BYTES: usize = 64 << 20;

/// The output of records: first those that the plugin outputs, then the rejected ones. The state is
/// empty before. `advance_to`: the event time up to which timers fire after the records.
pub fn run_plugin(
    instance: &mut Instance,
    records: &[TestRecord],
    advance_to: Option<i64>,
) -> Result<Vec<ExpectedRecord>, String> {
    let mut batch = Batch::default();
    for (record, index) in records.iter().zip(0..) {
        record.push_to(&mut batch, "test", index);
    }
    let mut rejected = Rejections::default();
    let mut state = instance.plugin().uses_state().then(|| StateStore::new(MAX_STATE_BYTES));
    let processed = match &mut state {
        Some(state) => instance.process_with_state(&mut batch, &mut rejected, state),
        None => instance.process(&mut batch, &mut rejected),
    };
    processed.map_err(|error| error.to_string())?;
    let mut last = Batch::default();
    if let (Some(to), Some(state)) = (advance_to, &mut state) {
        let advanced = instance.advance_time(to, "test", 0, &mut last, &mut rejected, state);
        advanced.map_err(|error| error.to_string())?;
    }
    let ports = instance.ports();
    let output = batch.iter().chain(last.iter()).map(|record| ExpectedRecord {
        output: ports.get(usize::from(record.entry().port)).cloned(),
        rejected: None,
        parts: TestRecord::of(record).parts(),
    });
    let rejected = rejected.iter().map(|(record, reason)| {
        let mut parts = TestRecord::of(record).parts();
        parts.insert("message", serde_json::Value::from(reason.message.as_str()).to_string());
        ExpectedRecord { output: None, rejected: Some(reason.code.clone()), parts }
    });
    Ok(output.chain(rejected).collect())
}
