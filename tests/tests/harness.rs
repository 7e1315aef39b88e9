//! The harness itself: what the end-to-end tests rely on, checked without a worker.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use trunkline_tests::{Fault, KafkaFault, KafkaFaults, LogWriter, Reader, S3Faults, Worker, need};

/// A server that answers every request with its number and how much body it had, and counts those that were complete.
fn counting_server() -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let complete = Arc::new(AtomicU32::new(0));
    let counter = complete.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            serve(connection.unwrap(), &counter);
        }
    });
    (address, complete)
}

fn serve(mut connection: TcpStream, complete: &AtomicU32) {
    let mut received = Vec::new();
    let mut block = [0; 65_536];
    while let Ok(n @ 1..) = connection.read(&mut block) {
        received.extend_from_slice(&block[..n]);
        let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        let length =
            text.split("content-length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        if received.len() < head + 4 + length {
            continue;
        }
        let body = format!("{} {length}", complete.fetch_add(1, Ordering::SeqCst) + 1);
        let _ = write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        received.clear();
    }
}

/// Sends one request on a connection of its own; gives all that came back.
fn request(address: &str, method: &str, target: &str, body: usize) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {body}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    // Errors are what some of the faults look like from here.
    let _ = connection.write_all(&bytes);
    let _ = connection.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_request_without_a_rule_passes_whole() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    assert!(request(faults.address(), "PUT", "/bucket/key", 300_000).ends_with("1 300000"));
    assert_eq!(complete.load(Ordering::SeqCst), 1);
    assert_eq!(faults.broken(), 0);
    assert_eq!(faults.seen()[0].target, "/bucket/key");
}

#[test]
fn the_nth_matching_request_is_refused() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(2, "PUT", "partNumber", Fault::Status(503));
    assert!(request(faults.address(), "PUT", "/k?partNumber=1", 5).starts_with("HTTP/1.1 200"));
    assert!(request(faults.address(), "GET", "/k?partNumber=1", 0).starts_with("HTTP/1.1 200"));
    let refused = request(faults.address(), "PUT", "/k?partNumber=2", 5);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("<Code>SlowDown</Code>"), "{refused}");
    assert!(request(faults.address(), "PUT", "/k?partNumber=2", 5).starts_with("HTTP/1.1 200"));
    assert_eq!(complete.load(Ordering::SeqCst), 3);
    assert_eq!(faults.broken(), 1);
}

#[test]
fn a_window_lasts_until_it_is_lifted() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    let window = faults.from_now("", "", Fault::Status(403));
    for _ in 0..3 {
        assert!(request(faults.address(), "GET", "/k", 0).contains("AccessDenied"));
    }
    assert_eq!(complete.load(Ordering::SeqCst), 0);
    window.lift();
    assert!(request(faults.address(), "GET", "/k", 0).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_cut_request_does_not_reach_the_server_whole() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "PUT", "", Fault::Cut);
    assert_eq!(request(faults.address(), "PUT", "/k", 300_000), "");
    assert!(request(faults.address(), "PUT", "/k", 10).ends_with("1 10"));
    assert_eq!(complete.load(Ordering::SeqCst), 1);
}

#[test]
fn a_dropped_reply_leaves_the_work_done() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "POST", "uploadId=", Fault::DropReply);
    assert_eq!(request(faults.address(), "POST", "/k?uploadId=7", 100), "");
    assert_eq!(complete.load(Ordering::SeqCst), 1);
}

#[test]
fn a_slow_request_arrives_late() {
    let (server, _) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "GET", "", Fault::Slow(Duration::from_millis(300)));
    let started = Instant::now();
    assert!(request(faults.address(), "GET", "/k", 0).starts_with("HTTP/1.1 200"));
    assert!(started.elapsed() >= Duration::from_millis(300));
}

fn shell(script: &str, folder: &Path) -> Worker {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Worker::spawn(command, &folder.join("0-shell"))
}

#[test]
fn a_process_tells_how_it_ended_and_what_it_used() {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo out; echo err >&2; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
    let exit = shell(script, folder.path()).wait(Duration::from_secs(30));
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert_eq!((exit.stdout.as_str(), exit.stderr.as_str()), ("out\n", "err\n"));
    assert!(exit.cpu > Duration::from_millis(10) && exit.cpu < exit.elapsed * 2, "{exit:?}");
    assert!(exit.peak_rss > 500_000 && exit.peak_rss < 100_000_000, "{exit:?}");
}

#[test]
fn signals_reach_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let exit = shell("exec sleep 60", folder.path()).kill9();
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGKILL)));
    let mut worker = shell("exec sleep 60", folder.path());
    worker.sigterm();
    assert_eq!(worker.wait(Duration::from_secs(10)).signal, Some(libc::SIGTERM));
    // It ended before the moment: that is no kill.
    let exit = shell("exit 0", folder.path()).kill9_after(Duration::from_secs(10));
    assert_eq!((exit.code, exit.signal), (Some(0), None));
}

