//! [`ErrorLimits`]: the option `stop_after`. A stage stops when one of its components rejects too
//! many of its records.
//!
//! The counters of a component are compared when a stage is about to commit, and for sinks after
//! each poll. Windows follow one another: a window ends with the check after which it has `of` or
//! more records, so a window can be longer, and its errors are then compared in proportion.

use trunkline_connector::{Error, Result};

use super::status::StageStatus;
use crate::checkpoint::{ComponentCounters, Counters};
use crate::plan::{Input, OnError, Route, Step, StopAfter};

/// The limits of the components of one stage.
pub(super) struct ErrorLimits(Vec<Window>);

struct Window {
    component: String,
    limit: StopAfter,
    /// Records and errors of this run before the window.
    before: (u64, u64),
}

impl ErrorLimits {
    /// The limits of a component, and of the transforms that run in its stage.
    pub(super) fn new(component: &str, on_error: OnError, apply: &[Step], inputs: &[Input]) -> Self {
        let mut all = vec![(component, on_error)];
        all.extend(apply.iter().map(|step| (step.component.as_str(), step.on_error)));
        inputs.iter().for_each(|input| collect(&input.route, &mut all));
        let limited = all.into_iter().filter_map(|(component, on_error)| match on_error {
            OnError::DeadLetterUntil(limit) => {
                Some(Window { component: component.to_owned(), limit, before: (u64::MAX, 0) })
            }
            _ => None,
        });
        Self(limited.collect())
    }

    /// Checks the counters of this run, before the commit that would add `pending`.
    pub(super) fn check(&mut self, status: &StageStatus, pending: &Counters) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let committed = status.counters();
        self.0.iter_mut().try_for_each(|window| window.check(&committed, pending))
    }
}

fn collect<'r>(route: &'r Route, found: &mut Vec<(&'r str, OnError)>) {
    for branch in &route.branches {
        found.push((&branch.step.component, branch.step.on_error));
        branch.outputs.iter().for_each(|(_, next)| collect(next, found));
    }
}

impl Window {
    fn check(&mut self, committed: &Counters, pending: &Counters) -> Result<()> {
        let of = |counters: &Counters| counters.0.get(&self.component).copied().unwrap_or_default();
        let before: ComponentCounters = of(committed);
        let mut now = before;
        now += of(pending);
        // The first window starts with this run of the stage; so does one whose records were
        // aborted, and are read again.
        if self.before.0 > now.records_in {
            self.before = (before.records_in, before.dead_lettered);
        }
        let records = now.records_in - self.before.0;
        let errors = now.dead_lettered.saturating_sub(self.before.1);
        let StopAfter { errors: max, of } = self.limit;
        if u128::from(errors) * u128::from(of) >= u128::from(max) * u128::from(records.max(of)) {
            return Err(Error::config(
                "stage.too_many_errors",
                format!(
                    "`{}` rejected {errors} of {} records, and its `stop_after` is {max} of {of}. The log has the reasons. \
                     Correct the configuration or the data, or raise the limit; the records that are not committed are read again",
                    self.component,
                    records.max(errors)
                ),
            ));
        }
        if records >= of {
            self.before = (now.records_in, now.dead_lettered);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::status::StageKind;

    fn limits(errors: u64, of: u64) -> ErrorLimits {
        ErrorLimits::new("web", OnError::DeadLetterUntil(StopAfter { errors, of }), &[], &[])
    }

    fn counters(records_in: u64, dead_lettered: u64) -> Counters {
        let mut counters = Counters::default();
        let out = records_in - dead_lettered;
        *counters.of("web") = ComponentCounters { records_in, out, dead_lettered, ..ComponentCounters::default() };
        counters
    }

    #[test]
    fn too_many_errors_among_the_last_records_stop_the_stage() {
        let status = StageStatus::new("p", "web", StageKind::Source);
        let mut limits = limits(10, 100);
        // Old errors do not count.
        for (records, errors) in [(60, 9), (60, 0), (100, 9), (50, 9)] {
            limits.check(&status, &counters(records, errors)).unwrap();
            status.committed(&counters(records, errors));
        }
        let error = limits.check(&status, &counters(10, 1)).unwrap_err();
        assert_eq!((error.domain, error.code), (trunkline_connector::Domain::Config, "stage.too_many_errors"));
        assert!(error.message().contains("rejected 10 of 60 records"), "{error}");
    }

    #[test]
    fn errors_of_a_large_commit_count_in_proportion() {
        let status = StageStatus::new("p", "web", StageKind::Source);
        limits(10, 100).check(&status, &counters(10_000, 999)).unwrap();
        assert!(limits(10, 100).check(&status, &counters(10_000, 1_000)).is_err());
    }

    #[test]
    fn an_aborted_transaction_starts_the_window_again() {
        let status = StageStatus::new("p", "web", StageKind::Transform);
        let mut limits = limits(10, 100);
        limits.check(&status, &counters(200, 5)).unwrap();
        limits.check(&status, &counters(50, 9)).unwrap();
        assert!(limits.check(&status, &counters(51, 10)).is_err());
    }

    #[test]
    fn without_a_limit_nothing_stops() {
        let status = StageStatus::new("p", "web", StageKind::Sink);
        ErrorLimits::new("web", OnError::DeadLetter, &[], &[]).check(&status, &counters(10, 10)).unwrap();
    }
}
