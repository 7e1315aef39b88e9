//! kill -9 at seeded moments.

use std::time::{Duration, Instant};

use trunkline_tests::Skip;

use crate::fixture::Fixture;

/// Most workers have only just joined their groups after this time.
const MAX_LIFE: Duration = Duration::from_secs(4);

/// Kills one worker after another while records are written. One in four may finish first.
pub(crate) fn at_random(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    for _ in 0..fixture.plan.times(5, 20) {
        fixture.append(500);
        if fixture.random.below(3) == 0 {
            fixture.request_snapshot();
        }
        let life = fixture.random_delay(MAX_LIFE);
        let worker = fixture.start("a");
        super::let_run(life);
        fixture.kill(worker);
        if fixture.random.below(4) == 0 {
            let since = Instant::now();
            let mut worker = fixture.start("a");
            fixture.wait_for_recovery(since, &mut [&mut worker]);
            fixture.kill(worker);
        }
    }
    let since = Instant::now();
    let mut worker = fixture.start("a");
    fixture.wait_for_recovery(since, &mut [&mut worker]);
    fixture.kill(worker);
    Ok(())
}
