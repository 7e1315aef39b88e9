//! What every [idempotent sink](crate::IdempotentSink) must do. A connector implements
//! [`SinkFixture`] and calls [`check_idempotent_sink`].

use std::sync::Arc;

use super::SinkFixture;
use super::sink_bench::{
    Bench, bad_options_are_refused, batch_with_bad_record, must, the_commit_policy_is_usable, topic_partition,
};
use crate::{Batch, Delivery, IdempotentSink, PartitionRecords, Rejections, Sink};

type Check = fn(&Bench<'_>);

/// Runs all checks.
///
/// # Panics
/// At the first check that fails.
pub fn check_idempotent_sink(fixture: &dyn SinkFixture) {
    let checks: [(&str, Check); 7] = [
        ("bad options are refused", bad_options_are_refused),
        ("the commit policy is usable", the_commit_policy_is_usable),
        ("delivered records are visible", delivered_records_are_visible),
        ("redelivery changes nothing", redelivery_changes_nothing),
        ("decided records are not delivered again", decided_records_are_not_delivered),
        ("only bad records are rejected", only_bad_records_are_rejected),
        ("concurrent deliveries do not mix", concurrent_deliveries_do_not_mix),
    ];
    for (name, check) in checks {
        eprintln!("idempotent sink conformance: {name}");
        check(&Bench::new(fixture, name));
    }
}

fn open(bench: &Bench<'_>) -> Box<dyn IdempotentSink> {
    match bench.open() {
        Sink::Idempotent(sink) => sink,
        Sink::TwoPhase(_) => panic!("the sink is not an idempotent sink"),
    }
}

fn delivery(batches: Vec<(i32, Batch)>) -> Delivery {
    let part = |(partition, records)| PartitionRecords { partition: topic_partition(partition), records };
    Delivery::new(batches.into_iter().map(part).collect())
}

/// Delivers, and fails if a record is rejected.
fn deliver(sink: &dyn IdempotentSink, mut delivery: Delivery) {
    must(sink.deliver(&mut delivery));
    for index in 0..delivery.partitions().len() {
        let mut rejected = Rejections::default();
        delivery.rejections(index, &mut rejected);
        assert!(rejected.is_empty(), "good records are rejected: {:?}", rejected.reasons);
    }
}

fn delivered_records_are_visible(bench: &Bench<'_>) {
    let sink = open(bench);
    deliver(sink.as_ref(), delivery(vec![(0, bench.batch(0, 0..100)), (1, bench.batch(1, 0..10))]));
    bench.expect_rows([(0, 0..100), (1, 0..10)]);
    deliver(sink.as_ref(), delivery(vec![(0, bench.batch(0, 100..150))]));
    bench.expect_rows([(0, 0..150), (1, 0..10)]);
    bench.expect_no_leftovers();
}

fn redelivery_changes_nothing(bench: &Bench<'_>) {
    let sink = open(bench);
    for sink in [&sink, &open(bench), &sink] {
        deliver(sink.as_ref(), delivery(vec![(0, bench.batch(0, 0..50))]));
        bench.expect_rows([(0, 0..50)]);
    }
    // A part of it again, with new records after it.
    deliver(sink.as_ref(), delivery(vec![(0, bench.batch(0, 40..60))]));
    bench.expect_rows([(0, 0..60)]);
}

fn decided_records_are_not_delivered(bench: &Bench<'_>) {
    let sink = open(bench);
    let mut delivery = delivery(vec![(0, bench.batch(0, 0..20))]);
    let last: Vec<_> = delivery.pending().skip(10).map(|pending| pending.index).collect();
    last.into_iter().for_each(|index| delivery.acknowledge(index));
    must(sink.deliver(&mut delivery));
    bench.expect_rows([(0, 0..10)]);
}

fn only_bad_records_are_rejected(bench: &Bench<'_>) {
    let sink = open(bench);
    for (round, bad) in (0..).zip(bench.fixture.bad_values()) {
        let first = round * 10;
        let mut delivery = delivery(vec![(0, batch_with_bad_record(bench, first, bad.as_deref()))]);
        must(sink.deliver(&mut delivery));
        let mut rejected = Rejections::default();
        delivery.rejections(0, &mut rejected);
        let shown = bad.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(rejected.len(), 1, "{shown:?} is not the only rejected record: {:?}", rejected.reasons);
        for (record, reason) in rejected.iter() {
            assert_eq!((record.value(), record.entry().offset), (bad.as_deref(), first + 4));
            assert!(!reason.code.is_empty() && !reason.message.is_empty());
        }
    }
    bench.expect_rows(
        [(0, 0..bench.fixture.bad_values().len() as i64 * 10)].into_iter().filter(|(_, rows)| !rows.is_empty()),
    );
}

fn concurrent_deliveries_do_not_mix(bench: &Bench<'_>) {
    let sink: Arc<dyn IdempotentSink> = Arc::from(open(bench));
    let deliveries = sink.in_flight().deliveries.max(1) as i32;
    std::thread::scope(|scope| {
        for partition in 0..deliveries {
            let sink = &sink;
            scope.spawn(move || deliver(sink.as_ref(), delivery(vec![(partition, bench.batch(partition, 0..200))])));
        }
    });
    bench.expect_rows((0..deliveries).map(|partition| (partition, 0..200)));
}
