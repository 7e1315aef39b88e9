//! A wall clock that jumps, under the worker: `clock.c`, loaded before the C library.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use trunkline_tests::{Skip, repository};

use crate::ground::Ground;

/// Seconds that nobody minds.
const JUMPS: [i64; 7] = [1, -1, 60, -60, 600, -600, 0];

/// Seconds that others refuse, rightly: object stores requests that are off by more than a quarter of an hour, Kafka records from more than an hour
/// ahead. Nothing has to arrive before somebody has set the clock right.
const LONG_JUMPS: [i64; 4] = [7_200, -7_200, 86_400, -86_400];

/// How long a clock stays that wrong.
const WRONG: Duration = Duration::from_secs(2);

/// Jumps while lines are written, and now and then a kill: the next worker starts with another clock than the last one ended with.
pub(crate) fn jumps(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let library = ground.case.path("clock.so");
    compile(&library)?;
    let shift = ground.case.path("clock");
    fs::write(&shift, 0i64.to_ne_bytes()).unwrap();
    let file = OpenOptions::new().write(true).open(&shift).unwrap();
    ground.case.set("LD_PRELOAD", library.to_str().unwrap());
    ground.case.set("TRUNKLINE_CHAOS_CLOCK", shift.to_str().unwrap());
    let mut worker = None;
    for _ in 0..ground.plan.times(4, 12) {
        ground.append(200);
        super::running(ground, &mut worker);
        let moment = ground.moment(Duration::from_secs(2));
        super::hold(moment);
        let long = ground.random.below(3) == 0;
        let jump = match long {
            true => LONG_JUMPS[ground.random.below(4) as usize],
            false => JUMPS[ground.random.below(7) as usize],
        };
        file.write_all_at(&jump.to_ne_bytes(), 0).unwrap();
        ground.tally.faults += 1;
        ground.append(200);
        if ground.random.below(3) == 0 {
            ground.kill(worker.take().expect("it was just started"));
        }
        if long {
            super::running(ground, &mut worker);
            super::hold(WRONG);
            file.write_all_at(&0i64.to_ne_bytes(), 0).unwrap();
        }
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    }
    if let Some(worker) = worker {
        ground.stop(worker);
    }
    Ok(())
}

fn compile(library: &Path) -> Result<(), Skip> {
    let source = repository().join("tests/chaos/faults/clock.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(library)
        .arg(source)
        .arg("-ldl")
        .output();
    match compiled {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Skip::new(format!("clock.c does not compile: {}", String::from_utf8_lossy(&output.stderr)))),
        Err(error) => Err(Skip::new(format!("no C compiler: {error}"))),
    }
}
