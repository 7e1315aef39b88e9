//! What every [two-phase sink](crate::TwoPhaseSink) must do: what the stage relies on when it takes
//! topic partitions through seal, prepare and commit, and when it recovers what a dead task left. A
//! connector implements [`SinkFixture`] and calls [`check_two_phase_sink`].
//!
//! A task that dies is simulated by forgetting the sink: nothing of it runs any more, not even
//! destructors.

use serde_json::Value as Json;

use super::SinkFixture;
use super::sink_bench::{
    Bench, bad_options_are_refused, batch_with_bad_record, must, noise, the_commit_policy_is_usable, topic_partition,
};
use crate::{ErasedTwoPhaseSink, Rejections, Sink};

type Check = fn(&Bench<'_>);
type TwoPhase = Box<dyn ErasedTwoPhaseSink>;

/// Runs all checks.
///
/// # Panics
/// At the first check that fails.
pub fn check_two_phase_sink(fixture: &dyn SinkFixture) {
    let checks: [(&str, Check); 15] = [
        ("bad options are refused", bad_options_are_refused),
        ("the commit policy is usable", the_commit_policy_is_usable),
        ("nothing is visible before commit", nothing_is_visible_before_commit),
        ("commit may be repeated", commit_may_be_repeated),
        ("the next owner commits what a dead task prepared", the_next_owner_commits),
        ("two tasks may commit at once", two_tasks_may_commit_at_once),
        ("abort after seal leaves nothing", abort_after_seal_leaves_nothing),
        ("abort after prepare leaves nothing", abort_after_prepare_leaves_nothing),
        ("discard leaves nothing", discard_leaves_nothing),
        ("recover removes leftovers and keeps prepared output", recover_removes_leftovers),
        ("sealed output takes no later records", sealed_output_takes_no_later_records),
        ("topic partitions are independent", topic_partitions_are_independent),
        ("only bad records are rejected", only_bad_records_are_rejected),
        ("order is preserved", order_is_preserved),
        ("memory is bounded", memory_is_bounded),
    ];
    for (name, check) in checks {
        eprintln!("two-phase sink conformance: {name}");
        check(&Bench::new(fixture, name));
    }
}

fn open(bench: &Bench<'_>) -> TwoPhase {
    match bench.open() {
        Sink::TwoPhase(sink) => sink,
        Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
    }
}

fn write(bench: &Bench<'_>, sink: &mut TwoPhase, partition: i32, numbers: std::ops::Range<i64>) {
    let mut rejected = Rejections::default();
    must(sink.write(&topic_partition(partition), &bench.batch(partition, numbers), &mut rejected));
    assert!(rejected.is_empty(), "good records are rejected: {:?}", rejected.reasons);
}

fn seal(sink: &mut TwoPhase, partition: i32) -> Json {
    match must(sink.seal(&topic_partition(partition))) {
        Some(plan) => through_kafka(&plan),
        None => panic!("records are buffered, and there is nothing to seal"),
    }
}

fn prepare(sink: &mut TwoPhase, plans: &[Json]) -> Vec<Json> {
    let mut rejected = Rejections::default();
    let committables = must(sink.prepare(plans, &mut rejected));
    assert!(rejected.is_empty(), "good records are rejected: {:?}", rejected.reasons);
    assert_eq!(committables.len(), plans.len(), "one committable for each plan");
    committables.iter().map(through_kafka).collect()
}

fn seal_and_prepare(sink: &mut TwoPhase, partition: i32) -> Vec<Json> {
    let plan = seal(sink, partition);
    prepare(sink, &[plan])
}

/// Plans and committables are stored as JSON text.
fn through_kafka(state: &Json) -> Json {
    must(serde_json::from_str(&state.to_string()))
}

fn is_buffered(sink: &TwoPhase, partition: i32) -> bool {
    !sink.buffered(&topic_partition(partition)).is_empty()
}

fn nothing_is_visible_before_commit(bench: &Bench<'_>) {
    let mut sink = open(bench);
    assert!(!is_buffered(&sink, 0));
    assert_eq!(must(sink.seal(&topic_partition(0))), None, "a plan without records");
    write(bench, &mut sink, 0, 0..100);
    assert!(is_buffered(&sink, 0) && !is_buffered(&sink, 1));
    assert!(bench.rows().is_empty(), "visible after write");
    let plan = seal(&mut sink, 0);
    assert!(!is_buffered(&sink, 0), "buffered after seal");
    assert!(bench.rows().is_empty(), "visible after seal");
    let committables = prepare(&mut sink, &[plan]);
    assert!(bench.rows().is_empty(), "visible after prepare");
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..100)]);
    bench.expect_no_leftovers();
}

