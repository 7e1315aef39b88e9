//! Timers of plugins: their order, what a crash of one costs, limits, and where they are kept.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use trunkline_connector::{Batch, Domain, Rejections, headers};
use trunkline_transform_host::{Counts, Instance, Limits, StateStore, next_timer};

use crate::support::{assert_conserved, counting_plugin, host, text, timing_plugin, values};

const MAX_BYTES: usize = 1 << 20;

fn start(config: &Value) -> Instance {
    timing_plugin().start(config, &Limits::default()).unwrap()
}

/// Records with these timestamps and values.
fn records(commands: &[(i64, &str)]) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("in");
    for (offset, (timestamp, command)) in commands.iter().enumerate() {
        let mut record = batch.record();
        record.timestamp(*timestamp).read_from(topic, 3, offset as i64).value(command.as_bytes());
        record.finish();
    }
    batch
}

/// Runs commands. Each timestamp is followed by a value, and by the key and time of its timer if a
/// timer emitted it.
fn run(instance: &mut Instance, store: &mut StateStore, commands: &[(i64, &str)]) -> (Batch, Rejections, Counts) {
    let (mut batch, mut rejected) = (records(commands), Rejections::default());
    let counts = instance.process_with_state(&mut batch, &mut rejected, store).unwrap();
    assert_conserved(counts, &batch, &rejected);
    assert_eq!(counts.records_in, commands.len() as u64);
    (batch, rejected, counts)
}

/// The values that a new plugin with this configuration outputs.
fn output(config: &Value, store: &mut StateStore, commands: &[(i64, &str)]) -> Vec<String> {
    values(&run(&mut start(config), store, commands).0)
}

#[test]
fn timer_fires_before_the_first_record_that_reaches_its_time() {
    let mut store = StateStore::new(MAX_BYTES);
    let commands = [(0, "set b 10"), (0, "set a 10"), (0, "set c 5"), (9, "x"), (10, "y"), (30, "z")];
    let (batch, rejected, counts) = run(&mut start(&json!({})), &mut store, &commands);
    assert_eq!(values(&batch), ["set b 10", "set a 10", "set c 5", "c@5", "x", "a@10", "b@10", "y", "z"]);
    assert_eq!((counts.extra, counts.dropped, rejected.len()), (3, 0, 0));
    let emitted = batch.get(3);
    assert_eq!((emitted.timestamp(), text(emitted.key()), emitted.topic()), (Some(5), "c".to_owned(), "in"));
    assert_eq!((emitted.entry().partition, emitted.entry().offset, emitted.header_block()), (3, -1, &b""[..]));
    assert_eq!((next_timer(&mut store), store.time()), (None, Some(30)));
}

#[test]
fn record_replaces_or_removes_a_timer_unless_it_was_due_before_the_record() {
    let mut store = StateStore::new(MAX_BYTES);
    let commands = [(0, "set a 10"), (5, "set a 20"), (12, "get a"), (25, "set a 30"), (26, "delete a"), (40, "get a")];
    let expected = ["set a 10", "set a 20", "a=20", "a@20", "set a 30", "delete a", "a=none"];
    assert_eq!(output(&json!({}), &mut store, &commands), expected);
}

#[test]
fn timer_in_the_past_fires_after_the_record_that_sets_it() {
    let mut store = StateStore::new(MAX_BYTES);
    let commands = [(50, "set a 10"), (50, "x"), (7, "set b -3"), (60, "set c 60")];
    let expected = ["set a 10", "a@10", "x", "set b -3", "b@-3", "set c 60", "c@60"];
    assert_eq!(output(&json!({}), &mut store, &commands), expected);
}

#[test]
fn pending_timers_survive_the_instance_and_move_with_the_changelog() {
    let mut store = StateStore::new(MAX_BYTES);
    output(&json!({}), &mut store, &[(0, "set a 10"), (0, "set b 20")]);
    let mut moved = StateStore::new(MAX_BYTES);
    store.changes().for_each(|(key, entry)| moved.restore(key, entry.cloned()));
    moved.restore_time(store.changed_time().unwrap());
    moved.commit();
    assert_eq!(output(&json!({}), &mut moved, &[(15, "x")]), ["a@10", "x"]);
    // An aborted transaction brings the fired timer back.
    moved.abort();
    assert_eq!(output(&json!({}), &mut moved, &[(25, "y")]), ["a@10", "b@20", "y"]);
}

