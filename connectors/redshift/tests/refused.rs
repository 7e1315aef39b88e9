//! Rows that Redshift refuses for a reason that the sink does not check: they are rejected one by
//! one, and the others are loaded. The stand-in refuses texts such as `refuse:1220:why`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field};
use common::{Bench, Records, partition, prepare};
use trunkline_connector::{Batch, Domain, Error, READ_AGAIN, Rejections, SinkSpec};
use trunkline_tests::{RedshiftFault, RedshiftFaults, need};

/// What became of records.
#[derive(Debug, Default)]
struct Outcome {
    /// Offset, code and message of each rejected record.
    rejected: Vec<(i64, String, String)>,
    /// How often the records were read again.
    repetitions: usize,
}

/// Loads records as the stage does: after a refusal it opens the sink again, and reads them again.
fn load(bench: &Bench, spec: &dyn SinkSpec, records: &Batch) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    loop {
        let mut sink = bench.open_configured(spec);
        sink.recover(&partition(), &[]).unwrap();
        let mut rejected = Rejections::default();
        sink.write(&partition(), records, &mut rejected).unwrap();
        let of = |(record, reason): (trunkline_connector::RecordRef<'_>, &trunkline_connector::Reason)| {
            (record.entry().offset, reason.code.clone(), reason.message.clone())
        };
        outcome.rejected = rejected.iter().map(of).collect();
        let Some(plan) = sink.seal(&partition()).unwrap() else { return Ok(outcome) };
        match sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()) {
            Ok(committables) => {
                sink.commit(&committables).unwrap();
                return Ok(outcome);
            }
            Err(error) => {
                sink.abort(&plan).unwrap();
                assert_eq!(bench.staged_files(), 0, "an aborted plan leaves no file");
                if error.code != READ_AGAIN {
                    return Err(error);
                }
                outcome.repetitions += 1;
            }
        }
    }
}

