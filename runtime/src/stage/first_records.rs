//! Stops a stage whose first records all fail. One bad record is a fault of the data; a thousand of
//! them, without a good one in between, are a fault of the configuration: a wrong parser, or a
//! template with a misspelled field.

use trunkline_connector::{Error, Result};

use super::status::StageStatus;
use crate::checkpoint::{ComponentCounters, Counters};

/// Checks the counters of this run, before the commit that would add `pending`. `limit` records
/// decide; 0 turns the check off. A stage that the check stops has committed none of the records
/// that are pending: they are read again after the configuration was corrected.
pub(super) fn check(status: &StageStatus, pending: &Counters, limit: u64) -> Result<()> {
    if limit == 0 || pending.0.values().all(|counters| counters.dead_lettered == 0) {
        return Ok(());
    }
    let mut run = status.counters();
    run.add(pending);
    for (component, counters) in &run.0 {
        let ComponentCounters { records_in, dead_lettered, .. } = *counters;
        if records_in >= limit && dead_lettered == records_in {
            return Err(Error::config(
                "stage.all_records_fail",
                format!(
                    "`{component}` rejected all of its first {records_in} records, so its configuration is probably wrong; the log \
                     has the reasons. Correct the configuration. If the data is at fault, set `on_error = \"skip\"`, or \
                     `max_initial_failures = 0` in the worker's settings"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::status::StageKind;

    fn counters(records_in: u64, dead_lettered: u64, dropped: u64) -> Counters {
        let mut counters = Counters::default();
        let out = records_in - dead_lettered - dropped;
        *counters.of("web") =
            ComponentCounters { records_in, out, dead_lettered, dropped, ..ComponentCounters::default() };
        counters
    }

    #[test]
    fn a_stage_whose_first_records_all_fail_stops() {
        let status = StageStatus::new("p", "web", StageKind::Source);
        assert!(check(&status, &counters(999, 999, 0), 1000).is_ok(), "too few to decide");
        let error = check(&status, &counters(5595, 5595, 0), 1000).unwrap_err();
        assert_eq!((error.domain, error.code), (trunkline_connector::Domain::Config, "stage.all_records_fail"));
        assert!(error.message().contains("all of its first 5595 records"), "{error}");
        // Committed counts add up.
        status.committed(&counters(600, 600, 0));
        assert!(check(&status, &counters(399, 399, 0), 1000).is_ok());
        assert!(check(&status, &counters(400, 400, 0), 1000).is_err());
    }

    #[test]
    fn one_good_record_decides_for_the_data() {
        let status = StageStatus::new("p", "web", StageKind::Source);
        status.committed(&counters(10, 9, 0));
        assert!(check(&status, &counters(50_000, 50_000, 0), 1000).is_ok());
    }

    #[test]
    fn skipped_records_and_a_limit_of_zero_stop_nothing() {
        let status = StageStatus::new("p", "web", StageKind::Source);
        assert!(check(&status, &counters(50_000, 0, 50_000), 1000).is_ok());
        assert!(check(&status, &counters(50_000, 50_000, 0), 0).is_ok());
    }
}
