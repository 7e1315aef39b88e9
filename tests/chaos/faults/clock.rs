//! A worker whose wall clock jumps, by the library `clock.c`, which is loaded before the C library.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use trunkline_tests::{Skip, repository};

use crate::fixture::Fixture;

/// Jumps in seconds that servers tolerate.
const JUMPS: [i64; 7] = [1, -1, 60, -60, 600, -600, 0];

/// Jumps in seconds that servers refuse: S3 refuses requests that are more than 15 minutes off, and
/// Kafka refuses records that are more than an hour ahead. No record has to arrive before the clock
/// is set right.
const LONG_JUMPS: [i64; 4] = [7_200, -7_200, 86_400, -86_400];

/// How long a clock stays wrong after a long jump.
const WRONG: Duration = Duration::from_secs(2);

/// Sets the clock while records are written. Sometimes the worker is killed: the next one then
/// starts with another clock.
pub(crate) fn jumps(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let library = fixture.case.path("clock.so");
    compile(&library)?;
    let shift = fixture.case.path("clock");
    fs::write(&shift, 0i64.to_ne_bytes()).unwrap();
    let file = OpenOptions::new().write(true).open(&shift).unwrap();
    fixture.case.set("LD_PRELOAD", library.to_str().unwrap());
    fixture.case.set("TRUNKLINE_CHAOS_CLOCK", shift.to_str().unwrap());
    let mut worker = None;
    for _ in 0..fixture.plan.times(4, 12) {
        fixture.append(200);
        super::running(fixture, &mut worker);
        let moment = fixture.random_delay(Duration::from_secs(2));
        super::let_run(moment);
        let long = fixture.random.below(3) == 0;
        let jump = match long {
            true => LONG_JUMPS[fixture.random.below(4) as usize],
            false => JUMPS[fixture.random.below(7) as usize],
        };
        file.write_all_at(&jump.to_ne_bytes(), 0).unwrap();
        fixture.tally.faults += 1;
        fixture.append(200);
        if fixture.random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        if long {
            super::running(fixture, &mut worker);
            super::let_run(WRONG);
            file.write_all_at(&0i64.to_ne_bytes(), 0).unwrap();
        }
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    }
    if let Some(worker) = worker {
        fixture.stop(worker);
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
