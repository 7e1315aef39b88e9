//! The independent readers of Parquet files.

use std::fs;
use std::path::Path;
use std::process::Command;

use trunkline_tests::{LogWriter, Reader, need};

/// Writes a Parquet file from a combined log with DuckDB. `rows` is an SQL clause that selects
/// rows.
fn write_lake(log: &Path, folder: &Path, rows: &str) {
    fs::create_dir_all(folder.join("day=2026-03-01")).unwrap();
    let script = format!(
        r#"
import duckdb
duckdb.sql(r"""
    COPY (WITH lines AS (SELECT unnest(string_split(trim(content, chr(10)), chr(10))) AS line FROM read_text('{log}')),
               fields AS (SELECT regexp_extract(line, '\[(.*?)\] "(\S+) (\S+) (\S+)" (\d+) (\S+) "(.*?)" "(.*?)"',
                          ['time', 'method', 'path', 'protocol', 'status', 'size', 'referer', 'agent']) AS f FROM lines)
          SELECT strptime(f.time, '%d/%b/%Y:%H:%M:%S %z') AS timestamp, f.method AS method, f.path AS path, f.protocol AS protocol,
                 f.status::BIGINT AS status, nullif(f.size, '-')::BIGINT AS bytes, nullif(f.referer, '-') AS referer,
                 nullif(f.agent, '-') AS user_agent
          FROM fields {rows})
    TO '{folder}/day=2026-03-01/part.parquet' (FORMAT PARQUET)""")
"#,
        log = log.display(),
        folder = folder.display(),
    );
    run_python(&script);
}

fn run_python(script: &str) {
    let python = Command::new(trunkline_tests::repository().join("tests/services/reader")).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let output = Command::new(python.trim()).args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a Parquet file of change events, as a sink does for the offsets from `first` on. Each
/// event is (operation, version before, version after) of one row.
fn write_changes(folder: &Path, first: usize, events: &[(&str, Option<u64>, Option<u64>)]) {
    let row = |version: &Option<u64>| {
        version.map_or("None".to_owned(), |version| format!("{{'n': 7, 'version': {version}}}"))
    };
    let events: Vec<_> = events
        .iter()
        .map(|(op, before, after)| format!("{{'op': '{op}', 'before': {}, 'after': {}}}", row(before), row(after)))
        .collect();
    let last = first + events.len() - 1;
    let script = format!(
        "import pyarrow as pa, pyarrow.parquet as pq\n\
         row = pa.struct([('n', pa.uint64()), ('version', pa.uint64())])\n\
         schema = pa.schema([('op', pa.string()), ('before', row), ('after', row)], metadata={{'trunkline.topic': 'p.shop.orders', \
         'trunkline.partition': '0', 'trunkline.first_offset': '{first}', 'trunkline.last_offset': '{last}'}})\n\
         pq.write_table(pa.Table.from_pylist([{}], schema=schema), r'{}/{first}.parquet')",
        events.join(", "),
        folder.display()
    );
    run_python(&script);
}

#[test]
fn changes_are_folded_and_missing_changes_are_found() {
    let reader = need!(Reader::find());
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path();
    write_changes(lake, 10, &[("u", Some(2), Some(3)), ("r", None, Some(3))]);
    write_changes(lake, 0, &[("r", None, Some(1)), ("u", Some(1), Some(2))]);
    let found = reader.fold(lake, "n", "version");
    assert_eq!((found.rows, found.out_of_order.len()), (4, 0), "{:?}", found.out_of_order);
    assert_eq!(found.folded["orders"]["7"]["version"].as_deref(), Some("3"));
    let orders = |op: &str, version| ("orders".to_owned(), op.to_owned(), 7, version);
    assert_eq!(found.changes, [orders("u", 2), orders("u", 3)]);

    write_changes(lake, 20, &[("d", Some(3), None)]);
    let gone = reader.fold(lake, "n", "version");
    assert!(gone.folded["orders"].is_empty() && gone.out_of_order.is_empty(), "{gone:?}");

    // A missing change, a duplicate one, and a snapshot row that is older than a change.
    for wrong in [("u", Some(4), Some(5)), ("d", Some(2), None), ("c", None, Some(9)), ("r", None, Some(2))] {
        write_changes(lake, 20, &[wrong]);
        assert_eq!(reader.fold(lake, "n", "version").out_of_order.len(), 1, "{wrong:?}");
    }
    // Files whose offsets overlap.
    write_changes(lake, 20, &[("d", Some(3), None)]);
    write_changes(lake, 11, &[("c", None, Some(4))]);
    assert!(!reader.fold(lake, "n", "version").out_of_order.is_empty());
}

#[test]
fn rows_are_counted_and_compared_with_the_log() {
    let reader = need!(Reader::find());
    let folder = tempfile::tempdir().unwrap();
    let (path, lake) = (folder.path().join("access.log"), folder.path().join("lake"));
    let mut log = LogWriter::new(&path, 1);
    log.append(500);
    write_lake(&path, &lake, "");

    let found = reader.read_with_sums(&lake, &["path"], &["bytes"]);
    assert_eq!((found.files, found.rows, found.distinct), (1, 500, Some(500)));
    assert_eq!(found.sums["bytes"], log.bytes());
    assert_eq!(found.types["status"], ["int64"]);
    assert_eq!(found.partitions["day"], ["2026-03-01"]);
    assert!(found.nulls["referer"] > 0);

    let same = reader.compare(&lake, &[&path]);
    assert_eq!((same.missing_total, same.extra_total, same.unparsed), (Some(0), Some(0), Some(0)), "{same:?}");

    // Hidden folders have unpublished files, which are not read.
    fs::create_dir(lake.join(".trunkline-staging")).unwrap();
    fs::copy(lake.join("day=2026-03-01/part.parquet"), lake.join(".trunkline-staging/part.parquet")).unwrap();
    assert_eq!(reader.read(&lake, &["path"]).rows, 500);

    fs::copy(lake.join("day=2026-03-01/part.parquet"), lake.join("day=2026-03-01/twice.parquet")).unwrap();
    let doubled = reader.read(&lake, &["path"]);
    assert_eq!((doubled.rows, doubled.distinct), (1000, Some(500)));
    assert_eq!(reader.compare(&lake, &[&path]).extra_total, Some(500));

    let short = folder.path().join("short");
    write_lake(&path, &short, "LIMIT 490");
    let short = reader.compare(&short, &[&path]);
    assert_eq!((short.missing_total, short.extra_total, short.missing.len()), (Some(10), Some(0), 10));
}
