//! The direct decoder agrees with Arrow's decoder on everything that it does not refuse.

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use arrow::json::ReaderBuilder;
use proptest::prelude::*;

use super::*;
use crate::columns::infer::feed;
use crate::columns::layout::inferred;
use crate::columns::strict::StrictDecoders;

fn utc(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some("+00:00".into()))
}

/// A column of each type that the decoder reads.
fn fields() -> Fields {
    let members: Fields =
        vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)].into();
    let declared = |name: &str, data_type| -> FieldRef { Arc::new(Field::new(name, data_type, true)) };
    vec![
        Arc::new(Field::new("id", DataType::Int64, false)),
        declared("i8", DataType::Int8),
        declared("u16", DataType::UInt16),
        declared("u64", DataType::UInt64),
        declared("f32", DataType::Float32),
        declared("f64", DataType::Float64),
        declared("bool", DataType::Boolean),
        declared("text", DataType::Utf8),
        inferred("any", DataType::Utf8),
        inferred("guess", DataType::Float64),
        declared("raw", DataType::Binary),
        declared("day", DataType::Date32),
        declared("s", utc(TimeUnit::Second)),
        declared("ms", utc(TimeUnit::Millisecond)),
        declared("us", utc(TimeUnit::Microsecond)),
        declared("ns", utc(TimeUnit::Nanosecond)),
        declared("local", DataType::Timestamp(TimeUnit::Microsecond, None)),
        declared("price", DataType::Decimal128(10, 2)),
        declared("object", DataType::Struct(members)),
        declared("empty", DataType::Struct(Fields::empty())),
    ]
    .into()
}

fn arrow(layout: &ColumnLayout, records: &[&[u8]]) -> Option<RecordBatch> {
    let builder = ReaderBuilder::new(Arc::clone(&layout.schema)).with_strict_mode(true);
    let mut decoder = builder.with_decoder_factory(Arc::new(StrictDecoders)).build_decoder().unwrap();
    records.iter().try_for_each(|record| feed(&mut decoder, record)).ok()?;
    decoder.flush().ok().flatten()
}

fn direct(layout: &ColumnLayout, records: &[&[u8]]) -> Option<RecordBatch> {
    DirectDecoder::new(layout).unwrap().decode(records)
}

#[test]
fn usual_values_are_read_without_arrows_decoder() {
    let layout = ColumnLayout::new(fields());
    let records: [&[u8]; 6] = [
        br#"{"id":1,"i8":-128,"u16":65535,"u64":18446744073709551615,"f32":1.5,"f64":-2.5e-3,"bool":true}"#,
        br#"{"id":9223372036854775807,"text":"a\"\\\/\b\f\n\r\t\u00e9b","any":"x","guess":1,"raw":"AP8="}"#,
        br#" { "id" : 0 , "any" : 1.50 , "day":"2000-02-29","s":"1969-12-31T23:59:59Z","ms":"2015-05-17T10:05:03.12Z"} "#,
        br#"{"id":2,"us":"0001-01-01T00:00:00.000001Z","ns":"2015-05-17T10:05:03.123456789Z","local":"2015-05-17T10:05:03"}"#,
        br#"{"id":4,"empty":{}}"#,
        "{\"id\":3,\"any\":false,\"price\":\"-12.3\",\"object\":{\"name\":\"\u{1f600}\",\"id\":7},\"text\":null}".as_bytes(),
    ];
    let batch = direct(&layout, &records).expect("no value is refused");
    assert_eq!(batch, arrow(&layout, &records).unwrap());
    assert_eq!((batch.num_rows(), batch.schema()), (6, Arc::clone(&layout.schema)));
}

