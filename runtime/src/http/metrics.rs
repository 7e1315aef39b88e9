//! The metrics in Prometheus' text format. `docs/reference/metrics.md` lists them.

use std::fmt::{Display, Write};

use super::process::ProcessUsage;
use super::status::{TaskStatus, WorkerStatus};
use crate::stage::CommitDurations;
use crate::worker::Overview;

/// Writes all metrics.
pub(super) fn render(status: &WorkerStatus, overview: &Overview) -> String {
    let mut page = Page(String::new());
    page.header("trunkline_build_info", "gauge", "The version of the worker, in a label.");
    page.sample("trunkline_build_info", &[("version", &status.version), ("cluster", &status.cluster)], 1.0);
    page.header("trunkline_uptime_seconds", "gauge", "Time since the worker was started.");
    page.sample("trunkline_uptime_seconds", &[], overview.uptime().as_secs_f64());
    if let Some((used, limit)) = overview.budget() {
        page.header("trunkline_memory_budget_bytes", "gauge", "The byte budget of the stages' buffers.");
        page.sample("trunkline_memory_budget_bytes", &[], limit as f64);
        page.header("trunkline_memory_used_bytes", "gauge", "What is used of the budget.");
        page.sample("trunkline_memory_used_bytes", &[], used as f64);
    }
    process(&mut page);
    records(&mut page, &status.tasks);
    gauges(&mut page, &status.tasks);
    commits(&mut page, &status.tasks);
    page.0
}

/// Counters of records, for each component and outcome.
fn records(page: &mut Page, tasks: &[TaskStatus]) {
    let name = "trunkline_records_total";
    page.header(name, "counter", "Committed records of a component, by outcome.");
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
                page.sample(name, &labels, count as f64);
            }
        }
    }
    let name = "trunkline_dead_letters_total";
    page.header(name, "counter", "Committed dead letters of a component, by error code.");
    for task in tasks {
        for (component, code, count) in task.dead_letter_codes.iter() {
            let labels: [Label<'_>; 4] =
                [("pipeline", &task.pipeline), ("component", &component), ("task", &task.task), ("code", &code)];
            page.sample(name, &labels, count as f64);
        }
    }
    let name = "trunkline_task_failures_total";
    page.header(name, "counter", "Failures of a task, each followed by a retry.");
    for task in tasks {
        page.sample(name, &labels(task), task.failures as f64);
    }
}

type Gauge = (&'static str, &'static str, fn(&TaskStatus) -> Option<f64>);

/// What is known of each task now.
fn gauges(page: &mut Page, tasks: &[TaskStatus]) {
    let gauges: [Gauge; 12] = [
        ("trunkline_lag_records", "Records that were not committed.", |task| task.lag_records.map(|lag| lag as f64)),
        ("trunkline_lag_bytes", "Bytes that were not read.", |task| task.lag_bytes.map(|lag| lag as f64)),
        ("trunkline_lag_seconds", "Age of the oldest change that was not read.", |task| task.lag_seconds),
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
        ("trunkline_state_limit_bytes", "Limit of this state or table: at the limit, the stage stops.", |task| {
            task.state_limit_bytes.map(|bytes| bytes as f64)
        }),
        ("trunkline_state_entries", "Entries of the states of a task.", |task| {
            task.state_entries.map(|entries| entries as f64)
        }),
        ("trunkline_state_disk_bytes", "Bytes of the states of a task on disk.", |task| {
            task.state_disk_bytes.map(|bytes| bytes as f64)
        }),
        ("trunkline_state_restore_seconds", "How long restores of state took since the task started.", |task| {
            task.state_restore_seconds
        }),
        ("trunkline_state_restored_records", "Records that these restores read from the changelog.", |task| {
            task.state_restored_records.map(|records| records as f64)
        }),
        ("trunkline_task_memory_bytes", "Bytes of the byte budget that a task holds.", |task| {
            Some(task.memory_bytes as f64)
        }),
        ("trunkline_since_commit_seconds", "Time since the last commit.", |task| task.since_commit_seconds),
    ];
    for (name, help, value) in gauges {
        page.header(name, "gauge", help);
        for task in tasks {
            if let Some(value) = value(task) {
                page.sample(name, &labels(task), value);
            }
        }
    }
    let name = "trunkline_task_state";
    page.header(name, "gauge", "1 for the state that a task is in.");
    for task in tasks {
        for state in ["waiting", "running", "paused", "done", "failed"] {
            let [pipeline, component, number] = labels(task);
            page.sample(
                name,
                &[pipeline, component, number, ("state", &state)],
                f64::from(u8::from(task.state == state)),
            );
        }
    }
}

