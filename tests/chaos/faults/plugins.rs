//! A plugin that dies on chosen records.

use std::time::{Duration, Instant};

use trunkline_tests::{Skip, test_plugin};

use crate::ground::Ground;

/// Poison records come in between; now and then the worker is killed as well.
pub(crate) fn run(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let options = ground.feed.poison();
    let plugin = test_plugin();
    ground.pipeline(&format!("plugin = \"{}\"\ntimeout = \"200ms\"\nconfig = {options}\n", plugin.display()));
    let mut worker = None;
    for _ in 0..ground.plan.times(3, 10) {
        ground.append(300);
        super::running(ground, &mut worker);
        if ground.random.below(2) == 0 {
            let moment = ground.moment(Duration::from_secs(3));
            super::hold(moment);
            ground.kill(worker.take().expect("it was just started"));
        }
    }
    // The floods and bombs lie further on.
    ground.append(10_000);
    ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    ground.tally.faults += ground.feed.dead();
    ground.stop(worker.take().expect("it was just started"));
    Ok(())
}
