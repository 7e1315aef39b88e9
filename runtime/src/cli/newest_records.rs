//! The newest records of a sink's inputs, for the checks of `validate --check`.

use trunkline_connector::{Batch, Result};

use crate::kafka::topic_reader::scan_range;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::SinkPlan;

/// Offsets from the end of a partition in which records are looked for: markers of transactions
/// take offsets, too.
const LAST_OFFSETS: i64 = 20;

/// Partitions that are read at most, so that a check ends soon.
const MAX_PARTITIONS: usize = 200;

/// The newest records of each topic that the sink reads without transforms on the way.
pub(super) fn newest_records(cluster: &Cluster, sink: &SinkPlan) -> Result<Batch> {
    let offsets = GroupOffsets::new(cluster, "trunkline-reader")?;
    let plain: Vec<_> = sink.inputs.iter().filter(|input| input.route.branches.is_empty()).collect();
    let selects = |topic: &str| plain.iter().any(|input| input.topics.selects(topic));
    let mut found = Batch::default();
    for partition in offsets.partitions(selects)?.into_iter().take(MAX_PARTITIONS) {
        let (low, end) = offsets.watermarks(&partition)?;
        let from = low.max(end - LAST_OFFSETS);
        if from < end {
            scan_range(cluster, &partition.topic, partition.partition, (from, end), &mut |record| {
                found.push_copy(record);
                Ok(())
            })?;
        }
    }
    Ok(found)
}
