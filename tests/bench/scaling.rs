//! What a record costs when there is more of something: pipelines, bytes in a record, partitions, backlog.
//!
//! Each case is one worker with whole pipelines in it, log → topic → Parquet, that runs until it is idle; what the same worker takes to start, to see
//! that there is nothing to do, and to end (`idle`) is taken off. The broker is the embedded one in a process of its own, so its processor time and memory are not the
//! worker's. Rows are counted at the destination.
//!
//! **Flat** means: processor time a record (a megabyte, where records are longer than the group's first case has them) is at most [`FLAT`] times that of
//! the group's first case. Shorter records are held to cost no more *each*, because a record costs something however short it is. **Bounded** means: the
//! worker's peak RSS is at most its setting `memory` above what it is with nothing to do; that is for the program, and for the clients and threads of each pipeline. The first case runs once more after the last one: how far apart its runs are
//! stands beside it (A/A), and of each case the cheapest run counts. A case that costs more than that bound, but no more than the dearest run of the first
//! case, is UNCLEAR: neither shown to be flat nor not to be.

use std::process::ExitCode;

use trunkline_tests::{Case, Exit, Kafka};

use crate::client::LIMIT;
use crate::measure::{percentile, rows_in};
use crate::records::{LINE_BYTES, Lines, Log};
use crate::table::{Figure, floor};

/// So many times the first case's cost is still flat: the spread of equal runs on a machine that others use is up to 20 %.
const FLAT: f64 = 1.25;

/// The worker's default `memory`, in bytes.
const BUDGET: u64 = 256 << 20;

/// The names of the groups.
pub(crate) const GROUPS: [&str; 4] = ["pipelines", "sizes", "partitions", "backlog"];

/// What is run, and what it took.
struct Shape {
    name: String,
    pipelines: u64,
    /// Logs of each pipeline. A log goes to one partition.
    logs: u64,
    partitions: i32,
    /// Of each log.
    lines: u64,
    line_bytes: usize,
    runs: Vec<Cost>,
}

#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    cpu: f64,
    /// What it takes to start, find nothing to do, and end.
    idle_seconds: f64,
    idle_cpu: f64,
    idle_rss: u64,
    peak_rss: u64,
}

impl Shape {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pipelines: 1,
            logs: 1,
            partitions: 4,
            lines: 1_000_000,
            line_bytes: LINE_BYTES,
            runs: Vec::new(),
        }
    }

    fn records(&self) -> f64 {
        (self.pipelines * self.logs * self.lines) as f64
    }

    fn least(&self, value: impl Fn(&Cost) -> f64) -> f64 {
        percentile(&self.runs.iter().map(value).collect::<Vec<_>>(), 0.0)
    }

    fn cpu_a_million(&self) -> f64 {
        self.least(|run| run.cpu) / self.records() * 1e6
    }

    fn cpu_a_gigabyte(&self) -> f64 {
        self.cpu_a_million() / self.line_bytes as f64 * 1e3
    }
}

/// The cases of a group.
fn group(name: &str) -> Vec<Shape> {
    match name {
        "pipelines" => [1, 10, 100]
            .map(|pipelines| Shape {
                pipelines,
                lines: 3_000_000 / pipelines,
                ..Shape::new(&format!("pipelines: {pipelines}"))
            })
            .into(),
        "sizes" => {
            [("records: 1 KB", 1_000, 600_000), ("records: 100 B", 100, 2_000_000), ("records: 100 KB", 100_000, 8_000)]
                .map(|(name, line_bytes, lines)| Shape { line_bytes, lines, ..Shape::new(name) })
                .into()
        }
        "partitions" => [1, 4, 16, 64]
            .map(|partitions| Shape {
                partitions,
                logs: 64,
                lines: 16_000,
                ..Shape::new(&format!("partitions: {partitions}, 64 logs"))
            })
            .into(),
        "backlog" => [1_000_000, 10_000_000]
            .map(|lines| Shape { lines, ..Shape::new(&format!("backlog: {} M lines", lines / 1_000_000)) })
            .into(),
        other => panic!("no group {other}"),
    }
}

