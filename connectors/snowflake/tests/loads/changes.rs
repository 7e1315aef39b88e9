//! Types, changes of rows and changes of columns: what the table holds afterwards.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use trunkline_connector::{Batch, Schema};
use trunkline_tests::{History, Memory, Random, RowChange};

use crate::{ROWS, Setup, batch, load, ordered_at};

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
fn tables_follow_the_schema() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("EVOLVED", "append");
    load(sink.as_mut(), &batch(0, &ROWS, None));
    load(sink.as_mut(), &batch(3, &[(None, Some("{\"id\":3,\"extra\":{\"a\":[1]}}"))], None));
    let found =
        setup.query("EVOLVED", "SELECT \"ID\", \"NAME\", \"EXTRA\"::VARCHAR FROM \"ROWS\" ORDER BY \"_OFFSET\"");
    assert_eq!(found, ["1|a|null", "2|b|null", "1|c|null", "3|null|{\"a\":[1]}"]);
}

#[test]
fn existing_columns_of_another_case_are_used_as_they_are() {
    let Some(setup) = Setup::find() else { return };
    for (schema, mode) in [("CASE_APPEND", "append"), ("CASE_UPSERT", "upsert"), ("CASE_HISTORY", "history")] {
        // The sink creates the schema.
        drop(setup.open(schema, mode));
        setup.query(schema, "CREATE TABLE \"ROWS\" (extra INT DEFAULT 7, \"fullName\" VARCHAR, \"Id\" NUMBER(38, 0))");
        let row = |id: u32, name: &str| {
            (format!("{{\"id\":{id}}}"), format!("{{\"id\":{id},\"fullname\":\"{name}\",\"new\":true}}"))
        };
        let rows = [row(1, "a"), row(2, "b"), row(1, "c")];
        let rows: Vec<_> = rows.iter().map(|(key, value)| (Some(key.as_str()), Some(value.as_str()))).collect();
        let mut sink = setup.open(schema, mode);
        load(sink.as_mut(), &batch(0, &rows[..2], None));
        load(sink.as_mut(), &batch(2, &rows[2..], None));
        let names = setup.query(
            schema,
            &format!("SELECT column_name FROM information_schema.columns WHERE table_schema = '{schema}' AND table_name = 'ROWS' ORDER BY 1"),
        );
        let own = |name: &&String| {
            !name.starts_with('_') && !["VALID_FROM", "VALID_TO", "IS_CURRENT"].contains(&name.as_str())
        };
        assert_eq!(names.iter().filter(own).collect::<Vec<_>>(), ["EXTRA", "Id", "NEW", "fullName"], "{mode}");
        let found = setup.query(schema, "SELECT \"Id\", \"fullName\", EXTRA FROM \"ROWS\" ORDER BY 1, 2");
        let expected: &[&str] = if mode == "upsert" { &["1|c|7", "2|b|7"] } else { &["1|a|7", "1|c|7", "2|b|7"] };
        assert_eq!(found, expected, "{mode}");
    }
}

#[test]
fn query_tags_name_pipeline_sink_and_offsets() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("TAGS", "append");
    setup.account.server.take_tags();
    load(sink.as_mut(), &batch(4, &ROWS, None));
    let tags = setup.account.server.take_tags();
    // The first one creates the row of the topic partition.
    let of_load = ["stages", "loads"].map(|doing| format!("trunkline loads.test {doing} orders-0 before 7"));
    assert_eq!(tags, [&["trunkline loads.test".to_owned()][..], &of_load].concat());
}

/// Changes from this offset on.
fn ordered(first: i64, changes: &[RowChange]) -> Batch {
    ordered_at((first..).zip(changes))
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
