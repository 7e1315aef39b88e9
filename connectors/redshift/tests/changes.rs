//! Changes of rows and of columns: what the table holds afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use arrow::datatypes::{DataType, Field, TimeUnit};
use common::{Bench, Records, load, partition};
use trunkline_connector::Rejections;
use trunkline_tests::{History, Memory, Random, need, repetitions};

fn order_fields() -> Vec<Field> {
    vec![Field::new("id", DataType::Int32, false), Field::new("note", DataType::Utf8, true)]
}

fn row(id: i32, note: &str) -> String {
    format!(r#"{{"id":{id},"note":"{note}"}}"#)
}

#[test]
fn an_upsert_table_holds_the_newest_rows() {
    let bench = need!(Bench::new("upserts"));
    let schema = bench.publish(order_fields(), "id");
    let mut sink = bench.open("table = \"orders\"\nmode = \"upsert\"");
    let mut records = Records::default();
    for id in 0..20 {
        records.event(&schema, "r", "null", &row(id, "snapshot"));
    }
    records.event(&schema, "u", &row(3, "snapshot"), &row(3, "first"));
    records.event(&schema, "u", &row(3, "first"), &row(3, "second"));
    // A delete with its tombstone.
    records.event(&schema, "d", &row(4, "snapshot"), "null");
    records.push(Some(&schema), Some(r#"{"id":4}"#), None);
    // A deleted key that is inserted again, and a changed key.
    records.event(&schema, "d", &row(5, "snapshot"), "null");
    records.event(&schema, "c", "null", &row(5, "again"));
    records.event(&schema, "d", &row(6, "snapshot"), "null");
    records.event(&schema, "c", "null", &row(106, "moved"));
    assert!(load(sink.as_mut(), &records.batch).is_empty());
    let rows = || bench.rows("SELECT id, note FROM $S.orders ORDER BY id");
    let mut expected: Vec<String> =
        (0..20).filter(|id| ![3, 4, 5, 6].contains(id)).map(|id| format!("{id}\tsnapshot")).collect();
    expected.extend(["3\tsecond", "5\tagain", "106\tmoved"].map(str::to_owned));
    expected.sort_by_key(|row| row.split('\t').next().unwrap().parse::<i32>().unwrap());
    assert_eq!(rows(), expected);
    // In later loads, too: an update, a delete by its key alone, and a TRUNCATE between changes.
    let mut later = Records::from_offset(100);
    later.event(&schema, "u", &row(0, "snapshot"), &row(0, "later"));
    later.push(Some(&schema), Some(r#"{"id":1}"#), None);
    load(sink.as_mut(), &later.batch);
    assert_eq!(rows()[..2], ["0\tlater", "2\tsnapshot"]);
    let mut truncated = Records::from_offset(200);
    truncated.event(&schema, "c", "null", &row(500, "lost"));
    truncated.event(&schema, "t", "null", "null");
    truncated.event(&schema, "c", "null", &row(501, "kept"));
    load(sink.as_mut(), &truncated.batch);
    assert_eq!(rows(), ["501\tkept"]);
    let mut emptied = Records::from_offset(300);
    emptied.event(&schema, "t", "null", "null");
    load(sink.as_mut(), &emptied.batch);
    assert!(rows().is_empty());
}

#[test]
fn a_soft_delete_keeps_the_row() {
    let bench = need!(Bench::new("softdeletes"));
    let schema = bench.publish(order_fields(), "id");
    let mut sink = bench.open("table = \"orders\"\nmode = \"upsert\"\ndeletes = \"soft\"");
    let mut records = Records::default();
    records.event(&schema, "c", "null", &row(1, "a")).event(&schema, "c", "null", &row(2, "b"));
    load(sink.as_mut(), &records.batch);
    let mut later = Records::from_offset(10);
    later.event(&schema, "d", &row(1, "a"), "null").event(&schema, "u", &row(2, "b"), &row(2, "c"));
    load(sink.as_mut(), &later.batch);
    let rows = bench.rows("SELECT id, note, deleted_at IS NOT NULL FROM $S.orders ORDER BY id");
    assert_eq!(rows, ["1\ta\tt", "2\tc\tf"]);
}

#[test]
fn a_history_table_holds_every_version() {
    let bench = need!(Bench::new("history"));
    let schema = bench.publish(order_fields(), "id");
    let mut sink = bench.open("table = \"orders\"\nmode = \"history\"");
    let mut records = Records::default();
    records.event(&schema, "c", "null", &row(1, "a"));
    records.event(&schema, "u", &row(1, "a"), &row(1, "b"));
    records.event(&schema, "c", "null", &row(2, "x"));
    load(sink.as_mut(), &records.batch);
    let mut later = Records::from_offset(10);
    later.event(&schema, "u", &row(1, "b"), &row(1, "c"));
    later.event(&schema, "d", &row(2, "x"), "null");
    load(sink.as_mut(), &later.batch);
    let rows = bench.rows(
        "SELECT id, note, extract(epoch from valid_from)::int, extract(epoch from valid_to)::int, is_current FROM $S.orders \
         ORDER BY id, valid_from",
    );
    assert_eq!(rows, ["1\ta\t0\t1\tf", "1\tb\t1\t10\tf", "1\tc\t10\t\\N\tt", "2\tx\t2\t11\tf"]);
}

#[test]
fn tables_evolve_with_their_records() {
    let bench = need!(Bench::new("evolution"));
    let mut sink = bench.open("table = \"t\"");
    let mut load_values = |from: i64, values: &[&str]| {
        let mut records = Records::from_offset(from);
        for value in values {
            records.push(None, None, Some(value));
        }
        load(sink.as_mut(), &records.batch)
    };
    assert!(load_values(0, &[r#"{"id":1,"text":"x"}"#]).is_empty());
    // A new column, text longer than the column, and a decimal in a column of integers.
    let long = "y".repeat(3000);
    assert!(
        load_values(10, &[r#"{"id":2,"added":{"a":[1,2]}}"#, &format!(r#"{{"id":3,"text":"{long}"}}"#)]).is_empty()
    );
    let rows = bench.rows("SELECT id, length(text), added->'a'->>1 FROM $S.t ORDER BY id");
    assert_eq!(rows, ["1\t1\t\\N", "2\t\\N\t2", "3\t3000\t\\N"]);
    // Only the value that no column can hold is set aside.
    let too_long = format!(r#"{{"id":5,"text":"{}"}}"#, "z".repeat(70_000));
    let rejected = load_values(20, &[r#"{"id":4}"#, &too_long, r#"{"id":6}"#]);
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert!(rejected[0].starts_with("warehouse.value_misfit: column `text`: has 70000 bytes"), "{rejected:?}");
    assert_eq!(bench.rows("SELECT id FROM $S.t WHERE id > 3 ORDER BY id"), ["4", "6"]);
}

#[test]
fn two_workers_that_evolve_one_table_both_succeed() {
    let bench = need!(Bench::new("twoworkers"));
    let value = |offset: i64, value: &str| {
        let mut records = Records::from_offset(offset);
        records.push(None, None, Some(value));
        records.batch
    };
    bench.rows("CREATE TABLE $S.t (id integer, text varchar(10), size integer)");
    let mut workers = [(); 2].map(|()| bench.open("table = \"t\""));
    // Both know the table as it is.
    for worker in &mut workers {
        worker.write(&partition(), &value(0, r#"{"id":1,"text":"x","size":7}"#), &mut Rejections::default()).unwrap();
    }
    let long = "y".repeat(3_000);
    let changed = [
        format!(r#"{{"id":2,"text":"{long}","size":7}}"#),
        r#"{"id":3,"text":"x","size":1.5}"#.to_owned(),
        r#"{"id":4,"text":"x","size":7,"added":true}"#.to_owned(),
    ];
    for (number, text) in changed.iter().enumerate() {
        let (records, start) = (value(1 + number as i64, text), std::sync::Barrier::new(workers.len()));
        std::thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| {
                    let mut rejected = Rejections::default();
                    start.wait();
                    worker.write(&partition(), &records, &mut rejected).unwrap();
                    assert!(rejected.is_empty(), "{:?}", rejected.reasons);
                });
            }
        });
    }
    let types = bench.rows(
        "SELECT column_name, data_type, character_maximum_length FROM information_schema.columns WHERE table_schema = '$S' \
         AND table_name = 't' AND column_name IN ('text', 'size', 'added') ORDER BY column_name",
    );
    assert_eq!(types, ["added\tboolean\t\\N", "size\tdouble precision\t\\N", "text\tcharacter varying\t8192"]);
}

#[test]
fn existing_tables_are_used_as_they_are() {
    let bench = need!(Bench::new("existing"));
    // More columns, another order, narrower types, a default.
    bench.rows(
        "CREATE TABLE $S.t (extra int DEFAULT 7, note varchar(10), id smallint NOT NULL, price numeric(8,2), at timestamptz)",
    );
    let schema = bench.publish(
        vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(12, 4), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
            Field::new("note", DataType::Utf8, true),
        ],
        "id",
    );
    let mut sink = bench.open("table = \"t\"\nlineage = false");
    let mut records = Records::default();
    let row =
        |id: i64, price: &str| format!(r#"{{"id":{id},"price":"{price}","at":"2015-05-17T10:05:03.25Z","note":"n"}}"#);
    records.event(&schema, "c", "null", &row(1, "12.50"));
    // Fits neither smallint nor numeric(8,2): both columns are widened.
    records.event(&schema, "c", "null", &row(70_000, "1.2345"));
    assert!(load(sink.as_mut(), &records.batch).is_empty());
    let rows = bench.rows("SELECT id, price, at AT TIME ZONE 'UTC', note, extra FROM $S.t ORDER BY id");
    assert_eq!(rows, ["1\t12.5000\t2015-05-17 10:05:03.25\tn\t7", "70000\t1.2345\t2015-05-17 10:05:03.25\tn\t7"]);
}

#[test]
fn a_change_of_type_follows_the_option() {
    let bench = need!(Bench::new("typechange"));
    let value = |text: &str| {
        let mut records = Records::default();
        records.push(None, None, Some(text));
        records.batch
    };
    bench.rows("CREATE TABLE $S.stop (a date); CREATE TABLE $S.new_column (a date); CREATE TABLE $S.text (a date)");
    bench.rows("INSERT INTO $S.text VALUES ('2015-05-17')");
    let mut stopped = bench.open("table = \"stop\"");
    let error = common::prepare(stopped.as_mut(), &value(r#"{"a":17}"#)).unwrap_err();
    assert_eq!(error.code, "warehouse.type_change");
    let mut added = bench.open("table = \"new_column\"\non_type_change = \"new_column\"");
    load(added.as_mut(), &value(r#"{"a":17}"#));
    assert_eq!(bench.rows("SELECT a, a_2 FROM $S.new_column"), ["\\N\t17"]);
    let mut widened = bench.open("table = \"text\"\non_type_change = \"text\"");
    load(widened.as_mut(), &value(r#"{"a":17}"#));
    assert_eq!(bench.rows("SELECT a FROM $S.text ORDER BY 1"), ["17", "2015-05-17"]);
}

/// The rows of a history, as a query prints them.
fn expected_rows(history: &History) -> Vec<String> {
    history.rows().iter().map(|(id, note)| format!("{id}\t{note}")).collect()
}

#[test]
fn late_and_repeated_changes_lose_also_after_a_failover() {
    let bench = need!(Bench::new("lateness"));
    let schema = bench.publish(order_fields(), "id");
    let mut random = Random::new(1701);
    for (number, (memory, options, is_current)) in [
        (Memory::Deletes, "mode = \"upsert\"", "TRUE"),
        (Memory::Deletes, "mode = \"history\"", "is_current"),
        (Memory::Deletes, "mode = \"upsert\"\ndeletes = \"soft\"", "deleted_at IS NULL"),
        (Memory::Rows, "mode = \"upsert\"\nremember_deletes = \"0s\"", "TRUE"),
        (Memory::Versions, "mode = \"history\"\nremember_deletes = \"0s\"", "is_current"),
    ]
    .into_iter()
    .cycle()
    .take(repetitions(5, 60) as usize)
    .enumerate()
    {
        let history = History::random(&mut random, 12, 120);
        let mut sink = bench.open(&format!("table = \"t{number}\"\n{options}"));
        let mut offset = 0;
        for part in history.deliveries(&mut random, 15, memory) {
            let mut records = Records::from_offset(offset);
            for change in &part {
                records.change(&schema, change);
            }
            offset += part.len() as i64;
            assert!(load(sink.as_mut(), &records.batch).is_empty());
        }
        let rows = bench.rows(&format!("SELECT id, note FROM $S.t{number} WHERE {is_current} ORDER BY id"));
        assert_eq!(rows, expected_rows(&history), "{memory:?}, table t{number}");
        if is_current == "is_current" {
            let twice = format!("SELECT note FROM $S.t{number} GROUP BY note HAVING COUNT(*) > 1");
            assert!(bench.rows(&twice).is_empty(), "a version is there twice");
        }
    }
}

#[test]
fn a_deleted_row_stays_deleted_and_is_forgotten_in_time() {
    let bench = need!(Bench::new("remembered"));
    let schema = bench.publish(order_fields(), "id");
    let options = "table = \"t\"\nmode = \"upsert\"\nremember_deletes = \"1h\"";
    let change = |offset: i64, op: &str, pos: u64, id: i32| {
        let source = format!(r#"{{"ts_ms":{pos}000,"file":"b.000001","pos":{pos},"row":0}}"#);
        let row = row(id, &format!("at {pos}"));
        let (before, after) = if op == "d" { (row.as_str(), "null") } else { ("null", row.as_str()) };
        let value = format!(r#"{{"before":{before},"after":{after},"source":{source},"op":"{op}"}}"#);
        let mut records = Records::from_offset(offset);
        records.push_with(&schema, &value, 7);
        records
    };
    let mut sink = bench.open(options);
    let mut put = |offset, op, pos, id| assert!(load(sink.as_mut(), &change(offset, op, pos, id).batch).is_empty());
    let rows = || bench.rows("SELECT id, note FROM $S.t ORDER BY id");
    put(0, "c", 1, 1);
    put(1, "d", 3, 1);
    // A redriven change from before the delete.
    put(2, "u", 2, 1);
    assert!(rows().is_empty(), "{:?}", rows());
    // The row is created again, and a repeated delete from before that does not remove it.
    put(3, "c", 4, 1);
    put(4, "d", 3, 1);
    assert_eq!(rows(), ["1\tat 4"]);
    // Another key with an older change, and a delete of a row that the table never had.
    put(5, "c", 2, 2);
    put(6, "d", 9, 3);
    put(7, "c", 8, 3);
    assert_eq!(rows(), ["1\tat 4", "2\tat 2"]);
    let found = bench.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = '$S' AND table_name LIKE 'trunkline_deletes%'",
    );
    let deletes = format!("$S.\"{}\"", found[0]);
    let noted = || bench.rows(&format!("SELECT COUNT(*), COUNT(DISTINCT row_key) FROM {deletes}"));
    assert_eq!(noted(), ["2\t2"], "keys 1 and 3");
    // The next delete removes the notes that are too old.
    bench.rows(&format!("UPDATE {deletes} SET removed_at = removed_at - interval '61 minutes'"));
    put(8, "d", 5, 1);
    assert_eq!(noted(), ["1\t1"]);
    put(9, "c", 8, 3);
    assert_eq!(rows(), ["2\tat 2", "3\tat 8"]);
    // A table that was dropped is created again.
    bench.rows(&format!("DROP TABLE {deletes}"));
    drop(sink);
    let mut sink = bench.open(options);
    load(sink.as_mut(), &change(10, "d", 10, 2).batch);
    assert_eq!(rows(), ["3\tat 8"]);
}

#[test]
fn a_table_without_the_order_gets_its_column() {
    let bench = need!(Bench::new("ordercolumn"));
    let schema = bench.publish(order_fields(), "id");
    let options = |order: &str| format!("table = \"t\"\nmode = \"upsert\"\norder = \"{order}\"");
    let rows = || bench.rows("SELECT id, note, _source_order FROM $S.t ORDER BY id");
    // Records without an order, as those of earlier versions: no column.
    let mut sink = bench.open(&options("source"));
    let mut records = Records::default();
    records.event(&schema, "c", "null", &row(1, "a")).event(&schema, "c", "null", &row(2, "b"));
    load(sink.as_mut(), &records.batch);
    assert_eq!(bench.rows("SELECT * FROM $S.t LIMIT 0").len(), 0);
    assert!(bench.redshift.try_run("SELECT _source_order FROM ordercolumn.t").is_err());
    // A known order is newer than none, and a row with an order is not replaced by one without.
    let changes = |at: &[(u64, u64, &str)]| {
        let mut records = Records::from_offset(at[0].1 as i64 * 100);
        for (epoch, pos, note) in at {
            let source = format!(r#"{{"ts_ms":{pos}000,"file":"b.000001","pos":{pos},"row":0}}"#);
            let value = format!(r#"{{"before":null,"after":{},"source":{source},"op":"u"}}"#, row(1, note));
            records.push_with(&schema, &value, *epoch);
        }
        records
    };
    load(sink.as_mut(), &changes(&[(7, 5, "c")]).batch);
    let known = "0000000007.0000000001.0000000000000005.0000000000";
    assert_eq!(rows(), [format!("1\tc\t{known}"), "2\tb\t\\N".to_owned()]);
    let mut unordered = Records::from_offset(1_000);
    unordered.event(&schema, "u", "null", &row(1, "unordered")).event(&schema, "u", "null", &row(2, "d"));
    load(sink.as_mut(), &unordered.batch);
    assert_eq!(rows(), [format!("1\tc\t{known}"), "2\td\t\\N".to_owned()]);
    // Of two changes in one load, the later one in the source wins.
    load(sink.as_mut(), &changes(&[(7, 9, "f"), (7, 8, "e")]).batch);
    assert!(rows()[0].starts_with("1\tf\t"), "{:?}", rows());
    // By request, the order of arrival decides.
    let mut by_arrival = bench.open(&options("arrival"));
    load(by_arrival.as_mut(), &changes(&[(7, 6, "arrived")]).batch);
    assert_eq!(rows()[0], "1\tarrived\t\\N");
}