fn commit_may_be_repeated(bench: &Bench<'_>) {
    let mut sink = open(bench);
    write(bench, &mut sink, 0, 0..50);
    let committables = seal_and_prepare(&mut sink, 0);
    must(sink.commit(&committables));
    must(sink.commit(&committables));
    must(open(bench).commit(&committables));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn the_next_owner_commits(bench: &Bench<'_>) {
    let mut dead = open(bench);
    write(bench, &mut dead, 0, 0..50);
    let committables = seal_and_prepare(&mut dead, 0);
    std::mem::forget(dead);
    let mut next = open(bench);
    must(next.recover(&topic_partition(0), &committables));
    must(next.commit(&committables));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
    write(bench, &mut next, 0, 50..60);
    let committables = seal_and_prepare(&mut next, 0);
    must(next.commit(&committables));
    bench.expect_rows([(0, 0..60)]);
}

fn two_tasks_may_commit_at_once(bench: &Bench<'_>) {
    for round in 0..8 {
        let (mut one, mut other) = (open(bench), open(bench));
        write(bench, &mut one, 0, round * 10..round * 10 + 10);
        let committables = seal_and_prepare(&mut one, 0);
        std::thread::scope(|scope| {
            let racer = scope.spawn(|| must(other.commit(&committables)));
            must(one.commit(&committables));
            assert!(racer.join().is_ok(), "the second task's commit failed");
        });
    }
    bench.expect_rows([(0, 0..80)]);
    bench.expect_no_leftovers();
}

fn abort_after_seal_leaves_nothing(bench: &Bench<'_>) {
    let mut dead = open(bench);
    write(bench, &mut dead, 0, 0..50);
    let plan = seal(&mut dead, 0);
    std::mem::forget(dead);
    let mut next = open(bench);
    must(next.abort(&plan));
    must(next.recover(&topic_partition(0), &[]));
    bench.expect_nothing();
    must(next.abort(&plan));
}

fn abort_after_prepare_leaves_nothing(bench: &Bench<'_>) {
    let mut dead = open(bench);
    write(bench, &mut dead, 0, 0..50);
    let plan = seal(&mut dead, 0);
    drop(prepare(&mut dead, std::slice::from_ref(&plan)));
    std::mem::forget(dead);
    let mut next = open(bench);
    must(next.abort(&plan));
    must(next.recover(&topic_partition(0), &[]));
    bench.expect_nothing();
    // The records are read again, and arrive once.
    write(bench, &mut next, 0, 0..50);
    let committables = seal_and_prepare(&mut next, 0);
    must(next.commit(&committables));
    bench.expect_rows([(0, 0..50)]);
}

fn discard_leaves_nothing(bench: &Bench<'_>) {
    let mut sink = open(bench);
    write(bench, &mut sink, 0, 0..50);
    must(sink.spill());
    sink.discard(&topic_partition(0));
    assert!(!is_buffered(&sink, 0), "buffered after discard");
    assert_eq!(must(sink.seal(&topic_partition(0))), None, "a plan of discarded records");
    bench.expect_nothing();
    write(bench, &mut sink, 0, 0..50);
    let plan = seal(&mut sink, 0);
    sink.discard(&topic_partition(0));
    must(sink.abort(&plan));
    bench.expect_nothing();
    write(bench, &mut sink, 0, 0..50);
    let committables = seal_and_prepare(&mut sink, 0);
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn recover_removes_leftovers(bench: &Bench<'_>) {
    let mut dead = open(bench);
    write(bench, &mut dead, 0, 0..50);
    let committables = seal_and_prepare(&mut dead, 0);
    write(bench, &mut dead, 0, 50..90);
    must(dead.spill());
    write(bench, &mut dead, 1, 0..10);
    must(dead.spill());
    std::mem::forget(dead);
    let mut next = open(bench);
    must(next.recover(&topic_partition(0), &committables));
    must(next.recover(&topic_partition(1), &[]));
    must(next.commit(&committables));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn sealed_output_takes_no_later_records(bench: &Bench<'_>) {
    let mut sink = open(bench);
    write(bench, &mut sink, 0, 0..50);
    let plan = seal(&mut sink, 0);
    write(bench, &mut sink, 0, 50..80);
    let committables = prepare(&mut sink, &[plan]);
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..50)]);
    assert!(is_buffered(&sink, 0), "records that were written after the seal are not buffered");
    let committables = seal_and_prepare(&mut sink, 0);
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..80)]);
    bench.expect_no_leftovers();
}

