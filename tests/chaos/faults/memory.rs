//! Little memory.

use std::time::{Duration, Instant};

use trunkline_tests::Skip;

use crate::ground::Ground;

/// What a worker with a tenth of the budget may have resident, less than with all of it by most of the difference. An idle one has 70 MB, of
/// which 40 are the pages of a binary that is not optimised; compiling the plugin, which the first one does, takes 50 for a moment.
const MOST_RSS: u64 = 250 << 20;

/// A tenth of the default budget, more lines than it can hold, and kills.
pub(crate) fn tenth(ground: &mut Ground<'_>) -> Result<(), Skip> {
    ground.case.set("TRUNKLINE_MEMORY", "26MiB");
    ground.most_rss = MOST_RSS;
    // Several times the budget in the long run: memory that grew with what is waiting would show.
    let lines = ground.plan.times(8_000, 30_000);
    for _ in 0..ground.plan.times(2, 6) {
        ground.append(lines);
        let worker = ground.start("a");
        let moment = ground.moment(Duration::from_secs(6));
        super::hold(moment);
        ground.kill(worker);
        ground.tally.faults += 1;
    }
    ground.append(lines);
    let since = Instant::now();
    let mut worker = ground.start("a");
    ground.recover(since, &mut [&mut worker]);
    ground.stop(worker);
    Ok(())
}
