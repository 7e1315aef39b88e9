//! Epochs at their limits, and states that requests alone reach only after days.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use serde_json::json;

use super::*;
use crate::group::Groups;
use crate::group::state::GroupLimits;
use crate::store::{Change, Key, Store};
use crate::topics::config::TopicDefaults;
use crate::topics::{TopicSettings, Topics};

const NEW_PRODUCER: (i64, i16) = (NO_PRODUCER_ID, NO_EPOCH);

/// A coordinator whose only transactional id, "tx", has this state in the internal log.
fn coordinator(state: &serde_json::Value) -> (tempfile::TempDir, Coordinator) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path(), false).unwrap());
    store.apply(vec![Change::put(Key::Transaction("tx".into()), state).unwrap()]).unwrap();
    store.apply(vec![Change::put(Key::ProducerIds, &1000).unwrap()]).unwrap();
    let defaults = TopicDefaults { max_message_bytes: 1 << 20 };
    let settings = TopicSettings { sync_each_append: false, max_partitions: 10, defaults };
    let topics = Arc::new(Topics::open(directory.path(), &store, settings).unwrap());
    let limits = GroupLimits { max_size: 10, initial_rebalance_delay: std::time::Duration::ZERO };
    let groups = Arc::new(Groups::open(&store, limits).unwrap());
    (directory, Coordinator::open(store, topics, groups).unwrap())
}

fn init(coordinator: &Coordinator, (producer_id, epoch): (i64, i16)) -> Result<(i64, i16), ResponseError> {
    coordinator.init_producer(Requester { transactional_id: "tx", producer_id, epoch }, 60_000)
}

/// The state as versions before 0.2 stored it: `last_epoch` may name another producer.
fn stored(epoch: i16, phase: &str, started_ms: i64) -> serde_json::Value {
    json!({"producer_id": 7, "epoch": epoch, "last_epoch": epoch - 1, "timeout_ms": 1, "phase": phase,
           "partitions": [], "groups": [], "started_ms": started_ms, "updated_ms": 0})
}

#[test]
fn a_stored_previous_epoch_of_another_producer_stays_fenced() {
    let (_directory, coordinator) = coordinator(&stored(5, "Empty", -1));
    assert_eq!(init(&coordinator, (7, 4)), Err(ResponseError::ProducerFenced));
    assert_eq!(init(&coordinator, (7, 5)), Ok((7, 6)));
    assert_eq!(init(&coordinator, (7, 5)), Ok((7, 6)));
}

#[test]
fn an_exhausted_epoch_gives_a_new_producer_id_to_its_producer_alone() {
    let last = (7, MAX_EPOCH);
    let (_directory, own) = coordinator(&stored(MAX_EPOCH, "Empty", -1));
    assert_eq!(init(&own, last), Ok((1000, 0)));
    assert_eq!(init(&own, last), Ok((1000, 0)), "a retry gets the same producer id");
    assert_eq!(init(&own, NEW_PRODUCER), Ok((1000, 1)));
    assert_eq!(init(&own, last), Err(ResponseError::ProducerFenced));

    let (_directory, taken) = coordinator(&stored(MAX_EPOCH, "Empty", -1));
    assert_eq!(init(&taken, NEW_PRODUCER), Ok((1000, 0)));
    assert_eq!(init(&taken, last), Err(ResponseError::ProducerFenced));
}

#[test]
fn a_timed_out_transaction_fences_its_producer_also_at_the_last_epoch() {
    let (_directory, coordinator) = coordinator(&stored(MAX_EPOCH, "Ongoing", 1));
    let aborted = coordinator.get("tx").unwrap();
    assert_eq!((aborted.phase, aborted.epoch), (Phase::CompleteAbort, i16::MAX));
    assert_eq!(init(&coordinator, (7, MAX_EPOCH)), Err(ResponseError::ProducerFenced));
    assert_eq!(init(&coordinator, NEW_PRODUCER), Ok((1000, 0)));
}
