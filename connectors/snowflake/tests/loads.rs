//! Loads into the stand-in: crashes at each statement, lost replies, zombies, types and changes of
//! the schema.

#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, TimeUnit};
use common::{Account, Exclusive, exclusive};
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, Domain, ErasedTwoPhaseSink, MemoryBudget, NOT_REBUILT, Rejections, Result, Schema, SchemaId, SchemaLookup,
    Sink, SinkConnector, SinkContext, SinkReplay, SinkSpec, TopicPartition, headers,
};
use trunkline_snowflake::SnowflakeConnector;
use trunkline_tests::{Ended, History, Memory, Random, Rebuilt, RowChange, wait};

/// The schema that the records name, if any.
struct OneSchema(Option<Arc<Schema>>);

impl SchemaLookup for OneSchema {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.clone().filter(|schema| schema.id() == id))
    }
}

struct Setup {
    account: Account,
    runtime: tokio::runtime::Runtime,
    /// In the folder of the S3 server, which is removed with it.
    scratch: PathBuf,
    opened: AtomicU32,
}

impl Setup {
    /// The servers of all tests, for this one alone.
    fn find() -> Option<Exclusive<Self>> {
        static SHARED: Mutex<Option<Setup>> = Mutex::new(None);
        exclusive(&SHARED, Self::start)
    }

