//! Workers that are killed with -9 at seeded moments: no record is lost or duplicated (I1, I2).

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{BrokerKind, Case, Kafka, LogWriter, Random, Reader, S3, Summary, need};

use crate::{LAKE, LONG, MASK, SOURCE, access_logs, access_logs_to_s3, assert_counted, assert_every_line_once};

on_each_broker!(
    kills_at_random_moments_lose_and_duplicate_nothing,
    kills_with_a_materialised_transform_lose_and_duplicate_nothing
);

/// Most workers have only just joined their groups after this time.
const MAX_LIFE_MS: u64 = 3_000;

/// Lines that are appended before each worker starts.
const LINES: u64 = 5_000;

/// Appends lines, starts a worker and kills it, `kills` times. Then a worker runs until it is idle,
/// and the lake and the topic are checked. Returns its summary and the number of lines.
fn kill_and_count(case: &Case, kafka: &Kafka, lake: &Path, seed: u64, kills: u64) -> (Summary, u64) {
    let reader = Reader::find().expect("checked by the test");
    let mut log = LogWriter::new(case.path("logs/access.log"), seed);
    let mut random = Random::new(seed);
    let mut lives = Vec::new();
    for _ in 0..kills {
        log.append(LINES);
        let life = Duration::from_millis(random.below(MAX_LIFE_MS));
        let exit = case.start("a", &[]).kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "the worker ended by itself: {}", exit.describe());
        lives.push(life.as_millis());
    }
    log.append(LINES);

    let summary = case.until_idle("a", LONG);
    eprintln!("seed {seed}: the workers ran for {lives:?} ms");
    assert_every_line_once(&reader, lake, &log);
    assert_eq!(kafka.count(&format!("{}.web", case.name())), log.lines());
    assert_eq!(summary.of(case.name(), "web").input, log.lines());
    (summary, log.lines())
}

fn kills_at_random_moments_lose_and_duplicate_nothing(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    need!(Reader::find());
    let case = Case::new("kills", kafka);
    case.pipeline("access", &access_logs());
    let (summary, lines) = kill_and_count(&case, kafka, &case.path("lake"), 300, 20);
    assert_counted(&summary, &case, lines, 0);
}

fn kills_with_a_materialised_transform_lose_and_duplicate_nothing(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    need!(Reader::find());
    let case = Case::new("kills-topics", kafka);
    let materialised = format!("{MASK}topic = \"$NAME.masked\"\n");
    case.pipeline("access", &[SOURCE, &materialised, LAKE].concat());
    let (summary, lines) = kill_and_count(&case, kafka, &case.path("lake"), 302, 10);
    assert_counted(&summary, &case, lines, 0);
    assert_eq!(kafka.count(&format!("{}.masked", case.name())), lines);
}

#[test]
fn kills_during_uploads_lose_and_duplicate_nothing() {
    let (kafka, s3) = (need!(Kafka::any()), need!(S3::shared()));
    need!(Reader::find());
    let case = Case::new("kills-s3", kafka);
    let bucket = s3.bucket(case.name());
    case.pipeline("access", &access_logs_to_s3(&s3.address()));
    let (summary, lines) = kill_and_count(&case, kafka, &bucket.join("logs"), 301, 10);
    assert_counted(&summary, &case, lines, 0);
}