/// Records with these texts at offsets from `first` on.
fn texts(first: i64, texts: &[&str]) -> Records {
    let mut records = Records::from_offset(first);
    for (id, text) in (first..).zip(texts) {
        records.push(None, Some(&format!(r#"{{"id":{id}}}"#)), Some(&format!(r#"{{"id":{id},"text":"{text}"}}"#)));
    }
    records
}

#[test]
fn refused_rows_are_rejected_with_redshifts_reason_and_the_others_are_loaded() {
    let bench = need!(Bench::new("refused"));
    for (table, options) in [
        ("a", "mode = \"append\""),
        ("b", "mode = \"append\"\nlineage = false"),
        ("c", "mode = \"upsert\""),
        ("d", "mode = \"history\"\nlineage = false"),
    ] {
        let (spec, _) = bench.spec(&format!("table = \"{table}\"\n{options}"));
        let mut rows = vec!["fine"; 300];
        (rows[0], rows[155], rows[299]) = ("refuse:1220:bad code point", "refuse:1204:too long", "refuse:1220:again");
        let outcome = load(&bench, spec.as_ref(), &texts(0, &rows).batch).unwrap();
        assert_eq!(outcome.repetitions, 1, "{outcome:?}");
        let places: Vec<i64> = outcome.rejected.iter().map(|(offset, ..)| *offset).collect();
        assert_eq!(places, [0, 155, 299], "{outcome:?}");
        assert!(outcome.rejected.iter().all(|(_, code, _)| code == "warehouse.row_refused"), "{outcome:?}");
        let reason = "column `text`: bad code point (load error 1220)";
        let message = &outcome.rejected[0].2;
        assert!(message.starts_with("redshift refused the row: ") && message.ends_with(reason), "{outcome:?}");
        let count = format!("SELECT COUNT(*), COUNT(DISTINCT id), MIN(id), MAX(id) FROM $S.{table}");
        assert_eq!(bench.rows(&count), ["297\t297\t1\t298"], "{options}");
        // Later loads are not affected.
        let outcome = load(&bench, spec.as_ref(), &texts(300, &["fine"; 10]).batch).unwrap();
        assert_eq!((outcome.repetitions, outcome.rejected.len()), (0, 0));
        assert_eq!(bench.rows(&count), ["307\t307\t1\t309"], "{options}");
    }
}

#[test]
fn json_that_redshift_does_not_parse_is_rejected() {
    let bench = need!(Bench::new("refusedjson"));
    let json = HashMap::from([("mysql.type".to_owned(), "json".to_owned())]);
    let doc = Field::new("doc", DataType::Utf8, true).with_metadata(json);
    let schema = bench.publish(vec![Field::new("id", DataType::Int32, false), doc], "id");
    let (spec, _) = bench.spec("table = \"t\"\nmode = \"upsert\"");
    let mut records = Records::default();
    for (id, doc) in [(0, "[1]"), (1, "1e400000"), (2, "{}")] {
        records.event(&schema, "c", "null", &format!(r#"{{"id":{id},"doc":"{doc}"}}"#));
    }
    let outcome = load(&bench, spec.as_ref(), &records.batch).unwrap();
    assert_eq!(outcome.rejected.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [1], "{outcome:?}");
    assert!(outcome.rejected[0].2.contains("22003"), "{outcome:?}");
    assert_eq!(bench.rows("SELECT id, doc FROM $S.t ORDER BY id"), ["0\t[1]", "2\t{}"]);
}

#[test]
fn of_several_rows_of_a_record_only_the_refused_one_is_rejected() {
    let bench = need!(Bench::new("refusedone"));
    let (spec, _) = bench.spec("table = \"{to}\"");
    let mut records = Records::default();
    // A transform made them from the record at offset 7.
    for (to, text) in [("t", "a"), ("u", "b"), ("t", "refuse:1204:x"), ("t", "c"), ("t", "refuse:1204:y")] {
        records.skip_to(7).push(None, None, Some(&format!(r#"{{"to":"{to}","text":"{text}"}}"#)));
    }
    let outcome = load(&bench, spec.as_ref(), &records.batch).unwrap();
    assert_eq!(outcome.rejected.len(), 2, "{outcome:?}");
    assert_eq!(bench.rows("SELECT text FROM $S.t UNION SELECT text FROM $S.u ORDER BY text"), ["a", "b", "c"]);
}

#[test]
fn a_table_that_refuses_all_rows_stops_the_sink_and_rejects_none() {
    let bench = need!(Bench::new("refusedall"));
    let (spec, _) = bench.spec("table = \"t\"");
    let error = load(&bench, spec.as_ref(), &texts(5, &["refuse:1207:not a number"; 200]).batch).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::Data, "warehouse.too_many_refused"), "{error}");
    assert!(error.message().contains("offset 5 of changes-0: ") && error.message().contains("not a number"), "{error}");
    // Small loads add up: the first ones are rejected, and no later one.
    let small = |first| load(&bench, spec.as_ref(), &texts(first, &["refuse:1207:not a number"; 3]).batch);
    let (other, _) = bench.spec("table = \"u\"");
    for first in [0, 3] {
        let outcome = load(&bench, other.as_ref(), &texts(first, &["refuse:1207:x"; 3]).batch).unwrap();
        assert_eq!(outcome.rejected.len(), 3, "{outcome:?}");
    }
    let third = load(&bench, other.as_ref(), &texts(6, &["refuse:1207:x"; 3]).batch);
    assert_eq!(third.unwrap_err().code, "warehouse.too_many_refused");
    // The table was corrected.
    assert_eq!(small(0).unwrap_err().code, "warehouse.too_many_refused");
    load(&bench, spec.as_ref(), &texts(5, &["fine"; 200]).batch).unwrap();
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["200"]);
}

#[test]
fn errors_that_are_not_about_values_reject_nothing() {
    let bench = need!(Bench::new("notvalues"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let (spec, _) = bench.spec("table = \"t\"");
    // A file of other columns, and a missing right.
    let error = load(&bench, spec.as_ref(), &texts(0, &["refuse:1202:extra columns"; 3]).batch).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "redshift.refused"), "{error}");
    assert!(error.message().contains("extra columns"), "{error}");
    let mut sink = bench.open_at(proxy.port(), "table = \"t\"").unwrap();
    proxy.break_at("COPY", RedshiftFault::Denied(1));
    let error = prepare(sink.as_mut(), &texts(0, &["fine"; 3]).batch).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "redshift.permission_denied"), "{error}");
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["0"]);
}

#[test]
fn a_prepared_load_waits_for_a_table_that_was_changed() {
    let bench = need!(Bench::new("refusedlater"));
    let (spec, _) = bench.spec("table = \"t\"");
    let mut sink = bench.open_configured(spec.as_ref());
    let (committables, _) = prepare(sink.as_mut(), &texts(0, &["a text"; 3]).batch).unwrap();
    bench.rows("ALTER TABLE $S.t ALTER COLUMN text TYPE VARCHAR(2)");
    let error = sink.commit(&committables).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "warehouse.load_refused"), "{error}");
    bench.rows("ALTER TABLE $S.t ALTER COLUMN text TYPE VARCHAR(20)");
    sink.commit(&committables).unwrap();
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["3"]);
}