    fn start() -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let account = Account::start()?;
        let scratch = account.s3.folder.join("scratch");
        Some(Self { account, runtime, scratch, opened: AtomicU32::new(0) })
    }

    fn open_with(&self, options: &str, schema: Option<Arc<Schema>>) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        match spec(options).open(self.context(schema))? {
            Sink::TwoPhase(sink) => Ok(sink),
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    fn context(&self, schema: Option<Arc<Schema>>) -> SinkContext {
        let scratch = self.scratch.join(self.opened.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&scratch).unwrap();
        SinkContext {
            name: "loads.test".to_owned(),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch,
            schemas: Arc::new(OneSchema(schema)),
        }
    }

    fn open(&self, schema: &str, mode: &str) -> Box<dyn ErasedTwoPhaseSink> {
        self.open_with(&self.account.options(schema, mode), None).unwrap()
    }

    /// A sink that replaces the rows of a range.
    fn open_superseding(&self, options: &str, run: &str, range: (i64, i64)) -> Box<dyn ErasedTwoPhaseSink> {
        let ranges = BTreeMap::from([(partition(), range)]);
        let earlier = ranges.keys().filter(|_| range.0 > 0).cloned().collect();
        let replay = SinkReplay { run: run.to_owned(), supersedes: true, ranges, earlier };
        match spec(options).open(SinkContext { replay: Some(replay), ..self.context(None) }).unwrap() {
            Sink::TwoPhase(sink) => sink,
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// The rows of a query, with `null` for null, joined by `|`.
    fn query(&self, schema: &str, sql: &str) -> Vec<String> {
        let rows = self.account.server.query("DB", schema, sql).unwrap();
        let value = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
        rows.into_iter().map(|row| row.into_iter().map(value).collect::<Vec<_>>().join("|")).collect()
    }
}

fn spec(options: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(options);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = SnowflakeConnector.configure(&section, &[]);
    section.finish();
    let problems = report.into_problems();
    spec.unwrap_or_else(|| panic!("{problems:?}"))
}

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn batch(first: i64, records: &[(Option<&str>, Option<&str>)], schema: Option<&Schema>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("orders");
    for (offset, (key, value)) in (first..).zip(records) {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, offset);
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        if let Some(schema) = schema {
            record.header(headers::SCHEMA, Some(schema.id().to_string().as_bytes()));
        }
        record.finish();
    }
    batch
}

fn write(sink: &mut dyn ErasedTwoPhaseSink, batch: &Batch) {
    let mut rejected = Rejections::default();
    sink.write(&partition(), batch, &mut rejected).unwrap();
    assert!(rejected.is_empty(), "{:?}", rejected.reasons);
}

fn prepare(sink: &mut dyn ErasedTwoPhaseSink) -> Vec<serde_json::Value> {
    let plan = sink.seal(&partition()).unwrap().unwrap();
    sink.prepare(&[plan], &mut Rejections::default()).unwrap()
}

fn load(sink: &mut dyn ErasedTwoPhaseSink, batch: &Batch) {
    write(sink, batch);
    let committables = prepare(sink);
    sink.commit(&committables).unwrap();
}

const ROWS: [(Option<&str>, Option<&str>); 3] = [
    (Some("{\"id\":1}"), Some("{\"id\":1,\"name\":\"a\"}")),
    (Some("{\"id\":2}"), Some("{\"id\":2,\"name\":\"b\"}")),
    (Some("{\"id\":1}"), Some("{\"id\":1,\"name\":\"c\"}")),
];

/// Commits as the stage does, which repeats a commit after an external error. The transaction of a
/// dead session holds its locks until the server notices that the session is gone.
fn commit_despite_locks(sink: &mut dyn ErasedTwoPhaseSink, committables: &[serde_json::Value]) {
    let begun = Instant::now();
    loop {
        match sink.commit(committables) {
            Err(error) if error.code == "warehouse.conflict" && begun.elapsed() < Duration::from_secs(60) => {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// A lost reply to each statement of a load, before or after the statement ran: the load is all or
/// nothing, and the next attempt makes it all, once.
#[test]
fn a_load_survives_a_lost_reply_to_each_statement() {
    let Some(setup) = Setup::find() else { return };
    let statements = ["create or replace", "begin", "update", "copy into", "insert into", "commit"];
    let cases = [
        ("append", vec!["1|a", "2|b", "1|c"], statements.as_slice()),
        ("upsert", vec!["2|b", "1|c"], &["delete from", "commit"]),
    ];
    for (mode, rows, statements) in &cases {
        for (number, statement) in statements.iter().enumerate() {
            for when in ["before", "after"] {
                let schema = format!("{mode}_{number}_{when}").to_uppercase();
                let step = format!("{mode}: the reply to `{statement}` lost {when} it ran");
                let mut sink = setup.open(&schema, mode);
                write(sink.as_mut(), &batch(0, &ROWS, None));
                let committables = prepare(sink.as_mut());
                setup.account.server.control(&format!("{{\"drop\":\"{statement}\",\"when\":\"{when}\"}}"));
                let error = sink.commit(&committables).err().unwrap_or_else(|| panic!("{step}: no error"));
                assert_eq!((error.domain, error.code), (Domain::External, "snowflake.session_lost"), "{step}");
                let sql = "SELECT \"ID\", \"NAME\" FROM \"ROWS\" ORDER BY \"_OFFSET\"";
                let found = setup.query(&schema, sql);
                assert!(found.is_empty() || found == *rows, "{step}: {found:?}");
                // The task dies, and the next one commits what it prepared.
                std::mem::forget(sink);
                let mut next = setup.open(&schema, mode);
                next.recover(&partition(), &committables).unwrap();
                commit_despite_locks(next.as_mut(), &committables);
                next.commit(&committables).unwrap();
                assert_eq!(setup.query(&schema, sql), *rows, "{step}");
                assert_eq!(setup.account.staged_files(&schema), [""; 0], "{step}");
            }
        }
    }
}

#[test]
fn sessions_that_end_between_and_during_loads_are_replaced() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("KILLED", "append");
    for (round, fault) in (0..).zip(["{\"kill\":true}", "{\"expire\":\"token\"}", "{\"expire\":\"master\"}"]) {
        write(sink.as_mut(), &batch(round * 3, &ROWS, None));
        setup.account.server.control(fault);
        // As the stage does: the same step again after an external error.
        let plan = sink.seal(&partition()).unwrap().unwrap();
        let plans = [plan];
        let prepared = (0..5).find_map(|_| sink.prepare(&plans, &mut Rejections::default()).ok()).unwrap();
        setup.account.server.control("{\"slow\":2}");
        (0..5).find_map(|_| sink.commit(&prepared).ok()).unwrap();
        let count = setup.query("KILLED", "SELECT COUNT(*) FROM \"ROWS\"");
        assert_eq!(count, [((round + 1) * 3).to_string()], "{fault}");
    }
}

#[test]
fn files_wait_in_a_stage_of_the_service() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("INTERNAL", "append");
    let (start, _) = options.split_once("stage =").unwrap();
    let options = format!("{start}stage = \"@LOADS/a\"\n");
    let check = || spec(&options).preflight("loads.test", setup.runtime.handle());
    let issues = check();
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.access_denied"], "{issues:?}");
    let grant = "GRANT READ, WRITE ON STAGE LOADS TO ROLE";
    assert!(issues[0].fix.as_deref().is_some_and(|fix| fix.contains(grant)), "{issues:?}");
    setup.query("INTERNAL", "CREATE STAGE LOADS ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')");
    setup.account.server.control("{\"encrypted_stages\":true}");
    let issues = check();
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.internal_stage"], "{issues:?}");
    setup.account.server.control("{\"encrypted_stages\":false}");
    assert!(check().is_empty(), "{:?}", check());
    let mut sink = setup.open_with(&options, None).unwrap();
    load(sink.as_mut(), &batch(0, &ROWS, None));
    // A file of a task that died is removed by the next owner; a prepared one is loaded.
    write(sink.as_mut(), &batch(3, &ROWS, None));
    prepare(sink.as_mut());
    write(sink.as_mut(), &batch(3, &ROWS, None));
    let committables = prepare(sink.as_mut());
    assert_eq!(setup.account.internal_files().len(), 2);
    let mut next = setup.open_with(&options, None).unwrap();
    next.recover(&partition(), &committables).unwrap();
    assert_eq!(setup.account.internal_files().len(), 1);
    next.commit(&committables).unwrap();
    assert_eq!(setup.query("INTERNAL", "SELECT COUNT(*) FROM \"ROWS\""), ["6"]);
    assert_eq!(setup.account.internal_files(), [""; 0]);
}

#[test]
fn a_zombie_cannot_load() {
    let Some(setup) = Setup::find() else { return };
    let mut zombie = setup.open("ZOMBIE", "append");
    write(zombie.as_mut(), &batch(0, &ROWS, None));
    let stale = prepare(zombie.as_mut());
    let mut next = setup.open("ZOMBIE", "append");
    next.recover(&partition(), &stale).unwrap();
    next.commit(&stale).unwrap();
    load(next.as_mut(), &batch(3, &ROWS, None));
    // Its load is known as committed; a new one is refused.
    zombie.commit(&stale).unwrap();
    write(zombie.as_mut(), &batch(3, &ROWS, None));
    let plan = zombie.seal(&partition()).unwrap().unwrap();
    let error = zombie.prepare(&[plan], &mut Rejections::default()).unwrap_err();
    assert_eq!(error.domain, Domain::Fenced, "{error}");
    assert_eq!(setup.query("ZOMBIE", "SELECT COUNT(*) FROM \"ROWS\""), ["6"]);
}

/// The statement is answered after seconds.
const HANGS: &str = "\"slow\":8,\"text\":\"copy into\"";

#[test]
fn a_session_that_hangs_in_a_load_is_ended_by_the_next_owner() {
    let Some(setup) = Setup::find() else { return };
    // Where only administrators may end a session, its transaction is ended.
    let refuse = "{\"refuse\":\"abort_session\",\"code\":\"003001\",\"message\":\"Insufficient privileges\"}";
    for (schema, way) in [("HUNG", None), ("HUNG_TRANSACTION", Some(refuse))] {
        let count = || setup.query(schema, "SELECT COUNT(*) FROM \"ROWS\"")[0].clone();
        let mut zombie = setup.open(schema, "append");
        write(zombie.as_mut(), &batch(0, &ROWS, None));
        let committables = prepare(zombie.as_mut());
        setup.account.server.control(&format!("{{{HANGS}}}"));
        way.into_iter().for_each(|fault| setup.account.server.control(fault));
        std::thread::scope(|scope| {
            let hanging = scope.spawn(|| {
                let outcome = zombie.commit(&committables);
                (zombie, outcome)
            });
            // The table is locked as soon as the statement has run.
            let mut next = setup.open(schema, "append");
            next.recover(&partition(), &committables).unwrap();
            let hangs = || (setup.account.server.faults_left() == u64::from(way.is_some())).then_some(());
            wait::until("the load hangs", Duration::from_secs(30), hangs);
            commit_despite_locks(next.as_mut(), &committables);
            load(next.as_mut(), &batch(3, &ROWS, None));
            assert_eq!(count(), "6", "{schema}");
            let (mut zombie, outcome) = hanging.join().unwrap();
            let error =
                outcome.err().unwrap_or_else(|| panic!("{schema}: the transaction of the zombie was committed"));
            // Without its transaction, the zombie finds no staged rows, unless its session ends,
            // too.
            let is_expected = ["snowflake.session_lost", "warehouse.row_count"].contains(&error.code);
            assert!(error.domain == Domain::External && is_expected, "{schema}: {error}");
            zombie.commit(&committables).unwrap();
            assert_eq!(count(), "6", "{schema}: the statements after the aborted transaction were committed");
        });
    }
}

#[test]
fn a_transaction_that_the_service_ends_commits_nothing_of_the_rest() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("ABORTED", "append");
    load(sink.as_mut(), &batch(0, &ROWS, None));
    write(sink.as_mut(), &batch(3, &ROWS, None));
    let committables = prepare(sink.as_mut());
    let count = || setup.query("ABORTED", "SELECT COUNT(*) FROM \"ROWS\"")[0].clone();
    // The first statement of the transaction takes seconds, in which the service ends it.
    setup.account.server.control("{\"slow\":7,\"text\":\"set \\\"load_id\\\"\"}");
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| sink.commit(&committables).unwrap_err());
        let hangs = || (setup.account.server.faults_left() == 0).then_some(());
        wait::until("the load hangs", Duration::from_secs(30), hangs);
        setup.account.server.control("{\"abort\":true}");
        let error = loading.join().unwrap();
        assert_eq!(error.code, "snowflake.session_lost", "{error}");
        assert!(error.message().contains("ended the transaction"), "{error}");
    });
    assert_eq!(count(), "3", "COPY and INSERT ran after the transaction had ended");
    sink.commit(&committables).unwrap();
    assert_eq!(count(), "6");
}

