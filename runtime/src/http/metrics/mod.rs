//! The metrics of a worker. `docs/reference/metrics.md` lists them. The same code writes them for
//! Prometheus (`text.rs`) and for OpenTelemetry (`otlp.rs`).

mod otlp;
mod text;

use std::fmt::Display;
use std::sync::Arc;

use trunkline_broker::BrokerStats;

use self::otlp::Points;
use self::text::Page;
use super::process::ProcessUsage;
use super::samples::Samples;
use super::status::{TaskStatus, WorkerStatus};
use crate::stage::Durations;
use crate::telemetry::Counts;
use crate::telemetry::messages::Metric;
use crate::worker::Overview;

/// A form of the metrics.
trait Output {
    /// Begins a metric, whose samples follow.
    fn metric(&mut self, name: &'static str, kind: Kind, help: &'static str);

    /// A sample of a counter or gauge.
    fn sample(&mut self, labels: &[Label<'_>], value: f64);

    /// A sample of a histogram of durations, in seconds.
    fn durations(&mut self, labels: &[Label<'_>], durations: &Durations);
}

/// The kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A label of a sample: its name and its value.
type Label<'a> = (&'a str, &'a dyn Display);

/// What the metrics are those of.
#[derive(Clone)]
pub struct Measured {
    /// The worker's id.
    pub worker: String,
    /// The cluster's name.
    pub cluster: String,
    /// The worker.
    pub overview: Overview,
    /// The export to OpenTelemetry, if there is one.
    pub export: Option<Arc<Counts>>,
    /// The embedded broker, if there is one.
    pub broker: Option<BrokerStats>,
}

impl Measured {
    /// The metrics of this moment in Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        let mut page = Page::default();
        self.write(&mut page);
        page.finish()
    }

    /// The metrics of this moment for OpenTelemetry.
    pub(crate) fn points(&self) -> Vec<Metric> {
        let mut points = Points::since(self.overview.uptime());
        self.write(&mut points);
        points.finish()
    }

    fn write(&self, out: &mut impl Output) {
        // Rates are no metrics: a database derives them.
        let status = WorkerStatus::measured(&self.worker, &self.cluster, &self.overview, &Samples::default());
        worker(out, &status, &self.overview);
        process(out);
        if let Some(export) = &self.export {
            exported(out, export);
        }
        if let Some(stats) = &self.broker {
            broker(out, stats);
        }
        records(out, &status.tasks);
        gauges(out, &status.tasks);
        work(out, &status.tasks);
    }
}

fn worker(out: &mut impl Output, status: &WorkerStatus, overview: &Overview) {
    out.metric("trunkline_build_info", Kind::Gauge, "The version of the worker, in a label.");
    out.sample(&[("version", &status.version), ("cluster", &status.cluster)], 1.0);
    out.metric("trunkline_uptime_seconds", Kind::Gauge, "Time since the worker was started.");
    out.sample(&[], overview.uptime().as_secs_f64());
    if let Some((used, limit)) = overview.budget() {
        out.metric("trunkline_memory_budget_bytes", Kind::Gauge, "The byte budget of the stages' buffers.");
        out.sample(&[], limit as f64);
        out.metric("trunkline_memory_used_bytes", Kind::Gauge, "What is used of the budget.");
        out.sample(&[], used as f64);
    }
}

/// What the export to OpenTelemetry has sent and lost.
fn exported(out: &mut impl Output, export: &Counts) {
    let counts = export.snapshot();
    out.metric("trunkline_otlp_spans_total", Kind::Counter, "Spans for OpenTelemetry, by outcome.");
    out.sample(&[("outcome", &"exported")], counts.spans as f64);
    out.sample(&[("outcome", &"dropped")], counts.spans_dropped as f64);
    out.metric("trunkline_otlp_points_total", Kind::Counter, "Data points that OpenTelemetry accepted.");
    out.sample(&[], counts.points as f64);
    out.metric("trunkline_otlp_failures_total", Kind::Counter, "Failed requests to OpenTelemetry.");
    out.sample(&[("signal", &"traces")], counts.trace_failures as f64);
    out.sample(&[("signal", &"metrics")], counts.metric_failures as f64);
}

/// The embedded broker.
fn broker(out: &mut impl Output, stats: &BrokerStats) {
    out.metric("trunkline_broker_connections", Kind::Gauge, "Open connections of the embedded broker.");
    out.sample(&[], stats.connections() as f64);
    out.metric("trunkline_broker_requests_total", Kind::Counter, "Requests to the embedded broker.");
    out.sample(&[], stats.requests() as f64);
    out.metric(
        "trunkline_broker_bytes_total",
        Kind::Counter,
        "Bytes of requests and responses of the embedded broker.",
    );
    out.sample(&[("direction", &"in")], stats.bytes_in() as f64);
    out.sample(&[("direction", &"out")], stats.bytes_out() as f64);
}

/// Counters of records, for each component and outcome.
fn records(out: &mut impl Output, tasks: &[TaskStatus]) {
    out.metric("trunkline_records_total", Kind::Counter, "Committed records of a component, by outcome.");
    for task in tasks {
        for (component, counters) in &task.components {
            let outcomes = [
                ("in", counters.records_in),
                ("out", counters.out),
                ("dropped", counters.dropped),
                ("dead_lettered", counters.dead_lettered),
                ("extra", counters.extra),
            ];
            for (outcome, count) in outcomes {
                let labels: [Label<'_>; 4] = [
                    ("pipeline", &task.pipeline),
                    ("component", component),
                    ("task", &task.task),
                    ("outcome", &outcome),
                ];
                out.sample(&labels, count as f64);
            }
        }
    }
    out.metric("trunkline_dead_letters_total", Kind::Counter, "Committed dead letters of a component, by error code.");
    for task in tasks {
        for (component, code, count) in task.dead_letter_codes.iter() {
            let labels: [Label<'_>; 4] =
                [("pipeline", &task.pipeline), ("component", &component), ("task", &task.task), ("code", &code)];
            out.sample(&labels, count as f64);
        }
    }
    out.metric("trunkline_task_failures_total", Kind::Counter, "Failures of a task, each followed by a retry.");
    for task in tasks {
        out.sample(&labels(task), task.failures as f64);
    }
}

type Gauge = (&'static str, &'static str, fn(&TaskStatus) -> Option<f64>);

/// What is known of each task now.
fn gauges(out: &mut impl Output, tasks: &[TaskStatus]) {
    let gauges: [Gauge; 7] = [
        ("trunkline_lag_records", "Records that were not committed.", |task| task.lag_records.map(|lag| lag as f64)),
        ("trunkline_lag_bytes", "Bytes that were not read.", |task| task.lag_bytes.map(|lag| lag as f64)),
        (
            "trunkline_lag_seconds",
            "Age of the oldest change that a source has not read, or record that a task has not committed.",
            |task| task.lag_seconds,
        ),
        (
            "trunkline_retention_left_seconds",
            "Time until the source's system removes the oldest change that was not read.",
            |task| task.retention_left_seconds,
        ),
        (
            "trunkline_state_bytes",
            "Largest state of a topic partition, of a transform that keeps state, or the table of a lookup.",
            |task| task.state_bytes.map(|bytes| bytes as f64),
        ),
        ("trunkline_task_memory_bytes", "Bytes of the byte budget that a task holds.", |task| {
            Some(task.memory_bytes as f64)
        }),
        ("trunkline_since_commit_seconds", "Time since the last commit.", |task| task.since_commit_seconds),
    ];
    for (name, help, value) in gauges {
        out.metric(name, Kind::Gauge, help);
        for task in tasks {
            if let Some(value) = value(task) {
                out.sample(&labels(task), value);
            }
        }
    }
    out.metric("trunkline_task_state", Kind::Gauge, "1 for the state that a task is in.");
    for task in tasks {
        for state in ["waiting", "running", "paused", "done", "failed"] {
            let [pipeline, component, number] = labels(task);
            let labels = [pipeline, component, number, ("state", &state as &dyn Display)];
            out.sample(&labels, f64::from(u8::from(task.state == state)));
        }
    }
}

/// Name, help and values of a histogram.
type HistogramOf = (&'static str, &'static str, fn(&TaskStatus) -> &Durations);

/// What batches and commits cost.
fn work(out: &mut impl Output, tasks: &[TaskStatus]) {
    out.metric("trunkline_bytes_total", Kind::Counter, "Bytes of records that a task read, and wrote to topics.");
    for task in tasks {
        let [pipeline, component, number] = labels(task);
        let bytes = [("in", task.work.bytes_in), ("out", task.work.bytes_out)];
        for (direction, bytes) in bytes.iter().filter(|(direction, _)| task.kind != "sink" || *direction == "in") {
            out.sample(&[pipeline, component, number, ("direction", direction)], *bytes as f64);
        }
    }
    out.metric("trunkline_plugin_seconds_total", Kind::Counter, "Time that the plugin of a transform ran.");
    for task in tasks {
        for (transform, ran) in &task.work.plugins {
            let labels: [Label<'_>; 3] = [("pipeline", &task.pipeline), ("component", transform), ("task", &task.task)];
            out.sample(&labels, ran.as_secs_f64());
        }
    }
    let histograms: [HistogramOf; 3] = [
        (
            "trunkline_batch_seconds",
            "How long a batch took: transforms, and writing to the producer or the sink.",
            |task| &task.work.batches,
        ),
        (
            "trunkline_commit_seconds",
            "How long a commit took: writing to the destination, and the transaction.",
            |task| &task.commits,
        ),
        (
            "trunkline_end_to_end_seconds",
            "Age of the oldest record of a commit of a transform or sink, by its time in the topic.",
            |task| &task.work.end_to_end,
        ),
    ];
    for (name, help, durations) in histograms {
        out.metric(name, Kind::Histogram, help);
        for task in tasks.iter().filter(|task| task.kind != "source" || !name.ends_with("end_to_end_seconds")) {
            out.durations(&labels(task), durations(task));
        }
    }
}

/// The metrics of the process that Prometheus' own clients export, by the same names.
fn process(out: &mut impl Output) {
    let usage = ProcessUsage::now();
    if let Some(seconds) = usage.cpu_seconds {
        out.metric("process_cpu_seconds_total", Kind::Counter, "Processor time of the process.");
        out.sample(&[], seconds);
    }
    if let Some(bytes) = usage.resident_bytes {
        out.metric("process_resident_memory_bytes", Kind::Gauge, "Resident memory of the process.");
        out.sample(&[], bytes as f64);
    }
    if let Some(open) = ProcessUsage::open_files() {
        out.metric("process_open_fds", Kind::Gauge, "Open files of the process.");
        out.sample(&[], open as f64);
    }
}

fn labels(task: &TaskStatus) -> [Label<'_>; 3] {
    [("pipeline", &task.pipeline), ("component", &task.component), ("task", &task.task)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trunkline_connector::MemoryBudget;

    use super::*;
    use crate::checkpoint::Counters;
    use crate::stage::{StageKind, StageStatus};

    /// A worker with one stage, which has committed records and dead letters.
    pub(super) fn measured() -> Measured {
        let stage = Arc::new(StageStatus::new("p", "web", StageKind::Source));
        let mut counters = Counters::default();
        let own = counters.of("web");
        (own.records_in, own.out, own.dead_lettered) = (5, 2, 3);
        for code in ["parse.json", "parse.json", "kafka.record_too_large"] {
            counters.add_dead_letter("web", code);
        }
        stage.committed(&counters);
        for milliseconds in [4, 40, 90_000] {
            stage.commit_took(std::time::Duration::from_millis(milliseconds));
        }
        stage.processed(700, std::time::Duration::from_millis(3));
        stage.plugin_ran("clean", std::time::Duration::from_millis(1_500));
        let overview = Overview::new();
        overview.show(stage, MemoryBudget::new(1));
        let export = Some(Arc::new(Counts::default()));
        let broker = Some(BrokerStats::default());
        Measured { worker: "w".to_owned(), cluster: "c".to_owned(), overview, export, broker }
    }

    /// The samples of a text, by name and labels.
    pub(super) fn samples(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn records_and_dead_letters_are_counted_by_outcome_and_code() {
        let samples = samples(&measured().text());
        let task = "pipeline=\"p\",component=\"web\",task=\"0\"";
        for (name, value) in [
            (format!("trunkline_records_total{{{task},outcome=\"in\"}}"), 5.0),
            (format!("trunkline_records_total{{{task},outcome=\"out\"}}"), 2.0),
            (format!("trunkline_dead_letters_total{{{task},code=\"parse.json\"}}"), 2.0),
            (format!("trunkline_dead_letters_total{{{task},code=\"kafka.record_too_large\"}}"), 1.0),
            (format!("trunkline_commit_seconds_bucket{{{task},le=\"0.05\"}}"), 2.0),
            (format!("trunkline_commit_seconds_bucket{{{task},le=\"60\"}}"), 2.0),
            (format!("trunkline_commit_seconds_bucket{{{task},le=\"+Inf\"}}"), 3.0),
            (format!("trunkline_commit_seconds_count{{{task}}}"), 3.0),
            (format!("trunkline_commit_seconds_sum{{{task}}}"), 90.044),
            (format!("trunkline_batch_seconds_bucket{{{task},le=\"0.005\"}}"), 1.0),
            (format!("trunkline_bytes_total{{{task},direction=\"in\"}}"), 700.0),
            ("trunkline_plugin_seconds_total{pipeline=\"p\",component=\"clean\",task=\"0\"}".to_owned(), 1.5),
        ] {
            assert_eq!(samples.get(&name), Some(&value), "{name}");
        }
        assert!(samples["process_resident_memory_bytes"] > 1e6);
        assert!(samples["process_open_fds"] >= 3.0);
        assert!(samples["process_cpu_seconds_total"] >= 0.0);
    }

    #[test]
    fn every_metric_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
        let page = std::fs::read_to_string(page).unwrap();
        let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned));
        let prefixes = ["trunkline_", "process_"];
        let documented = documented.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let text = measured().text();
        let exported =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned));
        let set = |names: &mut dyn Iterator<Item = String>| names.collect::<std::collections::BTreeSet<_>>();
        assert_eq!(set(&mut { documented }), set(&mut { exported }));
    }
}