#[test]
#[should_panic(expected = "did not end within")]
fn a_process_that_does_not_end_fails_the_test() {
    let folder = tempfile::tempdir().unwrap();
    shell("exec sleep 60", folder.path()).wait(Duration::from_millis(100));
}

#[test]
fn a_log_is_the_same_for_the_same_seed_however_it_is_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut straight = LogWriter::new(path("a.log"), 7);
    straight.append(300);
    let mut rotated = LogWriter::new(path("b.log"), 7);
    rotated.append(100);
    rotated.rotate(&path("b.log.1"));
    rotated.append(100);
    rotated.copy_truncate(&path("b.log.2"));
    rotated.append(100);
    assert_eq!((rotated.lines(), rotated.bytes()), (300, straight.bytes()));
    let pieces = ["b.log.1", "b.log.2", "b.log"].map(|name| fs::read(path(name)).unwrap());
    assert_eq!(pieces.concat(), fs::read(path("a.log")).unwrap());

    LogWriter::gzip(&path("b.log.1"));
    let mut unpacked = Vec::new();
    let packed = fs::File::open(path("b.log.1.gz")).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, pieces[0]);
    assert!(!path("b.log.1").exists());

    let mut other = LogWriter::new(path("c.log"), 8);
    other.append(300);
    assert_ne!(fs::read(path("c.log")).unwrap(), fs::read(path("a.log")).unwrap());
}

/// Writes a Parquet file out of a combined log with DuckDB; `rows` is SQL that says which rows.
fn write_lake(log: &Path, folder: &Path, rows: &str) {
    fs::create_dir_all(folder.join("day=2026-03-01")).unwrap();
    let script = format!(
        r#"
import duckdb
duckdb.sql(r"""
    COPY (WITH lines AS (SELECT unnest(string_split(trim(content, chr(10)), chr(10))) AS line FROM read_text('{log}')),
               fields AS (SELECT regexp_extract(line, '\[(.*?)\] "(\S+) (\S+) (\S+)" (\d+) (\S+) "(.*?)" "(.*?)"',
                          ['time', 'method', 'path', 'protocol', 'status', 'size', 'referer', 'agent']) AS f FROM lines)
          SELECT strptime(f.time, '%d/%b/%Y:%H:%M:%S %z') AS timestamp, f.method AS method, f.path AS path, f.protocol AS protocol,
                 f.status::BIGINT AS status, nullif(f.size, '-')::BIGINT AS bytes, nullif(f.referer, '-') AS referer,
                 nullif(f.agent, '-') AS user_agent
          FROM fields {rows})
    TO '{folder}/day=2026-03-01/part.parquet' (FORMAT PARQUET)""")
"#,
        log = log.display(),
        folder = folder.display(),
    );
    let python = Command::new(trunkline_tests::repository().join("tests/services/reader")).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let output = Command::new(python.trim()).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a Parquet file of change events, of which each is (op, before, after) of a row's version, as a sink does from these offsets on.
fn write_changes(folder: &Path, first: usize, events: &[(&str, Option<u64>, Option<u64>)]) {
    let row = |version: &Option<u64>| {
        version.map_or("None".to_owned(), |version| format!("{{'n': 7, 'version': {version}}}"))
    };
    let events: Vec<_> = events
        .iter()
        .map(|(op, before, after)| format!("{{'op': '{op}', 'before': {}, 'after': {}}}", row(before), row(after)))
        .collect();
    let last = first + events.len() - 1;
    let script = format!(
        "import pyarrow as pa, pyarrow.parquet as pq\n\
         row = pa.struct([('n', pa.uint64()), ('version', pa.uint64())])\n\
         schema = pa.schema([('op', pa.string()), ('before', row), ('after', row)], metadata={{'trunkline.topic': 'p.shop.orders', \
         'trunkline.partition': '0', 'trunkline.first_offset': '{first}', 'trunkline.last_offset': '{last}'}})\n\
         pq.write_table(pa.Table.from_pylist([{}], schema=schema), r'{}/{first}.parquet')",
        events.join(", "),
        folder.display()
    );
    let python = Command::new(trunkline_tests::repository().join("tests/services/reader")).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let output = Command::new(python.trim()).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_reader_folds_changes_and_sees_where_one_is_missing() {
    let reader = need!(Reader::find());
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path();
    write_changes(lake, 10, &[("u", Some(2), Some(3)), ("r", None, Some(3))]);
    write_changes(lake, 0, &[("r", None, Some(1)), ("u", Some(1), Some(2))]);
    let found = reader.fold(lake, "n", "version");
    assert_eq!((found.rows, found.disordered.len()), (4, 0), "{:?}", found.disordered);
    assert_eq!(found.folded["orders"]["7"]["version"].as_deref(), Some("3"));
    let orders = |op: &str, version| ("orders".to_owned(), op.to_owned(), 7, version);
    assert_eq!(found.changes, [orders("u", 2), orders("u", 3)]);

    write_changes(lake, 20, &[("d", Some(3), None)]);
    let gone = reader.fold(lake, "n", "version");
    assert!(gone.folded["orders"].is_empty() && gone.disordered.is_empty(), "{gone:?}");

    // A change that was lost, one that came twice, a row of a snapshot that is older than a change, and files that overlap.
    for wrong in [("u", Some(4), Some(5)), ("d", Some(2), None), ("c", None, Some(9)), ("r", None, Some(2))] {
        write_changes(lake, 20, &[wrong]);
        assert_eq!(reader.fold(lake, "n", "version").disordered.len(), 1, "{wrong:?}");
    }
    write_changes(lake, 20, &[("d", Some(3), None)]);
    write_changes(lake, 11, &[("c", None, Some(4))]);
    assert!(!reader.fold(lake, "n", "version").disordered.is_empty());
}

#[test]
fn the_reader_counts_and_compares() {
    let reader = need!(Reader::find());
    let folder = tempfile::tempdir().unwrap();
    let (path, lake) = (folder.path().join("access.log"), folder.path().join("lake"));
    let mut log = LogWriter::new(&path, 1);
    log.append(500);
    write_lake(&path, &lake, "");

    let found = reader.read_with_sums(&lake, &["path"], &["bytes"]);
    assert_eq!((found.files, found.rows, found.distinct), (1, 500, Some(500)));
    assert_eq!(found.sums["bytes"], log.bytes());
    assert_eq!(found.types["status"], ["int64"]);
    assert_eq!(found.partitions["day"], ["2026-03-01"]);
    assert!(found.nulls["referer"] > 0);

    let same = reader.compare(&lake, &[&path]);
    assert_eq!((same.missing_total, same.extra_total, same.unparsed), (Some(0), Some(0), Some(0)), "{same:?}");

    // Not published yet, so not there.
    fs::create_dir(lake.join(".trunkline-staging")).unwrap();
    fs::copy(lake.join("day=2026-03-01/part.parquet"), lake.join(".trunkline-staging/part.parquet")).unwrap();
    assert_eq!(reader.read(&lake, &["path"]).rows, 500);

    fs::copy(lake.join("day=2026-03-01/part.parquet"), lake.join("day=2026-03-01/twice.parquet")).unwrap();
    let doubled = reader.read(&lake, &["path"]);
    assert_eq!((doubled.rows, doubled.distinct), (1000, Some(500)));
    assert_eq!(reader.compare(&lake, &[&path]).extra_total, Some(500));

    let short = folder.path().join("short");
    write_lake(&path, &short, "LIMIT 490");
    let short = reader.compare(&short, &[&path]);
    assert_eq!((short.missing_total, short.extra_total, short.missing.len()), (Some(10), Some(0), 10));
}

/// A broker that answers each request with its correlation id and its own address, and counts the requests.
fn answering_broker() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = Arc::new(AtomicU32::new(0));
    let counter = counted.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, counter) = (connection.unwrap(), counter.clone());
            std::thread::spawn(move || {
                let mut request = [0; 12];
                while connection.read_exact(&mut request).is_ok() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let answer = [&17u32.to_be_bytes(), &request[8..], b"127.0.0.1", &u32::from(port).to_be_bytes()];
                    connection.write_all(&answer.concat()).unwrap();
                }
            });
        }
    });
    (port, counted)
}

