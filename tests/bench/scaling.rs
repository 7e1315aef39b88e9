//! The cost of a record as pipelines, bytes per record, partitions, backlog, columns, paths,
//! topics, rotated files and sources of one folder grow.
//!
//! Each scenario is one worker with complete pipelines (log → topic → Parquet) that runs until it
//! is idle. The time of an idle run (start, notice that there is no work, stop) is subtracted. The
//! broker is the embedded one in its own process, so that its processor time and memory are not the
//! worker's. Rows are counted at the destination.
//!
//! * A scenario is *flat* if its processor time per record is at most [`FLAT`] times that of the
//!   group's first scenario. For longer records than in the first scenario, it is the time per
//!   byte. Shorter records have the limit per record, because each record has a fixed cost.
//! * A scenario is *bounded* if the worker's peak RSS is at most its setting `memory` above that of
//!   the idle run, which needs memory for the program, and for the clients and threads of each
//!   pipeline.
//! * The first scenario runs again at the end. The table shows the spread of its runs (A/A); the
//!   cheapest run of each scenario counts. A scenario above the limit, but not above the most
//!   expensive run of the first one, is UNCLEAR.

use std::process::ExitCode;

use trunkline_tests::{BrokerKind, Case, Exit, Kafka};

use crate::client::LIMIT;
use crate::measure::{percentile, rows_in};
use crate::records::{LINE_BYTES, Lines, Log};
use crate::table::{Figure, floor};

/// The highest flat cost, relative to the first scenario: equal runs on a shared machine differ by
/// up to 20 %.
const FLAT: f64 = 1.25;

/// The worker's default `memory`, in bytes.
const BUDGET: u64 = 256 << 20;

/// The names of the groups.
pub(crate) const GROUPS: [&str; 9] =
    ["pipelines", "sizes", "partitions", "backlog", "columns", "paths", "topics", "rotations", "folders"];

/// The lines and the layout of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Plain,
    /// The lines are JSON objects with this many members.
    Columns(usize),
    /// The sink writes this many paths, in random order.
    Paths(u64),
    /// The source writes this many topics, in random order.
    Topics(u64),
    /// The logs of a pipeline are rotated files of one log.
    Rotations,
    /// All pipelines read the logs of one folder.
    OneFolder,
}

/// A scenario and its runs.
struct Scenario {
    name: String,
    pipelines: u64,
    /// Logs per pipeline. Each log goes to one partition.
    logs: u64,
    partitions: i32,
    /// Lines per log.
    lines: u64,
    line_bytes: usize,
    shape: Shape,
    runs: Vec<Cost>,
}

#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    cpu: f64,
    /// The cost of a run without records.
    idle_seconds: f64,
    idle_cpu: f64,
    idle_rss: u64,
    peak_rss: u64,
}

impl Scenario {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pipelines: 1,
            logs: 1,
            partitions: 4,
            lines: 1_000_000,
            line_bytes: LINE_BYTES,
            shape: Shape::Plain,
            runs: Vec::new(),
        }
    }

    fn records(&self) -> f64 {
        (self.pipelines * self.logs * self.lines) as f64
    }

    fn least(&self, value: impl Fn(&Cost) -> f64) -> f64 {
        percentile(&self.runs.iter().map(value).collect::<Vec<_>>(), 0.0)
    }

    fn cpu_per_million(&self) -> f64 {
        self.least(|run| run.cpu) / self.records() * 1e6
    }

    fn cpu_per_gigabyte(&self) -> f64 {
        self.cpu_per_million() / self.line_bytes as f64 * 1e3
    }
}