#[test]
fn a_table_that_the_role_may_not_use_is_reported_with_its_grant() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("HIDDEN", "upsert").replace("warehouse =", "role = \"loader\"\nwarehouse =");
    let mut sink = setup.open_with(&options, None).unwrap();
    let message = "SQL compilation error: Object 'ROWS' already exists, but current role has no privileges on it.";
    let refuse =
        serde_json::json!({ "refuse": "create table if not exists \"rows\"", "code": "002002", "message": message });
    setup.account.server.control(&refuse.to_string());
    let error = sink.write(&partition(), &batch(0, &ROWS, None), &mut Rejections::default()).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "snowflake.access_denied"), "{error}");
    let grant = "run `GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE DB.HIDDEN.\"ROWS\" TO ROLE LOADER`";
    assert!(error.message().contains(grant), "{error}");
    // A role with some of the rights sees the table.
    setup.query("HIDDEN", "CREATE TABLE \"ROWS\" (\"ID\" NUMBER(38, 0), \"NAME\" VARCHAR)");
    setup.account.server.control(
        "{\"refuse\":\"explain delete\",\"code\":\"003001\",\"message\":\"Insufficient privileges to operate on table 'ROWS'\"}",
    );
    let issues = spec(&options).preflight_records(setup.context(None), &mut || Ok(batch(0, &ROWS, None)));
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["warehouse.missing_right"], "{issues:?}");
    assert_eq!(issues[0].message, "the sink lacks DELETE on the table ROWS");
    assert!(issues[0].fix.as_deref().is_some_and(|fix| grant.contains(fix)), "{issues:?}");
}

