//! The columns of files depend on the records alone: not on their order, on earlier runs, or on
//! which values a file happens to hold.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::path::Path;

use arrow::datatypes::{DataType, Field, Schema};
use common::{Setup, batch, commit, topic_partition, write};
use serde_json::json;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{ErasedTwoPhaseSink, Rejections, SinkConnector as _};
use trunkline_s3::S3Connector;

fn rejected(sink: &mut dyn ErasedTwoPhaseSink, offset: i64, value: &str) -> Vec<String> {
    let mut rejected = Rejections::default();
    sink.write(&topic_partition(), &batch(offset, &[(None, value)]), &mut rejected).unwrap();
    rejected.reasons.into_iter().map(|reason| format!("{}: {}", reason.code, reason.message)).collect()
}

/// Sorted names of a file's columns.
fn names(setup: &Setup) -> Vec<String> {
    let [file] = &setup.files()[..] else { panic!("one file") };
    let mut names: Vec<String> = file.columns().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

#[test]
fn names_that_differ_only_by_case_do_not_depend_on_the_order_of_fields() {
    let one = Setup::new();
    let mut sink = one.open("");
    write(sink.as_mut(), 0, &[r#"{"Name":"A","name":"b","o":{"Id":1,"id":2}}"#]);
    commit(sink.as_mut());
    let other = Setup::new();
    let mut sink = other.open("");
    write(sink.as_mut(), 0, &[r#"{"o":{"id":2,"Id":1},"name":"b","Name":"A"}"#]);
    commit(sink.as_mut());
    assert_eq!(names(&one), names(&other));
    let renamed = names(&one).into_iter().find(|name| name.starts_with("Name_")).expect("a suffix");
    for setup in [&one, &other] {
        let [file] = &setup.files()[..] else { panic!("one file") };
        let [row] = &file.json()[..] else { panic!("one row") };
        assert_eq!((&row["name"], &row[&renamed], &row["o"]["id"]), (&json!("b"), &json!("A"), &json!(2)));
    }
}

#[test]
fn a_new_sink_continues_with_the_types_that_were_stored() {
    let setup = Setup::new();
    let topic = topic_partition().topic;
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"v":"x","o":{"a":1},"n":1}"#]);
    commit(sink.as_mut());
    let stored = sink.inferred_types(&topic).unwrap().expect("types");
    assert!(sink.inferred_types(&topic).unwrap().is_none(), "nothing has changed since");
    let stored = trunkline_connector::Schema::from_json(stored.to_json().unwrap().as_bytes()).unwrap();

    let mut sink = setup.open("");
    sink.restore_types(&topic, &stored);
    write(sink.as_mut(), 1, &[r#"{"v":1.5,"o":{"a":2},"n":2}"#]);
    commit(sink.as_mut());
    assert!(sink.inferred_types(&topic).unwrap().is_none(), "the types are known");
    let [first, second] = &setup.files()[..] else { panic!("two files") };
    assert_eq!(first.columns(), second.columns());
    assert_eq!(second.json(), [json!({"v":"1.5","o":{"a":2},"n":2})]);

    // Another path of the same topic has the same types, and only the columns that it needs.
    let mut sink = setup.open("path = \"p={p}\"");
    sink.restore_types(&topic, &stored);
    write(sink.as_mut(), 2, &[r#"{"p":"other","v":3}"#]);
    commit(sink.as_mut());
    let files = setup.files();
    let other = files.iter().find(|file| file.key.starts_with("p=other")).unwrap();
    assert_eq!(other.json(), [json!({"p":"other","v":"3"})]);
}

#[test]
fn pinned_columns_have_their_type_whatever_the_values_are() {
    let setup = Setup::new();
    let mut sink = setup.open(r#"columns = { v = "double", o = "text", d = "decimal(5,2)", n = "bigint" }"#);
    let values = [r#"{"v":1,"o":{"a":1},"d":"1.25","n":null}"#, r#"{"v":2.5,"o":[1,2],"d":3}"#, r#"{"o":"s"}"#];
    write(sink.as_mut(), 0, &values);
    for (value, column) in [(r#"{"v":"x"}"#, "`v`"), (r#"{"d":"1.255"}"#, "`d`"), (r#"{"v":1e400}"#, "`v`")] {
        let reasons = rejected(sink.as_mut(), 3, value);
        assert!(
            reasons.len() == 1 && reasons[0].starts_with("s3.value_misfit: column") && reasons[0].contains(column),
            "{reasons:?}"
        );
    }
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    let mut columns = file.columns();
    columns.sort();
    let expected = [("d", "Decimal128(5, 2)"), ("n", "Int64"), ("o", "Utf8"), ("v", "Float64")];
    assert_eq!(columns, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    let texts: Vec<_> = file.json().iter().map(|row| row["o"].clone()).collect();
    assert_eq!(texts, [json!("{\"a\":1}"), json!("[1,2]"), json!("s")]);
}

#[test]
fn pinned_columns_replace_declared_ones() {
    let setup = Setup::new();
    let declared = Schema::new(vec![Field::new("price", DataType::Decimal128(10, 2), true)]);
    let id = Some(setup.schemas.commit(declared));
    let mut sink = setup.open(r#"columns = { price = "double" }"#);
    let mut refused = Rejections::default();
    sink.write(&topic_partition(), &batch(0, &[(id, r#"{"price":"12.30"}"#)]), &mut refused).unwrap();
    assert!(refused.is_empty());
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    assert_eq!(file.json(), [json!({"price":12.3})]);
}

#[test]
fn numbers_that_no_float_holds_do_not_become_infinite() {
    let setup = Setup::new();
    let mut sink = setup.open("");
    write(sink.as_mut(), 0, &[r#"{"a":1e400,"b":1.5}"#, r#"{"a":2,"b":-1e999}"#, r#"{"a":1e-400,"b":1e308}"#]);
    commit(sink.as_mut());
    let [file] = &setup.files()[..] else { panic!("one file") };
    let column = |name: &str| file.json().iter().map(|row| row[name].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(column("a"), ["1e400", "2", "1e-400"]);
    let b: Vec<f64> = column("b").iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!((column("b")[1].as_str(), b[0], b[2]), ("-1e999", 1.5, 1e308));

    let declared =
        Schema::new(vec![Field::new("f", DataType::Float32, true), Field::new("d", DataType::Float64, true)]);
    let id = Some(setup.schemas.commit(declared));
    let mut refused = Rejections::default();
    let records = [(id, r#"{"f":1e39}"#), (id, r#"{"d":"1e400"}"#), (id, r#"{"f":1.5,"d":1e39}"#)];
    sink.write(&topic_partition(), &batch(3, &records), &mut refused).unwrap();
    let columns: Vec<bool> = refused.reasons.iter().map(|reason| reason.message.contains('`')).collect();
    assert_eq!(columns, [true, true]);
}

#[test]
fn unknown_types_are_refused() {
    let table = read_toml("url = \"file:///lake\"\ncolumns = { v = \"varchar\" }");
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    assert!(S3Connector.configure(&section, &[]).is_none());
    let problems = report.into_problems();
    let [problem] = &problems[..] else { panic!("{problems:#?}") };
    assert!(problem.message.contains("the unknown type `varchar` for `v`"), "{problem:?}");
    assert!(problem.expected.contains("`bigint`"), "{problem:?}");
}
