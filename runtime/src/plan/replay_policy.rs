//! The option `replay = { forbid, rate }` of a sink.

use std::num::NonZeroU64;

use trunkline_connector::config::{Mismatch, Section};

/// What the pipeline file says of replays into a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayPolicy {
    /// Why there must be none.
    pub forbid: Option<String>,
    /// The most records per second.
    pub rate: Option<NonZeroU64>,
}

impl ReplayPolicy {
    /// Reads the option; problems go to the section's report.
    pub(super) fn read(section: &Section<'_>) -> Self {
        let Some(replay) = section.section("replay") else { return Self::default() };
        let forbid = replay.optional::<String>("forbid");
        let is_blank = forbid.as_ref().is_some_and(|reason| reason.trim().is_empty());
        if let Some(node) = replay.node("forbid").filter(|_| is_blank) {
            replay.mismatch("forbid", node, Mismatch::new("is empty"), "the reason, as text".to_owned());
        }
        let rate = replay.optional::<u64>("rate");
        let policy = Self { forbid, rate: rate.and_then(NonZeroU64::new) };
        if let (Some(0), Some(node)) = (rate, replay.node("rate")) {
            let expected = "a number of records per second above zero; `forbid` forbids replays".to_owned();
            replay.mismatch("rate", node, Mismatch::new("is zero"), expected);
        }
        replay.finish();
        policy
    }

    /// The lower of this rate and a requested one.
    pub fn rate(&self, requested: Option<NonZeroU64>) -> Option<NonZeroU64> {
        self.rate.into_iter().chain(requested).min()
    }
}

#[cfg(test)]
mod tests {
    use trunkline_transform_host::{Host, HostOptions};

    use super::*;
    use crate::config::Settings;
    use crate::plan::{Loaded, Registry, load_each};

    fn load(option: &str) -> Loaded {
        load_in(&tempfile::tempdir().unwrap(), option)
    }

    fn load_in(folder: &tempfile::TempDir, option: &str) -> Loaded {
        let file = folder.path().join("p.toml");
        let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"topic:t\"]\nurl = \"file:///lake\"\n";
        std::fs::write(&file, format!("name = \"p\"\n{sink}{option}\n")).unwrap();
        let host = Host::new(HostOptions::default()).unwrap();
        load_each(&[file], &host, &Settings::load(None, &Vec::new()).unwrap(), &Registry::new())
    }

    #[test]
    fn the_lower_rate_applies() {
        let policy =
            load("[sinks.lake.replay]\nforbid = \"signed\"\nrate = 5_000").pipelines[0].sinks[0].replay.clone();
        let rate = NonZeroU64::new;
        assert_eq!((policy.forbid.as_deref(), policy.rate), (Some("signed"), rate(5_000)));
        assert_eq!((policy.rate(None), policy.rate(rate(7_000))), (rate(5_000), rate(5_000)));
        assert_eq!((policy.rate(rate(100)), ReplayPolicy::default().rate(rate(7))), (rate(100), rate(7)));
    }

    #[test]
    fn a_policy_does_not_change_the_plan_of_the_live_sink() {
        let folder = tempfile::tempdir().unwrap();
        let sink = |option: &str| load_in(&folder, option).pipelines[0].sinks[0].clone();
        assert!(sink("replay.rate = 5") == sink("replay.forbid = \"signed\""));
        assert!(sink("replay.rate = 5") != sink("commit.records = 5"));
    }

    #[test]
    fn useless_values_are_reported() {
        for option in ["replay.rate = 0", "replay.forbid = \" \"", "replay.forbid = true", "replay.speed = 5"] {
            assert_eq!(load(option).problems.len(), 1, "{option}");
        }
    }
}