#[test]
fn a_missing_privilege_is_reported_and_waited_for() {
    let Some(setup) = Setup::find() else { return };
    setup.account.server.control(
        "{\"refuse\":\"create table\",\"code\":\"003001\",\"message\":\"SQL access control error: Insufficient privileges\"}",
    );
    let error = setup.open_with(&setup.account.options("DENIED", "append"), None).err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::External, "snowflake.access_denied"), "{error}");
    // The grant was given.
    load(setup.open("DENIED", "append").as_mut(), &batch(0, &ROWS, None));
}

#[test]
fn the_preflight_check_reports_what_is_missing() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("CHECKED", "append");
    let issues = |options: &str| spec(options).preflight("checked.test", setup.runtime.handle());
    assert!(issues(&options).is_empty(), "{:?}", issues(&options));
    assert_eq!(setup.account.staged_files("CHECKED"), [""; 0]);
    setup.account.server.control(
        "{\"refuse\":\"create table\",\"code\":\"003001\",\"message\":\"SQL access control error: Insufficient privileges\"}",
    );
    let denied = issues(&options);
    assert_eq!(denied.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.access_denied"]);
    let grant = "GRANT USAGE, CREATE TABLE ON SCHEMA DB.CHECKED TO ROLE ..";
    assert!(denied[0].fix.as_deref().is_some_and(|fix| fix.contains(grant)), "{denied:?}");
    setup.account.server.control(
        "{\"refuse\":\"select count\",\"code\":\"000606\",\"message\":\"No active warehouse selected in the current session\"}",
    );
    let without_warehouse = issues(&options.replace("warehouse =", "role = \"loader\"\nwarehouse ="));
    assert_eq!(without_warehouse.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.no_warehouse"]);
    let grant = "GRANT USAGE ON WAREHOUSE LOADING TO ROLE LOADER";
    let fix = without_warehouse[0].fix.as_deref();
    assert!(fix.is_some_and(|fix| fix.contains(grant)), "{without_warehouse:?}");
    setup
        .account
        .server
        .control("{\"refuse\":\"copy into\",\"code\":\"003167\",\"message\":\"Failure using stage area\"}");
    let unreadable = issues(&options);
    let message = unreadable.first().map(|issue| issue.message.as_str());
    assert!(message.is_some_and(|message| message.contains("cannot read the stage")), "{unreadable:?}");
    assert_eq!(setup.account.staged_files("CHECKED"), [""; 0]);
    let refused = issues(&options.replace("\"snow\"", "\"wrong\""));
    assert!(refused.iter().any(|issue| issue.code == "snowflake.login_refused"), "{refused:?}");
}

#[test]
fn a_table_that_does_not_fit_is_reported_with_the_statement_that_fixes_it() {
    let Some(setup) = Setup::find() else { return };
    let spec = spec(&setup.account.options("FITS", "upsert"));
    let issues = || spec.preflight_records(setup.context(None), &mut || Ok(batch(0, &ROWS, None)));
    assert!(issues().is_empty(), "the sink creates the table");
    setup.query("FITS", "CREATE TABLE \"ROWS\" (\"ID\" NUMBER(38, 0) NOT NULL, \"NAME\" BOOLEAN)");
    let found = issues();
    assert_eq!(found.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["warehouse.type_change"], "{found:?}");
    let statement = found[0].fix.as_deref().and_then(|fix| fix.split('`').nth(1)).unwrap();
    setup.query("FITS", statement);
    assert!(issues().is_empty(), "{:?}", issues());
    load(setup.open("FITS", "upsert").as_mut(), &batch(0, &ROWS, None));
    assert_eq!(setup.query("FITS", "SELECT \"ID\", \"NAME\" FROM \"ROWS\" ORDER BY \"ID\""), ["1|c", "2|b"]);
}

#[test]
fn a_wrong_password_stops_the_sink() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("LOGIN", "append").replace("\"snow\"", "\"wrong\"");
    let error = setup.open_with(&options, None).err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::Config, "snowflake.login_refused"), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}

