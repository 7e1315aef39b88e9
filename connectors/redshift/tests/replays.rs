//! Replays that replace rows: whatever dies in the transaction, the table has the earlier rows of
//! the range or the new ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{Bench, Records, load, partition, prepare};
use trunkline_connector::{Domain, Supersede};
use trunkline_tests::{RedshiftFault, RedshiftFaults, need};

const STATEMENTS: [&str; 7] = [
    "SELECT \"topic\"",
    "UPDATE \"trunkline_replays",
    "DELETE FROM",
    "COPY",
    "SELECT COUNT",
    "INSERT INTO \"t\"",
    "COMMIT",
];

const OPTIONS: &str = "table = \"t\"";

/// Records of the offsets in the range that `keep` selects.
fn records(range: std::ops::Range<i64>, text: &str, keep: impl Fn(i64) -> bool) -> Records {
    let mut records = Records::default();
    for id in range.filter(|id| keep(*id)) {
        records.skip_to(id).push(None, None, Some(&format!(r#"{{"id":{id},"text":"{text}"}}"#)));
    }
    records
}

#[test]
fn rows_of_a_range_are_replaced_in_one_transaction_whatever_breaks() {
    let bench = need!(Bench::new("replaced"));
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let rows = || bench.rows("SELECT text, COUNT(*), MIN(_offset), MAX(_offset) FROM $S.t GROUP BY text ORDER BY text");
    let mut live = bench.open(OPTIONS);
    load(live.as_mut(), &records(0..30, "v0", |_| true).batch);
    let mut run = 0;
    let mut before = "v0".to_owned();
    for statement in STATEMENTS {
        for fault in [RedshiftFault::Unsent, RedshiftFault::ReplyLost] {
            let after = format!("v{}", run + 1);
            let earlier = if run == 0 {
                vec!["v0\t30\t0\t29".to_owned()]
            } else {
                vec!["v0\t20\t0\t29".to_owned(), format!("{before}\t5\t10\t18")]
            };
            let open = |port| bench.open_superseding(port, OPTIONS, &format!("r{run}"), (10, 20));
            let mut replay = open(proxy.port());
            // Today's transforms drop every second record, also the last one of the range.
            let (first, _) = prepare(replay.as_mut(), &records(10..15, &after, |id| id % 2 == 0).batch).unwrap();
            let (second, _) = prepare(replay.as_mut(), &records(15..20, &after, |id| id % 2 == 0).batch).unwrap();
            let staged = [first, second].concat();
            replay.check_prepared(&staged).unwrap();
            assert_eq!(rows(), earlier, "nothing is visible before the commit");
            // A live task that starts meanwhile leaves the staged files alone.
            bench.open(OPTIONS).recover(&partition(), &[]).unwrap();
            // The first attempt creates the mark of the run, whose statements would break instead.
            proxy.break_at("DELETE FROM", RedshiftFault::Unsent);
            replay.commit(&staged).unwrap_err();
            assert_eq!(rows(), earlier);
            proxy.break_at(statement, fault);
            let outcome = replay.commit(&staged);
            assert!(proxy.is_done(), "{statement} was not sent");
            let new = vec!["v0\t20\t0\t29".to_owned(), format!("{after}\t5\t10\t18")];
            let found = rows();
            assert!(found == earlier || found == new, "{statement} {fault:?}: {found:?}");
            if let Err(error) = outcome {
                assert_eq!(error.domain, Domain::External, "{statement}: {error}");
                // Another process continues the run.
                open(proxy.port()).commit(&staged).unwrap();
            }
            assert_eq!(rows(), new, "{statement} {fault:?}");
            open(proxy.port()).commit(&staged).unwrap();
            assert_eq!(rows(), new, "a repeated commit changes nothing");
            (run, before) = (run + 1, after);
        }
    }
    // The loads of the live sink continue.
    load(live.as_mut(), &records(30..40, "v0", |_| true).batch);
    assert_eq!(rows()[0], "v0\t30\t0\t39");
}

#[test]
fn a_range_without_new_rows_loses_its_earlier_ones() {
    let bench = need!(Bench::new("emptied"));
    load(bench.open(OPTIONS).as_mut(), &records(0..30, "v0", |_| true).batch);
    let mut replay = bench.open_superseding(bench.redshift.port(), OPTIONS, "r", (5, 25));
    let (staged, _) = prepare(replay.as_mut(), &records(5..25, "v1", |_| true).batch).unwrap();
    replay.discard_prepared(&staged).unwrap();
    assert_eq!(replay.check_prepared(&staged).unwrap_err().code, "warehouse.staged_file_missing");
    replay.commit(&[]).unwrap();
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t WHERE _offset BETWEEN 5 AND 24"), ["0"]);
    assert_eq!(bench.rows("SELECT COUNT(*) FROM $S.t"), ["10"]);
}

#[test]
fn rows_are_counted_by_their_lineage_columns() {
    let bench = need!(Bench::new("counted"));
    let (spec, runtime) = bench.spec(OPTIONS);
    let ranges = |range| BTreeMap::from([(partition(), range)]);
    let none = spec.count_rows(&ranges((0, 100)), 5, runtime).unwrap().unwrap();
    assert_eq!((none.partitions.len(), none.unnamed), (0, 0), "the table does not exist");
    assert_eq!(spec.rows_in_the_way(&ranges((0, 100)), runtime).unwrap(), None);
    load(bench.open(OPTIONS).as_mut(), &records(0..30, "v0", |id| !(7..10).contains(&id) && id != 20).batch);
    let counted = spec.count_rows(&ranges((5, i64::MAX)), 1, runtime).unwrap().unwrap();
    let count = &counted.partitions[0];
    assert_eq!((count.rows, count.offsets, count.extremes, count.gaps.as_slice()), (21, 21, (5, 29), &[(7, 9)][..]));
    let message = spec.rows_in_the_way(&ranges((28, 50)), runtime).unwrap().unwrap();
    assert!(message.contains("2 rows of changes-0"), "{message}");
    assert_eq!(spec.rows_in_the_way(&ranges((30, 50)), runtime).unwrap(), None);
    bench.rows("INSERT INTO $S.t (id) VALUES (1)");
    assert_eq!(spec.count_rows(&ranges((0, 9)), 0, runtime).unwrap().unwrap().unnamed, 1);

    let place = spec.destination().unwrap();
    assert!(place.ends_with("/dev/counted/t") && !place.contains("rspass1"), "{place}");
    let of = |options: &str| (bench.spec(options).0.supersede(), bench.spec(options).0.destination().unwrap());
    assert_eq!(spec.supersede(), Supersede::Rows { up_to_live: false });
    assert_eq!(of("table = \"raw_{@topic}\"").0, Supersede::Rows { up_to_live: false });
    assert_eq!(of("mode = \"upsert\"").0, Supersede::Rows { up_to_live: true });
    for refused in ["lineage = false", "table = \"{kind}\""] {
        let (supersede, place) = of(refused);
        assert!(matches!(supersede, Supersede::Refused(_)), "{refused}");
        assert!(place.ends_with("/dev/counted"), "{place}");
    }
    let upsert = bench.spec("table = \"t\"\nmode = \"upsert\"").0;
    let message = upsert.rows_in_the_way(&ranges((90, 99)), runtime).unwrap().unwrap();
    assert!(message.contains("could replace newer rows"), "{message}");
}
