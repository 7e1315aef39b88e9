//! Traces of the work of tasks: one for each commit and each delivery, never for a record.
//!
//! A trace is kept by its thread and handed to the exporter when it ends. So a task never waits for
//! the exporter or the collector: a full queue drops the trace, and the drop is counted. Without a
//! collector, a trace is `None`, and each call is one branch.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;
use trunkline_connector::{Error, Result};
use uuid::Uuid;

use super::counts::Counts;
use super::messages::{KeyValue, Span, SpanKind, Status, StatusCode, integer, text};
use crate::checkpoint::Counters;
use crate::stage::StageStatus;

/// Starts traces. The default one starts none.
#[derive(Clone, Default)]
pub struct Tracer {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    queue: Sender<Vec<Span>>,
    counts: Arc<Counts>,
    /// The share of traces to export, of 2^56.
    threshold: u64,
}

/// The trace of one piece of work.
#[must_use]
pub(crate) struct Trace(Option<Box<Open>>);

struct Open {
    shared: Arc<Shared>,
    id: Uuid,
    name: &'static str,
    kind: SpanKind,
    begun_at: SystemTime,
    begun: Instant,
    attributes: Vec<KeyValue>,
    /// The name of each step and its beginning; it ends where the next one begins.
    steps: Vec<(&'static str, Duration)>,
}

/// Values of the random part of a trace id that decides whether the trace is exported.
const DECISIONS: u64 = 1 << 56;

impl Tracer {
    pub(super) fn new(queue: Sender<Vec<Span>>, counts: Arc<Counts>, ratio: f64) -> Self {
        let threshold = (ratio.clamp(0.0, 1.0) * DECISIONS as f64) as u64;
        Self { shared: Some(Arc::new(Shared { queue, counts, threshold })) }
    }

    /// Begins a trace of the work of a task.
    pub(crate) fn begin(&self, name: &'static str, stage: &StageStatus) -> Trace {
        self.open(name, SpanKind::Internal, stage)
    }

    /// Begins a trace of a call to a destination.
    pub(crate) fn begin_call(&self, name: &'static str, stage: &StageStatus) -> Trace {
        self.open(name, SpanKind::Client, stage)
    }

    fn open(&self, name: &'static str, kind: SpanKind, stage: &StageStatus) -> Trace {
        Trace(self.shared.as_ref().map(|shared| {
            let attributes = vec![
                text("trunkline.pipeline", &*stage.pipeline),
                text("trunkline.component", &*stage.component),
                text("trunkline.kind", stage.kind.name()),
            ];
            Box::new(Open {
                shared: shared.clone(),
                id: Uuid::new_v4(),
                name,
                kind,
                begun_at: SystemTime::now(),
                begun: Instant::now(),
                attributes,
                steps: Vec::new(),
            })
        }))
    }
}

impl Trace {
    /// A trace of nothing.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether anything is recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// The next step of the work begins.
    pub(crate) fn step(&mut self, name: &'static str) {
        if let Some(open) = &mut self.0 {
            open.steps.push((name, open.begun.elapsed()));
        }
    }

    /// Adds a number.
    pub(crate) fn add(&mut self, key: &'static str, value: u64) {
        if let Some(open) = &mut self.0 {
            open.attributes.push(integer(key, value));
        }
    }

    /// Adds the records that the work covers.
    pub(crate) fn add_records(&mut self, counters: &Counters, component: &str) {
        if self.0.is_none() {
            return;
        }
        let own = counters.0.get(component).copied().unwrap_or_default();
        self.add("trunkline.records.in", own.records_in);
        self.add("trunkline.records.out", own.out);
        self.add("trunkline.records.dropped", own.dropped);
        self.add("trunkline.records.dead_lettered", own.dead_lettered);
    }

    /// Ends the trace. A failure is exported whether or not the trace is one of the sampled ones.
    pub(crate) fn finish<T>(mut self, outcome: &Result<T>) {
        if let Some(open) = self.0.take() {
            open.finish(outcome.as_ref().err());
        }
    }
}

impl Open {
    fn finish(self, error: Option<&Error>) {
        // The lowest 56 bits of a random trace id decide, as in OpenTelemetry's consistent
        // sampling.
        let random = u64::from_be_bytes(last_eight(self.id)) & (DECISIONS - 1);
        if random >= self.shared.threshold && error.is_none() {
            return;
        }
        let took = self.begun.elapsed();
        let shared = self.shared.clone();
        let spans = self.spans(took, error);
        let count = spans.len() as u64;
        if shared.queue.try_send(spans).is_err() {
            shared.counts.drop_spans(count);
        }
    }

