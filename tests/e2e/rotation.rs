//! Logs that are rotated while the worker runs and while it is down.

use trunkline_tests::{Case, Kafka, LogWriter, Reader, need};

use crate::{LONG, access_logs, assert_all_arrives, stop, wait_for_rows};

/// The glob matches rotated logs too: they are known files under a new name, and none of their
/// lines may arrive a second time.
fn pipeline() -> String {
    access_logs().replace("logs/*.log", "logs/access.log*")
}

#[test]
fn rotation_while_running_loses_and_duplicates_nothing() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("rotation", kafka);
    let path = |name: &str| case.path("logs").join(name);
    let mut log = LogWriter::new(path("access.log"), 400);
    log.append(2_000);
    case.pipeline("access", &pipeline());
    let worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1);

    // logrotate's `create` and `delaycompress` directly after lines are written: the worker has not
    // reached the end of the file.
    log.append(10_000);
    log.rotate(&path("access.log.1"));
    log.append(2_000);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    LogWriter::gzip(&path("access.log.1"));
    log.append(2_000);

    // `copytruncate`: the copy has lines that the worker may not have read before the truncation.
    log.copy_truncate(&path("access.log.2"));
    log.append(2_000);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    stop(worker);

    assert_all_arrives(&case, &reader, &log);
}

#[test]
fn files_rotated_while_the_worker_was_down_are_read_to_their_end() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("rotated-down", kafka);
    let path = |name: &str| case.path("logs").join(name);
    let mut log = LogWriter::new(path("access.log"), 401);
    log.append(3_000);
    case.pipeline("access", &pipeline());
    case.until_idle("a", LONG);

    log.append(1_000);
    log.rotate(&path("access.log.1"));
    log.append(1_000);
    case.until_idle("a", LONG);
    log.append(1_000);
    log.copy_truncate(&path("access.log.2"));
    log.append(1_000);

    assert_all_arrives(&case, &reader, &log);
}

#[test]
fn a_compressed_log_is_read() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("gzip", kafka);
    let path = |name: &str| case.path("logs").join(name);
    let mut log = LogWriter::new(path("access.log"), 402);
    log.append(3_000);
    log.rotate(&path("access.log.1"));
    LogWriter::gzip(&path("access.log.1"));
    log.append(1_000);
    case.pipeline("access", &pipeline());

    assert_all_arrives(&case, &reader, &log);
}
