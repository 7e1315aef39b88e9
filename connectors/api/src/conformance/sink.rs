//! What every sink must hold: what the stage relies on when it takes claims through plan, stage and publish, and when it recovers what a
//! dead task left. A connector implements [`SinkFixture`] for a destination of its tests and calls [`check_sink`].
//!
//! A task that dies is played by forgetting the sink: nothing of it runs any more, not even destructors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::read_toml;
use crate::config::{Report, Section};
use crate::{
    Batch, MemoryBudget, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink, SinkConnector, SinkContext,
    TopicPartition,
};

/// A rule by which objects become due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueRule {
    /// At 100 records, and for no other reason.
    Records,
    /// At about 64 KiB, and for no other reason.
    Bytes,
    /// 60 s after the first record, and for no other reason.
    Age,
    /// 60 s after the last record, and for no other reason.
    Idle,
}

/// A sink and a place where its destinations can be made and read back.
pub trait SinkFixture: Sync {
    /// The connector.
    fn connector(&self) -> Box<dyn SinkConnector>;

    /// Options, as TOML, for a sink on the destination of that name. A destination is empty when its name comes up first.
    fn options(&self, destination: &str) -> String;

    /// Further options, as TOML, for which claims are due by this rule alone. `None`: the sink has no such rule.
    fn due_by(&self, rule: DueRule) -> Option<String>;

    /// Further options, each a line that must be refused.
    fn bad_options(&self) -> Vec<&'static str>;

    /// The value of a good record. Rows are told apart by partition and number.
    fn value(&self, partition: i32, number: i64, text: &str) -> Vec<u8> {
        format!("{{\"partition\":{partition},\"number\":{number},\"text\":\"{text}\"}}").into_bytes()
    }

    /// Values that the sink must set aside, `None` for a record without one.
    fn bad_values(&self) -> Vec<Option<Vec<u8>>>;

    /// What a reader of the destination sees: the numbers of each partition, in the destination's own order.
    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>>;

    /// What lies at the destination without being visible: temporary files, uploads that were begun.
    fn leftovers(&self, destination: &str) -> Vec<String>;

    /// The most that the sink may report as its memory with a few open objects.
    fn memory_bound(&self) -> usize {
        64 << 20
    }
}

type Check = fn(&Bench<'_>);

/// Runs all checks.
///
/// # Panics
/// At the first that fails, saying what was expected.
pub fn check_sink(fixture: &dyn SinkFixture) {
    let checks: [(&str, Check); 16] = [
        ("bad options are refused", bad_options_are_refused),
        ("nothing is visible before publish", nothing_is_visible_before_publish),
        ("publish may be repeated", publish_may_be_repeated),
        ("a survivor publishes what a dead task promised", a_survivor_publishes),
        ("two tasks may publish at once", two_may_publish_at_once),
        ("abort after plan leaves nothing", abort_after_plan_leaves_nothing),
        ("abort after stage leaves nothing", abort_after_stage_leaves_nothing),
        ("discard leaves nothing", discard_leaves_nothing),
        ("a claim removes leftovers and keeps promises", a_claim_removes_leftovers),
        ("plan may be repeated", plan_may_be_repeated),
        ("claims are independent", claims_are_independent),
        ("bad records are set aside alone", bad_records_are_set_aside_alone),
        ("order is kept", order_is_kept),
        ("due by size", due_by_size),
        ("due by time", due_by_time),
        ("memory is bounded", memory_is_bounded),
    ];
    for (name, check) in checks {
        eprintln!("sink conformance: {name}");
        check(&Bench::new(fixture, name));
    }
}

/// What one check works with: a destination of its own.
struct Bench<'a> {
    fixture: &'a dyn SinkFixture,
    destination: String,
    runtime: tokio::runtime::Runtime,
    scratch: PathBuf,
    opened: AtomicU64,
}

struct NoSchemas;

impl SchemaLookup for NoSchemas {
    fn schema(&self, _: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(None)
    }
}