#[test]
fn no_error_shows_the_secret_of_the_stage() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("SECRET", "append");
    write(sink.as_mut(), &batch(0, &ROWS, None));
    let committables = prepare(sink.as_mut());
    setup.account.server.control(
        "{\"refuse\":\"copy into\",\"code\":\"003167\",\"message\":\"cannot read s3://lake with AKTEST and SKTESTSK\"}",
    );
    let error = sink.commit(&committables).unwrap_err().to_string();
    assert!(error.contains("cannot read s3://lake") && !error.contains("SKTESTSK"), "{error}");
    sink.commit(&committables).unwrap();
}

#[test]
fn every_type_arrives_exactly() {
    let Some(setup) = Setup::find() else { return };
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("big", DataType::UInt64, true),
        Field::new("money", DataType::Decimal128(38, 9), true),
        Field::new("long", DataType::Decimal256(65, 30), true),
        Field::new("ratio", DataType::Float64, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("bytes", DataType::Binary, true),
        Field::new("day", DataType::Date32, true),
        Field::new("time", DataType::Time64(TimeUnit::Microsecond), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("instant", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
        Field::new("list", DataType::List(Arc::new(Field::new("item", DataType::Int64, true))), true),
    ];
    let schema = Arc::new(Schema::new(Arc::new(arrow::datatypes::Schema::new(fields))).unwrap());
    let full = r#"{"id":1,"big":18446744073709551615,"money":"-12345678901234567890123456789.123456789",
        "long":"12345678901234567890123456789012345.678901234567890123456789012345","ratio":0.1,"flag":true,
        "text":"a'\\b\"ü😀","bytes":"AP8=","day":"2024-02-29","time":"23:59:59.999999",
        "at":"1969-12-31T23:59:59.999999","instant":"2024-01-02T03:04:05.678901Z","list":[1,null,3]}"#;
    let options = setup.account.options("TYPES", "append");
    let mut sink = setup.open_with(&options, Some(Arc::clone(&schema))).unwrap();
    let nulls = r#"{"id":2}"#;
    load(sink.as_mut(), &batch(0, &[(None, Some(full)), (None, Some(nulls))], Some(&schema)));
    let columns =
        ["ID", "BIG", "MONEY", "LONG", "RATIO", "FLAG", "TEXT", "BYTES", "DAY", "TIME", "AT", "INSTANT", "LIST"];
    let casts: Vec<String> = columns.iter().map(|name| format!("\"{name}\"::VARCHAR")).collect();
    let found = setup.query("TYPES", &format!("SELECT {} FROM \"ROWS\" ORDER BY \"ID\"", casts.join(", ")));
    let expected = "1|18446744073709551615|-12345678901234567890123456789.123456789|\
                    12345678901234567890123456789012345.678901234567890123456789012345|0.1|true|a'\\b\"ü😀|\\x00\\xFF|\
                    2024-02-29|23:59:59.999999|1969-12-31 23:59:59.999999|2024-01-02 03:04:05.678901+00|[1,null,3]";
    assert_eq!(found[0], expected);
    assert_eq!(found[1], "2|null|null|null|null|null|null|null|null|null|null|null|null");
}

#[test]
fn deletes_and_changed_keys_reach_the_table() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("CHANGES", "upsert");
    load(sink.as_mut(), &batch(0, &ROWS, None));
    let envelope = |op: &str, before: &str, after: &str| {
        format!("{{\"before\":{before},\"after\":{after},\"source\":{{\"ts_ms\":1700000000000}},\"op\":\"{op}\"}}")
    };
    let (old, new) = ("{\"id\":1,\"name\":\"c\"}", "{\"id\":9,\"name\":\"c\"}");
    let delete = envelope("d", old, "null");
    let create = envelope("c", "null", new);
    let records =
        [(Some("{\"id\":1}"), Some(delete.as_str())), (Some("{\"id\":1}"), None), (Some("{\"id\":9}"), Some(&create))];
    load(sink.as_mut(), &batch(3, &records, None));
    let sql = "SELECT \"ID\", \"NAME\" FROM \"ROWS\" ORDER BY \"ID\"";
    assert_eq!(setup.query("CHANGES", sql), ["2|b", "9|c"]);
    let truncate = envelope("t", "null", "null");
    load(sink.as_mut(), &batch(6, &[(None, Some(&truncate)), ROWS[1]], None));
    assert_eq!(setup.query("CHANGES", sql), ["2|b"]);
}

