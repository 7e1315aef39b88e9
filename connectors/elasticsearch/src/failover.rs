//! Detects a failover of MySQL, or a binlog that was reset, with `version = "source"`: the new
//! positions do not compare with the old ones, and the index would refuse the changes as older
//! ones.
//!
//! The newest change of each topic partition is stored with the offsets, so that a failover is
//! detected also if the sink was stopped meanwhile, or if another task continues.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_connector::{Error, RecordRef, TopicPartition, headers};

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
    /// The history of the source: the header `trunkline.epoch`. Debezium's records have none.
    history: Option<u64>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct Stored {
    epoch: u64,
    offset: i64,
    version: u64,
    server_id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<u64>,
}

impl FailoverGuard {
    /// `epoch`: the `version_epoch` of the sink.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, newest: Mutex::default() }
    }

    /// Checks a change. It fails if the change has a lower binlog position than the change before
    /// it in its topic partition, and is of another server or of a newer history of the source.
    /// Records that are delivered again, and rows of snapshots, show nothing.
    pub(crate) fn check(&self, record: RecordRef<'_>, event: &ChangeEvent<'_>) -> Result<(), Error> {
        let Some(position) = BinlogPosition::of(event.source).filter(|_| event.op != b'r') else { return Ok(()) };
        let (topic, entry) = (record.topic(), record.entry());
        let mut newest = self.newest();
        let history = record.header(headers::EPOCH).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let change = Newest { offset: entry.offset, position, history };
        let Some(last) = newest.get_mut(&(topic.to_owned(), entry.partition)) else {
            newest.insert((topic.to_owned(), entry.partition), change);
            return Ok(());
        };
        if entry.offset <= last.offset {
            return Ok(());
        }
        let is_lower = position.version < last.position.version;
        let is_newer = history.zip(last.history).is_some_and(|(history, last)| history > last);
        if is_lower && (is_newer || position.server_id != last.position.server_id) {
            return Err(self.error(topic, entry.partition, last, &change));
        }
        *last = change;
        Ok(())
    }

    /// What a later task must know of a topic partition.
    pub(crate) fn state(&self, partition: &TopicPartition) -> Option<Value> {
        let Newest { offset, position, history } = *self.newest().get(&key(partition))?;
        let BinlogPosition { version, server_id } = position;
        serde_json::to_value(Stored { epoch: self.epoch, offset, version, server_id, history }).ok()
    }

    /// Continues from the state of an earlier task. After the epoch was raised, changes of any
    /// server may follow.
    pub(crate) fn restore(&self, partition: &TopicPartition, state: Option<&Value>) {
        let stored = state.and_then(|state| Stored::deserialize(state).ok());
        match stored.filter(|stored| stored.epoch == self.epoch) {
            Some(Stored { offset, version, server_id, history, .. }) => {
                let position = BinlogPosition { version, server_id };
                self.newest().insert(key(partition), Newest { offset, position, history });
            }
            None => drop(self.newest().remove(&key(partition))),
        }
    }

    fn newest(&self) -> MutexGuard<'_, HashMap<(String, i32), Newest>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, topic: &str, partition: i32, last: &Newest, change: &Newest) -> Error {
        let server = |position: &BinlogPosition| position.server_id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        let message = format!(
            "{topic}-{partition}: the change at offset {} is of the MySQL server {}, at a lower binlog position than the change \
             before it (offset {}), of the server {}. After a failover or a reset of the binlog, positions begin again, and the \
             index would refuse the new changes as older ones. Set `version_epoch = {}` in the sink, and reload",
            change.offset,
            server(&change.position),
            last.offset,
            server(&last.position),
            self.epoch + 1
        );
        Error::external("elasticsearch.failover", message)
    }
}

fn key(partition: &TopicPartition) -> (String, i32) {
    (partition.topic.to_string(), partition.partition)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    /// Checks a change, and returns the code of the error.
    fn check(guard: &FailoverGuard, offset: i64, op: u8, server_id: u32, position: u64) -> Option<&'static str> {
        check_in_history(guard, None, offset, (op, server_id, position))
    }

    fn check_in_history(
        guard: &FailoverGuard,
        history: Option<&str>,
        offset: i64,
        (op, server_id, position): (u8, u32, u64),
    ) -> Option<&'static str> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("shop");
        let mut record = batch.record();
        record.value(b"{}").read_from(topic, 0, offset);
        if let Some(history) = history {
            record.header(headers::EPOCH, Some(history.as_bytes()));
        }
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

    #[test]
    fn a_failover_is_detected_after_a_restart() {
        let partition = TopicPartition::new("shop", 0);
        let first = FailoverGuard::new(0);
        assert_eq!(first.state(&partition), None);
        assert_eq!(check(&first, 7, b'u', 1, 500), None);
        let state = first.state(&partition).unwrap();
        let expected = r#"{"epoch":0,"offset":7,"server_id":1,"version":618475291124}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), expected);

        let next = FailoverGuard::new(0);
        next.restore(&partition, Some(&state));
        // A repeated delivery, and the first new change, which is of the new server.
        assert_eq!(check(&next, 6, b'u', 2, 400), None);
        assert_eq!(check(&next, 8, b'u', 2, 90), Some("elasticsearch.failover"));
        assert_eq!(next.state(&partition).unwrap(), state, "the change that is held is not known");
        assert_eq!(check(&next, 8, b'u', 1, 501), None);

        // Without a state, and after the epoch was raised, the first change is as good as any.
        for (epoch, state) in [(0, None), (0, Some(Value::Null)), (1, Some(state))] {
            let next = FailoverGuard::new(epoch);
            assert_eq!(check(&next, 1, b'u', 1, 500), None);
            next.restore(&partition, state.as_ref());
            assert_eq!(check(&next, 8, b'u', 2, 90), None, "{epoch} {state:?}");
        }
    }

    #[test]
    fn a_lower_position_after_a_reset_of_the_binlog_is_reported() {
        let partition = TopicPartition::new("shop", 0);
        let first = FailoverGuard::new(0);
        assert_eq!(check_in_history(&first, Some("17"), 1, (b'u', 1, 500)), None);
        // A range that is read again in the same history.
        assert_eq!(check_in_history(&first, Some("17"), 2, (b'u', 1, 100)), None);
        let state = first.state(&partition);
        let next = FailoverGuard::new(0);
        next.restore(&partition, state.as_ref());
        let reset = |guard: &FailoverGuard, position| check_in_history(guard, Some("18"), 3, (b'u', 1, position));
        assert_eq!(reset(&next, 4), Some("elasticsearch.failover"));
        // A new history whose positions continue needs nothing.
        assert_eq!(reset(&first, 101), None);
    }
}
