//! Logs that are rotated all the time, in every way there is, while the worker is killed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{LogWriter, Random, Skip, Worker};

use crate::ground::Ground;

/// More logs than partitions.
const LOGS: usize = 10;

/// Rotates and kills. Rotated files are deleted only when everything in them has arrived: what is deleted unread is lost by intent.
pub(crate) fn storm(ground: &mut Ground<'_>) -> Result<(), Skip> {
    for _ in ground.logs().all.len()..LOGS {
        let mut random = Random::new(ground.random.number());
        ground.logs().add(&mut random);
    }
    let mut rotated: Vec<PathBuf> = Vec::new();
    let mut worker: Option<Worker> = None;
    let rotations = ground.plan.times(120, 1_000);
    for rotation in 0..rotations {
        let which = ground.random.below(LOGS as u64) as usize;
        let lines = ground.random.below(40);
        ground.logs().all[which].append(lines);
        ground.tally.records += lines;
        // Numbered like dates: where two were rotated in the same instant, names say which is older.
        let to = ground.case.path("logs").join(format!("{which}.log-{:08}", 20_260_000 + rotation));
        match ground.random.below(4) {
            0 => ground.logs().all[which].copy_truncate(&to),
            _ => ground.logs().all[which].rotate(&to),
        }
        rotated.push(to);
        ground.tally.faults += 1;
        if ground.random.below(3) == 0 {
            let packed = ground.random.below(rotated.len() as u64) as usize;
            let path = &mut rotated[packed];
            if path.extension().is_some_and(|extension| extension != "gz") {
                LogWriter::gzip(path);
                *path = path.with_added_extension("gz");
            }
        }
        match ground.random.below(25) {
            0 => {
                super::running(ground, &mut worker);
                let moment = ground.moment(Duration::from_secs(3));
                super::hold(moment);
                ground.kill(worker.take().expect("it was just started"));
            }
            1 => {
                super::running(ground, &mut worker);
            }
            _ => super::hold(Duration::from_millis(20)),
        }
        if rotation % (rotations / 4) == rotations / 8 {
            ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
            rotated.drain(..rotated.len() / 2).for_each(|path| fs::remove_file(path).unwrap());
        }
    }
    ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    ground.stop(worker.take().expect("it was just started"));
    Ok(())
}
