//! The options `on_error` and `stop_after`.

use trunkline_connector::config::{Mismatch, Section};

/// What happens to a rejected record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It goes to the pipeline's dead letters.
    #[default]
    DeadLetter,
    /// It goes there until too many records were rejected.
    DeadLetterUntil(StopAfter),
    /// The stage stops before it.
    Stop,
    /// It is counted and dropped.
    Skip,
}

impl OnError {
    /// Reads the options `on_error` and `stop_after`; problems go to the section's report.
    pub(super) fn read(section: &Section<'_>) -> Self {
        let choices = [("dead_letter", Self::DeadLetter), ("stop", Self::Stop), ("skip", Self::Skip)];
        let on_error = section.one_of("on_error", &choices);
        let Some(limit) = section.section("stop_after") else { return on_error };
        match (on_error, StopAfter::read(limit), section.node("stop_after")) {
            (Self::DeadLetter, Some(limit), _) => Self::DeadLetterUntil(limit),
            (Self::Stop | Self::Skip, _, Some(node)) => {
                let message = "counts dead letters, which this `on_error` does not write";
                let expected = "`on_error = \"dead_letter\"` with it".to_owned();
                section.mismatch("stop_after", node, Mismatch::new(message), expected);
                on_error
            }
            _ => on_error,
        }
    }

    /// Whether rejected records go to the dead letters.
    pub fn writes_dead_letters(self) -> bool {
        matches!(self, Self::DeadLetter | Self::DeadLetterUntil(_))
    }
}

/// The option `stop_after`: the stage stops when the component rejects `errors` of `of` records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopAfter {
    /// Rejected records.
    pub errors: u64,
    /// Records, the rejected ones included.
    pub of: u64,
}

impl StopAfter {
    fn read(section: Section<'_>) -> Option<Self> {
        let number = |key: &'static str| {
            let Some(node) = section.node(key) else {
                section.missing(key, "a number of records");
                return None;
            };
            let number = section.optional::<u64>(key)?;
            if number == 0 {
                section.mismatch(key, node, Mismatch::new("is zero"), "a number of records above zero".to_owned());
            }
            Some(number).filter(|number| *number > 0)
        };
        let (errors, of) = (number("errors"), number("of"));
        let limit = errors.zip(of).map(|(errors, of)| Self { errors, of });
        let limit = match (limit, section.node("errors")) {
            (Some(Self { errors, of }), Some(node)) if errors > of => {
                section.mismatch("errors", node, Mismatch::new("is more than `of`"), format!("at most {of}"));
                None
            }
            (limit, _) => limit,
        };
        section.finish();
        limit
    }
}

#[cfg(test)]
mod tests {
    use trunkline_transform_host::{Host, HostOptions};

    use super::*;
    use crate::config::Settings;
    use crate::plan::{Registry, load_each};

    fn load(options: &str) -> Result<OnError, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"topic:t\"]\nurl = \"file:///lake\"\n";
        std::fs::write(&file, format!("name = \"p\"\n{sink}{options}\n")).unwrap();
        let host = Host::new(HostOptions::default()).unwrap();
        let loaded = load_each(&[file], &host, &Settings::load(None, &Vec::new()).unwrap(), &Registry::new());
        match loaded.pipelines.first() {
            Some(pipeline) => Ok(pipeline.sinks[0].on_error),
            None => Err(loaded.problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_limit_on_errors_is_read() {
        assert_eq!(load(""), Ok(OnError::DeadLetter));
        let limit = StopAfter { errors: 100, of: 1000 };
        assert_eq!(load("stop_after = { errors = 100, of = 1000 }"), Ok(OnError::DeadLetterUntil(limit)));
        assert!(OnError::DeadLetterUntil(limit).writes_dead_letters() && !OnError::Skip.writes_dead_letters());
    }

    #[test]
    fn limits_that_cannot_be_meant_are_reported() {
        for (options, expected) in [
            ("stop_after = { errors = 100 }", "`sinks.lake.stop_after.of` is missing"),
            ("stop_after = { errors = 0, of = 10 }", "`sinks.lake.stop_after.errors` is zero"),
            ("stop_after = { errors = 11, of = 10 }", "`sinks.lake.stop_after.errors` is more than `of`"),
            ("stop_after = { errors = 1, of = 10, per = 1 }", "per"),
            (
                "on_error = \"skip\"\nstop_after = { errors = 1, of = 10 }",
                "`sinks.lake.stop_after` counts dead letters",
            ),
        ] {
            let problems = load(options).unwrap_err();
            assert!(problems.contains(expected), "{options}: {problems}");
        }
    }
}
