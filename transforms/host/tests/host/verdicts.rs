//! Each verdict, returned by the `testing` plugin.

use std::sync::{Arc, Mutex};

use serde_json::json;
use trunkline_connector::{Batch, Domain, Error, Rejections, Schema, SchemaId, SchemaLookup};
use trunkline_transform_host::{Counts, Limits, SchemaStore};

use crate::support::{batch_of, rejections, run, testing, text, values};

fn headers(batch: &Batch, index: usize) -> Vec<(String, String)> {
    batch.get(index).headers().map(|(name, value)| (name.to_owned(), text(value))).collect()
}

#[test]
fn verdicts_are_applied_in_order() {
    let config = json!({
        "drop_on": "drop", "reject_on": "reject", "duplicate_on": "twice", "emit_none_on": "none", "port_on": "side",
        "upper_on": "upper", "rekey_on": "rekey", "tombstone_on": "tomb",
    });
    let mut instance = testing(&config, &Limits::default());
    assert_eq!(instance.ports(), ["default", "side"]);
    let records = ["a", "drop", "upper", "reject", "twice", "side", "none", "rekey", "tomb", "z"];
    let (batch, rejected, counts) = run(&mut instance, &records);

    assert_eq!(values(&batch), ["a", "UPPER", "twice", "twice", "side", "rekey", "null", "z"]);
    let ports: Vec<_> = batch.entries().iter().map(|entry| entry.port).collect();
    assert_eq!(ports, [0, 0, 0, 1, 1, 0, 0, 0]);
    let offsets: Vec<_> = batch.entries().iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, [0, 2, 4, 4, 5, 7, 8, 9]);
    assert_eq!(counts, Counts { records_in: 10, out: 8, dropped: 2, rejected: 1, extra: 1, unchanged: 2 });

    assert_eq!(rejections(&rejected), [("reject".to_owned(), "testing.rejected".to_owned())]);
    assert_eq!(rejected.reasons[0].message, "rejection requested by reject");
    let rejected_record = rejected.records.get(0);
    assert_eq!(
        (rejected_record.topic(), rejected_record.entry().partition, rejected_record.entry().offset),
        ("in", 3, 3)
    );
    assert_eq!(rejected_record.headers().count(), 3);

    let rekeyed = batch.get(5);
    assert_eq!((rekeyed.key(), rekeyed.timestamp()), (Some(&b"k"[..]), Some(1)));
    assert_eq!(headers(&batch, 5), [("h".to_owned(), "v".to_owned())]);
    assert_eq!((batch.get(0).topic(), batch.get(0).key(), batch.get(0).timestamp()), ("in", Some(&b"k"[..]), Some(7)));
}

/// A store with one schema, which the records of `batch_of` name.
struct OneSchema {
    /// `None`: lookups fail.
    schema: Option<Arc<Schema>>,
    added: Mutex<Vec<Arc<Schema>>>,
}

impl OneSchema {
    fn new(schema: Option<&str>) -> Arc<Self> {
        let schema = schema.map(|json| Arc::new(Schema::from_json(json.as_bytes()).unwrap()));
        Arc::new(Self { schema, added: Mutex::default() })
    }
}

impl SchemaLookup for OneSchema {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>, Error> {
        let schema = self.schema.clone().ok_or_else(|| Error::external("kafka.unavailable", "no broker"))?;
        Ok(Some(schema).filter(|_| id == SchemaId(0xff)))
    }
}

impl SchemaStore for OneSchema {
    fn add(&self, schema: &Arc<Schema>) {
        self.added.lock().unwrap().push(schema.clone());
    }
}

const NUMBER_AND_TEXT: &str =
    r#"{"fields":[{"name":"1","type":"int64","nullable":true},{"name":"2","type":"utf8","nullable":true}]}"#;