#[test]
fn copy_passes_a_session_token_that_no_error_shows() {
    let Some(setup) = Setup::find() else { return };
    let (keys, token) = ("secret_access_key = \"SKTESTSK\"", "FwoGZXIvYXdz//temporary+token==");
    let options = setup.account.options("TOKENS", "append");
    assert!(options.contains(keys));
    // The S3 server of the tests knows no tokens: another sink uploads the files.
    let mut uploads = setup.open_with(&options, None).unwrap();
    write(uploads.as_mut(), &batch(0, &ROWS, None));
    let committables = prepare(uploads.as_mut());
    let options = options.replace(keys, &format!("{keys}, session_token = \"{token}\""));
    let mut sink = setup.open_with(&options, None).unwrap();
    // Only a statement with this clause gets the error, whose text repeats it.
    let clause = format!("CREDENTIALS = (AWS_KEY_ID = 'AKTEST' AWS_SECRET_KEY = 'SKTESTSK' AWS_TOKEN = '{token}')");
    let message = format!("SQL compilation error: {clause}");
    let control = serde_json::json!({ "refuse": clause, "code": "001003", "message": message });
    setup.account.server.control(&control.to_string());
    let error = sink.commit(&committables).unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("AWS_SECRET_KEY = '***' AWS_TOKEN = '***'"), "{shown}");
    assert!(!shown.contains("SKTESTSK") && !shown.contains("temporary"), "{shown}");
    // The stand-in loads with them.
    sink.commit(&committables).unwrap();
    assert_eq!(setup.query("TOKENS", "SELECT COUNT(*) FROM \"ROWS\""), ["3"]);
}

