//! Both halves of the log pipeline, each beside a limit that is measured in the same round: the bare libraries with the same bytes and settings.
//!
//! | path | its limit |
//! |---|---|
//! | log file → topic | a bare transactional producer of the very same records, headers too |
//! | topic → Parquet | a bare consumer, plus arrow-json and `ArrowWriter` fed from memory |
//! | topic → mask → Parquet | the same, plus the same mask as a call in this process |
//!
//! Kafka runs on the same machine and takes its share of the processors, from the limits as much as from the worker.

use std::process::ExitCode;

use trunkline_tests::{Case, Exit, Kafka, Reader};

use crate::client::{self, LIMIT, PARTITIONS, Stored};
use crate::encode;
use crate::measure::{median, percentile};
use crate::records::{LINE_BYTES, Log};

pub(crate) const ROUNDS: usize = 3;

/// What is demanded of a path.
pub(crate) struct Path {
    name: &'static str,
    /// Share of the limit's speed.
    share: f64,
    /// Processor seconds for a million lines.
    cpu: f64,
    /// Most memory, in megabytes.
    rss: f64,
    /// Seconds that the limit took, and the worker's runs.
    pub(crate) limits: Vec<f64>,
    pub(crate) runs: Vec<Run>,
}

/// One run of a worker, without what it needs to start and to see that it is idle.
pub(crate) struct Run {
    seconds: f64,
    cpu: f64,
    peak_rss: u64,
}

impl Path {
    pub(crate) fn new(name: &'static str, share: f64, cpu: f64, rss: f64) -> Self {
        Self { name, share, cpu, rss, limits: Vec::new(), runs: Vec::new() }
    }

    /// Prints the paths; the exit code says whether each reached what is demanded.
    pub(crate) fn show_all(paths: &[Self], lines: u64) -> ExitCode {
        println!("| | limit | worker | share | | CPU-s per million | | peak RSS, MB | | |");
        println!("|---|---|---|---|---|---|---|---|---|---|");
        let met = paths.iter().map(|path| path.show(lines)).filter(|met| *met).count();
        println!("{met} of {} demands met", paths.len());
        ExitCode::from(u8::from(met < paths.len()))
    }

    fn show(&self, lines: u64) -> bool {
        let of = |value: fn(&Run) -> f64| self.runs.iter().map(value).collect::<Vec<_>>();
        let (seconds, limits) = (of(|run| run.seconds), &self.limits);
        let cpu = median(&of(|run| run.cpu)) / lines as f64 * 1e6;
        let rss = percentile(&of(|run| run.peak_rss as f64), 1.0) / 1e6;
        let rate = |seconds: f64| lines as f64 / seconds / 1e3;
        let ratio = median(limits) / median(&seconds);
        let spread = |seconds: &[f64]| {
            let (slowest, fastest) = (percentile(seconds, 1.0), percentile(seconds, 0.0));
            format!("{:.0}k ({:.0}-{:.0})", rate(median(seconds)), rate(slowest), rate(fastest))
        };
        let met = ratio >= self.share && cpu <= self.cpu && rss <= self.rss;
        println!(
            "| {:<38} | {:>18} | {:>18} | {ratio:.2} | >= {:.1} | {cpu:.2} | <= {:.1} | {rss:.0} | <= {:.0} | {} |",
            self.name,
            spread(limits),
            spread(&seconds),
            self.share,
            self.cpu,
            self.rss,
            if met { "met" } else { "NOT MET" }
        );
        met
    }
}

pub(crate) fn run_all(lines: u64) -> ExitCode {
    let kafka = Kafka::start().unwrap_or_else(|skip| panic!("{skip}"));
    let log = Log::write(lines);
    println!(
        "{lines} lines of {LINE_BYTES} bytes; {} processors; {ROUNDS} rounds: lines/s, median (lowest-highest)",
        std::thread::available_parallelism().unwrap()
    );
    // The broker's first seconds are slow, until its code is compiled: that would be a limit of nothing.
    kafka.create_topic("warm-up", PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), "warm-up", &[]);
    client::produce(&producer, "warm-up", log.records().take(lines as usize / 2));

    let mut paths = [
        Path::new("log file -> topic, parser none", 0.7, 3.0, 150.0),
        Path::new("log file -> topic, parser combined", 0.5, 3.0, 150.0),
        Path::new("topic -> Parquet", 0.7, 2.5, 150.0),
        Path::new("topic -> plugin mask -> Parquet", 0.7, f64::INFINITY, 150.0),
    ];
    for round in 0..ROUNDS {
        for (index, parser) in ["none", "combined"].into_iter().enumerate() {
            let (case, run) = read_log(&kafka, &log, parser, lines);
            paths[index].runs.push(run);
            let topic = format!("{}.web", case.name());
            let records = client::load(&kafka, &topic);
            paths[index].limits.push(produce(&kafka, &format!("limit-{round}-{parser}"), &records));
            if parser == "none" {
                continue;
            }
            let consumer = client::consumer(kafka.brokers(), "limit", &[]);
            let consume = client::consume(&consumer, &topic, lines).as_secs_f64();
            for (path, mask) in [(2, false), (3, true)] {
                paths[path].limits.push(consume + encode::seconds(records.iter().map(|record| &*record.value), mask));
                paths[path].runs.push(write_lake(&kafka, &topic, mask, lines));
            }
        }
    }
    Path::show_all(&paths, lines)
}

/// Log file to topic.
fn read_log(kafka: &Kafka, log: &Log, parser: &str, lines: u64) -> (Case, Run) {
    let case = Case::new(&format!("bench-{parser}"), kafka);
    let text = format!(
        "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"{parser}\"\n"
    );
    case.pipeline("bench", &text);
    let idle = run(&case);
    log.link(&case.path("logs"));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "web").output, lines);
    (case, measured(&exit, &idle))
}

/// Topic to Parquet files.
fn write_lake(kafka: &Kafka, topic: &str, mask: bool, lines: u64) -> Run {
    let case = Case::new(if mask { "bench-mask" } else { "bench-plain" }, kafka);
    let transform = "[transforms.clean]\ninputs = [\"topic:TOPIC\"]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }\n";
    let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"INPUT\"]\nurl = \"file://$DIR/lake\"\n";
    let text =
        if mask { [transform, &sink.replace("INPUT", "clean")].concat() } else { sink.replace("INPUT", "topic:TOPIC") };
    case.pipeline("bench", &format!("name = \"$NAME\"\n{}", text.replace("TOPIC", topic)));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "lake").output, lines);
    if let Ok(reader) = Reader::find() {
        assert_eq!(reader.read(&case.path("lake"), &["path"]).distinct, Some(lines));
    }
    // Its own start-up, with everything read already.
    measured(&exit, &run(&case))
}

pub(crate) fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}

pub(crate) fn measured(exit: &Exit, idle: &Exit) -> Run {
    Run {
        seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
        cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
        peak_rss: exit.peak_rss,
    }
}

/// The limit of writing: the same records, with the settings of the worker's producer, and nothing else.
fn produce(kafka: &Kafka, topic: &str, records: &[Stored]) -> f64 {
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    client::produce_again(&producer, topic, records).as_secs_f64()
}
