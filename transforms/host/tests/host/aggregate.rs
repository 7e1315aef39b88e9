//! The bundled transform `aggregate` in the host: its output is that of a simple model that gets
//! one record at a time, for each division of the records into batches and calls.

use proptest::prelude::*;
use serde_json::{Value, json};
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Instance, Limits, StateStore};

use crate::support::{assert_conserved, host, text};

const GROUPS: u8 = 3;
/// Each step has a bit in a sum.
const MAX_STEPS: usize = 60;
/// After all windows, in seconds.
const END: i64 = 10_000;

/// A record, or time that passes without one.
#[derive(Debug, Clone)]
enum Step {
    Record { time: i64, group: u8 },
    Idle { time: i64 },
}

#[derive(Debug, Clone, Copy)]
enum Windows {
    Fixed { size: i64, advance: i64 },
    Sessions { gap: i64 },
}

#[derive(Debug, Clone)]
struct Case {
    windows: Windows,
    lateness: i64,
    steps: Vec<Step>,
    /// The sizes of the batches.
    cuts: Vec<usize>,
    batch_records: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let windows = prop_oneof![
        (1..20i64).prop_map(|size| Windows::Fixed { size, advance: size }),
        (1..20i64, 1..20i64)
            .prop_map(|(size, advance)| Windows::Fixed { size: size.max(advance), advance: size.min(advance) }),
        (1..12i64).prop_map(|gap| Windows::Sessions { gap }),
    ];
    // Event time mostly advances slowly. There are late records, gaps, and idle partitions.
    let step = prop_oneof![12 => 0..3i64, 3 => 3..30i64, 4 => -25..0i64];
    let step = (step, 0..GROUPS, proptest::bool::weighted(0.06));
    let steps = proptest::collection::vec(step, 1..MAX_STEPS).prop_map(|steps| {
        let mut now = 0;
        let steps = steps.into_iter().map(|(step, group, is_idle)| match is_idle {
            true => {
                now += step.abs();
                Step::Idle { time: now }
            }
            false => {
                let time = (now + step).max(0);
                now = now.max(time);
                Step::Record { time, group }
            }
        });
        steps.collect()
    });
    (windows, 0..15i64, steps, proptest::collection::vec(prop_oneof![1..8usize, 30..MAX_STEPS], 1..6), 1..12usize)
        .prop_map(|(windows, lateness, steps, cuts, batch_records)| Case {
            windows,
            lateness,
            steps,
            cuts,
            batch_records,
        })
}

/// What the transform outputs: results, and late records.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Output {
    Result { group: u8, start: i64, end: i64, offsets: Vec<usize> },
    Late(usize),
}

/// A window with its group, its start, and its records. Sessions have no fixed start.
type Window = (u8, i64, Records);
/// The times and offsets of records.
type Records = Vec<(i64, usize)>;

/// A simple implementation.
struct Model {
    windows: Windows,
    lateness: i64,
    now: i64,
    open: Vec<Window>,
    out: Vec<Output>,
}

impl Model {
    fn bounds(&self, start: i64, records: &[(i64, usize)]) -> (i64, i64) {
        match self.windows {
            Windows::Fixed { size, .. } => (start, start + size),
            Windows::Sessions { .. } => {
                let times = || records.iter().map(|(time, _)| *time);
                (times().min().unwrap(), times().max().unwrap())
            }
        }
    }

    fn gap(&self) -> i64 {
        match self.windows {
            Windows::Fixed { .. } => 0,
            Windows::Sessions { gap } => gap,
        }
    }

    /// Closes what the event time has passed, in the order of the ends.
    fn advance(&mut self, time: i64) {
        self.now = self.now.max(time);
        let mut closed = Vec::new();
        for (group, start, records) in std::mem::take(&mut self.open) {
            let (start, end) = self.bounds(start, &records);
            match end + self.gap() + self.lateness <= self.now {
                true => closed.push((end, group, start, records)),
                false => self.open.push((group, start, records)),
            }
        }
        closed.sort();
        for (end, group, start, records) in closed {
            let mut offsets: Vec<usize> = records.iter().map(|(_, offset)| *offset).collect();
            offsets.sort_unstable();
            self.out.push(Output::Result { group, start, end, offsets });
        }
    }

