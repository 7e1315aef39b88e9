//! Workers killed with -9 at moments that a seed chooses: nothing is lost, nothing comes twice (I1, I2).

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, LogWriter, Random, Reader, S3, Summary, need};

use crate::{LAKE, LONG, MASK, SOURCE, access_logs, access_logs_to_s3, assert_counted, assert_every_line_once};

/// A worker that lives shorter than this has hardly joined its groups.
const LONGEST_LIFE_MS: u64 = 3_000;

/// Appends `lines` and runs a worker for a moment, `kills` times; then lets one finish, and checks the lake and the topic.
fn kill_and_count(case: &Case, kafka: &Kafka, lake: &Path, seed: u64, kills: u64, lines: u64) -> Summary {
    let reader = Reader::find().expect("checked by the test");
    let mut log = LogWriter::new(case.path("logs/access.log"), seed);
    let mut random = Random::new(seed);
    let mut lives = Vec::new();
    for _ in 0..kills {
        log.append(lines);
        let life = Duration::from_millis(random.below(LONGEST_LIFE_MS));
        let exit = case.start("a", &[]).kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
        lives.push(life.as_millis());
    }
    log.append(lines);

    let summary = case.until_idle("a", LONG);
    eprintln!("seed {seed}: the workers lived {lives:?} ms");
    assert_every_line_once(&reader, lake, &log);
    assert_eq!(kafka.count(&format!("{}.web", case.name())), log.lines());
    assert_eq!(summary.of(case.name(), "web").input, log.lines());
    summary
}

#[test]
fn twenty_kills_lose_and_double_nothing() {
    let kafka = need!(Kafka::shared());
    need!(Reader::find());
    let case = Case::new("kills", kafka);
    case.pipeline("access", &access_logs());
    let summary = kill_and_count(&case, kafka, &case.path("lake"), 300, 20, 5_000);
    assert_counted(&summary, &case, 105_000, 0);
}

#[test]
fn kills_while_uploading_lose_and_double_nothing() {
    let (kafka, s3) = (need!(Kafka::shared()), need!(S3::start()));
    need!(Reader::find());
    let bucket = s3.bucket("lake");
    let case = Case::new("kills-s3", kafka);
    case.pipeline("access", &access_logs_to_s3(&s3.address()));
    let summary = kill_and_count(&case, kafka, &bucket.join("logs"), 301, 10, 5_000);
    assert_counted(&summary, &case, 55_000, 0);
}

#[test]
fn kills_between_topics_lose_and_double_nothing() {
    let kafka = need!(Kafka::shared());
    need!(Reader::find());
    let case = Case::new("kills-topics", kafka);
    let materialised = format!("{MASK}topic = \"$NAME.masked\"\n");
    case.pipeline("access", &[SOURCE, &materialised, LAKE].concat());
    let summary = kill_and_count(&case, kafka, &case.path("lake"), 302, 10, 5_000);
    assert_counted(&summary, &case, 55_000, 0);
    assert_eq!(kafka.count(&format!("{}.masked", case.name())), 55_000);
}
