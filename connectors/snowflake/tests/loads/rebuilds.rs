//! Replays that rebuild the rows of keys.

use std::time::{Duration, Instant};

use trunkline_connector::{Domain, ErasedTwoPhaseSink, NOT_REBUILT, Result};
use trunkline_tests::{Ended, History, Memory, Random, Rebuilt, RowChange};

use crate::{Setup, load, ordered_at, prepare, write};

/// The rows of a table whose keys are rebuilt, and its versions.
fn contents(setup: &Setup, schema: &str, memory: Memory) -> Vec<String> {
    let second = |column: &str| format!("DATE_PART(EPOCH_SECOND, \"{column}\")");
    let sql = match memory {
        Memory::Rows => "SELECT \"ID\", \"NOTE\" FROM \"ROWS\" ORDER BY \"ID\"".to_owned(),
        Memory::Deletes => {
            "SELECT \"ID\", \"NOTE\" FROM \"ROWS\" WHERE \"DELETED_AT\" IS NULL ORDER BY \"ID\"".to_owned()
        }
        Memory::Versions => format!(
            "SELECT \"ID\", \"NOTE\", {from}, CASE WHEN {to} > 1764400000 THEN 't' ELSE CAST({to} AS VARCHAR) END FROM \"ROWS\" \
             ORDER BY 1, 3, 2",
            from = second("VALID_FROM"),
            to = second("VALID_TO")
        ),
    };
    setup.query(schema, &sql)
}

/// What they must be.
fn expected(case: &Rebuilt, memory: Memory) -> Vec<String> {
    if memory != Memory::Versions {
        return case.rows().iter().map(|(id, note)| format!("{id}|{note}")).collect();
    }
    let mut versions = case.versions();
    versions.sort_by(|one, other| (one.0, one.2, &one.1).cmp(&(other.0, other.2, &other.1)));
    let end = |ended: &Option<Ended>| match ended {
        None => "null".to_owned(),
        Some(Ended::At(second)) => second.to_string(),
        Some(Ended::ByTruncate) => "t".to_owned(),
    };
    versions.iter().map(|(id, note, from, ended)| format!("{id}|{note}|{from}|{}", end(ended))).collect()
}

/// A replay over rows of keys ends as today's transforms make them, also if a reply is lost, or it
/// is refused and changes nothing.
#[test]
fn ranges_of_keys_are_rebuilt_or_refused() {
    let Some(setup) = Setup::find() else { return };
    let mut random = Random::new(1903);
    let modes =
        [(Memory::Rows, "upsert"), (Memory::Versions, "history"), (Memory::Deletes, "upsert\"\ndeletes = \"soft")];
    let lost = ["begin", "update", "copy into", "delete from", "insert into", "commit"];
    let mut replaced = 0;
    for number in 0..6 {
        let (memory, mode) = modes[number % modes.len()];
        let schema = format!("REBUILT_{number}");
        let options = setup.account.options(&schema, mode);
        let history = History::random(&mut random, 6, 30);
        let case = Rebuilt::random(&mut random, &history, number % 2 == 0);
        let at = |changes: &[(usize, RowChange)]| {
            ordered_at(changes.iter().map(|(offset, change)| (*offset as i64, change)))
        };
        load(setup.open(&schema, mode).as_mut(), &at(&case.loaded()));
        let before = contents(&setup, &schema, memory);
        let open = || setup.open_superseding(&options, "r", (case.from as i64, case.len() as i64));
        let mut replay = open();
        let mut committables = Vec::new();
        for part in case.staged().chunks(12) {
            write(replay.as_mut(), &at(part));
            committables.extend(prepare(replay.as_mut()));
        }
        let after = expected(&case, memory);
        let statement = lost[number];
        setup.account.server.control(&format!("{{\"drop\":\"{statement}\",\"when\":\"after\"}}"));
        let outcome = replay.commit(&committables);
        let label = format!("{schema}: {mode}, from {}, `{statement}` lost", case.from);
        if let Err(error) = outcome {
            let found = contents(&setup, &schema, memory);
            assert!(found == before || found == after, "{label}: {found:?}");
            if error.code == NOT_REBUILT {
                assert!(case.must_be_refused(memory) || case.may_be_refused(memory), "{label}: {error}");
                assert_eq!(found, before, "{label}");
                continue;
            }
            assert_eq!(error.domain, Domain::External, "{label}: {error}");
        }
        // The task dies, and the next one commits what it prepared.
        std::mem::forget(replay);
        let mut next = open();
        match commit_unless_refused(next.as_mut(), &committables) {
            Ok(()) => {
                replaced += 1;
                assert_eq!(contents(&setup, &schema, memory), after, "{label}");
            }
            Err(error) => {
                assert!(case.must_be_refused(memory) || case.may_be_refused(memory), "{label}: {error}");
                assert_eq!(contents(&setup, &schema, memory), before, "{label}");
            }
        }
    }
    assert!(replaced >= 3, "{replaced} replaced");
}

/// Commits as the command does, which repeats a commit after a conflict.
fn commit_unless_refused(sink: &mut dyn ErasedTwoPhaseSink, committables: &[serde_json::Value]) -> Result<()> {
    let begun = Instant::now();
    loop {
        match sink.commit(committables) {
            Err(error) if error.domain == Domain::External && begun.elapsed() < Duration::from_secs(60) => {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            outcome => return outcome,
        }
    }
}
