//! No value is lost or changed on its way into files, whatever types the records mix.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;

use common::{Setup, batch, commit, topic_partition};
use proptest::prelude::*;
use serde_json::Value as Json;
use trunkline_connector::Rejections;

fn value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        // Few digits, because this test's parser is not exact to the last bit.
        any::<i32>().prop_map(|number| Json::from(f64::from(number) / 64.0)),
        "[a-z0-9\"\\\\\u{e9}\n]{0,6}".prop_map(Json::from),
    ];
    leaf.prop_recursive(2, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            proptest::collection::btree_map("[x-z]", inner, 0..3)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

fn record() -> impl Strategy<Value = BTreeMap<String, Json>> {
    proptest::collection::btree_map("[a-d]", value(), 0..4)
}

/// No value, or only containers without values: a file has no type for these until a value appears.
fn is_void(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(items) => items.iter().all(is_void),
        Json::Object(members) => members.values().all(is_void),
        _ => false,
    }
}

/// The file has the record's value. A column that widened to text holds JSON.
fn same(written: &Json, read: &Json) -> bool {
    match (written, read) {
        (written, Json::Null) => is_void(written),
        // Widened to a float, as documented: to its precision, and this test's parser may miss the
        // last bit.
        (Json::Number(written), Json::Number(read)) => written == read || nearly(written.as_f64(), read.as_f64()),
        (Json::String(written), Json::String(read)) => written == read,
        (Json::Array(written), Json::Array(read)) => {
            written.len() == read.len() && written.iter().zip(read).all(|(written, read)| same(written, read))
        }
        (Json::Object(written), Json::Object(read)) => {
            let missing = |key: &String| read.get(key).unwrap_or(&Json::Null).clone();
            written.iter().all(|(key, value)| same(value, &missing(key)))
                && read.iter().all(|(key, value)| value.is_null() || written.contains_key(key))
        }
        (written, Json::String(text)) => serde_json::from_str(text).is_ok_and(|read: Json| same(written, &read)),
        (written, read) => written == read,
    }
}

fn nearly(left: Option<f64>, right: Option<f64>) -> bool {
    left.zip(right).is_some_and(|(left, right)| (left - right).abs() <= left.abs() * 4.0 * f64::EPSILON)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(
        batches in proptest::collection::vec(proptest::collection::vec(record(), 1..12), 1..6),
        relieve_after in any::<[bool; 6]>(),
    ) {
        let setup = Setup::new();
        let mut sink = setup.open("");
        let mut expected = Vec::new();
        let mut rejected = Rejections::default();
        let mut offset = 0;
        for (records, relieve) in batches.iter().zip(relieve_after) {
            let texts: Vec<String> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
            let borrowed: Vec<_> = texts.iter().map(|text| (None, text.as_str())).collect();
            let before = rejected.len();
            sink.write(&topic_partition(), &batch(offset, &borrowed), &mut rejected).unwrap();
            // Only an object without members is rejected, while no column is known yet.
            for reason in &rejected.reasons[before..] {
                prop_assert_eq!(reason.code.as_str(), "s3.no_columns");
            }
            let refused: Vec<i64> = rejected.iter().map(|(record, _)| record.entry().offset).collect();
            expected.extend((offset..).zip(records).filter(|(offset, _)| !refused.contains(offset)).map(|(_, record)| record));
            offset += records.len() as i64;
            if relieve {
                // Freezes the schema, so that later widening needs another file.
                sink.spill().unwrap();
            }
        }
        if !sink.buffered(&topic_partition()).is_empty() {
            commit(sink.as_mut());
        }
        let found: Vec<Json> = setup.files().iter().flat_map(|file| {
            let rows = file.json();
            assert_eq!(rows.len(), file.rows());
            rows
        }).collect();
        prop_assert_eq!(found.len(), expected.len());
        for (written, read) in expected.into_iter().zip(&found) {
            let written = Json::Object(written.clone().into_iter().collect());
            prop_assert!(same(&written, read), "written {written}\n   read {read}");
        }
    }
}
