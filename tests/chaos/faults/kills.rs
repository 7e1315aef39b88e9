//! kill -9 at moments that the seed chooses.

use std::time::{Duration, Instant};

use trunkline_tests::Skip;

use crate::ground::Ground;

/// A worker that lives shorter than this has hardly joined its groups.
const LONGEST_LIFE: Duration = Duration::from_secs(4);

/// Kills one worker after another while lines are written; one of four may finish.
pub(crate) fn at_random(ground: &mut Ground<'_>) -> Result<(), Skip> {
    for _ in 0..ground.plan.times(5, 20) {
        ground.append(500);
        if ground.random.below(3) == 0 {
            ground.read_again();
        }
        let life = ground.moment(LONGEST_LIFE);
        let worker = ground.start("a");
        super::hold(life);
        ground.kill(worker);
        if ground.random.below(4) == 0 {
            let since = Instant::now();
            let mut worker = ground.start("a");
            ground.recover(since, &mut [&mut worker]);
            ground.kill(worker);
        }
    }
    let since = Instant::now();
    let mut worker = ground.start("a");
    ground.recover(since, &mut [&mut worker]);
    ground.kill(worker);
    Ok(())
}