/// The durations of commits, as a histogram.
fn commits(page: &mut Page, tasks: &[TaskStatus]) {
    let name = "trunkline_commit_seconds";
    page.header(name, "histogram", "How long a commit took: writing to the destination, and the transaction.");
    for task in tasks {
        let commits = &task.commits;
        let [pipeline, component, number] = labels(task);
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (limit, count) in CommitDurations::LIMITS.iter().zip(commits.counts) {
            sum += count;
            let limit = *limit as f64 / 1000.0;
            page.sample(&bucket, &[pipeline, component, number, ("le", &limit)], sum as f64);
        }
        page.sample(&bucket, &[pipeline, component, number, ("le", &"+Inf")], commits.count as f64);
        page.sample(&format!("{name}_sum"), &[pipeline, component, number], commits.sum.as_secs_f64());
        page.sample(&format!("{name}_count"), &[pipeline, component, number], commits.count as f64);
    }
}

/// The metrics of the process that Prometheus' own clients export, by the same names.
fn process(page: &mut Page) {
    let usage = ProcessUsage::now();
    if let Some(seconds) = usage.cpu_seconds {
        page.header("process_cpu_seconds_total", "counter", "Processor time of the process.");
        page.sample("process_cpu_seconds_total", &[], seconds);
    }
    if let Some(bytes) = usage.resident_bytes {
        page.header("process_resident_memory_bytes", "gauge", "Resident memory of the process.");
        page.sample("process_resident_memory_bytes", &[], bytes as f64);
    }
    if let Some(open) = ProcessUsage::open_files() {
        page.header("process_open_fds", "gauge", "Open files of the process.");
        page.sample("process_open_fds", &[], open as f64);
    }
}

fn labels(task: &TaskStatus) -> [Label<'_>; 3] {
    [("pipeline", &task.pipeline), ("component", &task.component), ("task", &task.task)]
}

/// A label of a sample: its name and its value.
type Label<'a> = (&'a str, &'a dyn Display);

struct Page(String);

impl Page {
    fn header(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: f64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            self.0.push(separator);
            self.0.push_str(label);
            self.0.push_str("=\"");
            let _ = write!(Escaped(&mut self.0), "{value}");
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

/// Writes the value of a label. A page has tens of thousands of them.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_escaped_labels() {
        let mut page = Page(String::new());
        page.header("a", "gauge", "Something.");
        page.sample("a", &[("x", &"q\"\\\n"), ("y", &"z")], 1.5);
        page.sample("b", &[], 3.0);
        let expected = "# HELP a Something.\n# TYPE a gauge\na{x=\"q\\\"\\\\\\n\",y=\"z\"} 1.5\nb 3\n";
        assert_eq!(page.0, expected);
    }

    #[test]
    fn dead_letters_have_a_sample_for_each_code() {
        let stage = std::sync::Arc::new(crate::stage::StageStatus::new("p", "web", crate::stage::StageKind::Source));
        let mut counters = crate::checkpoint::Counters::default();
        for code in ["parse.json", "parse.json", "kafka.record_too_large"] {
            counters.add_dead_letter("web", code);
        }
        stage.committed(&counters);
        let mut page = Page(String::new());
        records(&mut page, &[TaskStatus::of(0, &stage, &Default::default())]);
        let samples: Vec<&str> =
            page.0.lines().filter(|line| line.starts_with("trunkline_dead_letters_total")).collect();
        let sample = |code: &str, count: u64| {
            format!(
                "trunkline_dead_letters_total{{pipeline=\"p\",component=\"web\",task=\"0\",code=\"{code}\"}} {count}"
            )
        };
        assert_eq!(samples, [sample("kafka.record_too_large", 1), sample("parse.json", 2)]);
    }

    /// The names that a worker with one stage exports.
    fn names() -> std::collections::BTreeSet<String> {
        let stage = std::sync::Arc::new(crate::stage::StageStatus::new("p", "web", crate::stage::StageKind::Source));
        let overview = Overview::new();
        overview.show(stage, trunkline_connector::MemoryBudget::new(1));
        let served = super::super::Served {
            worker: "w".to_owned(),
            cluster: "c".to_owned(),
            secrets: None,
            token: None,
            overview: overview.clone(),
            control: crate::worker::control::Control::default(),
            samples: super::super::Samples::default(),
            others: super::super::Others::default(),
            viewers: super::super::Viewers::default(),
            log_levels: std::sync::Arc::new(super::super::LogLevels::new("info", Box::new(|_| Ok(())))),
        };
        let text = render(&WorkerStatus::of(&served), &overview);
        let name = |line: &str| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned);
        text.lines().filter_map(name).collect()
    }

    #[test]
    fn every_metric_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
        let page = std::fs::read_to_string(page).unwrap();
        let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned));
        let prefixes = ["trunkline_", "process_"];
        let documented = documented.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        assert_eq!(documented.collect::<std::collections::BTreeSet<_>>(), names());
    }

    #[test]
    fn the_process_is_measured() {
        let mut page = Page(String::new());
        process(&mut page);
        let value = |name: &str| {
            let line = page.0.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
