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

fn end(coordinator: &Coordinator, (producer_id, epoch): Identity, commit: bool) -> Result<Identity, ResponseError> {
    let requester = Requester { transactional_id: "tx", producer_id, epoch };
    coordinator.end(requester, commit, TransactionVersion::V2)
}

/// The state of an open transaction with version 2.
fn open(epoch: i16, started_ms: i64, timeout_ms: i32) -> serde_json::Value {
    let mut state = stored(epoch, "Ongoing", started_ms);
    state["version"] = json!("V2");
    state["timeout_ms"] = json!(timeout_ms);
    state
}

#[test]
fn version_2_rotates_the_producer_id_of_an_exhausted_epoch() {
    for (commit, phase) in [(true, Phase::CompleteCommit), (false, Phase::CompleteAbort)] {
        let (_directory, coordinator) = coordinator(&open(MAX_EPOCH, now_ms(), 60_000));
        let last = (7, MAX_EPOCH);
        assert_eq!(end(&coordinator, last, commit), Ok((1000, 0)));
        assert_eq!(end(&coordinator, last, commit), Ok((1000, 0)), "a retry gets the same identity");
        assert_eq!(end(&coordinator, last, !commit), Err(ResponseError::InvalidTxnState));
        assert_eq!(coordinator.get("tx").unwrap().phase, phase);
        assert_eq!(init(&coordinator, NEW_PRODUCER), Ok((1000, 1)));
        assert_eq!(end(&coordinator, last, commit), Err(ResponseError::InvalidProducerIdMapping));
    }
}

#[test]
fn a_producer_with_version_2_continues_after_a_timeout() {
    for (epoch, next) in [(5, (7, 6)), (MAX_EPOCH, (1000, 0))] {
        let (_directory, coordinator) = coordinator(&open(epoch, 1, 1));
        assert_eq!(coordinator.get("tx").unwrap().phase, Phase::CompleteAbort);
        assert_eq!(end(&coordinator, (7, epoch), true), Err(ResponseError::InvalidTxnState), "it was aborted");
        assert_eq!(end(&coordinator, (7, epoch), false), Ok(next));
        assert_eq!(init(&coordinator, (7, epoch)), Ok(next));
        assert_eq!(end(&coordinator, next, false).map(|identity| identity.1), Ok(next.1 + 1));
    }
}

#[test]
fn a_successor_fences_a_producer_whose_transaction_timed_out() {
    let (_directory, coordinator) = coordinator(&open(5, 1, 1));
    assert_eq!(init(&coordinator, NEW_PRODUCER), Ok((7, 7)));
    for stale in [5, 6] {
        assert_eq!(end(&coordinator, (7, stale), false), Err(ResponseError::ProducerFenced), "{stale}");
        assert_eq!(init(&coordinator, (7, stale)), Err(ResponseError::ProducerFenced), "{stale}");
    }
}
