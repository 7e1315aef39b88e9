//! What `validate --check` reports, and that the statements it gives fix it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use arrow::datatypes::{DataType, Field};
use common::{Bench, Records, load, prepare};
use trunkline_connector::PreflightIssue;
use trunkline_tests::need;

#[test]
fn a_check_reports_unmet_prerequisites_and_leaves_nothing() {
    let bench = need!(Bench::new("checks"));
    let codes =
        |from: &str, to: &str| -> Vec<&str> { bench.preflight(from, to).iter().map(|issue| issue.code).collect() };
    assert_eq!(codes("dev", "dev"), Vec::<&str>::new());
    assert_eq!(codes("rspass1", "wrong"), ["redshift.login"]);
    assert_eq!(codes("schema = \"checks\"", "schema = \"absent\""), ["redshift.no_schema"]);
    assert_eq!(codes("s3://checks/", "s3://absent/"), ["s3.no_such_bucket"]);
    assert_eq!(
        bench.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = '$S'"),
        Vec::<String>::new()
    );
    assert_eq!(bench.staged_files(), 0);
}

/// Runs the statements between backquotes in the advice of the only issue.
fn fix(bench: &Bench, issues: &[PreflightIssue], code: &str) {
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), [code], "{issues:?}");
    let advice = issues[0].fix.as_deref().unwrap();
    let statement = advice.split('`').find(|part| part.starts_with("ALTER ") || part.starts_with("GRANT "));
    bench.rows(statement.unwrap_or_else(|| panic!("no statement in: {advice}")));
}

#[test]
fn a_missing_right_is_reported_with_its_grant() {
    let bench = need!(Bench::new("grants"));
    bench.rows("CREATE ROLE newcomer LOGIN PASSWORD 'secret1'");
    let check = || bench.preflight("rs:rspass1", "newcomer:secret1");
    fix(&bench, &check(), "redshift.permission_denied");
    assert!(check().is_empty(), "{:?}", check());
}

#[test]
fn a_table_that_the_user_may_not_use_is_reported_with_its_grant() {
    let bench = need!(Bench::new("hidden"));
    bench.rows("CREATE TABLE $S.t (id INTEGER, note VARCHAR(10))");
    bench.rows("CREATE ROLE stranger LOGIN PASSWORD 'secret1'; GRANT USAGE, CREATE ON SCHEMA $S TO stranger");
    let mut records = Records::default();
    records.push(None, Some(r#"{"id":1}"#), Some(r#"{"id":1,"note":"x"}"#));
    let options = "table = \"t\"\nmode = \"upsert\"\nlineage = false";
    let check = || bench.preflight_records(("stranger", "secret1"), options, &records.batch);
    // The catalog shows no table on which the user has no right.
    let mut sink = bench.open_changed("rs:rspass1", "stranger:secret1").unwrap();
    let error = prepare(sink.as_mut(), &records.batch);
    assert!(error.is_ok(), "the other table is its own: {:?}", error.err());
    let mut sink = bench.open_as(("stranger", "secret1"), options).unwrap();
    let error = prepare(sink.as_mut(), &records.batch).unwrap_err();
    assert_eq!(error.code, "redshift.permission_denied");
    assert!(error.message().contains("run `GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE"), "{error}");
    // Some rights show the table, and are not enough.
    bench.rows("GRANT SELECT ON $S.t TO stranger");
    let partial = check();
    assert_eq!(partial[0].message, "the sink lacks INSERT, DELETE on the table t");
    bench.rows("REVOKE SELECT ON $S.t FROM stranger");
    fix(&bench, &check(), "redshift.permission_denied");
    assert!(check().is_empty(), "{:?}", check());
    assert!(load(sink.as_mut(), &records.batch).is_empty());
    assert_eq!(bench.rows("SELECT id, note FROM $S.t"), ["1\tx"]);
}

#[test]
fn tables_that_do_not_fit_are_reported_with_the_statement_that_fixes_them() {
    let bench = need!(Bench::new("fits"));
    let fields = vec![
        Field::new("id", DataType::Int32, false),
        Field::new("note", DataType::Utf8, true),
        Field::new("size", DataType::Int64, true),
    ];
    let schema = bench.publish(fields, "id");
    let mut records = Records::default();
    records.event(&schema, "c", "null", r#"{"id":1,"note":"x","size":7}"#);
    let options = "table = \"t\"\nmode = \"upsert\"\nlineage = false";
    let check = || bench.preflight_records(("rs", "rspass1"), options, &records.batch);
    assert!(check().is_empty(), "the sink creates the table");
    // Columns in another order, more columns, and wider types are fine.
    bench.rows("CREATE TABLE $S.t (more DATE, size DECIMAL(30,0), id BIGINT NOT NULL, note INTEGER)");
    fix(&bench, &check(), "warehouse.type_change");
    assert!(check().is_empty(), "{:?}", check());
    bench.rows("ALTER TABLE $S.t ADD COLUMN region INTEGER NOT NULL");
    fix(&bench, &check(), "warehouse.required_column");
    assert!(check().is_empty(), "{:?}", check());
    // The sink would add the column `note`, which the fix above has renamed.
    bench.rows(
        "CREATE ROLE guest LOGIN PASSWORD 'secret1'; GRANT USAGE, CREATE ON SCHEMA $S TO guest; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON $S.t TO guest",
    );
    let as_guest = || bench.preflight_records(("guest", "secret1"), options, &records.batch);
    fix(&bench, &as_guest(), "warehouse.may_not_alter");
    assert!(as_guest().is_empty(), "{:?}", as_guest());
    assert!(load(bench.open(options).as_mut(), &records.batch).is_empty());
    assert_eq!(bench.rows("SELECT id, note, size FROM $S.t"), ["1\tx\t7"]);
}