fn topic_partitions_are_independent(bench: &Bench<'_>) {
    let mut sink = open(bench);
    for partition in 0..3 {
        write(bench, &mut sink, partition, 0..20);
    }
    sink.discard(&topic_partition(1));
    let plans = [seal(&mut sink, 2), seal(&mut sink, 0)];
    let committables = prepare(&mut sink, &plans);
    must(sink.commit(&committables[..1]));
    bench.expect_rows([(2, 0..20)]);
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..20), (2, 0..20)]);
    bench.expect_no_leftovers();
}

/// Rejected at `write` or at `prepare`, as the destination allows.
fn only_bad_records_are_rejected(bench: &Bench<'_>) {
    let mut sink = open(bench);
    for (round, bad) in (0..).zip(bench.fixture.bad_values()) {
        let first = round * 10;
        let mut rejected = Rejections::default();
        let batch = batch_with_bad_record(bench, first, bad.as_deref());
        must(sink.write(&topic_partition(0), &batch, &mut rejected));
        let plan = seal(&mut sink, 0);
        let committables = must(sink.prepare(&[plan], &mut rejected));
        must(sink.commit(&committables));
        let shown = bad.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(rejected.len(), 1, "{shown:?} is not the only rejected record: {:?}", rejected.reasons);
        for (record, reason) in rejected.iter() {
            assert_eq!((record.value(), record.entry().offset), (bad.as_deref(), first + 4));
            assert!(!reason.code.is_empty() && !reason.message.is_empty());
        }
    }
    bench.expect_rows([(0, 0..bench.fixture.bad_values().len() as i64 * 10)]);
}

fn order_is_preserved(bench: &Bench<'_>) {
    let mut sink = open(bench);
    for round in 0..5 {
        for step in 0..10 {
            for partition in 0..3 {
                let first = round * 100 + step * 10;
                write(bench, &mut sink, partition, first..first + 10);
            }
        }
        for partition in 0..3 {
            let committables = seal_and_prepare(&mut sink, partition);
            must(sink.commit(&committables));
        }
    }
    bench.expect_rows((0..3).map(|partition| (partition, 0..500)));
}

fn memory_is_bounded(bench: &Bench<'_>) {
    let bound = bench.fixture.memory_bound();
    let mut sink = open(bench);
    assert!(sink.memory_bytes() <= bound, "{} bytes without a record", sink.memory_bytes());
    let (mut written, mut numbers, mut most) = (0, 0, 0);
    while written < 2 * bound {
        let batch = bench.batch_of(0, (numbers..numbers + 500).map(|number| (number, noise(number, 4000))));
        numbers += 500;
        written += batch.bytes();
        must(sink.write(&topic_partition(0), &batch, &mut Rejections::default()));
        most = most.max(sink.memory_bytes());
    }
    assert!(most <= bound, "{most} bytes reported after {written} written; at most {bound} are allowed");
    write(bench, &mut sink, 0, numbers..numbers + 100);
    let before = sink.memory_bytes();
    for _ in 0..10 {
        must(sink.spill());
    }
    assert!(before == 0 || sink.memory_bytes() < before, "spill: {before} bytes before, {} after", sink.memory_bytes());
    let committables = seal_and_prepare(&mut sink, 0);
    must(sink.commit(&committables));
    bench.expect_rows([(0, 0..numbers + 100)]);
    assert!(sink.memory_bytes() <= before, "{} bytes after the commit", sink.memory_bytes());
}