impl<'a> Bench<'a> {
    fn new(fixture: &'a dyn SinkFixture, name: &str) -> Self {
        let destination = name.replace(' ', "-");
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("trunkline-conformance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime = must(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build());
        Self { fixture, destination, runtime, scratch: std::env::temp_dir().join(unique), opened: AtomicU64::new(0) }
    }

    fn open(&self) -> Box<dyn Sink> {
        self.open_with("")
    }

    /// A sink on the check's destination, as a task just started has it.
    fn open_with(&self, options: &str) -> Box<dyn Sink> {
        let scratch = self.scratch.join(self.opened.fetch_add(1, Ordering::Relaxed).to_string());
        must(std::fs::create_dir_all(&scratch));
        let toml = format!("{}\n{options}", self.fixture.options(&self.destination));
        let table = read_toml(&toml);
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
        let spec = self.fixture.connector().configure(&section, &[]);
        section.finish();
        let problems = report.into_problems();
        assert!(problems.is_empty(), "good options are refused: {problems:#?}\n{toml}");
        let Some(spec) = spec else { panic!("good options give no sink, and no problem is reported:\n{toml}") };
        let context = SinkContext {
            name: "conformance.test".to_owned(),
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch,
            schemas: Arc::new(NoSchemas),
        };
        must(spec.open(context))
    }

    /// A batch of one partition; numbers are offsets.
    fn batch(&self, partition: i32, numbers: impl IntoIterator<Item = i64>) -> Batch {
        self.batch_of(partition, numbers.into_iter().map(|number| (number, format!("text {number}"))))
    }

    fn batch_of(&self, partition: i32, records: impl IntoIterator<Item = (i64, String)>) -> Batch {
        let mut batch = Batch::default();
        for (number, text) in records {
            push(&mut batch, partition, number, Some(&self.fixture.value(partition, number, &text)));
        }
        batch
    }

    fn write(&self, sink: &mut dyn Sink, partition: i32, numbers: impl IntoIterator<Item = i64>) {
        let mut rejected = Rejections::default();
        must(sink.write(&claim(partition), &self.batch(partition, numbers), &mut rejected));
        assert!(rejected.is_empty(), "good records are rejected: {:?}", rejected.reasons);
    }

    fn rows(&self) -> BTreeMap<i32, Vec<i64>> {
        self.fixture.rows(&self.destination)
    }

    fn expect_rows(&self, expected: impl IntoIterator<Item = (i32, std::ops::Range<i64>)>) {
        let expected: BTreeMap<i32, Vec<i64>> =
            expected.into_iter().map(|(partition, numbers)| (partition, numbers.collect())).collect();
        assert!(self.rows() == expected, "expected {expected:?}\n   found {:?}", self.rows());
    }

    fn expect_nothing(&self) {
        assert!(self.rows().is_empty(), "visible: {:?}", self.rows());
        self.expect_no_leftovers();
    }

    fn expect_no_leftovers(&self) {
        let leftovers = self.fixture.leftovers(&self.destination);
        assert!(leftovers.is_empty(), "left over: {leftovers:?}");
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.scratch));
    }
}

fn must<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

fn claim(partition: i32) -> TopicPartition {
    TopicPartition { topic: Arc::from("conformance"), partition }
}

fn push(batch: &mut Batch, partition: i32, offset: i64, value: Option<&[u8]>) {
    let topic = batch.topic_index("conformance");
    let mut record = batch.record();
    record.timestamp(1_431_857_103_000).read_from(topic, partition, offset);
    if let Some(value) = value {
        record.value(value);
    }
    record.finish();
}

fn plan(sink: &mut dyn Sink, partition: i32) -> Json {
    match must(sink.plan(&claim(partition))) {
        Some(plan) => plan,
        None => panic!("records are open, and there is nothing to plan"),
    }
}

fn stage(sink: &mut dyn Sink, partition: i32) -> Vec<Json> {
    let intents = must(sink.stage(&[claim(partition)]));
    assert_eq!(intents.len(), 1, "one intent for one claim");
    // Intents go through Kafka.
    intents.iter().map(|intent| must(serde_json::from_str(&intent.to_string()))).collect()
}

fn plan_and_stage(sink: &mut dyn Sink, partition: i32) -> Vec<Json> {
    plan(sink, partition);
    stage(sink, partition)
}

