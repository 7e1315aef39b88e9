//! Plugins that trap, loop, or exceed the memory or output limit: each record has one outcome, in
//! order, and only the records at fault are rejected.

use std::time::{Duration, Instant};

use serde_json::json;
use tracing::Level;
use trunkline_connector::{Domain, Rejections, Retry};
use trunkline_transform_host::Limits;

use crate::log_capture::logged_by;
use crate::support::{batch_of, rejections, run, testing, values};

/// Runs `count` records, of which those at `poison` crash the plugin. Asserts that exactly these
/// are rejected, and that the others pass in order.
fn assert_isolated(count: usize, poison: &[usize], limits: &Limits) {
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
fn trapping_records_are_rejected_at_any_position() {
    let limits = Limits::default();
    for poison in [0, 1, 499, 500, 998, 999] {
        assert_isolated(1000, &[poison], &limits);
    }
    assert_isolated(1, &[0], &limits);
    assert_isolated(2, &[0, 1], &limits);
    assert_isolated(37, &(0..37).collect::<Vec<_>>(), &limits);
    assert_isolated(64, &[0, 31, 32, 33, 63], &limits);
    assert_isolated(25, &[3, 9, 24], &Limits { batch_records: 10, ..limits });
}

#[test]
fn panic_message_is_the_reason_of_the_rejection() {
    let mut instance = testing(&json!({ "trap_on": "poison" }), &Limits::default());
    let (_, rejected, _) = run(&mut instance, &["a", "poison b"]);
    let message = &rejected.reasons[0].message;
    assert!(message.contains("panic requested by poison b") && message.contains("unreachable"), "{message}");
}

#[test]
fn infinite_loop_ends_at_the_timeout() {
    let limits = Limits { timeout: Duration::from_millis(200), ..Limits::default() };
    let mut instance = testing(&json!({ "loop_on": "forever" }), &limits);
    let started = Instant::now();
    let (batch, rejected, _) = run(&mut instance, &["a", "b", "forever", "c"]);
    assert_eq!(values(&batch), ["a", "b", "c"]);
    assert_eq!(rejections(&rejected), [("forever".to_owned(), "plugin.timeout".to_owned())]);
    assert_eq!(rejected.reasons[0].message, "the plugin did not return within 200ms");
    assert!(
        started.elapsed() >= Duration::from_millis(400),
        "the batch, and then the record alone, ran for the full timeout"
    );
}

#[test]
fn memory_beyond_the_limit_is_refused() {
    let limits = Limits { memory: 16 << 20, ..Limits::default() };
    let mut instance = testing(&json!({ "bomb_on": "bomb" }), &limits);
    let (batch, rejected, _) = run(&mut instance, &["a", "bomb", "c"]);
    assert_eq!(values(&batch), ["a", "c"]);
    assert_eq!(rejections(&rejected), [("bomb".to_owned(), "plugin.memory".to_owned())]);
    assert!(rejected.reasons[0].message.contains("16777216"), "{}", rejected.reasons[0].message);
    assert!(instance.memory() > 0 && instance.memory() <= 16 << 20);
}

#[test]
fn record_larger_than_the_memory_limit_is_rejected() {
    let limits = Limits { memory: 8 << 20, ..Limits::default() };
    let big = "x".repeat(16 << 20);
    let (batch, rejected, _) = run(&mut testing(&json!({}), &limits), &["a", &big, "c"]);
    assert_eq!(values(&batch), ["a", "c"]);
    assert_eq!(rejected.reasons[0].code, "plugin.memory");
}

#[test]
fn output_beyond_the_limit_is_rejected() {
    let limits = Limits { output_bytes: 8 << 10, ..Limits::default() };
    let long = "y".repeat(5000);
    let records = ["a", &long, "b", &long, "c"];
    // the limit fits one of the long records, but not both
    let (batch, rejected, _) = run(&mut testing(&json!({ "upper_on": "y" }), &limits), &records);
    assert_eq!((batch.len(), rejected.len()), (5, 0));
    let limits = Limits { output_bytes: 4 << 10, ..Limits::default() };
    let (batch, rejected, _) = run(&mut testing(&json!({ "upper_on": "y" }), &limits), &records);
    assert_eq!(values(&batch), ["a", "b", "c"]);
    assert!(rejected.reasons.iter().all(|reason| reason.code == "plugin.output"), "{:?}", rejected.reasons);
    // endless output reaches the memory limit first
    let limits = Limits { memory: 16 << 20, ..Limits::default() };
    let (_, rejected, _) = run(&mut testing(&json!({ "flood_on": "flood" }), &limits), &["a", "flood"]);
    assert_eq!(rejected.reasons[0].code, "plugin.memory");
}

#[test]
fn plugin_that_crashes_too_often_finishes_its_batch_and_pauses() {
    let limits = Limits { crashes_per_minute: 10, ..Limits::default() };
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
    assert!(error.message().contains("10 records") && error.message().contains("panic requested"), "{error}");
}

#[test]
fn crashes_of_trusted_plugins_are_isolated() {
    let limits = Limits { trusted: true, timeout: Duration::ZERO, ..Limits::default() };
    assert_isolated(10, &[4], &limits);
}

#[test]
fn plugin_that_crashes_in_init_cannot_be_started() {
    let error =
        crate::support::testing_plugin().start(&json!({ "trap_in_init": true }), &Limits::default()).unwrap_err();
    assert!(
        error.message.contains("crashed during start") && error.message.contains("panic requested in init"),
        "{error}"
    );
    assert_eq!(error.key, None);
    let error =
        crate::support::testing_plugin().start(&json!({}), &Limits { memory: 4096, ..Limits::default() }).unwrap_err();
    assert!(error.message.contains("limit of 4096 bytes"), "{error}");
}

/// Log lines at the level `info` or above.
fn visible(log: &[(Level, String)]) -> Vec<&str> {
    log.iter().filter(|(level, _)| *level <= Level::INFO).map(|(_, message)| message.as_str()).collect()
}

#[test]
fn crash_is_logged_once_per_record() {
    let records: Vec<String> =
        (0..300).map(|index| format!("{} {index}", if index % 50 == 7 { "poison" } else { "good" })).collect();
    let mut instance = testing(&json!({ "trap_on": "poison", "log_on": "good 1" }), &Limits::default());
    let log = logged_by(|| assert_eq!(run(&mut instance, &records).1.len(), 6));
    let (of_plugin, of_crashes): (Vec<&str>, Vec<&str>) =
        visible(&log).into_iter().partition(|line| line.starts_with("saw "));
    assert_eq!(of_crashes.len(), 6, "{of_crashes:#?}");
    for (line, index) in of_crashes.iter().zip([7, 57, 107, 157, 207, 257]) {
        assert!(
            line.starts_with("record rejected") && line.contains(&format!("panic requested by poison {index}")),
            "{line}"
        );
    }
    let expected: Vec<String> =
        records.iter().filter(|record| record.contains("good 1")).map(|record| format!("saw {record}")).collect();
    assert_eq!(of_plugin, expected, "the log lines of each good record appear once, in order");
    assert!(
        log.iter().any(|(level, line)| *level == Level::DEBUG && line.contains("panic requested by poison 7")),
        "{log:#?}"
    );
}

#[test]
fn log_of_crashes_is_limited() {
    let mut instance = testing(&json!({ "trap_on": "poison" }), &Limits::default());
    let log = logged_by(|| assert_eq!(run(&mut instance, &["poison"; 40]).1.len(), 40));
    assert_eq!(visible(&log).len(), 10);
}
