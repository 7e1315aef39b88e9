//! Lost replies, dead sessions and zombies: a load is all or nothing, once.

use std::time::{Duration, Instant};

use trunkline_connector::{Domain, ErasedTwoPhaseSink, Rejections};
use trunkline_tests::wait;

use crate::{ROWS, Setup, batch, load, partition, prepare, write};

/// Commits as the stage does, which repeats a commit after an external error. The transaction of a
/// dead session holds its locks until the server notices that the session is gone.
fn commit_despite_locks(sink: &mut dyn ErasedTwoPhaseSink, committables: &[serde_json::Value]) {
    let begun = Instant::now();
    loop {
        match sink.commit(committables) {
            Err(error) if error.code == "warehouse.conflict" && begun.elapsed() < Duration::from_secs(60) => {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// The statements that a load runs only if its session is not that of the staging.
const STAGING: [&str; 2] = ["create or replace", "copy into"];

/// A lost reply to each statement of a load, before or after the statement ran: the load is all or
/// nothing, and the next attempt makes it all, once.
#[test]
fn a_load_survives_a_lost_reply_to_each_statement() {
    let Some(setup) = Setup::find() else { return };
    let statements = ["create or replace", "begin", "update", "copy into", "insert into", "commit"];
    let cases = [
        ("append", vec!["1|a", "2|b", "1|c"], statements.as_slice()),
        ("upsert", vec!["2|b", "1|c"], &["delete from", "commit"]),
    ];
    for (mode, rows, statements) in &cases {
        for (number, statement) in statements.iter().enumerate() {
            for when in ["before", "after"] {
                let schema = format!("{mode}_{number}_{when}").to_uppercase();
                let step = format!("{mode}: the reply to `{statement}` lost {when} it ran");
                let mut sink = setup.open(&schema, mode);
                write(sink.as_mut(), &batch(0, &ROWS, None));
                let committables = prepare(sink.as_mut());
                if STAGING.contains(statement) {
                    // Another task copies the files again.
                    sink = setup.open(&schema, mode);
                    sink.recover(&partition(), &committables).unwrap();
                }
                setup.account.server.control(&format!("{{\"drop\":\"{statement}\",\"when\":\"{when}\"}}"));
                let error = sink.commit(&committables).err().unwrap_or_else(|| panic!("{step}: no error"));
                assert_eq!((error.domain, error.code), (Domain::External, "snowflake.session_lost"), "{step}");
                let sql = "SELECT \"ID\", \"NAME\" FROM \"ROWS\" ORDER BY \"_OFFSET\"";
                let found = setup.query(&schema, sql);
                assert!(found.is_empty() || found == *rows, "{step}: {found:?}");
                // The task dies, and the next one commits what it prepared.
                std::mem::forget(sink);
                let mut next = setup.open(&schema, mode);
                next.recover(&partition(), &committables).unwrap();
                commit_despite_locks(next.as_mut(), &committables);
                next.commit(&committables).unwrap();
                assert_eq!(setup.query(&schema, sql), *rows, "{step}");
                assert_eq!(setup.account.staged_files(&schema), [""; 0], "{step}");
            }
        }
    }
}

#[test]
fn sessions_that_end_between_and_during_loads_are_replaced() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("KILLED", "append");
    for (round, fault) in (0..).zip(["{\"kill\":true}", "{\"expire\":\"token\"}", "{\"expire\":\"master\"}"]) {
        write(sink.as_mut(), &batch(round * 3, &ROWS, None));
        setup.account.server.control(fault);
        // As the stage does: the same step again after an external error.
        let plan = sink.seal(&partition()).unwrap().unwrap();
        let plans = [plan];
        let prepared = (0..5).find_map(|_| sink.prepare(&plans, &mut Rejections::default()).ok()).unwrap();
        setup.account.server.control("{\"slow\":2}");
        (0..5).find_map(|_| sink.commit(&prepared).ok()).unwrap();
        let count = setup.query("KILLED", "SELECT COUNT(*) FROM \"ROWS\"");
        assert_eq!(count, [((round + 1) * 3).to_string()], "{fault}");
    }
}

/// The claim of a topic partition is one statement, which commits by itself.
#[test]
fn a_worker_that_dies_in_its_claim_leaves_no_lock() {
    let Some(setup) = Setup::find() else { return };
    let mut killed = setup.open("CLAIMED", "append");
    setup.account.server.control("{\"drop\":\"update\"}");
    let mut rejected = Rejections::default();
    let claimed = killed.write(&partition(), &batch(0, &ROWS, None), &mut rejected).and_then(|()| {
        let plan = killed.seal(&partition())?.unwrap();
        killed.prepare(&[plan], &mut rejected)
    });
    assert_eq!(claimed.unwrap_err().code, "snowflake.session_lost");
    // No statement of its session follows, and nothing says that it has ended.
    std::mem::forget(killed);
    let mut next = setup.open("CLAIMED", "append");
    load(next.as_mut(), &batch(0, &ROWS, None));
    assert_eq!(setup.query("CLAIMED", "SELECT COUNT(*) FROM \"ROWS\""), ["3"]);
}

#[test]
fn a_zombie_cannot_load() {
    let Some(setup) = Setup::find() else { return };
    let mut zombie = setup.open("ZOMBIE", "append");
    write(zombie.as_mut(), &batch(0, &ROWS, None));
    let stale = prepare(zombie.as_mut());
    let mut next = setup.open("ZOMBIE", "append");
    next.recover(&partition(), &stale).unwrap();
    next.commit(&stale).unwrap();
    load(next.as_mut(), &batch(3, &ROWS, None));
    // Its load is known as committed; a new one is refused.
    zombie.commit(&stale).unwrap();
    write(zombie.as_mut(), &batch(3, &ROWS, None));
    let plan = zombie.seal(&partition()).unwrap().unwrap();
    let error = zombie.prepare(&[plan], &mut Rejections::default()).unwrap_err();
    assert_eq!(error.domain, Domain::Fenced, "{error}");
    assert_eq!(setup.query("ZOMBIE", "SELECT COUNT(*) FROM \"ROWS\""), ["6"]);
}

/// The statement is answered after seconds.
const HANGS: &str = "\"slow\":8,\"text\":\"insert into\"";

#[test]
fn a_session_that_hangs_in_a_load_is_ended_by_the_next_owner() {
    let Some(setup) = Setup::find() else { return };
    // Where only administrators may end a session, its transaction is ended.
    let refuse = "{\"refuse\":\"abort_session\",\"code\":\"003001\",\"message\":\"Insufficient privileges\"}";
    for (schema, way) in [("HUNG", None), ("HUNG_TRANSACTION", Some(refuse))] {
        let count = || setup.query(schema, "SELECT COUNT(*) FROM \"ROWS\"")[0].clone();
        let mut zombie = setup.open(schema, "append");
        write(zombie.as_mut(), &batch(0, &ROWS, None));
        let committables = prepare(zombie.as_mut());
        setup.account.server.control(&format!("{{{HANGS}}}"));
        way.into_iter().for_each(|fault| setup.account.server.control(fault));
        std::thread::scope(|scope| {
            let hanging = scope.spawn(|| {
                let outcome = zombie.commit(&committables);
                (zombie, outcome)
            });
            // The table is locked as soon as the statement has run.
            let mut next = setup.open(schema, "append");
            next.recover(&partition(), &committables).unwrap();
            let hangs = || (setup.account.server.faults_left() == u64::from(way.is_some())).then_some(());
            wait::until("the load hangs", Duration::from_secs(30), hangs);
            commit_despite_locks(next.as_mut(), &committables);
            load(next.as_mut(), &batch(3, &ROWS, None));
            assert_eq!(count(), "6", "{schema}");
            let (mut zombie, outcome) = hanging.join().unwrap();
            let error =
                outcome.err().unwrap_or_else(|| panic!("{schema}: the transaction of the zombie was committed"));
            assert_eq!((error.domain, error.code), (Domain::External, "snowflake.session_lost"), "{schema}: {error}");
            zombie.commit(&committables).unwrap();
            assert_eq!(count(), "6", "{schema}: the statements after the aborted transaction were committed");
        });
    }
}

#[test]
fn a_transaction_that_the_service_ends_commits_nothing_of_the_rest() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("ABORTED", "append");
    load(sink.as_mut(), &batch(0, &ROWS, None));
    write(sink.as_mut(), &batch(3, &ROWS, None));
    let committables = prepare(sink.as_mut());
    let count = || setup.query("ABORTED", "SELECT COUNT(*) FROM \"ROWS\"")[0].clone();
    // The first statement of the transaction takes seconds, in which the service ends it.
    setup.account.server.control("{\"slow\":7,\"text\":\"set \\\"load_id\\\"\"}");
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| sink.commit(&committables).unwrap_err());
        let hangs = || (setup.account.server.faults_left() == 0).then_some(());
        wait::until("the load hangs", Duration::from_secs(30), hangs);
        setup.account.server.control("{\"abort\":true}");
        let error = loading.join().unwrap();
        assert_eq!(error.code, "snowflake.session_lost", "{error}");
        assert!(error.message().contains("ended the transaction"), "{error}");
    });
    assert_eq!(count(), "3", "COPY and INSERT ran after the transaction had ended");
    sink.commit(&committables).unwrap();
    assert_eq!(count(), "6");
}
