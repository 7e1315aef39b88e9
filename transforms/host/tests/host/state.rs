//! State of plugins: savepoints around crashes and failures, limits, and places without state.

use std::sync::Arc;

use serde_json::{Value, json};
use trunkline_connector::{Batch, Domain, Rejections};
use trunkline_transform_host::{Limits, StateEntry, StateStore};

use crate::support::{batch_of, counting_plugin, host, rejections, testing_plugin, values};

const MAX_BYTES: usize = 1 << 20;

/// Runs values through the plugin; returns its outputs and the codes of rejections.
fn count(config: &Value, store: &mut StateStore, values_in: &[&str]) -> (Vec<String>, Vec<(String, String)>) {
    let mut instance = counting_plugin().start(config, &Limits::default()).unwrap();
    let (mut batch, mut rejected) = (batch_of(values_in), Rejections::default());
    instance.process_with_state(&mut batch, &mut rejected, store).unwrap();
    (values(&batch), rejections(&rejected))
}

fn entries(store: &StateStore) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "/");
    store.entries().map(|(key, entry)| format!("{}={}", text(key), text(&entry.value))).collect()
}

#[test]
fn only_plugins_that_import_state_use_it() {
    assert!(counting_plugin().uses_state() && !testing_plugin().uses_state());
    let uses_state = |name: &str| host().bundled(name).unwrap().unwrap().uses_state();
    assert!(uses_state("dedupe.wasm") && !uses_state("filter.wasm") && !uses_state("mask.wasm"));
    let imports = host().bundled("filter.wasm").unwrap().unwrap().contents().imports;
    assert_eq!(imports, ["trunkline:transform/host@1.1.0", "trunkline:transform/inputs@1.1.0"]);
}

#[test]
fn state_outlives_the_instance_and_a_new_owner_restores_the_changes() {
    let mut store = StateStore::new(MAX_BYTES);
    let (out, _) = count(&json!({}), &mut store, &["a", "b", "a"]);
    assert_eq!(out, ["a=1", "b=1", "a=2"]);
    store.commit();
    let (out, _) = count(&json!({ "list_on": "list" }), &mut store, &["a", "list"]);
    assert_eq!(out, ["a=3", "a=3,b=1"]);
    let changes: Vec<_> = store.changes().map(|(key, entry)| (key.to_vec(), entry.cloned())).collect();
    assert_eq!(changes.len(), 1);
    store.abort();
    assert_eq!(entries(&store), ["counts/a=2", "counts/b=1"]);
    let mut restored = StateStore::new(MAX_BYTES);
    changes.into_iter().for_each(|(key, entry)| restored.restore(&key, entry));
    assert_eq!(entries(&restored), ["counts/a=3"]);
}

#[test]
fn crash_takes_back_the_changes_of_its_record_only() {
    let mut store = StateStore::new(MAX_BYTES);
    let config = json!({ "trap_on": "poison" });
    let (out, rejected) = count(&config, &mut store, &["a", "b", "a", "poison", "a", "b", "poison", "a"]);
    assert_eq!(out, ["a=1", "b=1", "a=2", "a=3", "b=2", "a=4"]);
    assert_eq!(rejected.len(), 2);
    assert!(rejected.iter().all(|(value, code)| value == "poison" && code == "plugin.trap"), "{rejected:?}");
    assert_eq!(entries(&store), ["counts/a=4", "counts/b=2"]);
}

#[test]
fn failed_batch_changes_nothing() {
    let mut store = StateStore::new(MAX_BYTES);
    count(&json!({}), &mut store, &["a"]);
    let limits = Limits { batch_records: 2, ..Limits::default() };
    let mut instance = counting_plugin().start(&json!({ "error_on": "fail" }), &limits).unwrap();
    let (mut batch, mut rejected) = (batch_of(&["a", "b", "fail"]), Rejections::default());
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, values(&batch)), ("plugin.failed", ["a", "b", "fail"].map(str::to_owned).to_vec()));
    assert_eq!((entries(&store), store.time()), (vec!["counts/a=1".to_owned()], Some(7)));
}