fn bad_options_are_refused(bench: &Bench<'_>) {
    let good = bench.fixture.options(&bench.destination);
    for bad in bench.fixture.bad_options() {
        let replaced = bad.split_once('=').map_or("", |(key, _)| key.trim());
        let kept: Vec<_> =
            good.lines().filter(|line| line.split_once('=').is_none_or(|(key, _)| key.trim() != replaced)).collect();
        let table = read_toml(&format!("{}\n{bad}", kept.join("\n")));
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
        drop(bench.fixture.connector().configure(&section, &[]));
        section.finish();
        assert!(!report.is_empty(), "not refused: {bad}");
    }
}

fn nothing_is_visible_before_publish(bench: &Bench<'_>) {
    let mut sink = bench.open();
    assert!(!sink.has_open(&claim(0)));
    assert_eq!(must(sink.plan(&claim(0))), None, "a plan of nothing");
    bench.write(sink.as_mut(), 0, 0..100);
    assert!(sink.has_open(&claim(0)) && !sink.has_open(&claim(1)));
    assert!(bench.rows().is_empty(), "visible after write");
    plan(sink.as_mut(), 0);
    assert!(bench.rows().is_empty(), "visible after plan");
    let intents = stage(sink.as_mut(), 0);
    assert!(bench.rows().is_empty(), "visible after stage");
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..100)]);
    assert!(!sink.has_open(&claim(0)));
    bench.expect_no_leftovers();
}

fn publish_may_be_repeated(bench: &Bench<'_>) {
    let mut sink = bench.open();
    bench.write(sink.as_mut(), 0, 0..50);
    let intents = plan_and_stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    must(sink.publish(&intents));
    must(bench.open().publish(&intents));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn a_survivor_publishes(bench: &Bench<'_>) {
    let mut dead = bench.open();
    bench.write(dead.as_mut(), 0, 0..50);
    let intents = plan_and_stage(dead.as_mut(), 0);
    std::mem::forget(dead);
    let mut survivor = bench.open();
    must(survivor.claimed(&claim(0), &intents));
    must(survivor.publish(&intents));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
    bench.write(survivor.as_mut(), 0, 50..60);
    let intents = plan_and_stage(survivor.as_mut(), 0);
    must(survivor.publish(&intents));
    bench.expect_rows([(0, 0..60)]);
}

fn two_may_publish_at_once(bench: &Bench<'_>) {
    for round in 0..8 {
        let (mut one, mut other) = (bench.open(), bench.open());
        bench.write(one.as_mut(), 0, round * 10..round * 10 + 10);
        let intents = plan_and_stage(one.as_mut(), 0);
        std::thread::scope(|scope| {
            let racer = scope.spawn(|| must(other.publish(&intents)));
            must(one.publish(&intents));
            drop(racer.join());
        });
    }
    bench.expect_rows([(0, 0..80)]);
    bench.expect_no_leftovers();
}

fn abort_after_plan_leaves_nothing(bench: &Bench<'_>) {
    let mut dead = bench.open();
    bench.write(dead.as_mut(), 0, 0..50);
    let recorded = plan(dead.as_mut(), 0);
    std::mem::forget(dead);
    let mut survivor = bench.open();
    must(survivor.abort(&recorded));
    must(survivor.claimed(&claim(0), &[]));
    bench.expect_nothing();
    must(survivor.abort(&recorded));
}

fn abort_after_stage_leaves_nothing(bench: &Bench<'_>) {
    let mut dead = bench.open();
    bench.write(dead.as_mut(), 0, 0..50);
    let recorded = plan(dead.as_mut(), 0);
    drop(stage(dead.as_mut(), 0));
    std::mem::forget(dead);
    let mut survivor = bench.open();
    must(survivor.abort(&recorded));
    must(survivor.claimed(&claim(0), &[]));
    bench.expect_nothing();
    // The records are read again, and come once.
    bench.write(survivor.as_mut(), 0, 0..50);
    let intents = plan_and_stage(survivor.as_mut(), 0);
    must(survivor.publish(&intents));
    bench.expect_rows([(0, 0..50)]);
}

fn discard_leaves_nothing(bench: &Bench<'_>) {
    let mut sink = bench.open();
    bench.write(sink.as_mut(), 0, 0..50);
    must(sink.relieve());
    sink.discard(&claim(0));
    assert!(!sink.has_open(&claim(0)), "open after discard");
    assert_eq!(must(sink.plan(&claim(0))), None, "a plan of what was discarded");
    bench.expect_nothing();
    bench.write(sink.as_mut(), 0, 0..50);
    let recorded = plan(sink.as_mut(), 0);
    sink.discard(&claim(0));
    must(sink.abort(&recorded));
    bench.expect_nothing();
    bench.write(sink.as_mut(), 0, 0..50);
    let intents = plan_and_stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn a_claim_removes_leftovers(bench: &Bench<'_>) {
    let mut dead = bench.open();
    bench.write(dead.as_mut(), 0, 0..50);
    let intents = plan_and_stage(dead.as_mut(), 0);
    bench.write(dead.as_mut(), 0, 50..90);
    must(dead.relieve());
    bench.write(dead.as_mut(), 1, 0..10);
    must(dead.relieve());
    std::mem::forget(dead);
    let mut survivor = bench.open();
    must(survivor.claimed(&claim(0), &intents));
    must(survivor.claimed(&claim(1), &[]));
    must(survivor.publish(&intents));
    bench.expect_rows([(0, 0..50)]);
    bench.expect_no_leftovers();
}

fn plan_may_be_repeated(bench: &Bench<'_>) {
    let mut sink = bench.open();
    bench.write(sink.as_mut(), 0, 0..50);
    let first = plan(sink.as_mut(), 0);
    bench.write(sink.as_mut(), 0, 50..80);
    assert_eq!(plan(sink.as_mut(), 0), first, "the plan changed");
    let intents = stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..50)]);
    assert!(sink.has_open(&claim(0)), "records that were written after the plan are open");
    let intents = plan_and_stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..80)]);
    bench.expect_no_leftovers();
}