pub(crate) fn run_all(groups: &[&str]) -> ExitCode {
    let kafka = Kafka::embedded().unwrap_or_else(|skip| panic!("{skip}"));
    let mut missed = 0;
    let mut lines = Vec::new();
    for name in groups {
        let mut shapes = group(name);
        for index in (0..shapes.len()).chain([0]) {
            let cost = measure(&kafka, &shapes[index]);
            eprintln!(
                "{}: {:.1} s, {:.1} CPU-s, {:.0} MB; {:.1} s, {:.1} CPU-s and {:.0} MB to start and end",
                shapes[index].name,
                cost.seconds,
                cost.cpu,
                cost.peak_rss as f64 / 1e6,
                cost.idle_seconds,
                cost.idle_cpu,
                cost.idle_rss as f64 / 1e6
            );
            shapes[index].runs.push(cost);
        }
        for shape in &shapes {
            let (line, met) = describe(shape, &shapes[0]);
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
    println!("{} of {} cases flat and bounded", lines.len() - missed, lines.len());
    ExitCode::from(u8::from(missed > 0))
}

/// A line of the table, and whether the case is flat and bounded.
fn describe(shape: &Shape, base: &Shape) -> (String, bool) {
    let a_record = shape.cpu_a_million() / base.cpu_a_million();
    let (ratio, unit) = if shape.line_bytes > base.line_bytes {
        (shape.cpu_a_gigabyte() / base.cpu_a_gigabyte(), "a GB")
    } else {
        (a_record, "a record")
    };
    let peak = shape.runs.iter().map(|run| run.peak_rss).max().unwrap_or_default();
    let dearest = percentile(&base.runs.iter().map(|run| run.cpu).collect::<Vec<_>>(), 1.0);
    let noise = dearest / base.least(|run| run.cpu);
    let idle = shape.runs.iter().map(|run| run.idle_rss).min().unwrap_or_default();
    let (flat, bounded) = (ratio <= FLAT, peak <= idle + BUDGET);
    let verdict = match flat {
        true => "flat",
        false if ratio <= noise => "UNCLEAR",
        false => "NOT FLAT",
    };
    let line = format!(
        "| {:<24} | {:>6.0} | {:>6} | {:>5} | {:>6} | {ratio:.2} {unit} | {} | {:>6} | {:>6} | {:>6.0} MB | {:>6.0} MB | {} |",
        shape.name,
        shape.records() / shape.least(|run| run.seconds) / 1e3,
        Figure(shape.cpu_a_million()).to_string(),
        floor(&shape.runs.iter().map(|run| run.cpu).collect::<Vec<_>>()),
        Figure(shape.cpu_a_gigabyte()).to_string(),
        verdict,
        Figure(shape.least(|run| run.idle_seconds)).to_string(),
        Figure(shape.least(|run| run.idle_cpu)).to_string(),
        idle as f64 / 1e6,
        peak as f64 / 1e6,
        if bounded { "bounded" } else { "NOT BOUNDED" },
    );
    (line, flat && bounded)
}

fn measure(kafka: &Kafka, shape: &Shape) -> Cost {
    let mut case = Case::new("bench-scaling", kafka);
    case.set("TRUNKLINE_MEMORY", &format!("{}MiB", BUDGET >> 20));
    case.set("TRUNKLINE_TOPICS_PARTITIONS", &shape.partitions.to_string());
    // The logs of a pipeline differ; those of different pipelines need not.
    let different = shape.lines.min(1_000_000 * LINE_BYTES as u64 / shape.line_bytes as u64).min(1_000_000);
    let logs: Vec<Log> = (0..shape.logs)
        .map(|seed| {
            let lines = if shape.line_bytes == LINE_BYTES {
                Lines::generate(seed + 1, different)
            } else {
                Lines::of_length(seed + 1, different, shape.line_bytes)
            };
            Log::write(&lines, shape.lines)
        })
        .collect();
    for number in 0..shape.pipelines {
        std::fs::create_dir_all(case.path(&format!("logs/{number}"))).unwrap();
        std::fs::create_dir_all(case.path(&format!("lake/{number}"))).unwrap();
        let text = format!(
            "name = \"$NAME-{number}\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{number}/*.log\"]\n\
             [sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake/{number}\"\n"
        );
        case.pipeline(&format!("p{number}"), &text);
    }
    let idle = run(&case);
    for number in 0..shape.pipelines {
        for (index, log) in logs.iter().enumerate() {
            // Names without a common root: each is a log of its own.
            log.link(&case.path(&format!("logs/{number}")), &format!("site{index}x.log"));
        }
    }
    let exit = run(&case);
    let summary = exit.summary();
    for number in 0..shape.pipelines {
        assert_eq!(summary.of(&format!("{}-{number}", case.name()), "lake").output, shape.logs * shape.lines);
    }
    assert_eq!(rows_in(&case.path("lake")), shape.records() as u64);
    Cost {
        seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
        cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
        idle_seconds: idle.elapsed.as_secs_f64(),
        idle_cpu: idle.cpu.as_secs_f64(),
        idle_rss: idle.peak_rss,
        peak_rss: exit.peak_rss,
    }
}

fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}