#[test]
fn a_changed_value_keeps_the_columns_of_its_schema_that_fit() {
    let store = OneSchema::new(Some(NUMBER_AND_TEXT));
    let config = json!({ "upper_on": "u", "duplicate_on": "d" });
    let mut instance = testing(&config, &Limits::default()).with_schemas(store.clone());
    let records = [
        r#"{"1":7,"2":"u"}"#,
        r#"{"1":"u","2":"b"}"#,
        r#"{"1":"uu","2":"b","3":[]}"#,
        r#"{"1":7,"2":"d"}"#,
        r#"{"1":"x","2":"same"}"#,
        r#"{"u":1}"#,
        "u",
    ];
    let (batch, _, _) = run(&mut instance, &records);
    let derived = Schema::from_json(br#"{"fields":[{"name":"2","type":"utf8","nullable":true}]}"#).unwrap();
    let (same, other) = ("00000000000000ff".to_owned(), derived.id().to_string());
    let ids: Vec<String> = batch.iter().map(|record| text(record.header("trunkline.schema"))).collect();
    let none = || "null".to_owned();
    let unchanged = || same.clone();
    assert_eq!(ids, [unchanged(), other.clone(), other, unchanged(), unchanged(), unchanged(), none(), none()]);
    assert_eq!(headers(&batch, 1).len(), 3, "the other headers stay");
    assert_eq!(instance.derived_schemas().iter().map(|schema| schema.id()).collect::<Vec<_>>(), [derived.id()]);
    assert_eq!(store.added.lock().unwrap().len(), 1);
}

#[test]
fn a_failed_lookup_of_a_schema_leaves_the_batch_unchanged() {
    let store = OneSchema::new(None);
    let mut instance = testing(&json!({ "upper_on": "u" }), &Limits::default()).with_schemas(store);
    let mut batch = batch_of(&[r#"{"1":7,"2":"u"}"#]);
    let error = instance.process(&mut batch, &mut Rejections::default()).unwrap_err();
    assert_eq!((error.code, values(&batch)), ("kafka.unavailable", vec![r#"{"1":7,"2":"u"}"#.to_owned()]));
}

#[test]
fn changed_value_loses_its_schema_unless_the_plugin_keeps_it() {
    let config = |keeps: bool| json!({ "upper_on": "u", "port_on": "p", "keeps_schema": keeps });
    let names = |batch: &Batch, index| headers(batch, index).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let mut loses = testing(&config(false), &Limits::default());
    assert!(!loses.keeps_schema());
    let (batch, _, _) = run(&mut loses, &["u", "p", "x"]);
    assert_eq!(headers(&batch, 0), [("h".to_owned(), "v".to_owned()), ("n".to_owned(), "null".to_owned())]);
    assert_eq!(names(&batch, 1), ["h", "trunkline.schema", "n"]);
    assert_eq!(names(&batch, 2), ["h", "trunkline.schema", "n"]);
    let mut keeps = testing(&config(true), &Limits::default());
    assert!(keeps.keeps_schema());
    let (batch, _, _) = run(&mut keeps, &["u"]);
    assert_eq!(names(&batch, 0), ["h", "trunkline.schema", "n"]);
}

#[test]
fn large_batch_is_split_into_calls() {
    let config = json!({ "drop_on": "7", "upper_on": "a" });
    let records: Vec<String> = (0..2345).map(|index| format!("a{index}")).collect();
    let expected: Vec<String> =
        records.iter().filter(|record| !record.contains('7')).map(|record| record.to_uppercase()).collect();
    for limits in [
        Limits::default(),
        Limits { batch_records: 1, ..Limits::default() },
        Limits { batch_records: 999, ..Limits::default() },
        Limits { batch_bytes: 1, ..Limits::default() },
        Limits { batch_bytes: 5000, ..Limits::default() },
        Limits { batch_records: 100_000, ..Limits::default() },
    ] {
        let (batch, _, _) = run(&mut testing(&config, &limits), &records);
        assert_eq!(values(&batch), expected, "{limits:?}");
    }
}

#[test]
fn transforms_can_be_chained() {
    let mut upper = testing(&json!({ "upper_on": "a" }), &Limits::default());
    let mut twice = testing(&json!({ "duplicate_on": "A" }), &Limits::default());
    let mut side =
        testing(&json!({ "drop_on": "nothing", "port_on": "A3" }), &Limits { batch_records: 2, ..Limits::default() });
    let mut batch = batch_of(&["a1", "b2", "a3"]);
    let mut rejected = Rejections::default();
    for instance in [&mut upper, &mut twice, &mut side] {
        instance.process(&mut batch, &mut rejected).unwrap();
    }
    assert_eq!(values(&batch), ["A1", "A1", "b2", "A3", "A3"]);
    assert_eq!(batch.entries().iter().map(|entry| entry.port).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
}

#[test]
fn sparse_batch_is_packed() {
    let mut instance = testing(&json!({ "upper_on": "keep" }), &Limits { memory: 8 << 20, ..Limits::default() });
    let big = "x".repeat(4 << 20);
    let mut batch = batch_of(&[&big, &big, &big, &"keep me".to_owned()]);
    batch.retain(|record| record.entry().offset == 3);
    instance.process(&mut batch, &mut Rejections::default()).unwrap();
    assert_eq!(values(&batch), ["KEEP ME"]);
}

#[test]
fn failed_batch_is_unchanged() {
    let mut instance = testing(
        &json!({ "error_on": "bad", "drop_on": "x", "log_on": "x" }),
        &Limits { batch_records: 2, ..Limits::default() },
    );
    let mut batch = batch_of(&["a", "x", "bad", "d"]);
    let mut rejected = Rejections::default();
    for _ in 0..2 {
        let error = instance.process(&mut batch, &mut rejected).unwrap_err();
        assert_eq!((error.domain, error.code), (Domain::External, "plugin.failed"));
        assert!(
            error.message().contains("testing.wasm") && error.message().contains("failure requested by bad"),
            "{error}"
        );
        assert_eq!(values(&batch), ["a", "x", "bad", "d"]);
        assert!(rejected.is_empty());
    }
    assert!(instance.take_metrics().is_empty(), "metrics of a failed batch are discarded");
    let (good, _, _) = run(&mut instance, &["a", "x"]);
    assert_eq!(values(&good), ["a"]);
}

#[test]
fn only_successful_batches_contribute_metrics() {
    let mut instance =
        testing(&json!({ "log_on": "seen", "trap_on": "poison" }), &Limits { batch_records: 2, ..Limits::default() });
    let (_, rejected, _) = run(&mut instance, &["seen", "b", "seen poison", "seen", "seen", "seen"]);
    assert_eq!(rejected.len(), 1);
    let metrics = instance.take_metrics();
    assert_eq!(metrics.counters["seen"], 4, "each record counts once, the record that trapped does not count");
    assert_eq!(metrics.histograms["length"], [4.0; 4]);
    assert!(instance.take_metrics().is_empty());
}

#[test]
fn flush_appends_emitted_records() {
    let mut batch = batch_of(&["a"]);
    let counts = testing(&json!({ "flush": "last" }), &Limits::default()).flush(&mut batch).unwrap();
    assert_eq!(counts, Counts { out: 1, extra: 1, ..Counts::default() });
    assert_eq!(values(&batch), ["a", "last"]);
    let last = batch.get(1);
    assert_eq!((last.key(), last.topic(), last.entry().offset, last.headers().count()), (None, "", -1, 0));
    assert_eq!(testing(&json!({}), &Limits::default()).flush(&mut batch).unwrap(), Counts::default());
    assert_eq!(batch.len(), 2);
}

#[test]
fn empty_batch_causes_no_call() {
    let mut instance = testing(&json!({}), &Limits::default());
    assert_eq!(instance.process(&mut Batch::default(), &mut Rejections::default()).unwrap(), Counts::default());
}