    fn record(&mut self, time: i64, group: u8, offset: usize) {
        self.advance(time);
        let is_late = match self.windows {
            Windows::Fixed { size, advance } => {
                let starts = (0..=time).filter(|start| start % advance == 0 && start + size > time);
                let open: Vec<i64> = starts.filter(|start| start + size + self.lateness > self.now).collect();
                for start in &open {
                    self.add(group, *start, vec![(time, offset)]);
                }
                open.is_empty()
            }
            Windows::Sessions { gap } => {
                let near = |records: &[(i64, usize)]| records.iter().any(|(other, _)| (other - time).abs() < gap);
                let (joined, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
                    .into_iter()
                    .partition(|(of, _, records)| *of == group && near(records));
                self.open = others;
                let is_late = joined.is_empty() && time + gap + self.lateness <= self.now;
                if !is_late {
                    let mut records: Vec<_> = joined.into_iter().flat_map(|(_, _, records)| records).collect();
                    records.push((time, offset));
                    self.open.push((group, 0, records));
                }
                is_late
            }
        };
        if is_late {
            self.out.push(Output::Late(offset));
        }
    }

    fn add(&mut self, group: u8, start: i64, records: Records) {
        match self.open.iter_mut().find(|(of, at, _)| (*of, *at) == (group, start)) {
            Some((_, _, known)) => known.extend(records),
            None => self.open.push((group, start, records)),
        }
    }
}

fn config(case: &Case) -> Value {
    let mut config = json!({
        "group_by": ["g"], "lateness": format!("{}s", case.lateness), "late": "port",
        // The sum of powers of two shows which records a window has.
        "aggregates": { "n": "count()", "sum": "sum(row.bit)", "first": "first(row.at)", "last": "last(row.at)" },
    });
    match case.windows {
        Windows::Fixed { size, advance } => {
            config["window"] = format!("{size}s").into();
            config["advance"] = format!("{advance}s").into();
        }
        Windows::Sessions { gap } => config["session"] = format!("{gap}s").into(),
    }
    config
}

/// Adds the outputs of a batch. Checks what each result says of its records.
fn read(batch: &Batch, steps: &[Step], out: &mut Vec<Output>) {
    for record in batch.iter() {
        let value: Value = serde_json::from_str(&text(record.value())).unwrap();
        if record.entry().port == 1 {
            out.push(Output::Late(record.entry().offset as usize));
            continue;
        }
        assert_eq!(record.entry().port, 0);
        let number = |name: &str| value[name].to_string().parse::<u64>().unwrap();
        let sum = number("sum");
        let offsets: Vec<usize> = (0..steps.len()).filter(|offset| sum & (1 << offset) != 0).collect();
        let times = offsets.iter().map(|offset| match &steps[*offset] {
            Step::Record { time, .. } | Step::Idle { time } => *time,
        });
        let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
        assert_eq!((number("n"), number("first"), number("last")), (offsets.len() as u64, first as u64, last as u64));
        assert_eq!(record.timestamp(), Some(last * 1000));
        let group = number("g") as u8;
        assert_eq!(text(record.key()), group.to_string());
        let (start, end) = (number("window_start") as i64 / 1000, number("window_end") as i64 / 1000);
        out.push(Output::Result { group, start, end, offsets });
    }
}

fn process(instance: &mut Instance, store: &mut StateStore, records: &[(usize, i64, u8)]) -> Batch {
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    let topic = batch.topic_index("in");
    for (offset, time, group) in records {
        let mut record = batch.record();
        let value = format!("{{\"g\":{group},\"bit\":{},\"at\":{time}}}", 1u64 << offset);
        record.timestamp(time * 1000).read_from(topic, 3, *offset as i64).value(value.as_bytes());
        record.finish();
    }
    let counts = instance.process_with_state(&mut batch, &mut rejected, store).unwrap();
    assert_conserved(counts, &batch, &rejected);
    assert_eq!((counts.records_in, counts.rejected), (records.len() as u64, 0));
    batch
}

/// The output of the transform.
fn output(case: &Case, limits: &Limits) -> Vec<Output> {
    let start = || host().bundled("aggregate.wasm").unwrap().unwrap().start(&config(case), limits).unwrap();
    let (mut instance, mut store, mut out) = (start(), StateStore::new(1 << 20), Vec::new());
    let mut cuts = case.cuts.iter().cycle();
    let mut pending = Vec::new();
    let mut size = *cuts.next().unwrap();
    for (offset, step) in case.steps.iter().enumerate() {
        let idle = match step {
            Step::Record { time, group } => {
                pending.push((offset, *time, *group));
                None
            }
            Step::Idle { time } => Some(*time),
        };
        if idle.is_none() && pending.len() < size && offset + 1 < case.steps.len() {
            continue;
        }
        size = *cuts.next().unwrap();
        read(&process(&mut instance, &mut store, &std::mem::take(&mut pending)), &case.steps, &mut out);
        if let Some(time) = idle {
            let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
            let to = time * 1000;
            let counts = instance.advance_time(to, "in", 3, &mut batch, &mut rejected, &mut store).unwrap();
            assert_conserved(counts, &batch, &rejected);
            read(&batch, &case.steps, &mut out);
        }
        // The memory of the plugin is not needed, and the state moves with its changelog.
        let mut moved = StateStore::new(1 << 20);
        store.entries().for_each(|(key, entry)| moved.restore(key, Some(entry.clone())));
        store.time().into_iter().for_each(|time| moved.restore_time(time));
        (store, instance) = (moved, start());
    }
    // Only the options stay in the state after the last window.
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    instance.advance_time(END * 1000, "in", 3, &mut batch, &mut rejected, &mut store).unwrap();
    read(&batch, &case.steps, &mut out);
    assert!(store.entries().all(|(key, _)| key == b"options\0"));
    out
}

/// Checks that the output is that of the model.
fn check(case: &Case) {
    let Case { windows, lateness, .. } = *case;
    let mut model = Model { windows, lateness, now: 0, open: Vec::new(), out: Vec::new() };
    for (offset, step) in case.steps.iter().enumerate() {
        match step {
            Step::Record { time, group } => model.record(*time, *group, offset),
            Step::Idle { time } => model.advance(*time),
        }
    }
    model.advance(END);
    for limits in [Limits::default(), Limits { batch_records: case.batch_records, ..Limits::default() }] {
        assert_eq!(by_time(&output(case, &limits)), by_time(&model.out));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn results_are_those_of_single_records_for_each_division_into_batches_and_calls(case in case()) {
        check(&case);
    }
}

/// The event time closes a session within a call, and a later record of the call would join it.
#[test]
fn late_record_does_not_join_a_session_that_was_closed_in_the_same_call() {
    let steps = [(0, 0), (15, 1), (8, 0), (23, 1), (60, 1)].map(|(time, group)| Step::Record { time, group });
    for cut in 1..=5 {
        let windows = Windows::Sessions { gap: 10 };
        check(&Case { windows, lateness: 5, steps: steps.to_vec(), cuts: vec![cut], batch_records: 2 });
    }
}

/// The output, with the results that one record, or passing time, closes in a fixed order: the
/// model does not know the order of their keys.
fn by_time(out: &[Output]) -> Vec<Output> {
    let mut sorted: Vec<Output> = Vec::new();
    let is_late = |output: &Output| matches!(output, Output::Late(_));
    for part in out.split_inclusive(is_late) {
        let mut part = part.to_vec();
        part.sort_by_key(|output| match output {
            Output::Result { group, start, end, .. } => (*end, *group, *start),
            Output::Late(_) => (i64::MAX, 0, 0),
        });
        sorted.extend(part);
    }
    sorted
}
