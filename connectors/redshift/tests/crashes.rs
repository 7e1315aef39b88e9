//! Tasks and connections that die between the steps of a load: all of its rows arrive once, or
//! none. The next owner decides by the offsets row.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use common::{Bench, Records, load, partition, prepare};
use trunkline_connector::Domain;
use trunkline_tests::{RedshiftFault, RedshiftFaults, need};

const STATEMENTS: [&str; 9] = [
    "SELECT \"topic\"",
    "CREATE TEMP TABLE",
    "BEGIN",
    "UPDATE \"trunkline_offsets",
    "COPY",
    "SELECT COUNT",
    "DELETE FROM",
    "INSERT INTO \"t\"",
    "COMMIT",
];

fn rows_from(first: i64) -> Records {
    let mut records = Records::from_offset(first);
    for id in first..first + 50 {
        records.push(None, Some(&format!(r#"{{"id":{id}}}"#)), Some(&format!(r#"{{"id":{id},"text":"x"}}"#)));
    }
    records
}

#[test]
fn a_connection_that_breaks_at_any_statement_loses_and_doubles_nothing() {
    let bench = need!(Bench::new("crashes"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let options = "table = \"t\"\nmode = \"upsert\"";
    let count = || bench.rows("SELECT COUNT(*), COUNT(DISTINCT id) FROM $S.t")[0].clone();
    load(bench.open(options).as_mut(), &rows_from(0).batch);
    let mut first = 50;
    for statement in STATEMENTS {
        for fault in [RedshiftFault::Unsent, RedshiftFault::ReplyLost] {
            let mut sink = bench.open_at(proxy.port(), options).unwrap();
            let (committables, _) = prepare(sink.as_mut(), &rows_from(first).batch).unwrap();
            proxy.break_at(statement, fault);
            let outcome = sink.commit(&committables);
            assert!(proxy.is_done(), "{statement} was not sent");
            let found: i64 = count().split('\t').next().unwrap().parse().unwrap();
            assert!(found == first || found == first + 50, "{found} rows after {statement} broke: some of a load");
            if let Err(error) = &outcome {
                assert_eq!(error.domain, Domain::External, "{statement}: {error}");
            }
            // The stage repeats the commit, or the task dies and the next owner does.
            if fault == RedshiftFault::ReplyLost {
                drop(sink);
                sink = bench.open_at(proxy.port(), options).unwrap();
                sink.recover(&partition(), &committables).unwrap();
            }
            sink.commit(&committables).unwrap();
            first += 50;
            assert_eq!(count(), format!("{first}\t{first}"), "rows and keys after {statement}: {fault:?}");
        }
    }
}

#[test]
fn a_task_that_was_replaced_is_fenced() {
    let bench = need!(Bench::new("fencing"));
    let options = "table = \"t\"";
    let count = || bench.rows("SELECT COUNT(*) FROM $S.t")[0].clone();
    let mut zombie = bench.open(options);
    let (late, _) = prepare(zombie.as_mut(), &rows_from(0).batch).unwrap();
    // The next owner takes over, and reads the same records again: the zombie's load was never
    // recorded in Kafka.
    let mut next = bench.open(options);
    next.recover(&partition(), &[]).unwrap();
    let (committables, _) = prepare(next.as_mut(), &rows_from(0).batch).unwrap();
    let error = zombie.commit(&late).unwrap_err();
    assert_eq!((error.code, error.domain), ("warehouse.fenced", Domain::Fenced));
    assert_eq!(prepare(zombie.as_mut(), &rows_from(50).batch).unwrap_err().code, "warehouse.fenced");
    assert_eq!(count(), "0");
    next.commit(&committables).unwrap();
    assert_eq!(count(), "50");
    // A load that the zombie prepared before is not loaded after its successor's.
    zombie.commit(&late).unwrap();
    assert_eq!(count(), "50");
}

#[test]
fn a_topic_that_was_created_again_is_loaded() {
    let bench = need!(Bench::new("recreated"));
    let mut sink = bench.open("table = \"t\"");
    load(sink.as_mut(), &rows_from(1000).batch);
    load(sink.as_mut(), &rows_from(0).batch);
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["100"]);
}

#[test]
fn wrong_logins_are_reported_without_the_password() {
    let bench = need!(Bench::new("logins"));
    for (from, to, code, domain) in [
        ("rspass1", "wrongsecret", "redshift.login", Domain::Config),
        ("/dev\"", "/absent\"", "redshift.no_database", Domain::Config),
        // The server's certificate may be replaced while the worker waits.
        ("tls = \"disable\"", "tls = \"verify-full\"", "redshift.tls", Domain::External),
        ("schema = \"logins\"", "schema = \"absent\"", "redshift.no_schema", Domain::Config),
    ] {
        let error = bench.open_changed(from, to).err().unwrap();
        assert_eq!((error.code, error.domain), (code, domain), "{error}");
        assert!(!error.to_string().contains("wrongsecret") && !error.to_string().contains("SKTESTSK"), "{error}");
    }
}

#[test]
fn copy_passes_a_session_token_that_no_error_shows() {
    let bench = need!(Bench::new("tokens"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let (keys, token) = ("secret_access_key = \"SKTESTSK\"", "FwoGZXIvYXdz//temporary+token==");
    let temporary = format!("{keys}, session_token = \"{token}\"");
    // The S3 server of the tests knows no tokens: another sink uploads the files.
    let mut uploader = bench.open_at(proxy.port(), "").unwrap();
    let (committables, _) = prepare(uploader.as_mut(), &rows_from(0).batch).unwrap();
    let mut sink = bench.open_changed_at(proxy.port(), keys, &temporary).unwrap();
    proxy.break_at("COPY", RedshiftFault::Repeated);
    let error = sink.commit(&committables).unwrap_err();
    let statement = proxy.repeated().pop().unwrap();
    let expected = format!(
        " ACCESS_KEY_ID 'AKTEST' SECRET_ACCESS_KEY 'SKTESTSK' SESSION_TOKEN '{token}' FORMAT AS PARQUET MANIFEST"
    );
    assert!(statement.ends_with(&expected), "{statement}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("SECRET_ACCESS_KEY '***' SESSION_TOKEN '***'"), "{shown}");
    assert!(!shown.contains("SKTESTSK") && !shown.contains("temporary"), "{shown}");
    // The stand-in loads with them.
    sink.commit(&committables).unwrap();
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.changes"), ["50"]);
}

#[test]
fn conflicts_repeat_the_whole_transaction() {
    let bench = need!(Bench::new("conflicts"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let mut sink = bench.open_at(proxy.port(), "table = \"t\"").unwrap();
    let mut first = 0;
    for statement in ["UPDATE \"trunkline_offsets", "INSERT INTO \"t\"", "COMMIT"] {
        let (committables, _) = prepare(sink.as_mut(), &rows_from(first).batch).unwrap();
        proxy.break_at(statement, RedshiftFault::Conflict(3));
        sink.commit(&committables).unwrap();
        assert!(proxy.is_done(), "{statement} was not sent three times");
        first += 50;
        assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), [first.to_string()], "after {statement}");
    }
    // A storm ends the call, and the stage repeats it later.
    let (committables, _) = prepare(sink.as_mut(), &rows_from(first).batch).unwrap();
    proxy.break_at("COMMIT", RedshiftFault::Conflict(7));
    assert_eq!(sink.commit(&committables).unwrap_err().code, "warehouse.conflict");
    sink.commit(&committables).unwrap();
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["200"]);
}