#[test]
fn timer_that_crashes_or_is_rejected_becomes_a_dead_letter() {
    for (config, code) in [
        (json!({ "trap_on": "bad" }), "plugin.trap"),
        (json!({ "loop_on": "bad" }), "plugin.timeout"),
        (json!({ "reject_on": "bad" }), "timing.rejected"),
    ] {
        let limits = Limits { timeout: std::time::Duration::from_millis(200), ..Limits::default() };
        let mut instance = timing_plugin().start(&config, &limits).unwrap();
        let mut store = StateStore::new(MAX_BYTES);
        let commands = [(0, "set a 10"), (0, "set bad 10"), (0, "set c 10"), (0, "set d 11"), (20, "x")];
        let (batch, rejected, counts) = run(&mut instance, &mut store, &commands);
        assert_eq!(values(&batch)[4..], ["a@10", "c@10", "d@11", "x"], "{code}");
        assert_eq!((counts.extra, counts.rejected), (4, 1));
        let (timer, reason) = rejected.iter().next().unwrap();
        assert_eq!((text(timer.key()), timer.value(), timer.timestamp()), ("t\0bad".to_owned(), None, Some(10)));
        assert_eq!((text(timer.header(headers::TIMER)), timer.topic()), ("10".to_owned(), "in"));
        assert_eq!((reason.code.as_str(), timer.entry().partition, timer.entry().offset), (code, 3, -1));
        // The changes of the call that crashed are taken back; the timer does not fire again.
        let fired: Vec<String> = store.entries().map(|(key, _)| text(Some(key))).collect();
        let counted = if code == "timing.rejected" { 4 } else { 3 };
        assert_eq!((fired.len(), next_timer(&mut store)), (counted, None), "{fired:?}");
    }
}

#[test]
fn failed_timer_changes_nothing_and_fires_again() {
    let mut store = StateStore::new(MAX_BYTES);
    output(&json!({}), &mut store, &[(0, "set a 10"), (0, "set fail 11")]);
    let before = store.len();
    let (mut batch, mut rejected) = (records(&[(5, "x"), (20, "y")]), Rejections::default());
    let mut instance = start(&json!({ "error_on": "fail" }));
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, values(&batch)), ("plugin.failed", vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!((store.len(), store.time(), next_timer(&mut store)), (before, Some(0), Some(10)));
    assert_eq!(output(&json!({}), &mut store, &[(20, "y")]), ["a@10", "fail@11", "y"]);
}

#[test]
fn timer_can_set_itself_again_but_not_without_end() {
    let mut store = StateStore::new(MAX_BYTES);
    let config = json!({ "again_ms": 10, "until": 40 });
    assert_eq!(output(&config, &mut store, &[(0, "set a 10"), (25, "x")]), ["set a 10", "a@10", "a@20", "x"]);
    assert_eq!(output(&config, &mut store, &[(90, "y")]), ["a@30", "a@40", "y"]);
    let limits = Limits { chained_timers: 100, ..Limits::default() };
    let mut instance = timing_plugin().start(&json!({ "again_ms": 0 }), &limits).unwrap();
    let (mut batch, mut rejected) = (records(&[(100, "set a 90")]), Rejections::default());
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, error.domain), ("plugin.timer_loop", Domain::Data));
    assert!(error.message().contains("100 times") && error.message().contains("the time 90"), "{error}");
    assert_eq!((next_timer(&mut store), values(&batch)), (None, vec!["set a 90".to_owned()]));
}

#[test]
fn verdict_of_a_record_on_a_timer_is_a_protocol_violation() {
    let mut store = StateStore::new(MAX_BYTES);
    let (mut batch, mut rejected) = (records(&[(0, "set a 10"), (10, "x")]), Rejections::default());
    let mut instance = start(&json!({ "pass_on": "a" }));
    let error = instance.process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert!(error.code == "plugin.protocol" && error.message().contains("verdict on a timer"), "{error}");
}

#[test]
fn timers_take_state_and_its_limit_stops_the_stage() {
    let mut store = StateStore::new(4 << 10);
    let sets: Vec<String> = (0..100).map(|key| format!("set {key} 1000")).collect();
    let commands: Vec<(i64, &str)> = sets.iter().map(|set| (0, set.as_str())).collect();
    let (mut batch, mut rejected) = (records(&commands), Rejections::default());
    let error = start(&json!({})).process_with_state(&mut batch, &mut rejected, &mut store).unwrap_err();
    assert_eq!((error.code, store.len()), ("plugin.state_full", 0));
}

#[test]
fn plugin_cannot_use_the_entries_of_timers() {
    let mut store = StateStore::new(MAX_BYTES);
    let (batch, rejected, _) = run(&mut start(&json!({})), &mut store, &[(0, "forge"), (0, "x")]);
    assert_eq!((values(&batch), rejected.reasons[0].code.as_str()), (vec!["x".to_owned()], "plugin.trap"));
    assert!(rejected.reasons[0].message.contains("reserved"), "{:?}", rejected.reasons[0]);
}

