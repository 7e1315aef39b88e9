//! Detects a failover of MySQL with `version = "source"`: the binlog positions of the new server do
//! not compare with those of the old one, and the index would refuse its changes as older ones.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use trunkline_connector::{Error, RecordRef};

use crate::change_event::{BinlogPosition, ChangeEvent};

/// The newest change of each topic partition.
#[derive(Debug, Default)]
pub(crate) struct FailoverGuard {
    epoch: u64,
    newest: Mutex<HashMap<(String, i32), Newest>>,
}

#[derive(Debug, Clone, Copy)]
struct Newest {
    offset: i64,
    position: BinlogPosition,
}

impl FailoverGuard {
    /// `epoch`: the `version_epoch` of the sink.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, newest: Mutex::default() }
    }

    /// Checks a change. It fails if the change is of another server than the change before it in
    /// its topic partition, at a lower binlog position. Records that are delivered again, and rows
    /// of snapshots, show nothing.
    pub(crate) fn check(&self, record: RecordRef<'_>, event: &ChangeEvent<'_>) -> Result<(), Error> {
        let Some(position) = BinlogPosition::of(event.source).filter(|_| event.op != b'r') else { return Ok(()) };
        let (topic, entry) = (record.topic(), record.entry());
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let change = Newest { offset: entry.offset, position };
        let Some(last) = newest.get_mut(&(topic.to_owned(), entry.partition)) else {
            newest.insert((topic.to_owned(), entry.partition), change);
            return Ok(());
        };
        if entry.offset <= last.offset {
            return Ok(());
        }
        let is_lower = position.version < last.position.version;
        if is_lower && position.server_id != last.position.server_id {
            return Err(self.error(topic, entry.partition, last, &change));
        }
        *last = change;
        Ok(())
    }

    fn error(&self, topic: &str, partition: i32, last: &Newest, change: &Newest) -> Error {
        let server = |position: &BinlogPosition| position.server_id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        let message = format!(
            "{topic}-{partition}: the change at offset {} is of the MySQL server {}, at a lower binlog position than the change \
             before it (offset {}), of the server {}. After a failover, binlog positions begin again, and the index would refuse \
             the changes of the new server as older ones. Set `version_epoch = {}` in the sink, and reload",
            change.offset,
            server(&change.position),
            last.offset,
            server(&last.position),
            self.epoch + 1
        );
        Error::external("elasticsearch.failover", message)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    /// Checks a change, and returns the code of the error.
    fn check(guard: &FailoverGuard, offset: i64, op: u8, server_id: u32, position: u64) -> Option<&'static str> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("shop");
        let mut record = batch.record();
        record.value(b"{}").read_from(topic, 0, offset);
        record.finish();
        let source = format!(r#"{{"server_id":{server_id},"file":"b.000009","pos":{position}}}"#);
        let event = ChangeEvent { op, after: None, source: source.as_bytes() };
        guard.check(batch.get(0), &event).err().map(|error| error.code)
    }

    #[test]
    fn a_lower_position_of_another_server_is_a_failover() {
        let guard = FailoverGuard::new(0);
        assert_eq!(check(&guard, 1, b'u', 1, 500), None);
        // Circular replication: changes of several servers in one binlog.
        assert_eq!(check(&guard, 2, b'u', 2, 600), None);
        // The same server again: its changes are read once more.
        assert_eq!(check(&guard, 3, b'u', 2, 100), None);
        // A row of a snapshot.
        assert_eq!(check(&guard, 4, b'r', 0, 50), None);
        // A repeated delivery.
        assert_eq!(check(&guard, 2, b'u', 2, 600), None);
        assert_eq!(check(&guard, 1, b'u', 1, 500), None);
        for _ in 0..2 {
            assert_eq!(check(&guard, 5, b'u', 1, 90), Some("elasticsearch.failover"));
        }
        assert_eq!(check(&guard, 5, b'd', 1, 101), None);
    }
}
