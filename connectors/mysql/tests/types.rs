//! Every type with difficult values: snapshot and stream emit the same row.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;

use common::{Bench, Kind, Seen, Server};
use serde_json::{Value, json};

/// The script's table in the test's database, without the sessions that write partial rows.
fn types_sql(server: &Server, database: &str) -> String {
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/types.sql")).unwrap();
    let end = script.find("UPDATE ty SET js=JSON_SET").unwrap();
    let script = format!("USE {database};\n{}", &script[script.find("DROP TABLE IF EXISTS ty").unwrap()..end]);
    if server.is_mariadb() { script.replace("SRID 4326", "REF_SYSTEM_ID=4326") } else { script }
}

fn rows(records: &[Seen]) -> BTreeMap<String, Value> {
    records.iter().map(|record| (record.key.clone().unwrap(), record.after().clone())).collect()
}

/// Tables with every column type, and rows with their extreme values.
fn create_tables(server: &Server, database: &str) {
    server.run(&types_sql(server, database));
    // Features of one vendor: vectors and functional indexes, or collations of several
    // character sets.
    let (own, indexes) = if server.is_mariadb() {
        let own = "CREATE TABLE own (id INT PRIMARY KEY, t TEXT CHARACTER SET utf8mb4 COLLATE uca1400_ai_ci, v VARCHAR(9) CHARACTER SET latin1 COLLATE latin1_swedish_nopad_ci,
             u UUID, a INET4, b INET6, h BINARY(16), n UUID NOT NULL, f BINARY(4));
             INSERT INTO own VALUES (1, 'é', 'é', '123e4567-e89b-12d3-a456-426655440000', '192.0.2.1', '2001:db8::ff00:42:8329', 'x', '00000000-0000-0000-0000-000000000000', 'y'),
             (2, '', '', 'ffffffff-ffff-ffff-ffff-fffffffffffe', '0.0.0.0', '::', x'00', '01890a5d-ac96-774b-bcce-b302099a8057', NULL),
             (3, NULL, NULL, NULL, NULL, '::1', NULL, 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6', x'00'),
             (4, NULL, NULL, UUID(), '255.255.255.255', '::ffff:192.0.2.128', NULL, 'f81d4fae-7dec-41d0-a765-000000000000', NULL),
             (5, NULL, NULL, NULL, NULL, '::192.0.2.128', NULL, 'f81d4fae-7dec-61d0-2765-000000000000', NULL),
             (6, NULL, NULL, NULL, NULL, '1:0:0:2::3', NULL, '00000000-0000-1000-8000-000000000000', NULL),
             (7, NULL, NULL, NULL, NULL, '1:0:2:3:4:5:6:7', NULL, UUID(), NULL);
             CREATE TABLE keyed (u UUID PRIMARY KEY, v INT); INSERT INTO keyed VALUES (UUID(), 1), ('f81d4fae-7dec-11d0-a765-00a0c91e6bf6', 2);
";
        (own, "")
    } else {
        let own = "CREATE TABLE keyed (id INT PRIMARY KEY); INSERT INTO keyed VALUES (1); CREATE TABLE own (id INT PRIMARY KEY, v VECTOR(3)); INSERT INTO own VALUES (1, STRING_TO_VECTOR('[1,2.5,-3e-7]')), (2, NULL);";
        (own, ", INDEX ((k + 1)), INDEX ((CAST(p->'$.tags' AS UNSIGNED ARRAY)))")
    };
    let binary = if server.is_mariadb() { "" } else { "'x', CAST(REPEAT('y',100) AS BINARY), " };
    server.run(&format!(
        "USE {database}; {own}
         CREATE TABLE more (a BIGINT UNSIGNED, b VARCHAR(20) CHARACTER SET cp850, c CHAR(3) CHARACTER SET utf32, d DECIMAL(5,5) , e SET('a','b\\'c','d e'), \
         f BIT(64), g TIMESTAMP(3) NULL, h TIME(3), i BINARY(200), j CHAR(70), k INT(5) ZEROFILL, l DECIMAL(8,2) ZEROFILL, m POLYGON, n YEAR, o DOUBLE, \
         p JSON, q TEXT CHARACTER SET gbk, r VARCHAR(9) CHARACTER SET swe7, PRIMARY KEY (b, a){indexes});
         INSERT INTO more VALUES (18446744073709551615, 'Ünîç', '日本', -0.00001, 'a,d e', b'1', '2038-01-19 03:14:07.999', '-00:00:00.001', x'00ff', 'ab  c  ', 7, 1.5, \
         ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))'), 1901, -1.7976931348623157e308, \
         JSON_OBJECT({binary}'e', JSON_ARRAY(), 'o', JSON_OBJECT(), 'd', CAST('2026-01-02' AS DATE), 'q', 'a\"\\\\\\n\\u0001é', 's', 1e-20, 'l', -2147483649, 'big', REPEAT('z', 70000)), '中文', 'AB');
         INSERT INTO more (b, a) VALUES ('', 0);"
    ));
}

#[test]
fn snapshot_and_stream_emit_the_same_values_and_schema() {
    for server in Server::shared_each() {
        let database = server.database();
        let tables = format!("\"{database}.*\"");
        let mut stream = Bench::new(&server.options(&tables));
        stream.read();
        create_tables(server, &database);
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
        for table in ["ty", "own", "more", "keyed"] {
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

        let (first, third) = (&of(&read, "ty")["{\"id\":1}"], &of(&read, "ty")["{\"id\":3}"]);
        // The binary form was compared above: it depends on the order of the axes.
        assert_eq!(first["po"]["srid"], 4326);
        for (row, expected) in [(first, expected_first_row(server)), (third, expected_third_row(server))] {
            for (column, value) in expected {
                assert_eq!(row[column], value, "{column}");
            }
        }
    }
}

fn expected_first_row(server: &Server) -> Vec<(&'static str, Value)> {
    vec![
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
        // MariaDB's JSON is text, and stays as written.
        (
            "js",
            json!(if server.is_mariadb() {
                "{\"b\":1,\"a\":[1.5,\"é\",null,true],\"u\":18446744073709551615}"
            } else {
                "{\"a\": [1.5, \"é\", null, true], \"b\": 1, \"u\": 18446744073709551615}"
            }),
        ),
        ("nu", Value::Null),
        ("vg", json!(-2_147_483_647)),
        ("inv", json!(7)),
    ]
}

fn expected_third_row(server: &Server) -> Vec<(&'static str, Value)> {
    vec![
        ("d", Value::Null),
        ("dt", Value::Null),
        ("ts", Value::Null),
        ("yr", json!(0)),
        ("tm", json!(if server.is_mariadb() { "23:59:59" } else { "24:00:00" })),
        ("tm6", json!("-00:00:00.500000")),
        ("en", json!("")),
        ("st", json!("")),
        ("fl", json!(16_777_216.0)),
        ("db", json!(1e-300)),
        ("bn", json!("AAAAAAAAAAA=")),
    ]
}

#[test]
fn times_are_numbers_in_stream_and_snapshot_if_configured() {
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
        server.run(&types_sql(server, &database));
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
fn values_follow_the_format_options() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&types_sql(server, &database));
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

#[test]
fn unsupported_columns_are_reported_by_name() {
    let Some(server) = Server::shared_mariadb() else { return };
    let database = server.database();
    for (index, (column, why)) in
        [("VARCHAR(50) COMPRESSED", "COMPRESSED"), ("BLOB COMPRESSED", "COMPRESSED")].into_iter().enumerate()
    {
        server.run(&format!("USE {database}; CREATE TABLE t{index} (id INT PRIMARY KEY, odd {column})"));
        let error = Bench::new(&server.options(&format!("\"{database}.t{index}\""))).try_read().unwrap_err();
        assert_eq!(error.code, "mysql.column");
        assert!(error.message().contains("`odd`") && error.message().contains(why), "{error}");
    }
    // The format before MySQL 5.6, in an existing table and in one that appears while the source
    // runs.
    let Some(old) = Server::start_kind(Kind::MariaDb, "--mysql56-temporal-format=OFF") else { return };
    let database = old.database();
    let mut bench = Bench::new(&old.options(&format!("\"{database}.*\"")));
    bench.read();
    for kind in ["DATETIME(3)", "TIME", "TIMESTAMP NULL"] {
        old.run(&format!(
            "USE {database}; CREATE OR REPLACE TABLE o (id INT PRIMARY KEY, at {kind}); INSERT INTO o VALUES (1, NULL)"
        ));
        let options = old.options(&format!("\"{database}.*\""));
        for bench in [&mut bench, &mut Bench::new(&options)] {
            let error = bench.try_read().unwrap_err();
            assert_eq!(error.code, "mysql.column", "{error}");
            assert!(error.message().contains("mysql56_temporal_format") && error.message().contains("`at`"), "{error}");
            bench.stop();
        }
    }
}