#[test]
fn an_error_that_no_retry_solves_stops_the_stage() {
    let mut store = StateStore::new(MAX_BYTES);
    // The plugin stores numbers.
    store.restore(b"counts\0a", Some(StateEntry { value: Arc::from(&b"\"text\""[..]), expires_at: None }));
    let mut instance = counting_plugin().start(&json!({}), &Limits::default()).unwrap();
    let (mut batch, mut rejected) = (batch_of(&["a"]), Rejections::default());
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, error.domain), ("plugin.stopped", Domain::Config));
    assert!(error.message().starts_with("counting.wasm cannot continue: an entry of its state"), "{error}");
    assert_eq!((values(&batch), rejected.len()), (vec!["a".to_owned()], 0));
}

#[test]
fn full_state_stops_the_stage_and_large_entries_reject_the_record() {
    let mut store = StateStore::new(MAX_BYTES);
    let mut instance = counting_plugin().start(&json!({ "flood_on": "flood" }), &Limits::default()).unwrap();
    let (mut batch, mut rejected) = (batch_of(&["a", "flood"]), Rejections::default());
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, error.domain), ("plugin.state_full", Domain::Config));
    assert!(error.message().contains("1048576 bytes") && error.message().contains("state.max_bytes"), "{error}");
    assert!(store.is_empty() && rejected.is_empty());
    let (out, rejected) = count(&json!({ "large_on": "large" }), &mut store, &["a", "large", "b"]);
    assert_eq!(
        (out, entries(&store)),
        (vec!["a=1".to_owned(), "b=1".to_owned()], vec!["counts/a=1".to_owned(), "counts/b=1".to_owned()])
    );
    assert_eq!(rejected, [("large".to_owned(), "plugin.trap".to_owned())]);
}

#[test]
fn values_of_a_call_are_limited_by_the_memory_of_the_plugin() {
    let mut store = StateStore::new(MAX_BYTES);
    // They have 4 GB, and the entry 400 KB.
    let (out, rejected) = count(&json!({ "repeat_on": "repeat" }), &mut store, &["a", "repeat", "b"]);
    assert_eq!(out, ["a=1", "b=1"]);
    assert_eq!(rejected, [("repeat".to_owned(), "plugin.memory".to_owned())]);
    assert_eq!(entries(&store), ["counts/a=1", "counts/b=1"]);
}

#[test]
fn state_is_available_in_process_only() {
    // Without a store, as in a place that has no state.
    let mut instance = counting_plugin().start(&json!({ "in_flush": true }), &Limits::default()).unwrap();
    let (mut batch, mut rejected) = (batch_of(&["a"]), Rejections::default());
    instance.process(&mut batch, &mut rejected).unwrap();
    assert!(rejected.reasons[0].message.contains("outside of `process`"), "{:?}", rejected.reasons[0]);
    let error = instance.flush(&mut Batch::default()).unwrap_err();
    assert!(error.code == "plugin.trap" && error.message().contains("outside of `process`"), "{error}");
}

#[test]
fn entries_expire_by_the_time_of_records() {
    let mut store = StateStore::new(MAX_BYTES);
    let mut instance = counting_plugin().start(&json!({ "ttl_ms": 10 }), &Limits::default()).unwrap();
    let mut at = |time: i64, value: &str| {
        let mut batch = Batch::default();
        let topic = batch.topic_index("in");
        let mut record = batch.record();
        record.timestamp(time).read_from(topic, 0, 0).value(value.as_bytes());
        record.finish();
        instance.process_with_state(&mut batch, &mut Rejections::default(), &mut store).unwrap();
        (values(&batch).concat(), entries(&store).len(), store.time())
    };
    assert_eq!(at(100, "a"), ("a=1".to_owned(), 1, Some(100)));
    assert_eq!(at(109, "b"), ("b=1".to_owned(), 2, Some(109)));
    // An earlier record does not move the time back.
    assert_eq!(at(50, "b"), ("b=2".to_owned(), 2, Some(109)));
    // The entry is readable until the call ends.
    assert_eq!(at(200, "b"), ("b=3".to_owned(), 1, Some(200)));
    assert_eq!(at(210, "c"), ("c=1".to_owned(), 1, Some(210)));
}