#[test]
fn tables_follow_the_schema() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("EVOLVED", "append");
    load(sink.as_mut(), &batch(0, &ROWS, None));
    load(sink.as_mut(), &batch(3, &[(None, Some("{\"id\":3,\"extra\":{\"a\":[1]}}"))], None));
    let found =
        setup.query("EVOLVED", "SELECT \"ID\", \"NAME\", \"EXTRA\"::VARCHAR FROM \"ROWS\" ORDER BY \"_OFFSET\"");
    assert_eq!(found, ["1|a|null", "2|b|null", "1|c|null", "3|null|{\"a\":[1]}"]);
}

/// Changes of a source whose epoch is known.
fn ordered(first: i64, changes: &[RowChange]) -> Batch {
    ordered_at((first..).zip(changes))
}

/// The same at these offsets.
fn ordered_at<'c>(changes: impl Iterator<Item = (i64, &'c RowChange)>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("orders");
    for (offset, change) in changes {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, offset);
        if let Some(key) = change.key() {
            record.key(key.as_bytes());
        }
        record.value(change.value().as_bytes());
        record.header(headers::EPOCH, Some(change.epoch.to_string().as_bytes()));
        record.finish();
    }
    batch
}

#[test]
fn late_and_repeated_changes_lose_also_after_a_failover() {
    let Some(setup) = Setup::find() else { return };
    let mut random = Random::new(1702);
    for (memory, schema, mode, is_current) in [
        (Memory::Deletes, "LATE_HARD", "upsert", "TRUE"),
        (Memory::Deletes, "LATE_SOFT", "upsert\"\ndeletes = \"soft", "\"DELETED_AT\" IS NULL"),
        (Memory::Deletes, "LATE_HISTORY", "history", "\"IS_CURRENT\""),
    ] {
        let history = History::random(&mut random, 8, 40);
        let mut sink = setup.open(schema, mode);
        let mut offset = 0;
        for part in history.deliveries(&mut random, 20, memory) {
            load(sink.as_mut(), &ordered(offset, &part));
            offset += part.len() as i64;
        }
        let sql = format!("SELECT \"ID\", \"NOTE\" FROM \"ROWS\" WHERE {is_current} ORDER BY \"ID\"");
        let expected: Vec<String> = history.rows().iter().map(|(id, note)| format!("{id}|{note}")).collect();
        assert_eq!(setup.query(schema, &sql), expected, "{memory:?}");
        if mode == "history" {
            let twice = "SELECT \"NOTE\" FROM \"ROWS\" GROUP BY \"NOTE\" HAVING COUNT(*) > 1";
            assert_eq!(setup.query(schema, twice), [""; 0], "a version is there twice");
        }
    }
}

/// The rows of a table whose keys are rebuilt, and its versions.
fn contents(setup: &Setup, schema: &str, memory: Memory) -> Vec<String> {
    let second = |column: &str| format!("DATE_PART(EPOCH_SECOND, \"{column}\")");
    let sql = match memory {
        Memory::Rows => "SELECT \"ID\", \"NOTE\" FROM \"ROWS\" ORDER BY \"ID\"".to_owned(),
        Memory::Deletes => {
            "SELECT \"ID\", \"NOTE\" FROM \"ROWS\" WHERE \"DELETED_AT\" IS NULL ORDER BY \"ID\"".to_owned()
        }
        Memory::Versions => format!(
            "SELECT \"ID\", \"NOTE\", {from}, CASE WHEN {to} > 1764400000 THEN 't' ELSE CAST({to} AS VARCHAR) END FROM \"ROWS\" \
             ORDER BY 1, 3, 2",
            from = second("VALID_FROM"),
            to = second("VALID_TO")
        ),
    };
    setup.query(schema, &sql)
}

