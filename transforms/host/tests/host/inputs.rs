//! Plugins that declare which parts of records they read.

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::Limits;

use crate::support::{rejections, run, testing, text, values};

/// Records with a key, a value of 10 bytes and a header of this size.
fn batch_with_headers(records: usize, bytes: usize) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("in");
    for offset in 0..records {
        let mut record = batch.record();
        record.timestamp(7).read_from(topic, 3, offset as i64).key(b"k").value(b"0123456789");
        record.header("h", Some(&vec![b'x'; bytes]));
        record.finish();
    }
    batch
}

/// The parts that the plugin sees in the first record of such a batch.
fn parts_seen(inputs: &[&str], header_bytes: usize) -> String {
    let mut instance = testing(&json!({ "inputs": inputs, "show_parts": true }), &Limits::default());
    let mut batch = batch_with_headers(200, header_bytes);
    instance.process(&mut batch, &mut Rejections::default()).unwrap();
    assert_eq!(batch.len(), 200);
    for (offset, record) in batch.iter().enumerate() {
        assert_eq!((record.topic(), record.entry().offset, record.timestamp()), ("in", offset as i64, Some(7)));
        assert_eq!(text(record.key()), "k");
        let (name, value) = record.headers().next().unwrap();
        assert_eq!((name, value.map(<[u8]>::len)), ("h", Some(header_bytes)), "the output keeps the parts");
    }
    text(batch.get(0).value())
}

#[test]
fn parts_that_the_plugin_does_not_read_are_not_passed_if_they_are_most_of_the_batch() {
    assert_eq!(parts_seen(&["key", "value", "headers"], 1000), "key value headers");
    assert_eq!(parts_seen(&["value"], 1000), "value");
    assert_eq!(parts_seen(&["key"], 1000), "key");
    // The batch is passed as it is.
    assert_eq!(parts_seen(&["key", "headers"], 1000), "key value headers");
    assert_eq!(parts_seen(&["value"], 10), "key value headers");
}

#[test]
fn records_that_pass_keep_the_parts_that_the_plugin_does_not_read() {
    let mut instance = testing(&json!({ "inputs": ["value"] }), &Limits::default());
    let mut batch = batch_with_headers(200, 1000);
    let before: Vec<_> = batch.iter().map(|record| (text(record.key()), record.header_block().to_vec())).collect();
    instance.process(&mut batch, &mut Rejections::default()).unwrap();
    let after: Vec<_> = batch.iter().map(|record| (text(record.key()), record.header_block().to_vec())).collect();
    assert_eq!(before, after);
}

#[test]
fn inputs_cannot_be_declared_after_init() {
    let mut instance = testing(&json!({ "declare_on": "late" }), &Limits::default());
    let (out, rejected, _) = run(&mut instance, &["a", "late", "b"]);
    assert_eq!(values(&out), ["a", "b"]);
    assert_eq!(rejections(&rejected), [("late".to_owned(), "plugin.trap".to_owned())]);
}