fn claims_are_independent(bench: &Bench<'_>) {
    let mut sink = bench.open();
    for partition in 0..3 {
        bench.write(sink.as_mut(), partition, 0..20);
    }
    sink.discard(&claim(1));
    plan(sink.as_mut(), 2);
    plan(sink.as_mut(), 0);
    let intents = must(sink.stage(&[claim(2), claim(0)]));
    must(sink.publish(&intents[..1]));
    bench.expect_rows([(2, 0..20)]);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..20), (2, 0..20)]);
    bench.expect_no_leftovers();
}

fn bad_records_are_set_aside_alone(bench: &Bench<'_>) {
    let mut sink = bench.open();
    for (round, bad) in (0..).zip(bench.fixture.bad_values()) {
        let mut batch = Batch::default();
        let first = round * 10;
        for number in first..first + 10 {
            // The bad one comes between two good ones, at the offset of the first.
            push(&mut batch, 0, number, Some(&bench.fixture.value(0, number, "x")));
            if number == first + 4 {
                push(&mut batch, 0, number, bad.as_deref());
            }
        }
        let mut rejected = Rejections::default();
        must(sink.write(&claim(0), &batch, &mut rejected));
        let shown = bad.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(rejected.len(), 1, "{shown:?} is not set aside alone: {:?}", rejected.reasons);
        for (record, reason) in rejected.iter() {
            assert_eq!((record.value(), record.entry().offset), (bad.as_deref(), first + 4));
            assert!(!reason.code.is_empty() && !reason.message.is_empty());
        }
    }
    let rounds = bench.fixture.bad_values().len() as i64;
    let intents = plan_and_stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..rounds * 10)]);
}

fn order_is_kept(bench: &Bench<'_>) {
    let mut sink = bench.open();
    for round in 0..5 {
        for step in 0..10 {
            for partition in 0..3 {
                let first = round * 100 + step * 10;
                bench.write(sink.as_mut(), partition, first..first + 10);
            }
        }
        for partition in 0..3 {
            let intents = plan_and_stage(sink.as_mut(), partition);
            must(sink.publish(&intents));
        }
    }
    bench.expect_rows((0..3).map(|partition| (partition, 0..500)));
}

