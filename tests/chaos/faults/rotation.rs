//! Logs that are rotated continuously, in every way, while the worker is killed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{LogWriter, Process, Random, Skip};

use crate::fixture::Fixture;

/// More logs than partitions.
const LOGS: usize = 10;

/// Rotates logs and kills workers. Rotated files are deleted only after their lines have arrived: a
/// file that is deleted unread is lost by intent.
pub(crate) fn storm(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    for _ in fixture.logs().all.len()..LOGS {
        let mut random = Random::new(fixture.random.number());
        fixture.logs().add(&mut random);
    }
    let mut rotated: Vec<PathBuf> = Vec::new();
    let mut worker: Option<Process> = None;
    let rotations = fixture.plan.times(120, 1_000);
    for rotation in 0..rotations {
        let which = fixture.random.below(LOGS as u64) as usize;
        let lines = fixture.random.below(40);
        fixture.logs().all[which].append(lines);
        fixture.tally.records += lines;
        // Suffixes like dates: if two logs were rotated in the same instant, their names show the
        // order.
        let to = fixture.case.path("logs").join(format!("{which}.log-{:08}", 20_260_000 + rotation));
        match fixture.random.below(4) {
            0 => fixture.logs().all[which].copy_truncate(&to),
            _ => fixture.logs().all[which].rotate(&to),
        }
        rotated.push(to);
        fixture.tally.faults += 1;
        if fixture.random.below(3) == 0 {
            let packed = fixture.random.below(rotated.len() as u64) as usize;
            let path = &mut rotated[packed];
            if path.extension().is_some_and(|extension| extension != "gz") {
                LogWriter::gzip(path);
                *path = path.with_added_extension("gz");
            }
        }
        match fixture.random.below(25) {
            0 => {
                super::running(fixture, &mut worker);
                let moment = fixture.random_delay(Duration::from_secs(3));
                super::let_run(moment);
                fixture.kill(worker.take().expect("it was just started"));
            }
            1 => {
                super::running(fixture, &mut worker);
            }
            _ => super::let_run(Duration::from_millis(20)),
        }
        if rotation % (rotations / 4) == rotations / 8 {
            fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
            rotated.drain(..rotated.len() / 2).for_each(|path| fs::remove_file(path).unwrap());
        }
    }
    fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    fixture.stop(worker.take().expect("it was just started"));
    Ok(())
}
