//! [`Busy`]: the components of a worker that are busy.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::stage::StageStatus;
use crate::worker::Overview;

/// A task is busy that works for half of the time. One that waits for records for longer does not
/// need all of its capacity.
const SHARE: f64 = 0.5;

/// How long the tasks had worked when they were last looked at.
#[derive(Default)]
pub(super) struct Busy {
    worked: HashMap<usize, Duration>,
    looked: Option<Instant>,
}

impl Busy {
    /// The components with a task that was busy since the last call, as `{pipeline}.{component}`.
    pub(super) fn components(&mut self, overview: &Overview) -> Vec<String> {
        let now = Instant::now();
        let elapsed = self.looked.replace(now).map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        self.since(overview.tasks().into_iter().map(|(_, task)| task), elapsed)
    }

    fn since(&mut self, tasks: impl Iterator<Item = Arc<StageStatus>>, elapsed: Duration) -> Vec<String> {
        let mut busy = BTreeSet::new();
        let before = std::mem::take(&mut self.worked);
        for task in tasks {
            let (key, worked) = (Arc::as_ptr(&task).addr(), task.worked());
            // A new task may have the address of one that was replaced, which had worked longer.
            let last = before.get(&key).copied().unwrap_or_default();
            if worked.saturating_sub(last).as_secs_f64() >= SHARE * elapsed.as_secs_f64() {
                busy.insert(task.name());
            }
            self.worked.insert(key, worked);
        }
        busy.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::StageKind;

    #[test]
    fn a_task_that_works_for_half_of_the_time_is_busy() {
        let task = |name: &str| Arc::new(StageStatus::new("shop", name, StageKind::Sink));
        let tasks = [task("lake"), task("lake"), task("search")];
        let mut busy = Busy::default();
        let mut work = |milliseconds: [u64; 3]| {
            for (task, milliseconds) in tasks.iter().zip(milliseconds) {
                task.processed(1, Duration::from_millis(milliseconds));
            }
            busy.since(tasks.iter().cloned(), Duration::from_secs(1))
        };
        assert!(work([0, 0, 400]).is_empty());
        assert_eq!(work([600, 700, 499]), ["shop.lake"]);
        assert_eq!(work([0, 900, 600]), ["shop.lake", "shop.search"]);
        assert!(work([0, 0, 0]).is_empty());
    }
}
