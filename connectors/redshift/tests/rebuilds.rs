//! Replays over tables whose rows belong to keys: the table ends as if today's transforms had
//! processed the range, whatever dies in the transaction, or the replay is refused and changes
//! nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use arrow::datatypes::{DataType, Field};
use common::{Bench, Records, load, prepare};
use serde_json::Value;
use trunkline_connector::{Domain, ErasedTwoPhaseSink, LIVE_AHEAD, NOT_REBUILT};
use trunkline_tests::{
    Ended, History, Memory, Random, Rebuilt, RedshiftFault, RedshiftFaults, RowChange, need, repetitions,
};

/// Versions that end later than this were ended by a TRUNCATE, when it was loaded.
const LOADED: u64 = 1_764_400_000;

/// A table of the tests.
struct Table<'a> {
    bench: &'a Bench,
    schema: &'a str,
    name: String,
    memory: Memory,
    options: String,
}

impl<'a> Table<'a> {
    fn new(bench: &'a Bench, schema: &'a str, number: usize, (memory, options): (Memory, &str)) -> Self {
        let name = format!("t{number}");
        let options = format!("table = \"{name}\"\n{options}");
        Self { bench, schema, name, memory, options }
    }

    fn records(&self, changes: &[(usize, RowChange)]) -> Records {
        let mut records = Records::default();
        for (offset, change) in changes {
            records.skip_to(*offset as i64).change(self.schema, change);
        }
        records
    }

    /// Loads what the live sink reads, in parts.
    fn load(&self, random: &mut Random, changes: &[(usize, RowChange)]) {
        let mut live = self.bench.open(&self.options);
        for part in parts(random, changes) {
            assert!(load(live.as_mut(), &self.records(part).batch).is_empty());
        }
    }

    fn replay(&self, port: u16, case: &Rebuilt) -> Box<dyn ErasedTwoPhaseSink> {
        self.bench.open_superseding(
            port,
            &self.options,
            &format!("r-{}", self.name),
            (case.from as i64, case.len() as i64),
        )
    }

    /// Stages the range in parts.
    fn stage(&self, random: &mut Random, port: u16, case: &Rebuilt) -> Vec<Value> {
        let mut replay = self.replay(port, case);
        let staged = case.staged();
        let loads = parts(random, &staged).into_iter().map(|part| prepare(replay.as_mut(), &self.records(part).batch));
        loads.flat_map(|prepared| prepared.unwrap().0).collect()
    }

    /// The rows and versions, as the query prints them.
    fn contents(&self) -> Vec<String> {
        let name = &self.name;
        match self.memory {
            Memory::Rows => self.bench.rows(&format!("SELECT id, note FROM $S.{name} ORDER BY id")),
            Memory::Deletes => {
                self.bench.rows(&format!("SELECT id, note FROM $S.{name} WHERE deleted_at IS NULL ORDER BY id"))
            }
            Memory::Versions => self.bench.rows(&format!(
                "SELECT id, note, extract(epoch from valid_from)::bigint, CASE WHEN extract(epoch from valid_to) > {LOADED} THEN 't' ELSE \
                 extract(epoch from valid_to)::bigint::text END, is_current FROM $S.{name} ORDER BY 1, 3, 2"
            )),
        }
    }

    /// What they must be.
    fn expected(&self, case: &Rebuilt) -> Vec<String> {
        if self.memory != Memory::Versions {
            return case.rows().iter().map(|(id, note)| format!("{id}\t{note}")).collect();
        }
        let mut versions = case.versions();
        versions.sort_by(|one, other| (one.0, one.2, &one.1).cmp(&(other.0, other.2, &other.1)));
        let row = |(id, note, from, ended): &(u64, String, u64, Option<Ended>)| {
            let (to, is_current) = match ended {
                None => ("\\N".to_owned(), "t"),
                Some(Ended::At(second)) => (second.to_string(), "f"),
                Some(Ended::ByTruncate) => ("t".to_owned(), "f"),
            };
            format!("{id}\t{note}\t{from}\t{to}\t{is_current}")
        };
        versions.iter().map(row).collect()
    }
}

