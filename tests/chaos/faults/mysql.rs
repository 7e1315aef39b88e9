//! A MySQL that goes away, cuts its connections, or changes its tables, while it is written to.

use std::time::{Duration, Instant};

use trunkline_tests::{Mysql, Random, Skip, Worker};

use crate::ground::Ground;

/// Stops the server and starts it again.
pub(crate) fn restart(ground: &mut Ground<'_>) -> Result<(), Skip> {
    again_and_again(ground, Mysql::stop)
}

/// The same with kill -9.
pub(crate) fn kill(ground: &mut Ground<'_>) -> Result<(), Skip> {
    again_and_again(ground, Mysql::kill9)
}

/// Has the server gone for a while.
pub(super) fn away(server: &mut Mysql, go: fn(&mut Mysql), gone: Duration) {
    go(server);
    super::hold(gone);
    server.restart();
}

fn again_and_again(ground: &mut Ground<'_>, go: fn(&mut Mysql)) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..ground.plan.times(3, 8) {
        super::running(ground, &mut worker);
        ground.append(100);
        if ground.random.below(2) == 0 {
            ground.read_again();
        }
        let (moment, gone) = (ground.moment(Duration::from_secs(1)), ground.moment(Duration::from_secs(2)));
        let mut since = Instant::now();
        let written = ground.tables().write_while(100, |server| {
            super::hold(moment);
            away(server, go, gone);
            since = Instant::now();
        });
        ground.tally.records += written;
        ground.tally.faults += 1;
        if ground.random.below(3) == 0 {
            ground.kill(worker.take().expect("it was just started"));
        }
        ground.recover(since, &mut [super::running(ground, &mut worker)]);
    }
    stop(ground, worker)
}

/// Ends connections of the worker, of the binlog and of the snapshot alike, again and again.
pub(crate) fn cut(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..ground.plan.times(3, 8) {
        super::running(ground, &mut worker);
        if ground.random.below(2) == 0 {
            ground.read_again();
        }
        let mut random = Random::new(ground.random.number());
        let mut ended = 0;
        let written = ground.tables().write_while(100, |server| {
            for _ in 0..6 {
                super::hold(Duration::from_millis(random.below(500)));
                ended += end_some(server, &mut random);
            }
        });
        let since = Instant::now();
        ground.tally.records += written;
        ground.tally.faults += ended;
        ground.append(50);
        ground.recover(since, &mut [super::running(ground, &mut worker)]);
    }
    assert!(ground.tally.faults > 0, "no connection was there to be cut");
    stop(ground, worker)
}

/// Ends all of a kind, or some; says how many.
pub(super) fn end_some(server: &mut Mysql, random: &mut Random) -> u64 {
    let kind = random.below(4);
    let mut ended = 0;
    for (id, command) in crate::tables::connections(server) {
        let dumps = command.starts_with("Binlog Dump");
        let meant = match kind {
            0 => dumps,
            1 => !dumps,
            2 => true,
            _ => random.below(2) == 0,
        };
        if meant {
            match server.try_run(&format!("KILL CONNECTION {id}")) {
                Ok(_) => ended += 1,
                // It has gone by itself meanwhile.
                Err(error) if error.contains("ERROR 1094") => {}
                Err(error) => panic!("KILL CONNECTION {id}: {error}"),
            }
        }
    }
    ended
}

/// Adds columns to tables that are written to; now and then the worker is killed, and rows are read once more.
pub(crate) fn alter(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..ground.plan.times(4, 10) {
        super::running(ground, &mut worker);
        let mut random = Random::new(ground.random.number());
        if random.below(2) == 0 {
            ground.read_again();
        }
        let written = ground.tables().add_column(&mut random, 100);
        ground.tally.records += written;
        ground.tally.faults += 1;
        if random.below(3) == 0 {
            ground.kill(worker.take().expect("it was just started"));
        }
        ground.append(100);
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    }
    stop(ground, worker)
}

fn stop(ground: &mut Ground<'_>, worker: Option<Worker>) -> Result<(), Skip> {
    if let Some(worker) = worker {
        ground.stop(worker);
    }
    Ok(())
}
