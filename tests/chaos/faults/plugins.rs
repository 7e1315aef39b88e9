//! A plugin that crashes on selected records.

use std::time::{Duration, Instant};

use trunkline_tests::{Skip, test_plugin};

use crate::fixture::Fixture;

/// Writes poison records among others. Sometimes the worker is killed too.
pub(crate) fn run(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let options = fixture.feed.poison();
    let plugin = test_plugin();
    fixture.pipeline(&format!("plugin = \"{}\"\ntimeout = \"200ms\"\nconfig = {options}\n", plugin.display()));
    let mut worker = None;
    for _ in 0..fixture.plan.times(3, 10) {
        fixture.append(300);
        super::running(fixture, &mut worker);
        if fixture.random.below(2) == 0 {
            let moment = fixture.random_delay(Duration::from_secs(3));
            super::let_run(moment);
            fixture.kill(worker.take().expect("it was just started"));
        }
    }
    // The records that exceed the plugin's output and memory limits have higher numbers.
    fixture.append(10_000);
    fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    fixture.tally.faults += fixture.feed.poisoned();
    fixture.stop(worker.take().expect("it was just started"));
    Ok(())
}