#[test]
fn unusual_values_are_left_to_arrows_decoder() {
    let layout = ColumnLayout::new(fields());
    let mut decoder = DirectDecoder::new(&layout).unwrap();
    for record in [
        r#"{"id":1.0}"#,
        r#"{"id":"1"}"#,
        r#"{"id":null}"#,
        r#"{}"#,
        r#"{"id":01}"#,
        r#"{"id":1"#,
        r#"{"id":1}{"id":2}"#,
        r#"{"id":1,}"#,
        r#"{"id":1 "i8":1}"#,
        r#"{"id":1,"id":1}"#,
        r#"{"id":1,"new":1}"#,
        r#"{"id":1,"i8":128}"#,
        r#"{"id":1,"f64":1e400}"#,
        r#"{"id":1,"text":7}"#,
        r#"{"id":1,"text":"\ud83d\ude00"}"#,
        "{\"id\":1,\"text\":\"\u{1}\"}",
        r#"{"id":1,"any":[1]}"#,
        r#"{"id":1,"raw":"?"}"#,
        r#"{"id":1,"day":"2001-02-29"}"#,
        r#"{"id":1,"s":"2015-05-17T10:05:03.5Z"}"#,
        r#"{"id":1,"us":"2015-05-17T10:05:03"}"#,
        r#"{"id":1,"us":"2015-05-17 10:05:03Z"}"#,
        r#"{"id":1,"us":"2015-05-17T24:00:00Z"}"#,
        r#"{"id":1,"price":"1.005"}"#,
        r#"{"id":1,"price":"123456789.00"}"#,
        r#"{"id":1,"object":{"name":"x"}}"#,
        "[1]",
        "",
    ] {
        assert_eq!(decoder.decode(&[br#"{"id":1,"object":{"id":1}}"#, record.as_bytes()]), None, "{record}");
        // A refused chunk leaves nothing behind.
        let good: &[&[u8]] = &[br#"{"id":5,"object":null}"#];
        assert_eq!(decoder.decode(good), arrow(&layout, good), "after {record}");
    }
    assert_eq!(decoder.decode(&[b"{\"id\":1,\"text\":\"\xff\"}"]), None);
}

#[test]
fn layouts_with_other_types_are_left_to_arrows_decoder() {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    for data_type in [list, DataType::Null, DataType::Timestamp(TimeUnit::Second, Some("+01:00".into()))] {
        assert!(DirectDecoder::new(&ColumnLayout::new(vec![Field::new("a", data_type, true)].into())).is_none());
    }
}

#[test]
fn many_columns_are_found_in_any_order() {
    let columns: Vec<Field> = (0..100).map(|index| Field::new(format!("c{index}"), DataType::Int64, true)).collect();
    let layout = ColumnLayout::new(columns.into());
    let members: Vec<String> = (0..100).rev().step_by(3).map(|index| format!("\"c{index}\":{index}")).collect();
    let record = format!("{{{}}}", members.join(","));
    let records: [&[u8]; 2] = [record.as_bytes(), b"{\"c99\":1}"];
    assert_eq!(direct(&layout, &records), arrow(&layout, &records));
    assert!(direct(&layout, &records).is_some());
}

#[test]
fn names_with_escapes_are_left_to_arrows_decoder() {
    let columns = ["a\\", "b\"c", "d"].map(|name| Field::new(name, DataType::Int64, true));
    let layout = ColumnLayout::new(columns.to_vec().into());
    // The first one begins as the name `a\` would without its escape.
    for record in [r#"{"a\":x":1}"#, r#"{"a\\":1}"#, r#"{"b\"c":1}"#, r#"{"b"c":1}"#, r#"{"d":1,"a\\":1}"#] {
        assert_eq!(direct(&layout, &[record.as_bytes()]), None, "{record}");
    }
    let records: [&[u8]; 2] = [br#"{"d":1}"#, br#"{ "d" : 2 }"#];
    assert_eq!(direct(&layout, &records), arrow(&layout, &records));
    assert!(direct(&layout, &records).is_some());
}

/// Values of the right and of the wrong type, and of forms near the usual ones.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        (-130i64..70_000).prop_map(|value| value.to_string()),
        any::<f64>().prop_map(|value| value.to_string()),
        "-?[0-9]{1,12}(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\"-?[0-9]{1,9}(\\.[0-9]{1,3})?\"",
        "\"[0-9]{4}-[01][0-9]-[0-3][0-9]\"",
        "\"[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,9})?Z?\"",
        "\"([A-Za-z0-9+/]{4}){0,3}\"",
        Just("{\"id\":1}".to_owned()),
        Just("{\"name\":\"n\",\"id\":-4}".to_owned()),
        Just("{\"name\":\"n\"}".to_owned()),
        Just("{}".to_owned()),
        Just("[]".to_owned()),
    ]
}

fn record() -> impl Strategy<Value = String> {
    let names: Vec<String> = fields().iter().map(|field| field.name().clone()).collect();
    let member = (prop::sample::select(names), value()).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    (any::<i64>(), prop::collection::vec(member, 0..3)).prop_map(|(id, members)| {
        format!("{{\"id\":{id}{}}}", members.iter().map(|m| format!(",{m}")).collect::<String>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_decoders_agree(records in prop::collection::vec(record(), 1..4)) {
        let layout = ColumnLayout::new(fields());
        let records: Vec<&[u8]> = records.iter().map(|record| record.as_bytes()).collect();
        if let Some(batch) = direct(&layout, &records) {
            prop_assert_eq!(Some(batch), arrow(&layout, &records));
        }
    }
}
