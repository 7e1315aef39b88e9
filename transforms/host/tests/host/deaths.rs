//! Plugins that trap, hang, hoard and flood: one outcome for each record, in order, and the guilty ones set aside.

use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_connector::{Domain, Rejections, Retry};
use trunkline_transform_host::Limits;

use crate::support::{batch_of, rejections, run, testing, values};

/// Which of `count` records are poison: the others come out in order, each with one outcome.
fn isolate(count: usize, poison: &[usize], limits: &Limits) {
    let records: Vec<String> = (0..count)
        .map(|index| format!("{} {index}", if poison.contains(&index) { "poison" } else { "good" }))
        .collect();
    let mut instance = testing(&json!({ "trap_on": "poison", "upper_on": "good" }), limits);
    let (batch, rejected, _) = run(&mut instance, &records);
    let good: Vec<String> =
        records.iter().filter(|record| record.starts_with("good")).map(|record| record.to_uppercase()).collect();
    assert_eq!(values(&batch), good);
    let bad: Vec<_> = poison.iter().map(|index| (records[*index].clone(), "plugin.trap".to_owned())).collect();
    assert_eq!(rejections(&rejected), bad);
}

#[test]
fn a_record_that_traps_is_set_aside_wherever_it_stands() {
    let limits = Limits::default();
    for poison in [0, 1, 499, 500, 998, 999] {
        isolate(1000, &[poison], &limits);
    }
    isolate(1, &[0], &limits);
    isolate(2, &[0, 1], &limits);
    isolate(37, &(0..37).collect::<Vec<_>>(), &limits);
    isolate(64, &[0, 31, 32, 33, 63], &limits);
    isolate(25, &[3, 9, 24], &Limits { batch_records: 10, ..limits });
}

#[test]
fn the_reason_is_the_text_of_the_panic() {
    let mut instance = testing(&json!({ "trap_on": "poison" }), &Limits::default());
    let (_, rejected, _) = run(&mut instance, &["a", "poison b"]);
    let message = &rejected.reasons[0].message;
    assert!(message.contains("told to trap by poison b") && message.contains("unreachable"), "{message}");
}

#[test]
fn a_loop_ends_when_its_time_is_over() {
    let limits = Limits { time: Duration::from_millis(200), ..Limits::default() };
    let mut instance = testing(&json!({ "loop_on": "forever" }), &limits);
    let started = Instant::now();
    let (batch, rejected, _) = run(&mut instance, &["a", "b", "forever", "c"]);
    assert_eq!(values(&batch), ["a", "b", "c"]);
    assert_eq!(rejections(&rejected), [("forever".to_owned(), "plugin.timeout".to_owned())]);
    assert_eq!(rejected.reasons[0].message, "the plugin did not return within 200ms");
    assert!(
        started.elapsed() >= Duration::from_millis(400),
        "the whole batch and then the record alone had their time"
    );
}

#[test]
fn memory_past_the_limit_is_refused() {
    let limits = Limits { memory: 16 << 20, ..Limits::default() };
    let mut instance = testing(&json!({ "bomb_on": "bomb" }), &limits);
    let (batch, rejected, _) = run(&mut instance, &["a", "bomb", "c"]);
    assert_eq!(values(&batch), ["a", "c"]);
    assert_eq!(rejections(&rejected), [("bomb".to_owned(), "plugin.memory".to_owned())]);
    assert!(rejected.reasons[0].message.contains("16777216"), "{}", rejected.reasons[0].message);
    assert!(instance.memory() > 0 && instance.memory() <= 16 << 20);
}

#[test]
fn a_record_that_does_not_fit_into_memory_is_set_aside() {
    let limits = Limits { memory: 8 << 20, ..Limits::default() };
    let big = "x".repeat(16 << 20);
    let (batch, rejected, _) = run(&mut testing(&json!({}), &limits), &["a", &big, "c"]);
    assert_eq!(values(&batch), ["a", "c"]);
    assert_eq!(rejected.reasons[0].code, "plugin.memory");
}

#[test]
fn output_past_the_cap_is_refused() {
    let limits = Limits { output_bytes: 8 << 10, ..Limits::default() };
    let long = "y".repeat(5000);
    let records = ["a", &long, "b", &long, "c"];
    // two of the long ones are too much for one call, each alone is not
    let (batch, rejected, _) = run(&mut testing(&json!({ "upper_on": "y" }), &limits), &records);
    assert_eq!((batch.len(), rejected.len()), (5, 0));
    let limits = Limits { output_bytes: 4 << 10, ..Limits::default() };
    let (batch, rejected, _) = run(&mut testing(&json!({ "upper_on": "y" }), &limits), &records);
    assert_eq!(values(&batch), ["a", "b", "c"]);
    assert!(rejected.reasons.iter().all(|reason| reason.code == "plugin.output"), "{:?}", rejected.reasons);
    // without an end it is memory that ends it
    let limits = Limits { memory: 16 << 20, ..Limits::default() };
    let (_, rejected, _) = run(&mut testing(&json!({ "flood_on": "flood" }), &limits), &["a", "flood"]);
    assert_eq!(rejected.reasons[0].code, "plugin.memory");
}

#[test]
fn a_plugin_that_dies_too_often_finishes_its_batch_and_waits() {
    let limits = Limits { deaths_per_minute: 10, ..Limits::default() };
    let mut instance = testing(&json!({ "trap_on": "poison" }), &limits);
    let mut records = vec!["poison"; 100];
    records.push("good");
    let mut batch = batch_of(&records);
    let mut rejected = Rejections::default();
    assert!(instance.ready().is_ok());
    instance.process(&mut batch, &mut rejected).unwrap();
    assert_eq!((batch.len(), rejected.len()), (1, 100));
    let error = instance.ready().unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "plugin.restarts"));
    assert!(matches!(error.retry, Retry::After(wait) if wait <= Duration::from_secs(60)), "{:?}", error.retry);
    assert!(error.message().contains("10 records") && error.message().contains("told to trap"), "{error}");
}

#[test]
fn a_trusted_plugin_has_no_time_limit_and_is_isolated_all_the_same() {
    let limits = Limits { trusted: true, time: Duration::ZERO, ..Limits::default() };
    isolate(10, &[4], &limits);
}

#[test]
fn a_plugin_that_dies_in_init_cannot_be_started() {
    let error =
        crate::support::testing_plugin().start(&json!({ "trap_in_init": true }), &Limits::default()).unwrap_err();
    assert!(
        error.message.contains("died while it was started") && error.message.contains("told to trap in init"),
        "{error}"
    );
    assert_eq!(error.key, None);
    let error =
        crate::support::testing_plugin().start(&json!({}), &Limits { memory: 4096, ..Limits::default() }).unwrap_err();
    assert!(error.message.contains("limit of 4096 bytes of memory"), "{error}");
}
