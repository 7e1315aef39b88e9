//! A MySQL that stops, closes connections, or changes its tables while it is written to.

use std::time::{Duration, Instant};

use trunkline_tests::{Mysql, Process, Random, Skip};

use crate::fixture::Fixture;

/// Stops the server and starts it again.
pub(crate) fn restart(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    take_down_repeatedly(fixture, Mysql::stop)
}

/// Kills the server and starts it again.
pub(crate) fn kill(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    take_down_repeatedly(fixture, Mysql::kill9)
}

/// Takes the server down with `stop`, and starts it again after `downtime`.
pub(super) fn take_down(server: &mut Mysql, stop: fn(&mut Mysql), downtime: Duration) {
    stop(server);
    super::let_run(downtime);
    server.restart();
}

fn take_down_repeatedly(fixture: &mut Fixture<'_>, stop_server: fn(&mut Mysql)) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..fixture.plan.times(3, 8) {
        super::running(fixture, &mut worker);
        fixture.append(100);
        if fixture.random.below(2) == 0 {
            fixture.request_snapshot();
        }
        let moment = fixture.random_delay(Duration::from_secs(1));
        let downtime = fixture.random_delay(Duration::from_secs(2));
        let mut since = Instant::now();
        let written = fixture.tables().write_while(100, |server| {
            super::let_run(moment);
            take_down(server, stop_server, downtime);
            since = Instant::now();
        });
        fixture.tally.records += written;
        fixture.tally.faults += 1;
        if fixture.random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
    }
    stop(fixture, worker)
}

/// Closes connections of the worker repeatedly, those of the binlog and those of snapshots.
pub(crate) fn cut(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..fixture.plan.times(3, 8) {
        super::running(fixture, &mut worker);
        if fixture.random.below(2) == 0 {
            fixture.request_snapshot();
        }
        let mut random = Random::new(fixture.random.number());
        let mut ended = 0;
        let written = fixture.tables().write_while(100, |server| {
            for _ in 0..6 {
                super::let_run(Duration::from_millis(random.below(500)));
                ended += end_connections(server, &mut random);
            }
        });
        let since = Instant::now();
        fixture.tally.records += written;
        fixture.tally.faults += ended;
        fixture.append(50);
        fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
    }
    assert!(fixture.tally.faults > 0, "the worker had no connection to close");
    stop(fixture, worker)
}

/// Closes all of the workers' connections, all of one kind, or a random half; returns their number.
pub(super) fn end_connections(server: &mut Mysql, random: &mut Random) -> u64 {
    let kind = random.below(4);
    let mut ended = 0;
    for (id, command) in crate::tables::connections(server) {
        let reads_binlog = command.starts_with("Binlog Dump");
        let is_selected = match kind {
            0 => reads_binlog,
            1 => !reads_binlog,
            2 => true,
            _ => random.below(2) == 0,
        };
        if is_selected {
            match server.try_run(&format!("KILL CONNECTION {id}")) {
                Ok(_) => ended += 1,
                // The connection has ended by itself.
                Err(error) if error.contains("ERROR 1094") => {}
                Err(error) => panic!("KILL CONNECTION {id}: {error}"),
            }
        }
    }
    ended
}

/// Adds columns to tables while they are written to. Sometimes the worker is killed, or a snapshot
/// is requested.
pub(crate) fn alter(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..fixture.plan.times(4, 10) {
        super::running(fixture, &mut worker);
        let mut random = Random::new(fixture.random.number());
        if random.below(2) == 0 {
            fixture.request_snapshot();
        }
        let written = fixture.tables().add_column(&mut random, 100);
        fixture.tally.records += written;
        fixture.tally.faults += 1;
        if random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        fixture.append(100);
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    }
    stop(fixture, worker)
}

fn stop(fixture: &mut Fixture<'_>, worker: Option<Process>) -> Result<(), Skip> {
    if let Some(worker) = worker {
        fixture.stop(worker);
    }
    Ok(())
}