/// The scenarios of a group.
fn group(name: &str) -> Vec<Scenario> {
    match name {
        "pipelines" => [1, 10, 100]
            .map(|pipelines| Scenario {
                pipelines,
                lines: 3_000_000 / pipelines,
                ..Scenario::new(&format!("pipelines: {pipelines}"))
            })
            .into(),
        "sizes" => {
            [("records: 1 KB", 1_000, 600_000), ("records: 100 B", 100, 2_000_000), ("records: 100 KB", 100_000, 8_000)]
                .map(|(name, line_bytes, lines)| Scenario { line_bytes, lines, ..Scenario::new(name) })
                .into()
        }
        "partitions" => [1, 4, 16, 64]
            .map(|partitions| Scenario {
                partitions,
                logs: 64,
                lines: 16_000,
                ..Scenario::new(&format!("partitions: {partitions}, 64 logs"))
            })
            .into(),
        "backlog" => [1_000_000, 10_000_000]
            .map(|lines| Scenario { lines, ..Scenario::new(&format!("backlog: {} M lines", lines / 1_000_000)) })
            .into(),
        "columns" => [(20, 400_000), (200, 40_000), (1_000, 8_000), (3_900, 2_000)]
            .map(|(columns, lines)| Scenario {
                lines,
                line_bytes: Lines::json(1, 1, columns).text().len(),
                shape: Shape::Columns(columns),
                ..Scenario::new(&format!("columns: {columns}"))
            })
            .into(),
        "paths" => [10, 100, 1_000, 10_000].map(|paths| keyed(&format!("paths: {paths}"), Shape::Paths(paths))).into(),
        "topics" => {
            [10, 100, 1_000, 2_000].map(|topics| keyed(&format!("topics: {topics}"), Shape::Topics(topics))).into()
        }
        "rotations" => [100, 1_000, 10_000]
            .map(|logs| Scenario {
                logs,
                lines: 300_000 / logs,
                shape: Shape::Rotations,
                ..Scenario::new(&format!("rotated files: {logs}"))
            })
            .into(),
        "folders" => [1, 20, 200]
            .map(|pipelines| Scenario {
                pipelines,
                lines: 1_000_000 / pipelines,
                shape: Shape::OneFolder,
                ..Scenario::new(&format!("sources of a folder: {pipelines}"))
            })
            .into(),
        other => panic!("no group {other}"),
    }
}

/// A scenario of short JSON lines.
fn keyed(name: &str, shape: Shape) -> Scenario {
    Scenario {
        partitions: 1,
        lines: 300_000,
        line_bytes: Lines::keyed(1, 1, 1).text().len(),
        shape,
        ..Scenario::new(name)
    }
}