/// Changes in parts of random sizes.
fn parts<'c>(random: &mut Random, changes: &'c [(usize, RowChange)]) -> Vec<&'c [(usize, RowChange)]> {
    let (mut rest, mut parts) = (changes, Vec::new());
    while !rest.is_empty() {
        let (part, after) = rest.split_at((random.below(30) as usize + 1).min(rest.len()));
        parts.push(part);
        rest = after;
    }
    parts
}

fn fields() -> Vec<Field> {
    vec![Field::new("id", DataType::Int32, false), Field::new("note", DataType::Utf8, true)]
}

const MODES: [(Memory, &str); 5] = [
    (Memory::Rows, "mode = \"upsert\""),
    (Memory::Versions, "mode = \"history\""),
    (Memory::Deletes, "mode = \"upsert\"\ndeletes = \"soft\""),
    (Memory::Rows, "mode = \"upsert\"\norder = \"arrival\""),
    (Memory::Versions, "mode = \"history\"\norder = \"arrival\""),
];

#[test]
fn random_ranges_end_as_today_s_transforms_make_them_or_are_refused() {
    let bench = need!(Bench::new("rebuilt"));
    let schema = bench.publish(fields(), "id");
    let mut random = Random::new(1901);
    let (mut refused, mut replaced) = (0, 0);
    for number in 0..repetitions(20, 300) as usize {
        let mode = MODES[number % MODES.len()];
        let table = Table::new(&bench, &schema, number, mode);
        let history = History::random(&mut random, 8, 60);
        let case = Rebuilt::random(&mut random, &history, number % 3 == 0);
        table.load(&mut random, &case.loaded());
        let before = table.contents();
        let staged = table.stage(&mut random, bench.redshift.port(), &case);
        let label = format!("table {}: {mode:?}, from {}", table.name, case.from);
        match table.replay(bench.redshift.port(), &case).commit(&staged) {
            Ok(()) => {
                replaced += 1;
                assert!(!case.must_be_refused(table.memory), "{label} was not refused");
                assert_eq!(table.contents(), table.expected(&case), "{label}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.code, NOT_REBUILT, "{label}: {error}");
                let has_truncates = history.changes().iter().any(|change| change.op == 't');
                let may = case.must_be_refused(table.memory)
                    || case.may_be_refused(table.memory)
                    || (mode.1.contains("arrival") && has_truncates);
                assert!(may, "{label} was refused: {error}");
                assert!(error.message().contains("--from earliest"), "{error}");
                assert_eq!(table.contents(), before, "{label} was refused and changed");
            }
        }
    }
    assert!(refused > 0 && replaced > refused, "{refused} refused, {replaced} replaced");
}

/// What breaks: before COMMIT, a lost reply is the same as a statement that was not sent.
fn faults(statement: &str) -> &'static [RedshiftFault] {
    let both = &[RedshiftFault::ReplyLost, RedshiftFault::Unsent];
    if statement == "COMMIT" || repetitions(0, 1) == 1 { both } else { &both[1..] }
}

#[test]
fn a_rebuild_that_breaks_at_any_statement_is_there_or_not() {
    let bench = need!(Bench::new("rebuildcrash"));
    let schema = bench.publish(fields(), "id");
    let proxy = RedshiftFaults::start(bench.redshift.port());
    let mut random = Random::new(1902);
    let mut number = 0;
    for (mode, statements) in [
        (
            MODES[0],
            &["UPDATE \"trunkline_replays", "UPDATE \"trunkline_offsets", "COPY", "INSERT INTO \"t", "COMMIT"][..],
        ),
        (MODES[1], &["SELECT COUNT", "UPDATE \"t", "DELETE FROM \"t", "INSERT INTO \"t", "COMMIT"][..]),
    ] {
        for statement in statements {
            for fault in faults(statement) {
                number += 1;
                let table = Table::new(&bench, &schema, number, mode);
                let case = loop {
                    let history = History::random(&mut random, 8, 40);
                    let case = Rebuilt::random(&mut random, &history, false);
                    if !case.must_be_refused(table.memory)
                        && !case.may_be_refused(table.memory)
                        && case.staged().len() > 5
                    {
                        break case;
                    }
                };
                table.load(&mut random, &case.loaded());
                let (before, after) = (table.contents(), table.expected(&case));
                let staged = table.stage(&mut random, proxy.port(), &case);
                // The first attempt creates the mark of the run, whose statements would break
                // instead.
                proxy.break_at("DELETE FROM \"t", RedshiftFault::Unsent);
                table.replay(proxy.port(), &case).commit(&staged).unwrap_err();
                assert_eq!(table.contents(), before, "{statement}");
                proxy.break_at(statement, *fault);
                let outcome = table.replay(proxy.port(), &case).commit(&staged);
                assert!(proxy.is_done(), "{statement} was not sent");
                let found = table.contents();
                assert!(found == before || found == after, "{statement} {fault:?}: {found:?}");
                if let Err(error) = outcome {
                    assert_eq!(error.domain, Domain::External, "{statement}: {error}");
                }
                // Another process continues the run, and a second one repeats it.
                table.replay(proxy.port(), &case).commit(&staged).unwrap();
                assert_eq!(table.contents(), after, "{statement} {fault:?}");
                table.replay(proxy.port(), &case).commit(&staged).unwrap();
                assert_eq!(table.contents(), after, "a repeated commit changes nothing");
            }
        }
    }
}

