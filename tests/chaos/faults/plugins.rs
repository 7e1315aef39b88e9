//! A plugin that dies on chosen records.

use std::time::{Duration, Instant};

use trunkline_tests::{Skip, test_plugin};

use crate::ground::{Ground, LOG};

/// Records on which the plugin of `transforms/plugins/testing` does what its option says: those whose paths end so.
const PLUGIN: &str = r#"plugin = "$PLUGIN"
timeout = "200ms"
config = { trap_on = '051","protocol', loop_on = '/item/1000000333",', flood_on = '7701","protocol', bomb_on = '8802","protocol' }
"#;

fn is_bad(line: u64) -> bool {
    // The first log's line 51 has no 0 before it.
    line % 1_000 == 51 && line > 51 || line == LOG + 333 || line % 10_000 == 7_701 || line % 10_000 == 8_802
}

/// Poison records come in between; now and then the worker is killed as well.
pub(crate) fn run(ground: &mut Ground<'_>) -> Result<(), Skip> {
    ground.pipeline(&PLUGIN.replace("$PLUGIN", test_plugin().to_str().unwrap()));
    ground.bad = is_bad;
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
    ground.tally.faults += ground.dead();
    ground.stop(worker.take().expect("it was just started"));
    Ok(())
}
