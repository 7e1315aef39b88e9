//! Both halves of the log pipeline, each beside a limit that is measured in the same round: the bare libraries with the same bytes and settings.
//!
//! | path | its limit |
//! |---|---|
//! | log file → topic | a bare transactional producer of the very same records, headers too |
//! | topic → Parquet | a bare consumer, plus arrow-json and `ArrowWriter` fed from memory by one thread |
//! | topic → mask → Parquet | the same, plus the same mask as a call in this process |
//!
//! **Runs are long** (30 s unless `--seconds` says otherwise): the backlog is a million different lines again and again, as many as a short run's
//! speed promises for that time; a limit goes on until the time is over. **The arms take turns**, the one that goes first changing from round to
//! round, and the spread of equal runs stands beside each figure (A/A). **Rows are counted at the destination**: records of the topic by a
//! client of its own, rows of the files by their footers.
//!
//! Kafka runs on the same machine and takes its share of the processors, from the limits as much as from the worker.

use std::time::{Duration, Instant};

use trunkline_tests::{Case, Exit, Kafka};

use crate::client::{self, LIMIT, PARTITIONS, Stored};
use crate::encode;
use crate::measure::{Sizes, cpu_seconds_of, rows_in};
use crate::records::{Lines, Log};
use crate::table::{Demand, Row};

/// Different lines.
pub(crate) const SAMPLE: u64 = 1_000_000;

/// Peak RSS under load, in MB.
const MOST_MEMORY: f64 = 150.0;

/// What is demanded of a path, and what its runs gave.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Share of the limit's speed.
    pub(crate) share: f64,
    /// Processor seconds for a million records.
    pub(crate) cpu: Demand,
    /// Peak RSS, in MB.
    pub(crate) memory: f64,
}

/// One run of an arm. A worker's is without what it needs to start and to see that it is idle.
pub(crate) struct Run {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) peak_rss: u64,
}

impl Run {
    pub(crate) fn a_second(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub(crate) fn cpu_a_million(&self) -> f64 {
        self.cpu / self.records as f64 * 1e6
    }

    pub(crate) fn megabytes(&self) -> f64 {
        self.peak_rss as f64 / 1e6
    }

    /// Of a worker, or another process that moves records.
    pub(crate) fn of(records: u64, exit: &Exit, idle: &Exit) -> Self {
        Self {
            records,
            seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
            cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
            peak_rss: exit.peak_rss,
        }
    }

    /// Tells those who wait; gives itself.
    pub(crate) fn told(self, what: &str, sizes: Sizes) -> Self {
        // A limit always has its time: what it encodes and what it reads are of different lengths.
        let is_short = what != "limit" && self.seconds < sizes.run.as_secs_f64();
        let short = if is_short { " (shorter than asked: the short run before was slower)" } else { "" };
        eprintln!(
            "  {what}: {} records in {:.1} s, {:.0}k/s, {:.2} CPU-s per million{short}",
            self.records,
            self.seconds,
            self.a_second() / 1e3,
            self.cpu_a_million()
        );
        self
    }
}

fn values(runs: &[Run], value: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(value).collect()
}

impl Path {
    /// Lets both arms run in turns; `limit` gets the number of the round.
    pub(crate) fn measure(
        self,
        sizes: Sizes,
        mut limit: impl FnMut(usize) -> Run,
        mut worker: impl FnMut() -> Run,
    ) -> [Row; 3] {
        eprintln!("{}", self.name);
        let [limits, workers] =
            in_turns(sizes, |round| limit(round).told("limit", sizes), |_| worker().told("worker", sizes));
        let row = |name: &str, unit, value: fn(&Run) -> f64, demand| Row {
            name: name.to_owned(),
            unit,
            beside: values(&limits, value),
            measured: values(&workers, value),
            demand,
        };
        let memory = Row {
            name: "  peak RSS".to_owned(),
            unit: "MB",
            beside: Vec::new(),
            measured: values(&workers, Run::megabytes),
            demand: Demand::Most(self.memory),
        };
        [
            row(self.name, self.unit, Run::a_second, Demand::Share(self.share)),
            row("  processor", "s per million", Run::cpu_a_million, self.cpu),
            memory,
        ]
    }
}

/// Runs of two arms, the one that goes first changing from round to round. Both get the number of the round.
pub(crate) fn in_turns(
    sizes: Sizes,
    mut one: impl FnMut(usize) -> Run,
    mut other: impl FnMut(usize) -> Run,
) -> [Vec<Run>; 2] {
    let mut arms = [Vec::new(), Vec::new()];
    for round in 0..sizes.rounds {
        for arm in [round % 2, 1 - round % 2] {
            arms[arm].push(if arm == 0 { one(round) } else { other(round) });
        }
    }
    arms
}

/// The rows of a worker beside a peer: nothing is demanded but, perhaps, a multiple of its speed.
pub(crate) fn beside_peer(name: &str, unit: &'static str, speed: Demand, [peer, worker]: &[Vec<Run>; 2]) -> [Row; 3] {
    let row = |name: &str, unit, value: fn(&Run) -> f64, demand| Row {
        name: name.to_owned(),
        unit,
        beside: values(peer, value),
        measured: values(worker, value),
        demand,
    };
    [
        row(name, unit, Run::a_second, speed),
        row("  processor", "s per million", Run::cpu_a_million, Demand::None),
        row("  peak RSS", "MB", Run::megabytes, Demand::None),
    ]
}

/// The rows of the paths that are wanted: `none`, `combined`, `parquet`, `mask`.
pub(crate) fn rows(kafka: &Kafka, sizes: Sizes, wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let lines = Lines::generate(1, SAMPLE);
    // The broker's first seconds are slow, until its code is compiled: that would be a limit of nothing.
    kafka.create_topic("warm-up", PARTITIONS);
    client::produce(&client::transactional_producer(kafka.brokers(), "warm-up", &[]), "warm-up", lines.records());
    client::delete_topic(kafka.brokers(), "warm-up");

    let mut rows = Vec::new();
    for (name, parser, share) in
        [("log file -> topic, parser none", "none", 0.7), ("log file -> topic, parser combined", "combined", 0.5)]
    {
        let files = |row: &str| parser == "combined" && wanted(row);
        if !wanted(parser) && !files("parquet") && !files("mask") {
            continue;
        }
        let (topic, short) = read_log(kafka, &Log::write(&lines, SAMPLE), parser, SAMPLE);
        let sample = client::load(kafka, &topic);
        if wanted(parser) {
            let count = sizes.records(short.a_second());
            let log = Log::write(&lines, count);
            let limit = |round| produce(kafka, &format!("limit-{parser}-{round}"), &sample, sizes);
            let worker = || {
                let (topic, run) = read_log(kafka, &log, parser, count);
                client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, count);
                client::delete_topic(kafka.brokers(), &topic);
                run
            };
            let path = Path { name, unit: "lines/s", share, cpu: Demand::Most(3.0), memory: MOST_MEMORY };
            rows.extend(path.measure(sizes, limit, worker));
        }
        for (name, mask, cpu) in [
            ("topic -> Parquet zstd", false, Demand::Most(2.5)),
            ("topic -> plugin mask -> Parquet zstd", true, Demand::None),
        ] {
            if !files(if mask { "mask" } else { "parquet" }) {
                continue;
            }
            let count = sizes.records(write_lake(kafka, &topic, mask, SAMPLE).a_second());
            let backlog = backlog(kafka, &format!("backlog-{mask}"), &sample, count);
            let limit = |_| {
                let consumed = timed(|| {
                    client::consume(&client::consumer(kafka.brokers(), "limit", &[]), &backlog, count);
                    count
                });
                let rest = sizes.run.saturating_sub(Duration::from_secs_f64(consumed.seconds)).max(sizes.run / 2);
                let encoded = timed(|| encode::rows(&sample, mask, rest));
                // What consuming takes of as many records as were encoded.
                let share = encoded.records as f64 / count as f64;
                Run {
                    seconds: encoded.seconds + consumed.seconds * share,
                    cpu: encoded.cpu + consumed.cpu * share,
                    ..encoded
                }
            };
            let worker = || write_lake(kafka, &backlog, mask, count);
            let path = Path { name, unit: "lines/s", share: 0.7, cpu, memory: MOST_MEMORY };
            rows.extend(path.measure(sizes, limit, worker));
            client::delete_topic(kafka.brokers(), &backlog);
        }
        client::delete_topic(kafka.brokers(), &topic);
    }
    rows
}