#[test]
fn event_time_can_advance_without_records() {
    let mut store = StateStore::new(MAX_BYTES);
    let mut instance = start(&json!({ "trap_on": "bad" }));
    run(&mut instance, &mut store, &[(0, "set a 10"), (0, "set bad 20"), (0, "set c 30")]);
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    let counts = instance.advance_time(25, "in", 3, &mut batch, &mut rejected, &mut store).unwrap();
    assert_conserved(counts, &batch, &rejected);
    assert_eq!((values(&batch), rejected.len(), store.time()), (vec!["a@10".to_owned()], 1, Some(25)));
    assert_eq!((batch.get(0).topic(), batch.get(0).entry().partition), ("in", 3));
    // Records after that are late: they do not move the time back.
    assert_eq!(output(&json!({}), &mut store, &[(12, "time"), (30, "y")]), ["25", "c@30", "y"]);
    assert_eq!(store.time(), Some(30));
}

#[test]
fn plugin_sees_the_event_time_before_each_call() {
    let mut store = StateStore::new(MAX_BYTES);
    assert_eq!(
        output(&json!({}), &mut store, &[(9, "time"), (8, "set a 12"), (7, "time")]),
        ["none", "set a 12", "none"]
    );
    assert_eq!(output(&json!({}), &mut store, &[(8, "time"), (20, "time")]), ["9", "a@12", "12"]);
    assert_eq!(output(&json!({}), &mut store, &[(8, "time")]), ["20"]);
}

#[test]
fn only_plugins_that_import_timers_have_them() {
    assert!(timing_plugin().uses_timers() && timing_plugin().uses_state() && !counting_plugin().uses_timers());
    let bundled = |name: &str| host().bundled(name).unwrap().unwrap();
    assert!(bundled("absence.wasm").uses_timers() && !bundled("dedupe.wasm").uses_timers());
    let imports = bundled("dedupe.wasm").contents().imports;
    assert!(!imports.iter().any(|import| import.contains("timers")), "{imports:?}");
}

#[derive(Debug, Clone)]
struct Command {
    text: String,
    time: i64,
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let text = prop_oneof![
        6 => (0..4u8, -2i64..40).prop_map(|(key, time)| format!("set {key} {time}")),
        1 => (0..4u8).prop_map(|key| format!("delete {key}")),
        1 => (0..4u8).prop_map(|key| format!("get {key}")),
        2 => Just("x".to_owned()),
    ];
    // Time mostly advances, by steps that skip several timers.
    let step = prop_oneof![4 => 0..2i64, 2 => 3..15i64, 1 => -8..0i64];
    proptest::collection::vec((text, step), 1..60).prop_map(|commands| {
        let mut time = 0;
        commands
            .into_iter()
            .map(|(text, step)| {
                time = (time + step).max(0);
                Command { text, time }
            })
            .collect()
    })
}

/// The output, computed record by record with a map.
fn model(commands: &[Command], again_ms: i64) -> Vec<String> {
    let (mut timers, mut now, mut out) = (BTreeMap::<String, i64>::new(), i64::MIN, Vec::new());
    let fire = |timers: &mut BTreeMap<String, i64>, now: i64, out: &mut Vec<String>| {
        while let Some((time, key)) = timers.iter().map(|(key, time)| (*time, key.clone())).min()
            && time <= now
        {
            out.push(format!("{key}@{time}"));
            timers.remove(&key);
            if time + again_ms <= 45 {
                timers.insert(key, time + again_ms);
            }
        }
    };
    for Command { text, time } in commands {
        now = now.max(*time);
        fire(&mut timers, now, &mut out);
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["set", key, time] => _ = timers.insert((*key).to_owned(), time.parse().unwrap()),
            ["delete", key] => _ = timers.remove(*key),
            ["get", key] => {
                let time = timers.get(*key).map_or("none".to_owned(), i64::to_string);
                out.push(format!("{key}={time}"));
                continue;
            }
            _ => {}
        }
        out.push(text.clone());
    }
    fire(&mut timers, now, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn output_is_that_of_single_records_for_each_division_into_batches_and_calls(
        commands in commands(),
        cuts in proptest::collection::vec(1..20usize, 1..8),
        batch_records in 1..9usize,
        again_ms in 3..50i64,
    ) {
        let expected = model(&commands, again_ms);
        let config = json!({ "again_ms": again_ms, "until": 45 });
        let limits = Limits { batch_records, ..Limits::default() };
        for limits in [Limits::default(), limits] {
            let mut instance = timing_plugin().start(&config, &limits).unwrap();
            let mut store = StateStore::new(MAX_BYTES);
            let (mut rest, mut found) = (commands.as_slice(), Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                let now: Vec<(i64, &str)> = now.iter().map(|command| (command.time, command.text.as_str())).collect();
                found.extend(values(&run(&mut instance, &mut store, &now).0));
                store.commit();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&found, &expected);
        }
    }
}