fn due_by_size(bench: &Bench<'_>) {
    if let Some(options) = bench.fixture.due_by(DueRule::Records) {
        let mut sink = bench.open_with(&options);
        bench.write(sink.as_mut(), 0, 0..99);
        bench.write(sink.as_mut(), 1, 0..10);
        assert!(sink.due(Instant::now()).is_empty(), "due before 100 records");
        bench.write(sink.as_mut(), 0, 99..100);
        assert_eq!(sink.due(Instant::now()), [claim(0)], "due at 100 records");
        plan(sink.as_mut(), 0);
        assert!(sink.due(Instant::now()).is_empty(), "still due once planned");
    }
    if let Some(options) = bench.fixture.due_by(DueRule::Bytes) {
        let mut sink = bench.open_with(&options);
        bench.write(sink.as_mut(), 1, 0..1);
        for round in 0..1000 {
            assert!(round < 999, "never due by bytes");
            let text = |number| (number, noise(number, 1000));
            let batch = bench.batch_of(0, (round * 10..round * 10 + 10).map(text));
            must(sink.write(&claim(0), &batch, &mut Rejections::default()));
            let due = sink.due(Instant::now());
            if due == [claim(0)] {
                assert!(round > 0, "due at {} bytes", batch.bytes());
                break;
            }
            assert_eq!(due, []);
        }
        assert!(sink.next_due().is_none_or(|at| at > Instant::now() + Duration::from_secs(600)), "due by time");
    }
}

fn due_by_time(bench: &Bench<'_>) {
    for rule in [DueRule::Age, DueRule::Idle] {
        let Some(options) = bench.fixture.due_by(rule) else { continue };
        let mut sink = bench.open_with(&options);
        assert_eq!(sink.next_due(), None, "{rule:?}: due without records");
        let before = Instant::now();
        bench.write(sink.as_mut(), 0, 0..1);
        let after = Instant::now();
        let minute = Duration::from_secs(60);
        let Some(at) = sink.next_due() else { panic!("{rule:?}: never due") };
        assert!(at >= before + minute && at <= after + minute, "{rule:?}: not due after a minute");
        assert!(sink.due(at - Duration::from_millis(1)).is_empty(), "{rule:?}: due too early");
        assert_eq!(sink.due(at), [claim(0)], "{rule:?}: not due when it said");
        while Instant::now() == after {}
        bench.write(sink.as_mut(), 0, 1..2);
        let moved = sink.next_due() != Some(at);
        assert_eq!(moved, rule == DueRule::Idle, "{rule:?}: another record moves idleness, and not age");
        plan(sink.as_mut(), 0);
        assert_eq!(sink.next_due(), None, "{rule:?}: due once planned");
    }
}

fn memory_is_bounded(bench: &Bench<'_>) {
    let bound = bench.fixture.memory_bound();
    let mut sink = bench.open();
    assert!(sink.memory() <= bound, "{} bytes without a record", sink.memory());
    let mut written = 0;
    let mut numbers = 0;
    let mut most = 0;
    while written < 2 * bound {
        let text = |number| (number, noise(number, 4000));
        let batch = bench.batch_of(0, (numbers..numbers + 500).map(text));
        numbers += 500;
        written += batch.bytes();
        must(sink.write(&claim(0), &batch, &mut Rejections::default()));
        most = most.max(sink.memory());
    }
    assert!(most <= bound, "{most} bytes reported after {written} written; {bound} are the most");
    assert!(most > 0, "no memory is reported");
    bench.write(sink.as_mut(), 0, numbers..numbers + 100);
    let before = sink.memory();
    for _ in 0..10 {
        must(sink.relieve());
    }
    assert!(before > 0 && sink.memory() < before, "relieve: {before} bytes before, {} after", sink.memory());
    let intents = plan_and_stage(sink.as_mut(), 0);
    must(sink.publish(&intents));
    bench.expect_rows([(0, 0..numbers + 100)]);
    assert!(sink.memory() < before, "{} bytes after everything was published", sink.memory());
}

/// Text that does not compress to nothing.
fn noise(seed: i64, len: usize) -> String {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(len + 16);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text
}
