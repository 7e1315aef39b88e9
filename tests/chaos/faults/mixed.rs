//! Several faults at once, in an order that the seed determines.

use std::time::{Duration, Instant};

use trunkline_connector::failpoint::FAILPOINTS;
use trunkline_tests::{Fault, FaultWindow, Mysql, Process, Random, Skip};

use super::steps::is_reachable;
use crate::fixture::{Fixture, LIMIT};

/// Injects a fault every second or two without waiting for recovery from the ones before. Then ends
/// all faults, and waits for recovery.
pub(crate) fn run(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut mixed = Mixed::default();
    for _ in 0..fixture.plan.times(10, 25) {
        fixture.append(100);
        reap_killed(fixture, &mut mixed.first);
        reap_killed(fixture, &mut mixed.second);
        let kinds = if fixture.plan.path.begins_with_tables() { 12 } else { 9 };
        match fixture.random.below(kinds) {
            kind @ 0..9 => mixed.inject(fixture, kind),
            kind => inject_into_database(fixture, kind),
        }
        fixture.tally.faults += 1;
        let moment = fixture.random_delay(Duration::from_secs(2));
        super::let_run(moment);
    }
    mixed.end(fixture);
    Ok(())
}

/// The workers and the faults that last.
#[derive(Default)]
struct Mixed {
    /// A worker that failpoints kill.
    first: Option<Process>,
    /// A worker that is suspended and killed.
    second: Option<Process>,
    is_second_suspended: bool,
    store_fault: Option<FaultWindow>,
}

impl Mixed {
    fn inject(&mut self, fixture: &mut Fixture<'_>, kind: u64) {
        match kind {
            0 => {
                fixture.broker.kill9();
                fixture.tally.kills += 1;
                let downtime = fixture.random_delay(Duration::from_secs(1));
                super::let_run(downtime);
                fixture.broker.restart();
            }
            1 => {
                if let Some(worker) = self.first.take() {
                    fixture.kill(worker);
                }
            }
            2 | 3 => self.start_with_failpoint(fixture),
            4 => self.second = self.second.take().or_else(|| Some(fixture.start("b"))),
            5 => {
                if let Some(worker) = self.second.take() {
                    fixture.kill(worker);
                    self.is_second_suspended = false;
                }
            }
            6 => {
                if let Some(worker) = &mut self.second {
                    if self.is_second_suspended {
                        worker.sigcont()
                    } else {
                        worker.sigstop()
                    }
                    self.is_second_suspended = !self.is_second_suspended;
                }
            }
            7 => {
                if let Some(store) = &fixture.store {
                    let faults = [Fault::Status(503), Fault::Status(403), Fault::Cut, Fault::DropReply];
                    self.store_fault = match self.store_fault.take() {
                        None => Some(store.from_now("", "", faults[fixture.random.below(4) as usize])),
                        Some(_) => None,
                    };
                }
            }
            _ => {
                let api = ["Produce", "EndTxn", "TxnOffsetCommit"][fixture.random.below(3) as usize];
                fixture.broker.drop_reply(api, 1 + fixture.random.below(3));
            }
        }
    }

    /// Starts the first worker, unless it runs, with a random failpoint.
    fn start_with_failpoint(&mut self, fixture: &mut Fixture<'_>) {
        let path = fixture.plan.path;
        let points: Vec<&str> =
            FAILPOINTS.iter().filter(|point| is_reachable(point, path)).map(|point| point.name).collect();
        let point = points[fixture.random.below(points.len() as u64) as usize];
        let action = ["kill", "error", "full"][fixture.random.below(3) as usize];
        let nth = 1 + fixture.random.below(5);
        if self.first.is_none() {
            self.first = Some(fixture.start_with("a", &format!("{point}={action}@{nth}")));
        }
    }

    /// Ends all faults, waits for recovery, and stops the workers.
    fn end(mut self, fixture: &mut Fixture<'_>) {
        drop(self.store_fault);
        fixture.broker.clear();
        if let (Some(worker), true) = (&mut self.second, self.is_second_suspended) {
            worker.sigcont();
        }
        reap_killed(fixture, &mut self.first);
        fixture.append(100);
        let since = Instant::now();
        let mut worker = self.first.unwrap_or_else(|| fixture.start("a"));
        // Its failpoint may still kill it.
        loop {
            super::let_run(Duration::from_secs(2));
            let mut slot = Some(worker);
            reap_killed(fixture, &mut slot);
            match slot {
                Some(same) if fixture.has_all_arrived() => {
                    worker = same;
                    break;
                }
                Some(same) => worker = same,
                None => worker = fixture.start("a"),
            }
            assert!(since.elapsed() < LIMIT, "records are missing after {LIMIT:?}:\n{}", worker.stderr());
        }
        let mut workers: Vec<&mut Process> = vec![&mut worker];
        workers.extend(self.second.as_mut());
        fixture.wait_for_recovery(since, &mut workers);
        for worker in [Some(worker), self.second].into_iter().flatten() {
            fixture.stop(worker);
        }
    }
}

fn inject_into_database(fixture: &mut Fixture<'_>, kind: u64) {
    let written = match kind {
        9 => return fixture.request_snapshot(),
        10 => {
            let mut random = Random::new(fixture.random.number());
            fixture.tables().write_while(100, |server| {
                super::mysql::end_connections(server, &mut random);
            })
        }
        _ => {
            let downtime = fixture.random_delay(Duration::from_secs(1));
            fixture.tables().write_while(100, |server| super::mysql::take_down(server, Mysql::kill9, downtime))
        }
    };
    fixture.tally.records += written;
}

/// Takes a worker that its failpoint has killed out of its slot.
fn reap_killed(fixture: &mut Fixture<'_>, slot: &mut Option<Process>) {
    if let Some(worker) = slot.take_if(|worker| !worker.is_running()) {
        let exit = worker.wait(Duration::from_secs(1));
        assert_eq!(exit.signal, Some(libc::SIGABRT), "the worker ended by itself: {}", exit.describe());
        fixture.record_exit(&exit);
        fixture.tally.kills += 1;
    }
}