/// A topic with so many records: those of the sample again and again.
pub(crate) fn backlog(kafka: &Kafka, topic: &str, sample: &[Stored], count: u64) -> String {
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    client::produce_again(&producer, topic, sample.iter().cycle().take(count as usize));
    topic.to_owned()
}

/// Log file to topic; gives the topic too.
pub(crate) fn read_log(kafka: &Kafka, log: &Log, parser: &str, lines: u64) -> (String, Run) {
    let case = Case::new(&format!("bench-{parser}"), kafka);
    let text = format!(
        "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"{parser}\"\n"
    );
    case.pipeline("bench", &text);
    let idle = run(&case);
    log.link(&case.path("logs"), "access.log");
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "web").output, lines);
    (format!("{}.web", case.name()), Run::of(lines, &exit, &idle))
}

/// Topic to Parquet files.
pub(crate) fn write_lake(kafka: &Kafka, topic: &str, mask: bool, lines: u64) -> Run {
    let case = Case::new(if mask { "bench-mask" } else { "bench-plain" }, kafka);
    let transform = "[transforms.clean]\ninputs = [\"topic:TOPIC\"]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }\n";
    let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"INPUT\"]\nurl = \"file://$DIR/lake\"\n";
    let text =
        if mask { [transform, &sink.replace("INPUT", "clean")].concat() } else { sink.replace("INPUT", "topic:TOPIC") };
    case.pipeline("bench", &format!("name = \"$NAME\"\n{}", text.replace("TOPIC", topic)));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "lake").output, lines);
    assert_eq!(rows_in(&case.path("lake")), lines);
    // Its own start-up, with everything read already.
    Run::of(lines, &exit, &run(&case))
}

/// Runs a worker until it is idle.
pub(crate) fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}

/// Work of this process on so many records as it says.
pub(crate) fn timed(work: impl FnOnce() -> u64) -> Run {
    let (started, cpu) = (Instant::now(), cpu_seconds_of(std::process::id()));
    let records = work();
    Run {
        records,
        seconds: started.elapsed().as_secs_f64(),
        cpu: cpu_seconds_of(std::process::id()) - cpu,
        peak_rss: 0,
    }
}

/// The limit of writing: the same records, with the settings of the worker's producer, and nothing else.
pub(crate) fn produce(kafka: &Kafka, topic: &str, sample: &[Stored], sizes: Sizes) -> Run {
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    let run = timed(|| client::produce_again(&producer, topic, client::again(sample, sizes.run)));
    client::delete_topic(kafka.brokers(), topic);
    run
}