#[test]
fn chosen_answers_of_a_broker_are_lost_or_late_and_its_address_is_hidden() {
    const END_TXN: i16 = 26;
    const METADATA: i16 = 3;
    let (port, counted) = answering_broker();
    let faults = KafkaFaults::start(port);
    let connect = || TcpStream::connect(faults.address()).unwrap();
    // What follows the correlation id, or none if the connection breaks.
    let ask = |connection: &mut TcpStream, api: i16, id: i32| {
        let request = [&8u32.to_be_bytes()[..], &api.to_be_bytes(), &[0, 1], &id.to_be_bytes()];
        connection.write_all(&request.concat()).unwrap();
        let mut answer = [0; 21];
        connection.read_exact(&mut answer).ok()?;
        assert_eq!(answer[4..8], id.to_be_bytes());
        Some(u32::from_be_bytes(answer[17..].try_into().unwrap()))
    };
    let own: u32 = faults.address().rsplit(':').next().unwrap().parse().unwrap();
    let mut connection = connect();
    assert_eq!(ask(&mut connection, METADATA, 1), Some(own));
    assert_eq!(ask(&mut connection, END_TXN, 2), Some(u32::from(port)), "only answers that name brokers are changed");

    faults.nth(2, "EndTxn", KafkaFault::DropReply);
    faults.nth(3, "EndTxn", KafkaFault::Delay(Duration::from_millis(200)));
    faults.nth(1, "Produce", KafkaFault::DropReply);
    assert!(ask(&mut connection, END_TXN, 3).is_some());
    assert!(ask(&mut connection, METADATA, 4).is_some());
    assert_eq!(
        (ask(&mut connection, END_TXN, 5), counted.load(Ordering::SeqCst)),
        (None, 5),
        "it was done all the same"
    );
    let mut connection = connect();
    let started = Instant::now();
    assert!(ask(&mut connection, END_TXN, 6).is_some());
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(faults.pending(), 1);
    faults.clear();
    assert_eq!(faults.pending(), 0);
}