pub(crate) fn run_all(groups: &[&str]) -> ExitCode {
    let kafka = Kafka::start(BrokerKind::Embedded).unwrap_or_else(|skip| panic!("{skip}"));
    let mut missed = 0;
    let mut lines = Vec::new();
    for name in groups {
        let mut scenarios = group(name);
        for index in (0..scenarios.len()).chain([0]) {
            let cost = measure(&kafka, &scenarios[index]);
            eprintln!(
                "{}: {:.1} s, {:.1} CPU-s, {:.0} MB; {:.1} s, {:.1} CPU-s and {:.0} MB to start and end",
                scenarios[index].name,
                cost.seconds,
                cost.cpu,
                cost.peak_rss as f64 / 1e6,
                cost.idle_seconds,
                cost.idle_cpu,
                cost.idle_rss as f64 / 1e6
            );
            scenarios[index].runs.push(cost);
        }
        for scenario in &scenarios {
            let (line, met) = describe(scenario, &scenarios[0]);
            lines.push(line);
            missed += usize::from(!met);
        }
    }
    println!(
        "| | k lines/s | CPU-s per million | A/A | CPU-s per GB | of the first | flat: <= {FLAT} | s idle | CPU-s idle | peak RSS idle | peak RSS | <= {} MB more |",
        BUDGET / 1_000_000
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    lines.iter().for_each(|line| println!("{line}"));
    println!("{} of {} scenarios flat and bounded", lines.len() - missed, lines.len());
    ExitCode::from(u8::from(missed > 0))
}

/// A line of the table, and whether the scenario is flat and bounded.
fn describe(scenario: &Scenario, base: &Scenario) -> (String, bool) {
    let per_record = scenario.cpu_per_million() / base.cpu_per_million();
    let (ratio, unit) = if scenario.line_bytes > base.line_bytes {
        (scenario.cpu_per_gigabyte() / base.cpu_per_gigabyte(), "per GB")
    } else {
        (per_record, "per record")
    };
    let peak = scenario.runs.iter().map(|run| run.peak_rss).max().unwrap_or_default();
    let most_expensive = percentile(&base.runs.iter().map(|run| run.cpu).collect::<Vec<_>>(), 1.0);
    let noise = most_expensive / base.least(|run| run.cpu);
    let idle = scenario.runs.iter().map(|run| run.idle_rss).min().unwrap_or_default();
    let (flat, bounded) = (ratio <= FLAT, peak <= idle + BUDGET);
    let verdict = match flat {
        true => "flat",
        false if ratio <= noise => "UNCLEAR",
        false => "NOT FLAT",
    };
    let line = format!(
        "| {:<24} | {:>6.0} | {:>6} | {:>5} | {:>6} | {ratio:.2} {unit} | {} | {:>6} | {:>6} | {:>6.0} MB | {:>6.0} MB | {} |",
        scenario.name,
        scenario.records() / scenario.least(|run| run.seconds) / 1e3,
        Figure(scenario.cpu_per_million()).to_string(),
        floor(&scenario.runs.iter().map(|run| run.cpu).collect::<Vec<_>>()),
        Figure(scenario.cpu_per_gigabyte()).to_string(),
        verdict,
        Figure(scenario.least(|run| run.idle_seconds)).to_string(),
        Figure(scenario.least(|run| run.idle_cpu)).to_string(),
        idle as f64 / 1e6,
        peak as f64 / 1e6,
        if bounded { "bounded" } else { "NOT BOUNDED" },
    );
    (line, flat && bounded)
}

fn measure(kafka: &Kafka, scenario: &Scenario) -> Cost {
    let mut case = Case::new("bench-scaling", kafka);
    case.set("TRUNKLINE_MEMORY", &format!("{}MiB", BUDGET >> 20));
    case.set("TRUNKLINE_TOPICS_PARTITIONS", &scenario.partitions.to_string());
    // The logs of one pipeline differ; all pipelines read the same logs.
    let distinct = scenario.lines.min(1_000_000 * LINE_BYTES as u64 / scenario.line_bytes as u64).min(1_000_000);
    let logs: Vec<Log> = (0..scenario.logs)
        .map(|seed| {
            let lines = match scenario.shape {
                Shape::Columns(columns) => Lines::json(seed + 1, distinct, columns),
                Shape::Paths(values) | Shape::Topics(values) => Lines::keyed(seed + 1, distinct, values),
                _ if scenario.line_bytes == LINE_BYTES => Lines::generate(seed + 1, distinct),
                _ => Lines::of_length(seed + 1, distinct, scenario.line_bytes),
            };
            Log::write(&lines, scenario.lines)
        })
        .collect();
    for number in 0..scenario.pipelines {
        std::fs::create_dir_all(case.path(&format!("lake/{number}"))).unwrap();
        case.pipeline(&format!("p{number}"), &pipeline(scenario.shape, number));
    }
    let folders = if scenario.shape == Shape::OneFolder { 1 } else { scenario.pipelines };
    (0..folders).for_each(|number| std::fs::create_dir_all(case.path(&format!("logs/{number}"))).unwrap());
    let idle = run(&case);
    for number in 0..folders {
        for (index, log) in logs.iter().enumerate() {
            let name = match scenario.shape {
                Shape::Rotations => format!("app.log.{index}"),
                // Names without a common root, so that the source does not treat them as rotations
                // of one log.
                _ => format!("site{index}x.log"),
            };
            log.link(&case.path(&format!("logs/{number}")), &name);
        }
    }
    let exit = run(&case);
    let summary = exit.summary();
    for number in 0..scenario.pipelines {
        assert_eq!(summary.of(&format!("{}-{number}", case.name()), "lake").output, scenario.logs * scenario.lines);
    }
    assert_eq!(rows_in(&case.path("lake")), scenario.records() as u64);
    Cost {
        seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
        cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
        idle_seconds: idle.elapsed.as_secs_f64(),
        idle_cpu: idle.cpu.as_secs_f64(),
        idle_rss: idle.peak_rss,
        peak_rss: exit.peak_rss,
    }
}

/// The text of a pipeline file.
fn pipeline(shape: Shape, number: u64) -> String {
    let folder = if shape == Shape::OneFolder { 0 } else { number };
    let (parser, source, sink) = match shape {
        Shape::Plain | Shape::Rotations | Shape::OneFolder => ("none", String::new(), ""),
        Shape::Columns(_) => ("json", String::new(), ""),
        Shape::Paths(_) => ("json", String::new(), "path = \"{key}\"\n"),
        Shape::Topics(_) => ("json", format!("topic = \"$NAME-{number}-{{key}}\"\n"), ""),
    };
    format!(
        "name = \"$NAME-{number}\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{folder}/*.log*\"]\nparser = \"{parser}\"\n\
         {source}[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake/{number}\"\n{sink}"
    )
}

fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}
