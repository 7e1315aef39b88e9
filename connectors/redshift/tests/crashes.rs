//! Tasks and connections that die between the steps of a load: all of its rows arrive once, or
//! none. The next owner decides by the offsets row.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Records, load, partition, prepare};
use trunkline_connector::{Domain, ErasedTwoPhaseSink, Rejections};
use trunkline_tests::{RedshiftFault, RedshiftFaults, need, wait};

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

/// The statements that a load runs only if its session is not that of the staging.
const STAGING: [&str; 3] = ["CREATE TEMP TABLE", "COPY", "SELECT COUNT"];

/// A task that commits what another one has prepared.
fn next_owner(
    bench: &Bench,
    port: u16,
    options: &str,
    committables: &[serde_json::Value],
) -> Box<dyn ErasedTwoPhaseSink> {
    let mut sink = bench.open_at(port, options).unwrap();
    sink.recover(&partition(), committables).unwrap();
    sink
}

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
            if STAGING.contains(&statement) {
                sink = next_owner(&bench, proxy.port(), options, &committables);
            }
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
fn a_connection_that_breaks_while_files_are_staged_leaves_nothing() {
    let bench = need!(Bench::new("staging"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let options = "table = \"t\"\nmode = \"upsert\"";
    let count = || bench.rows("SELECT COUNT(*), COUNT(DISTINCT id) FROM $S.t")[0].clone();
    let mut sink = bench.open_at(proxy.port(), options).unwrap();
    let mut first = 0;
    for statement in STAGING {
        for fault in [RedshiftFault::Unsent, RedshiftFault::ReplyLost] {
            sink.write(&partition(), &rows_from(first).batch, &mut Rejections::default()).unwrap();
            let plan = sink.seal(&partition()).unwrap().unwrap();
            proxy.break_at(statement, fault);
            let plans = [plan];
            let error = sink.prepare(&plans, &mut Rejections::default()).unwrap_err();
            assert!(proxy.is_done(), "{statement} was not sent");
            assert_eq!(error.domain, Domain::External, "{statement}: {error}");
            // The stage repeats the step. The load needs no statement of the staging.
            let committables = sink.prepare(&plans, &mut Rejections::default()).unwrap();
            proxy.break_at("COPY", RedshiftFault::Unsent);
            sink.commit(&committables).unwrap();
            assert!(!proxy.is_done(), "COPY was sent again");
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
fn a_session_that_hangs_in_a_load_is_ended_by_the_next_owner() {
    let bench = need!(Bench::new("hung"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let options = "table = \"t\"\nmode = \"upsert\"\ntakeover_timeout = \"1s\"";
    let count = || bench.rows("SELECT COUNT(*), COUNT(DISTINCT id) FROM $S.t")[0].clone();
    load(bench.open(options).as_mut(), &rows_from(0).batch);
    let mut first = 50;
    for statement in ["COPY", "SELECT COUNT", "INSERT INTO \"t\"", "UPDATE \"trunkline_offsets"] {
        let mut hung = bench.open_at(proxy.port(), options).unwrap();
        let (committables, _) = prepare(hung.as_mut(), &rows_from(first).batch).unwrap();
        if STAGING.contains(&statement) {
            // The staging tables end with their session.
            bench.redshift.end_sessions("trunkline hung.dw");
            assert_eq!(hung.commit(&committables).unwrap_err().domain, Domain::External);
        }
        proxy.break_at(statement, RedshiftFault::Stalled);
        std::thread::scope(|scope| {
            let zombie = scope.spawn(|| {
                let outcome = hung.commit(&committables);
                (hung, outcome)
            });
            wait::until("the load hangs", Duration::from_secs(30), || proxy.is_done().then_some(()));
            // Another owner takes over: the load is in Kafka, and it commits that first. Then it
            // adds a column to the table, which the hung transaction has locked, too.
            let mut next = bench.open_at(proxy.port(), options).unwrap();
            next.recover(&partition(), &committables).unwrap();
            let since = Instant::now();
            next.commit(&committables).unwrap();
            assert!(since.elapsed() >= Duration::from_secs(1), "{statement}: the claim met no lock");
            let value = format!(r#"{{"id":{},"added_{first}":1}}"#, first + 50);
            let mut more = Records::from_offset(first + 50);
            more.push(None, Some(&format!(r#"{{"id":{}}}"#, first + 50)), Some(&value));
            assert!(load(next.as_mut(), &more.batch).is_empty());
            first += 51;
            assert_eq!(count(), format!("{first}\t{first}"), "rows and keys after {statement} hung");
            // The server has closed its connection. It resumes, and knows its load as committed.
            let (mut zombie, outcome) = zombie.join().unwrap();
            let error = outcome.unwrap_err();
            assert_eq!(error.domain, Domain::External, "{statement}: {error}");
            zombie.commit(&committables).unwrap();
            assert_eq!(prepare(zombie.as_mut(), &rows_from(first).batch).unwrap_err().code, "warehouse.fenced");
            assert_eq!(count(), format!("{first}\t{first}"), "rows and keys after the zombie of {statement}");
        });
    }
}

#[test]
fn only_the_session_that_the_row_names_is_ended() {
    let bench = need!(Bench::new("lookalike"));
    let options = "table = \"t\"\ntakeover_timeout = \"500ms\"";
    load(bench.open(options).as_mut(), &rows_from(0).batch);
    let offsets = bench.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = '$S' AND table_name LIKE 'trunkline_offsets%'",
    );
    let offsets = format!("$S.\"{}\"", offsets[0]);
    let held = bench.redshift.session();
    let is_alive =
        || bench.rows(&format!("SELECT COUNT(*) FROM pg_stat_activity WHERE pid = {}", held.process)) == ["1"];
    let start = bench
        .rows(&format!("SELECT backend_start AT TIME ZONE 'UTC' FROM pg_stat_activity WHERE pid = {}", held.process));
    let name_it = |start: &str| {
        bench.rows(&format!("UPDATE {offsets} SET session_id = '{}@{start}'", held.process));
        held.run(&format!("BEGIN; UPDATE {offsets} SET next_offset = next_offset").replace("$S", bench.name));
    };
    // A later session has the process id of the one that the row names.
    name_it("2015-05-17 10:05:03");
    let mut waiting = bench.open(options);
    std::thread::scope(|scope| {
        let claim = scope.spawn(|| prepare(waiting.as_mut(), &rows_from(50).batch).unwrap());
        let claims = || claim.is_finished().then_some(());
        assert!(wait::within(Duration::from_secs(3), claims).is_none(), "the claim met no lock");
        assert!(is_alive(), "an unrelated session was ended");
        held.run("ROLLBACK");
        claim.join().unwrap();
    });
    assert!(is_alive());
    name_it(&start[0]);
    prepare(bench.open(options).as_mut(), &rows_from(50).batch).unwrap();
    assert!(!is_alive(), "the session that the row names holds the lock");
}

#[test]
fn an_offsets_table_of_an_earlier_version_gets_its_column() {
    let bench = need!(Bench::new("olderoffsets"));
    load(bench.open("table = \"t\"").as_mut(), &rows_from(0).batch);
    let offsets = bench.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = '$S' AND table_name LIKE 'trunkline_offsets%'",
    );
    bench.rows(&format!("ALTER TABLE $S.\"{}\" DROP COLUMN session_id", offsets[0]));
    load(bench.open("table = \"t\"").as_mut(), &rows_from(50).batch);
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["100"]);
    let ids = bench.rows(&format!("SELECT session_id ~ '^[0-9]+@' FROM $S.\"{}\"", offsets[0]));
    assert_eq!(ids, ["t"]);
}

#[test]
fn a_prepared_load_needs_the_row_that_it_follows() {
    let bench = need!(Bench::new("norow"));
    load(bench.open("table = \"t\"").as_mut(), &rows_from(0).batch);
    let (committables, _) = prepare(bench.open("table = \"t\"").as_mut(), &rows_from(50).batch).unwrap();
    let offsets = bench.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = '$S' AND table_name LIKE 'trunkline_offsets%'",
    );
    bench.rows(&format!("DELETE FROM $S.\"{}\"", offsets[0]));
    let mut next = bench.open("table = \"t\"");
    next.recover(&partition(), &committables).unwrap();
    assert_eq!(next.commit(&committables).unwrap_err().code, "warehouse.no_offsets_row");
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["50"]);
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
