//! Every type, and the nastiest values of each: the row of a snapshot is the row of the stream.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;

use common::{Bench, Seen, Server};
use serde_json::{Value, json};

/// The script's table in a database of the test's own, without the sessions that write partial rows.
fn types_sql(database: &str) -> String {
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/types.sql")).unwrap();
    let end = script.find("UPDATE ty SET js=JSON_SET").unwrap();
    format!("USE {database};\n{}", &script[script.find("DROP TABLE IF EXISTS ty").unwrap()..end])
}

fn rows(records: &[Seen]) -> BTreeMap<String, Value> {
    records.iter().map(|record| (record.key.clone().unwrap(), record.after().clone())).collect()
}

#[test]
fn snapshot_and_stream_write_the_same_values_under_the_same_schema() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    let tables = format!("\"{database}.*\"");
    let mut stream = Bench::new(&server.options(&tables));
    stream.read();
    server.run(&types_sql(&database));
    server.run(&format!(
        "USE {database}; CREATE TABLE vec (id INT PRIMARY KEY, v VECTOR(3)); INSERT INTO vec VALUES (1, STRING_TO_VECTOR('[1,2.5,-3e-7]')), (2, NULL);
         CREATE TABLE more (a BIGINT UNSIGNED, b VARCHAR(20) CHARACTER SET cp850, c CHAR(3) CHARACTER SET utf32, d DECIMAL(5,5) , e SET('a','b\\'c','d e'), \
         f BIT(64), g TIMESTAMP(3) NULL, h TIME(3), i BINARY(200), j CHAR(70), k INT(5) ZEROFILL, l DECIMAL(8,2) ZEROFILL, m POLYGON, n YEAR, o DOUBLE, \
         p JSON, q TEXT CHARACTER SET gbk, r VARCHAR(9) CHARACTER SET swe7, PRIMARY KEY (b, a), INDEX ((k + 1)), INDEX ((CAST(p->'$.tags' AS UNSIGNED ARRAY))));
         INSERT INTO more VALUES (18446744073709551615, 'Ünîç', '日本', -0.00001, 'a,d e', b'1', '2038-01-19 03:14:07.999', '-00:00:00.001', x'00ff', 'ab  c  ', 7, 1.5, \
         ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))'), 1901, -1.7976931348623157e308, \
         JSON_OBJECT('x', CAST(REPEAT('y',100) AS BINARY), 'e', JSON_ARRAY(), 'o', JSON_OBJECT(), 'd', CAST('2026-01-02' AS DATE), 'q', 'a\"\\\\\\n\\u0001é', 's', 1e-20, 'l', -2147483649, 'big', REPEAT('z', 70000)), '中文', 'AB');
         INSERT INTO more (b, a) VALUES ('', 0);"
    ));
    stream.read();
    let streamed = stream.take();
    let mut snapshot = Bench::new(&server.options(&tables));
    snapshot.read();
    let read = snapshot.take();
    assert!(streamed.iter().all(|record| record.op() == "c"), "{streamed:#?}");
    assert!(read.iter().all(|record| record.op() == "r"));
    let of = |records: &[Seen], table: &str| {
        let name = format!("{database}.{table}");
        rows(&records.iter().filter(|record| record.table == name).cloned().collect::<Vec<_>>())
    };
    for table in ["ty", "vec", "more"] {
        let (streamed, read) = (of(&streamed, table), of(&read, table));
        assert_eq!(streamed.len(), read.len());
        for (key, row) in &streamed {
            for (column, value) in row.as_object().unwrap() {
                assert_eq!(value, &read[key][column], "{table}.{column} of {key}: stream, then snapshot");
            }
        }
        assert_eq!(streamed, read);
    }
    assert_eq!(stream.schemas, snapshot.schemas);

    let first = &of(&read, "ty")["{\"id\":1}"];
    for (column, value) in [
        ("ti", json!(-128)),
        ("mi", json!(-8_388_608)),
        ("miu", json!(16_777_215)),
        ("bi", json!(i64::MIN)),
        ("biu", json!(u64::MAX)),
        ("yr", json!(2026)),
        ("de", json!("-12345678901234567890.0123456789")),
        ("deu", json!("12345678901234567890123456789012345.000000000000000000000000000001")),
        ("fl", json!(1.1)),
        ("db", json!(0.1)),
        ("d", json!("2026-11-21")),
        ("dt", json!("2026-11-21T04:05:06")),
        ("dt3", json!("2026-11-21T04:05:06.789")),
        ("ts", json!("2026-11-21T02:05:06Z")),
        ("ts6", json!("2026-11-21T02:05:06.123456Z")),
        ("tm", json!("-838:59:59")),
        ("tm2", json!("-00:00:01.25")),
        ("tm6", json!("-100:00:00.000001")),
        ("vc", json!("naïve 😀 ")),
        ("vcl", json!("é€")),
        ("vsj", json!("日本")),
        ("vu16", json!("日本😀")),
        ("bl", json!("AP8Q")),
        ("bn", json!("QQAAAAAAAAA=")),
        ("vb", json!("QQAA")),
        ("bt", json!(0xaaa)),
        ("bt1", json!(true)),
        ("en", json!("été")),
        ("st", json!("r,b")),
        ("js", json!("{\"a\": [1.5, \"é\", null, true], \"b\": 1, \"u\": 18446744073709551615}")),
        ("po", json!({"srid": 4326, "wkb": "AQEAAAAAAAAAAABIQAAAAAAAAABA"})),
        ("nu", Value::Null),
        ("vg", json!(-2_147_483_647)),
        ("inv", json!(7)),
    ] {
        if column == "po" {
            assert_eq!(first[column]["srid"], value["srid"]);
            continue;
        }
        assert_eq!(first[column], value, "{column}");
    }
    let third = &of(&read, "ty")["{\"id\":3}"];
    for (column, value) in [
        ("d", Value::Null),
        ("dt", Value::Null),
        ("ts", Value::Null),
        ("yr", json!(0)),
        ("tm", json!("24:00:00")),
        ("tm6", json!("-00:00:00.500000")),
        ("en", json!("")),
        ("st", json!("")),
        ("fl", json!(16_777_216.0)),
        ("db", json!(1e-300)),
        ("bn", json!("AAAAAAAAAAA=")),
    ] {
        assert_eq!(third[column], value, "{column}");
    }
}