#[test]
fn a_rebuild_waits_for_what_the_live_sink_has_loaded_since() {
    let bench = need!(Bench::new("rebuildahead"));
    let schema = bench.publish(fields(), "id");
    let options = "table = \"t\"\nmode = \"upsert\"";
    let row = |id: u64, note: &str| format!("{{\"id\":{id},\"note\":\"{note}\"}}");
    let mut live = bench.open(options);
    let mut records = Records::default();
    records.event(&schema, "c", "null", &row(1, "a")).event(&schema, "c", "null", &row(2, "b"));
    load(live.as_mut(), &records.batch);
    let port = bench.redshift.port();
    let mut staged_records = Records::default();
    staged_records.event(&schema, "c", "null", &row(1, "A")).event(&schema, "c", "null", &row(2, "B"));
    let mut replay = bench.open_superseding(port, options, "r", (0, 2));
    let (mut staged, _) = prepare(replay.as_mut(), &staged_records.batch).unwrap();
    // A delete that the range does not have: the row would come back.
    let mut later = Records::from_offset(2);
    later.event(&schema, "d", &row(1, "a"), "null");
    load(live.as_mut(), &later.batch);
    let rows = || bench.rows("SELECT id, note FROM $S.t ORDER BY id");
    let error = replay.commit(&staged).unwrap_err();
    assert_eq!((error.code, rows()), (LIVE_AHEAD, vec!["2\tb".to_owned()]), "{error}");
    // The run follows the live sink.
    let mut follows = bench.open_superseding(port, options, "r", (0, 3));
    staged.extend(prepare(follows.as_mut(), &later.batch).unwrap().0);
    follows.commit(&staged).unwrap();
    assert_eq!(rows(), ["2\tB"]);
    // The loads of the live sink continue.
    let mut more = Records::from_offset(3);
    more.event(&schema, "u", &row(2, "b"), &row(2, "c"));
    load(live.as_mut(), &more.batch);
    assert_eq!(rows(), ["2\tc"]);
}

#[test]
fn a_truncate_without_an_order_needs_one_partition() {
    let bench = need!(Bench::new("rebuildtruncate"));
    let schema = bench.publish(fields(), "id");
    let options = "table = \"t\"\nmode = \"upsert\"\norder = \"arrival\"";
    let mut records = Records::default();
    records.event(&schema, "c", "null", "{\"id\":1,\"note\":\"a\"}").event(&schema, "t", "null", "null");
    let mut live = bench.open(options);
    load(live.as_mut(), &records.batch);
    let mut replay = bench.open_superseding_partitions(options, "r", &[(0, (0, 2)), (1, (0, 1))]);
    let (staged, _) = prepare(replay.as_mut(), &records.batch).unwrap();
    assert_eq!(replay.commit(&staged).unwrap_err().code, NOT_REBUILT);
    let mut one = bench.open_superseding(bench.redshift.port(), options, "s", (0, 2));
    let (staged, _) = prepare(one.as_mut(), &records.batch).unwrap();
    one.commit(&staged).unwrap();
    assert!(bench.rows("SELECT id FROM $S.t").is_empty());
}
