//! A small memory budget.

use std::time::{Duration, Instant};

use trunkline_tests::Skip;

use crate::fixture::Fixture;

/// The limit of a worker's resident memory with a tenth of the budget. An idle worker of a build
/// without optimisation has 70 MB, 40 MB of them pages of the binary. The first worker also
/// compiles the plugin, which takes 50 MB for a moment.
const MAX_RSS: u64 = 250 << 20;

/// Writes more lines than a tenth of the default budget can hold, and kills workers.
pub(crate) fn tenth(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    fixture.case.set("TRUNKLINE_MEMORY", "26MiB");
    fixture.max_rss = MAX_RSS;
    // Several times the budget: memory that grows with the backlog would exceed the limit.
    let lines = fixture.plan.times(8_000, 30_000);
    for _ in 0..fixture.plan.times(2, 6) {
        fixture.append(lines);
        let worker = fixture.start("a");
        let moment = fixture.random_delay(Duration::from_secs(6));
        super::let_run(moment);
        fixture.kill(worker);
        fixture.tally.faults += 1;
    }
    fixture.append(lines);
    let since = Instant::now();
    let mut worker = fixture.start("a");
    fixture.wait_for_recovery(since, &mut [&mut worker]);
    fixture.stop(worker);
    Ok(())
}
