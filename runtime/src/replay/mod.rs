//! Replays (I9): a sink reads a range of its topics again, as a run that is separate from the live
//! one.
//!
//! A run is a [`SinkStage`](crate::stage::SinkStage) under another cluster name,
//! `{cluster}.!replay.{run}`. Its group, transactional ids, intents and counters follow from that
//! name, so they cannot meet those of the live run, and everything that makes a sink exactly once
//! holds for a run, too. Its [`Bounds`](crate::stage::Bounds) end it.
//!
//! - [`range`]: what the user asks for, and the offsets that result.
//! - [`event_time`]: a range by a time in the records.
//! - [`run`]: the rows of runs in `_trunkline.checkpoints`.
//! - [`listing`]: the runs with their progress.
//! - [`requests`]: pauses, resumes and stops a run, on whichever machine it is executed.
//! - [`execution`]: executes a run in this process, and continues it after a crash.
//! - [`widening`]: the range of a run that replaces files, as whole files.
//! - [`superseding`]: makes the output of such a run visible, and removes the earlier files.
//! - [`inspection`]: shows what the transforms make of a range, and writes nothing.
//! - [`origin`]: where a record came from.
//! - [`trace`]: the path of one record through the stages that read it.
//! - [`diff`]: compares the rows of a shadow with those of the live destination.
//! - [`audit`]: checks the files of a destination against the committed offsets.

pub mod audit;
pub mod diff;
pub mod event_time;
pub mod execution;
pub mod inspection;
pub mod listing;
mod live_work;
pub mod origin;
pub mod range;
pub mod requests;
pub mod run;
pub mod superseding;
pub mod trace;
pub mod widening;

/// The cluster name of a run: the prefix of all its names in Kafka. No pipeline has such a name.
pub fn cluster_name(cluster: &str, run: &str) -> String {
    format!("{cluster}.!replay.{run}")
}

#[cfg(test)]
mod testing {
    use std::sync::OnceLock;

    use trunkline_transform_host::{Host, HostOptions};

    use crate::config::Settings;
    use crate::plan::{Pipeline, Registry, load_each};

    const TEXT: &str = r#"
        name = "p"
        [transforms.positive]
        inputs = ["topic:t"]
        plugin = "filter.wasm"
        config = { condition = "value.id > 0" }
        on_error = "stop"
        [transforms.mask]
        inputs = ["positive"]
        plugin = "mask.wasm"
        config = { fields = ["card"] }
        [sinks.lake]
        connector = "s3"
        inputs = ["mask"]
        url = "file:///lake"
    "#;

    /// A sink behind two transforms, and the host: it compiles their plugins once for all tests.
    pub(super) fn pipeline() -> &'static (Host, Pipeline) {
        static PIPELINE: OnceLock<(Host, Pipeline)> = OnceLock::new();
        PIPELINE.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("p.toml");
            std::fs::write(&file, TEXT).unwrap();
            let host = Host::new(HostOptions::default()).unwrap();
            let settings = Settings::load(None, &Vec::new()).unwrap();
            let mut loaded = load_each(&[file], &host, &settings, &Registry::new());
            assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
            (host, loaded.pipelines.remove(0))
        })
    }
}
