//! The files in a directory: columns, names, and conflicts with other files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::path::PathBuf;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use common::{Setup, batch, commit, hidden_files, topic_partition, write};
use serde_json::json;
use trunkline_connector::{Domain, ErasedTwoPhaseSink, Rejections, SchemaId};

fn types(columns: &[(&str, &str)]) -> Vec<(String, String)> {
    columns.iter().map(|(name, data_type)| ((*name).to_owned(), (*data_type).to_owned())).collect()
}

fn rejected_codes(sink: &mut dyn ErasedTwoPhaseSink, records: &[(Option<SchemaId>, &str)]) -> Vec<String> {
    let mut rejected = Rejections::default();
    sink.write(&topic_partition(), &batch(0, records), &mut rejected).unwrap();
    rejected.reasons.into_iter().map(|reason| reason.code).collect()
}

fn orders() -> Schema {
    Schema::new(vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
    ])
}

#[test]
fn declared_schemas_give_typed_columns() {
    let setup = Setup::new();
    let id = Some(setup.schemas.commit(orders()));
    let mut sink = setup.open("");
    let first = r#"{"id":18446744073709551615,"price":"9.90","at":"2015-05-17T10:05:03.000001Z"}"#;
    assert!(rejected_codes(sink.as_mut(), &[(id, first), (id, r#"{"id":1}"#)]).is_empty());
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    assert_eq!(
        file.columns(),
        types(&[("id", "UInt64"), ("price", "Decimal128(10, 2)"), ("at", "Timestamp(µs, \"+00:00\")")])
    );
    let schema = file.batches[0].schema();
    assert!(!schema.field(0).is_nullable() && schema.field(1).is_nullable());
    assert_eq!(file.batches[0].column(0).as_primitive::<arrow::datatypes::UInt64Type>().value(0), u64::MAX);
    assert_eq!(file.batches[0].column(1).as_primitive::<arrow::datatypes::Decimal128Type>().value(0), 990);
}

#[test]
fn a_declared_schema_that_grew_and_a_field_that_a_plugin_added_share_a_file() {
    let setup = Setup::new();
    let old = Some(setup.schemas.commit(orders()));
    let mut fields: Vec<Field> = orders().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("note", DataType::Utf8, true));
    let new = Some(setup.schemas.commit(Schema::new(fields)));
    let mut sink = setup.open("");
    let records =
        [(old, r#"{"id":1}"#), (new, r#"{"id":2,"note":"n"}"#), (old, r#"{"id":3,"score":0.5}"#), (new, r#"{"id":4}"#)];
    assert!(rejected_codes(sink.as_mut(), &records).is_empty());
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    let mut rows = file.json();
    rows.sort_by_key(|row| row["id"].as_u64());
    assert_eq!(rows, [json!({"id":1}), json!({"id":2,"note":"n"}), json!({"id":3,"score":0.5}), json!({"id":4})]);
}

#[test]
fn declared_types_without_a_union_go_to_separate_files() {
    let setup = Setup::new();
    let number = Some(setup.schemas.commit(Schema::new(vec![Field::new("v", DataType::Int64, true)])));
    let text = Some(setup.schemas.commit(Schema::new(vec![Field::new("v", DataType::Utf8, true)])));
    let mut sink = setup.open("");
    let records = [(number, r#"{"v":1}"#), (text, r#"{"v":"a"}"#), (number, r#"{"v":2}"#), (text, r#"{"v":"b"}"#)];
    assert!(rejected_codes(sink.as_mut(), &records).is_empty());
    let committables = commit(sink.as_mut());
    assert_eq!(committables[0]["objects"].as_array().unwrap().len(), 2, "both in one intent");
    let files = setup.files();
    let contents: Vec<_> = files.iter().map(|file| (file.columns(), file.json())).collect();
    assert_eq!(
        contents,
        [
            (types(&[("v", "Int64")]), vec![json!({"v":1}), json!({"v":2})]),
            (types(&[("v", "Utf8")]), vec![json!({"v":"a"}), json!({"v":"b"})]),
        ]
    );
}

#[test]
fn inferred_columns_widen_inside_a_file() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1,"n":null}"#]);
    write(sink.as_mut(), 1, &[r#"{"a":2.5,"b":{"c":[1]}}"#]);
    write(sink.as_mut(), 2, &[r#"{"a":"x","b":{"d":true}}"#]);
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    assert_eq!(
        file.json(),
        [json!({"a":"1"}), json!({"a":"2.5","b":{"c":[1]}}), json!({"a":"x","b":{"d":true}})],
        "`n` had no value with a type, and is left out"
    );
}

#[test]
fn a_column_that_appears_after_the_schema_was_frozen_starts_another_file_of_the_same_intent() {
    let setup = Setup::new();
    let mut sink = setup.open("row_group = \"64KiB\"");
    let text = "x".repeat(1000);
    let old: Vec<String> = (0..500).map(|number| format!("{{\"a\":{number},\"t\":\"{text}{number}\"}}")).collect();
    let old: Vec<&str> = old.iter().map(String::as_str).collect();
    write(sink.as_mut(), 0, &old);
    write(sink.as_mut(), 500, &[r#"{"a":0.5,"late":1}"#]);
    write(sink.as_mut(), 501, &[r#"{"a":7}"#]);
    let committables = commit(sink.as_mut());
    assert_eq!(committables[0]["objects"].as_array().unwrap().len(), 2);
    let files = setup.files();
    assert_eq!(files.iter().map(|file| file.rows()).collect::<Vec<_>>(), [500, 2]);
    assert_eq!(files[0].columns(), types(&[("a", "Int64"), ("t", "Utf8")]), "what was encoded stays as it is");
    assert_eq!(files[1].columns(), types(&[("a", "Float64"), ("t", "Utf8"), ("late", "Int64")]));
    // The next file begins with these columns, so that it does not split again.
    write(sink.as_mut(), 502, &old);
    write(sink.as_mut(), 1002, &[r#"{"a":0.5,"late":1}"#]);
    commit(sink.as_mut());
    assert_eq!(setup.files().len(), 3);
}

#[test]
fn rows_go_where_their_path_says_and_names_carry_offsets() {
    let setup = Setup::new();
    let mut sink = setup.open("path = \"day={at:%Y-%m-%d}/{kind|none}\"");
    let value = |day: u32, kind: &str| format!("{{\"at\":\"2015-05-{day:02}T00:00:00Z\"{kind}}}");
    let values = [
        value(17, ""),
        value(18, ",\"kind\":\"a/b\""),
        value(17, ""),
        "{\"kind\":\"x\"}".to_owned(),
        value(18, ",\"kind\":\"a/b\""),
    ];
    let records: Vec<_> = values.iter().map(|value| (None, value.as_str())).collect();
    assert_eq!(rejected_codes(sink.as_mut(), &records), ["s3.no_path"]);
    commit(sink.as_mut());
    let files = setup.files();
    let placed: Vec<_> = files.iter().map(|file| (&file.key[..file.key.len() - 17], file.rows())).collect();
    assert_eq!(
        placed,
        [
            ("day=2015-05-17/none/web+3+00000000000000000000-00000000000000000002", 2),
            ("day=2015-05-18/a%2Fb/web+3+00000000000000000001-00000000000000000004", 2),
        ]
    );
    let metadata = |key: &str| files[1].metadata.get(key).map(String::as_str);
    assert_eq!(metadata("trunkline.topic"), Some("web"));
    assert_eq!(metadata("trunkline.partition"), Some("3"));
    assert_eq!((metadata("trunkline.first_offset"), metadata("trunkline.last_offset")), (Some("1"), Some("4")));
    assert_eq!((metadata("trunkline.records"), metadata("trunkline.sink")), (Some("2"), Some("pipeline.test")));
    let id = metadata("trunkline.id").unwrap();
    assert!(files[1].key.ends_with(&format!("-{}.parquet", &id[..8])));
}

#[test]
fn what_cannot_be_a_row_says_why() {
    let setup = Setup::new();
    let id = Some(setup.schemas.commit(orders()));
    let mut sink = setup.open("");
    let unknown = Some(SchemaId(7));
    let records =
        [(id, r#"{"id":1}"#), (unknown, r#"{"id":1}"#), (id, r#"{"price":"1"}"#), (id, r#"{"id":1,"price":"1.234"}"#)];
    let mut rejected = Rejections::default();
    sink.write(&topic_partition(), &batch(0, &records), &mut rejected).unwrap();
    let mut reasons: Vec<_> =
        rejected.iter().map(|(record, reason)| (record.entry().offset, reason.code.as_str())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [(1, "s3.unknown_schema"), (2, "s3.value_misfit"), (3, "s3.value_misfit")]);
    assert!(rejected.reasons.iter().any(|reason| reason.message.contains("`price`")));
    commit(sink.as_mut());
    assert_eq!(setup.files()[0].rows(), 1);
}

#[test]
fn every_compression_can_be_read_and_row_groups_are_cut() {
    for compression in ["zstd", "snappy", "lz4", "none"] {
        let setup = Setup::new();
        let mut sink = setup.open(&format!("row_group = \"64KiB\"\ncompression = \"{compression}\""));
        for round in 0..50 {
            let values: Vec<String> = (0..100u64)
                .map(|number| {
                    let noise = (number + round * 100).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    format!(
                        "{{\"n\":{},\"noise\":\"{noise:016x}{:016x}\"}}",
                        round * 100 + number,
                        noise.rotate_left(29) ^ 0x5555
                    )
                })
                .collect();
            write(sink.as_mut(), (round * 100) as i64, &values.iter().map(String::as_str).collect::<Vec<_>>());
        }
        commit(sink.as_mut());
        let [file] = &setup.files()[..] else { panic!("one file") };
        assert_eq!(file.rows(), 5000);
        assert!((2..20).contains(&file.row_groups), "{compression}: {} row groups", file.row_groups);
        let numbers: Vec<_> = file.json().iter().map(|row| row["n"].as_i64().unwrap()).collect();
        assert!(numbers.is_sorted(), "{compression}: order is kept over row groups");
    }
}

#[test]
fn only_objects_with_a_local_file_count_as_open_files() {
    let setup = Setup::new();
    let mut sink = setup.open("max_open_files = 3\npath = \"{k}\"");
    let values: Vec<String> = (0..100).map(|number| format!("{{\"k\":\"{number}\"}}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    write(sink.as_mut(), 0, &values);
    let open_files = |sink: &dyn ErasedTwoPhaseSink| sink.buffered(&topic_partition()).open_files;
    assert_eq!(open_files(sink.as_ref()), 0, "rows in memory have no file");
    (0..8).for_each(|_| sink.spill().unwrap());
    assert!(open_files(sink.as_ref()) > 3);
    commit(sink.as_mut());
    assert_eq!(setup.files().len(), 100);
    assert_eq!(open_files(sink.as_ref()), 0);
}

#[test]
fn columns_that_differ_only_by_case_get_a_suffix() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"id":1,"ID":"x"}"#, r#"{"ID":"y"}"#]);
    commit(sink.as_mut());
    assert_eq!(setup.files()[0].json(), [json!({"id":1,"ID_4d59":"x"}), json!({"ID_4d59":"y"})]);
}

/// The hidden folder with the local files of open objects.
fn spool(setup: &Setup) -> PathBuf {
    setup.root().join(".trunkline-staging/pipeline.test")
}

#[test]
fn a_dropped_sink_leaves_no_files() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    sink.spill().unwrap();
    assert_eq!(hidden_files(&setup.root()).len(), 1, "the row is in its local file");
    drop(sink);
    assert!(hidden_files(&setup.root()).is_empty());
}

#[test]
fn after_a_failed_write_nothing_is_sealed_until_the_records_are_read_again() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    std::fs::remove_dir_all(spool(&setup)).unwrap();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let error = sink.seal(&topic_partition()).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "io.not_found"));
    assert!(!sink.buffered(&topic_partition()).is_empty(), "the failed output is forgotten");
    assert_eq!(sink.seal(&topic_partition()).unwrap_err().code, "s3.spool_broken");
    let mut rejected = Rejections::default();
    let again = sink.write(&topic_partition(), &batch(1, &[(None, r#"{"a":2}"#)]), &mut rejected);
    assert_eq!(again.unwrap_err().code, "s3.spool_broken");
    sink.discard(&topic_partition());
    std::fs::create_dir_all(spool(&setup)).unwrap();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#, r#"{"a":2}"#]);
    commit(sink.as_mut());
    assert_eq!(setup.files()[0].rows(), 2);
}

#[test]
fn a_missing_prepared_object_is_an_error() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    let temp = spool(&setup).join(committables[0]["objects"][0]["temp"].as_str().unwrap());
    std::fs::remove_file(temp).unwrap();
    let error = sink.commit(&committables).unwrap_err();
    assert_eq!(error.code, "s3.prepared_object_missing");
    assert!(error.message().contains("web+3+00000000000000000000"), "{error}");
}

#[test]
fn a_file_with_the_same_name_is_not_overwritten() {
    let setup = Setup::new();
    let mut sink = setup.open("path = \"p\"");
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    let target = setup.root().join(committables[0]["objects"][0]["key"].as_str().unwrap());
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::write(&target, "another's").unwrap();
    assert_eq!(sink.commit(&committables).unwrap_err().code, "s3.key_taken");
    assert_eq!(std::fs::read(&target).unwrap(), b"another's");
    std::fs::remove_file(&target).unwrap();
    sink.commit(&committables).unwrap();
    assert_eq!(setup.files()[0].rows(), 1);
}

#[test]
fn an_intent_cannot_name_a_path_outside_the_directory() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let mut committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    committables[0]["objects"][0]["key"] = json!("../outside.parquet");
    assert_eq!(sink.commit(&committables).unwrap_err().code, "s3.unreadable_intent");
    assert!(!setup.folder.path().join("outside.parquet").exists());
}

#[test]
fn prepared_objects_are_committed_at_the_earlier_url() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    let plan = sink.seal(&topic_partition()).unwrap().unwrap();
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    std::mem::forget(sink);
    let elsewhere = setup.folder.path().join("elsewhere");
    let mut moved = setup.try_open(&format!("url = \"file://{}\"", elsewhere.display())).unwrap();
    moved.recover(&topic_partition(), &committables).unwrap();
    moved.commit(&committables).unwrap();
    assert_eq!(setup.files()[0].rows(), 1);
    assert!(hidden_files(&setup.root()).is_empty());
}

#[test]
fn a_directory_without_write_permission_is_reported_at_open() {
    let setup = Setup::new();
    std::fs::write(setup.folder.path().join("file"), "").unwrap();
    let error = setup.try_open(&format!("url = \"file://{}/file/lake\"", setup.folder.path().display())).err().unwrap();
    assert_eq!(error.domain, Domain::External);
    assert!(error.message().contains("file/lake"), "{error}");
}

#[test]
fn a_check_reports_a_folder_that_cannot_be_written_and_leaves_nothing() {
    let setup = Setup::new();
    let options = |path: &std::path::Path| format!("url = \"file://{}\"", path.display());
    assert_eq!(setup.preflight(&options(&setup.root().join("a/b"))), []);
    assert!(!setup.root().exists());
    let file = setup.root().with_extension("txt");
    std::fs::write(&file, "").unwrap();
    let issues = setup.preflight(&options(&file.join("a")));
    assert!(matches!(issues.as_slice(), [issue] if issue.message.contains("write to")), "{issues:?}");
}
