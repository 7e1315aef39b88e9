//! Several faults at once, one after the other, in an order that the seed chooses.

use std::time::{Duration, Instant};

use trunkline_connector::failpoint::FAILPOINTS;
use trunkline_tests::{Fault, Mysql, Random, Skip, Window, Worker};

use super::steps::is_reachable;
use crate::ground::Ground;

/// Breaks something each second or two without waiting for what was broken before, then lets everything be well, and waits.
pub(crate) fn run(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let path = ground.plan.path;
    let points: Vec<&str> =
        FAILPOINTS.iter().filter(|point| is_reachable(point, path)).map(|point| point.name).collect();
    let (mut first, mut second): (Option<Worker>, Option<Worker>) = (None, None);
    let mut stopped = false;
    let mut window: Option<Window> = None;
    for _ in 0..ground.plan.times(10, 25) {
        ground.append(100);
        bury(ground, &mut first);
        bury(ground, &mut second);
        match ground.random.below(if path.begins_with_tables() { 12 } else { 9 }) {
            0 => {
                ground.broker.kill9();
                ground.tally.kills += 1;
                let gone = ground.moment(Duration::from_secs(1));
                super::hold(gone);
                ground.broker.restart();
            }
            1 => {
                if let Some(worker) = first.take() {
                    ground.kill(worker);
                }
            }
            2 | 3 => {
                let point = points[ground.random.below(points.len() as u64) as usize];
                let action = ["kill", "error", "full"][ground.random.below(3) as usize];
                let nth = 1 + ground.random.below(5);
                if first.is_none() {
                    first = Some(ground.start_with("a", &format!("{point}={action}@{nth}")));
                }
            }
            4 => second = second.or_else(|| Some(ground.start("b"))),
            5 => {
                if let Some(worker) = second.take() {
                    ground.kill(worker);
                    stopped = false;
                }
            }
            6 => {
                if let Some(worker) = &mut second {
                    if stopped {
                        worker.sigcont()
                    } else {
                        worker.sigstop()
                    }
                    stopped = !stopped;
                }
            }
            7 => {
                if let Some(store) = &ground.store {
                    let faults = [Fault::Status(503), Fault::Status(403), Fault::Cut, Fault::DropReply];
                    window = match window.take() {
                        None => Some(store.from_now("", "", faults[ground.random.below(4) as usize])),
                        Some(_) => None,
                    };
                }
            }
            8 => {
                let api = ["Produce", "EndTxn", "TxnOffsetCommit"][ground.random.below(3) as usize];
                ground.broker.drop_reply(api, 1 + ground.random.below(3));
            }
            9 => ground.read_again(),
            10 => {
                let mut random = Random::new(ground.random.number());
                let written = ground.tables().write_while(100, |server| {
                    super::mysql::end_some(server, &mut random);
                });
                ground.tally.records += written;
            }
            _ => {
                let gone = ground.moment(Duration::from_secs(1));
                let written = ground.tables().write_while(100, |server| super::mysql::away(server, Mysql::kill9, gone));
                ground.tally.records += written;
            }
        }
        ground.tally.faults += 1;
        let moment = ground.moment(Duration::from_secs(2));
        super::hold(moment);
    }
    drop(window);
    ground.broker.clear();
    if let (Some(worker), true) = (&mut second, stopped) {
        worker.sigcont();
    }
    bury(ground, &mut first);
    ground.append(100);
    let since = Instant::now();
    let mut worker = first.unwrap_or_else(|| ground.start("a"));
    // Its failpoint may still lie ahead.
    loop {
        super::hold(Duration::from_secs(2));
        let mut slot = Some(worker);
        bury(ground, &mut slot);
        match slot {
            Some(same) if ground.is_all_there() => {
                worker = same;
                break;
            }
            Some(same) => worker = same,
            None => worker = ground.start("a"),
        }
        assert!(since.elapsed() < crate::ground::LONG, "not all is there:\n{}", worker.stderr());
    }
    let mut workers: Vec<&mut Worker> = vec![&mut worker];
    workers.extend(second.as_mut());
    ground.recover(since, &mut workers);
    for worker in [Some(worker), second].into_iter().flatten() {
        ground.stop(worker);
    }
    Ok(())
}

/// A worker that died where it was told to.
fn bury(ground: &mut Ground<'_>, slot: &mut Option<Worker>) {
    if let Some(mut worker) = slot.take_if(|worker| !worker.runs()) {
        assert!(!worker.runs());
        let exit = worker.wait(Duration::from_secs(1));
        assert_eq!(exit.signal, Some(libc::SIGABRT), "it ended by itself: {}", exit.describe());
        ground.ended(&exit);
        ground.tally.kills += 1;
    }
}