    fn spans(self, took: Duration, error: Option<&Error>) -> Vec<Span> {
        let start = nanoseconds(self.begun_at);
        let at = |since: Duration| start + u64::try_from(since.as_nanos()).unwrap_or(u64::MAX - start);
        let (trace_id, root) = (self.id.as_bytes().to_vec(), span_id());
        let status = error.map(|error| Status { message: error.to_string(), code: StatusCode::Error as i32 });
        let mut attributes = self.attributes;
        attributes.extend(error.map(|error| text("error.type", error.code)));
        let mut spans = vec![Span {
            trace_id: trace_id.clone(),
            span_id: root.clone(),
            parent_span_id: Vec::new(),
            name: self.name.to_owned(),
            kind: self.kind as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: at(took),
            attributes,
            status: status.clone(),
        }];
        let ends = self.steps.iter().skip(1).map(|(_, begun)| *begun).chain([took]);
        for (index, ((name, begun), end)) in self.steps.iter().zip(ends).enumerate() {
            let is_last = index + 1 == self.steps.len();
            spans.push(Span {
                trace_id: trace_id.clone(),
                span_id: span_id(),
                parent_span_id: root.clone(),
                name: (*name).to_owned(),
                kind: SpanKind::Internal as i32,
                start_time_unix_nano: at(*begun),
                end_time_unix_nano: at(end),
                attributes: Vec::new(),
                // The work ended in its last step.
                status: status.clone().filter(|_| is_last),
            });
        }
        spans
    }
}

fn span_id() -> Vec<u8> {
    last_eight(Uuid::new_v4()).to_vec()
}

fn last_eight(id: Uuid) -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = id.into_bytes();
    [a, b, c, d, e, f, g, h]
}

pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::stage::StageKind;

    fn tracer(ratio: f64, room: usize) -> (Tracer, Receiver<Vec<Span>>, Arc<Counts>) {
        let (queue, receiver) = channel(room);
        let counts = Arc::new(Counts::default());
        (Tracer::new(queue, counts.clone(), ratio), receiver, counts)
    }

    fn stage() -> StageStatus {
        StageStatus::new("shop", "lake", StageKind::Sink)
    }

    #[test]
    fn steps_are_children_that_follow_each_other() {
        let (tracer, mut queue, _) = tracer(1.0, 8);
        let mut trace = tracer.begin("commit", &stage());
        trace.step("seal");
        trace.step("prepare");
        trace.add("trunkline.partitions", 3);
        trace.finish(&Ok(()));
        let spans = queue.try_recv().unwrap();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["commit", "seal", "prepare"]);
        let [commit, seal, prepare] = &spans[..] else { panic!("{spans:?}") };
        assert!(commit.parent_span_id.is_empty() && commit.trace_id.len() == 16 && commit.span_id.len() == 8);
        for step in [seal, prepare] {
            assert_eq!((&step.parent_span_id, &step.trace_id), (&commit.span_id, &commit.trace_id));
            assert_eq!(step.status, None);
        }
        assert_eq!(seal.end_time_unix_nano, prepare.start_time_unix_nano);
        assert_eq!(prepare.end_time_unix_nano, commit.end_time_unix_nano);
        let keys: Vec<&str> = commit.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        let expected = ["trunkline.pipeline", "trunkline.component", "trunkline.kind", "trunkline.partitions"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_share_of_the_traces_and_all_failures_are_exported() {
        let (tracer, mut queue, _) = tracer(0.25, 10_000);
        for _ in 0..4_000 {
            tracer.begin("commit", &stage()).finish(&Ok(()));
        }
        let mut sampled = 0;
        while queue.try_recv().is_ok() {
            sampled += 1;
        }
        assert!((800..1_200).contains(&sampled), "{sampled}");
        let (tracer, mut queue, _) = self::tracer(0.0, 8);
        tracer.begin("commit", &stage()).finish(&Ok(()));
        assert!(queue.try_recv().is_err());
        let mut trace = tracer.begin_call("deliver", &stage());
        trace.step("attempt");
        trace.finish::<()>(&Err(Error::external("s3.request", "no answer")));
        let spans = queue.try_recv().unwrap();
        let status = spans[0].status.as_ref().unwrap();
        assert_eq!((status.code, status.message.contains("no answer")), (2, true));
        assert_eq!(spans[1].status, spans[0].status);
        assert!(spans[0].attributes.iter().any(|attribute| *attribute == text("error.type", "s3.request")));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (tracer, _queue, counts) = tracer(1.0, 1);
        for _ in 0..3 {
            let mut trace = tracer.begin("commit", &stage());
            trace.step("seal");
            trace.finish(&Ok(()));
        }
        assert_eq!(counts.snapshot().spans_dropped, 4);
    }

    #[test]
    fn without_a_collector_nothing_is_recorded() {
        let mut trace = Tracer::default().begin("commit", &stage());
        trace.step("seal");
        trace.add("n", 1);
        assert!(trace.0.is_none());
        trace.finish(&Ok(()));
    }
}