#[test]
fn times_are_numbers_where_the_options_say_so_in_stream_and_snapshot() {
    let Some(server) = Server::shared() else { return };
    // date -u -d '2026-11-21 04:05:06' +%s
    let (dt, ts) = (1_795_233_906_i64, 1_795_233_906_i64 - 7200);
    let zones = ("2026-11-21T02:05:06Z", "2026-11-21T02:05:06.123456Z");
    let tm = |hours: i64, seconds: i64| -(hours * 3600 + seconds);
    for (times, expected) in [
        (
            "epoch_ms",
            json!([
                20_778,
                dt * 1000,
                dt * 1000 + 789,
                dt * 1000 + 123,
                ts * 1000,
                ts * 1000 + 123,
                tm(838, 59 * 60 + 59) * 1000,
                -1250,
                -360_000_000
            ]),
        ),
        (
            "epoch_us",
            json!([
                20_778,
                dt * 1_000_000,
                dt * 1_000_000 + 789_000,
                dt * 1_000_000 + 123_456,
                ts * 1_000_000,
                ts * 1_000_000 + 123_456,
                tm(838, 59 * 60 + 59) * 1_000_000,
                -1_250_000,
                -360_000_000_001_i64
            ]),
        ),
        (
            "adaptive",
            json!([
                20_778,
                dt * 1000,
                dt * 1000 + 789,
                dt * 1_000_000 + 123_456,
                zones.0,
                zones.1,
                tm(838, 59 * 60 + 59) * 1_000_000,
                -1_250_000,
                -360_000_000_001_i64
            ]),
        ),
    ] {
        let database = server.database();
        let options = format!("{}times = \"{times}\"", server.options(&format!("\"{database}.ty\"")));
        let mut stream = Bench::new(&options);
        stream.read();
        server.run(&types_sql(&database));
        stream.read();
        let mut snapshot = Bench::new(&options);
        snapshot.read();
        assert_eq!(rows(&stream.seen), rows(&snapshot.seen), "{times}");
        assert_eq!(stream.schemas, snapshot.schemas, "{times}");
        let first = &rows(&snapshot.seen)["{\"id\":1}"];
        let written = ["d", "dt", "dt3", "dt6", "ts", "ts6", "tm", "tm2", "tm6"].map(|column| first[column].clone());
        assert_eq!(json!(written), expected, "{times}");
        let third = &rows(&snapshot.seen)["{\"id\":3}"];
        assert_eq!((&third["d"], &third["dt"], &third["tm"]), (&Value::Null, &Value::Null, &third["tm"]), "{times}");
    }
}

#[test]
fn values_are_written_as_the_options_say() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&types_sql(&database));
    let options = server.options(&format!("\"{database}.ty\""));
    let mut bench = Bench::new(&format!(
        "{options}decimals = \"number\"\nbinary = \"hex\"\nzero_dates = \"string\"\nenvelope = \"row\"\ntombstones = false"
    ));
    bench.read();
    server.run(&format!("SET sql_mode=''; UPDATE {database}.ty SET dt = '2026-00-00' WHERE id = 2; DELETE FROM {database}.ty WHERE id = 3"));
    bench.read();
    let row = |index: usize| bench.seen[index].value.clone().unwrap();
    assert_eq!(row(0)["bl"], json!("00ff10"));
    assert_eq!(row(0)["de"].as_f64(), Some(-12_345_678_901_234_567_890.012_345_678_9));
    assert_eq!(row(2)["dt"], json!("2026-00-00T00:00:00"));
    assert_eq!(row(2)["ts"], json!("0000-00-00T00:00:00Z"));
    assert_eq!(row(3)["dt"], json!("2026-00-00T00:00:00"));
    assert_eq!((bench.seen.len(), bench.seen[4].value.clone()), (5, None));

    let mut bench = Bench::new(&format!("{options}zero_dates = \"error\""));
    bench.read();
    server.run(&format!("SET sql_mode=''; UPDATE {database}.ty SET dt = '2026-02-03' WHERE id = 2"));
    bench.read();
    let codes: Vec<_> = bench.rejected.iter().map(|(record, code)| (record.op(), code.as_str())).collect();
    assert_eq!(
        codes,
        [("r", "mysql.zero_date"), ("u", "mysql.zero_date")],
        "the row, and the update for its image before"
    );
    assert_eq!(bench.seen.len(), 1);
}