/// What they must be.
fn expected(case: &Rebuilt, memory: Memory) -> Vec<String> {
    if memory != Memory::Versions {
        return case.rows().iter().map(|(id, note)| format!("{id}|{note}")).collect();
    }
    let mut versions = case.versions();
    versions.sort_by(|one, other| (one.0, one.2, &one.1).cmp(&(other.0, other.2, &other.1)));
    let end = |ended: &Option<Ended>| match ended {
        None => "null".to_owned(),
        Some(Ended::At(second)) => second.to_string(),
        Some(Ended::ByTruncate) => "t".to_owned(),
    };
    versions.iter().map(|(id, note, from, ended)| format!("{id}|{note}|{from}|{}", end(ended))).collect()
}

/// A replay over rows of keys ends as today's transforms make them, also if a reply is lost, or it
/// is refused and changes nothing.
#[test]
fn ranges_of_keys_are_rebuilt_or_refused() {
    let Some(setup) = Setup::find() else { return };
    let mut random = Random::new(1903);
    let modes =
        [(Memory::Rows, "upsert"), (Memory::Versions, "history"), (Memory::Deletes, "upsert\"\ndeletes = \"soft")];
    let lost = ["begin", "update", "copy into", "delete from", "insert into", "commit"];
    let mut replaced = 0;
    for number in 0..6 {
        let (memory, mode) = modes[number % modes.len()];
        let schema = format!("REBUILT_{number}");
        let options = setup.account.options(&schema, mode);
        let history = History::random(&mut random, 6, 30);
        let case = Rebuilt::random(&mut random, &history, number % 2 == 0);
        let at = |changes: &[(usize, RowChange)]| {
            ordered_at(changes.iter().map(|(offset, change)| (*offset as i64, change)))
        };
        load(setup.open(&schema, mode).as_mut(), &at(&case.loaded()));
        let before = contents(&setup, &schema, memory);
        let open = || setup.open_superseding(&options, "r", (case.from as i64, case.len() as i64));
        let mut replay = open();
        let mut committables = Vec::new();
        for part in case.staged().chunks(12) {
            write(replay.as_mut(), &at(part));
            committables.extend(prepare(replay.as_mut()));
        }
        let after = expected(&case, memory);
        let statement = lost[number];
        setup.account.server.control(&format!("{{\"drop\":\"{statement}\",\"when\":\"after\"}}"));
        let outcome = replay.commit(&committables);
        let label = format!("{schema}: {mode}, from {}, `{statement}` lost", case.from);
        if let Err(error) = outcome {
            let found = contents(&setup, &schema, memory);
            assert!(found == before || found == after, "{label}: {found:?}");
            if error.code == NOT_REBUILT {
                assert!(case.must_be_refused(memory) || case.may_be_refused(memory), "{label}: {error}");
                assert_eq!(found, before, "{label}");
                continue;
            }
            assert_eq!(error.domain, Domain::External, "{label}: {error}");
        }
        // The task dies, and the next one commits what it prepared.
        std::mem::forget(replay);
        let mut next = open();
        match commit_unless_refused(next.as_mut(), &committables) {
            Ok(()) => {
                replaced += 1;
                assert_eq!(contents(&setup, &schema, memory), after, "{label}");
            }
            Err(error) => {
                assert!(case.must_be_refused(memory) || case.may_be_refused(memory), "{label}: {error}");
                assert_eq!(contents(&setup, &schema, memory), before, "{label}");
            }
        }
    }
    assert!(replaced >= 3, "{replaced} replaced");
}

/// Commits as the command does, which repeats a commit after a conflict.
fn commit_unless_refused(sink: &mut dyn ErasedTwoPhaseSink, committables: &[serde_json::Value]) -> Result<()> {
    let begun = Instant::now();
    loop {
        match sink.commit(committables) {
            Err(error) if error.domain == Domain::External && begun.elapsed() < Duration::from_secs(60) => {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            outcome => return outcome,
        }
    }
}
