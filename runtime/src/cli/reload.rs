//! Pipeline files that are read again while a worker follows: on SIGHUP, and with `--watch` when they change.
//!
//! Whoever edits a file may save half of it: a change counts when the files look the same a second later. What they look like is taken
//! before they are read, so that no change is missed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::signal::unix::Signal;
use trunkline_transform_host::Host;

use super::output::print_problems;
use super::{RunArgs, SettingsArgs};
use crate::config::Settings;
use crate::plan::{Files, Loaded, Registry, files_of};
use crate::worker::PipelineSet;

/// Files are looked at so often.
const LOOK: Duration = Duration::from_secs(1);

/// All that the pipelines of a worker are read from.
pub(super) struct Reader {
    paths: Vec<PathBuf>,
    watch: bool,
    flags: SettingsArgs,
    /// Those that the worker runs with.
    settings: Settings,
    host: Host,
    registry: Registry,
    files: Files,
    /// What the files looked like before they were read.
    read: Seen,
    /// What they looked like a second ago.
    last: Seen,
}

/// What files look like; `None` where there is none.
type Seen = BTreeMap<PathBuf, Option<Look>>;

/// Another one after every change: device, inode, length, and the time of change, which nobody can set.
type Look = (u64, u64, u64, i64, i64);

impl Reader {
    pub(super) fn new(args: &RunArgs, settings: Settings, host: Host) -> Self {
        Self {
            paths: args.paths.clone(),
            watch: args.watch,
            flags: args.settings.clone(),
            settings,
            host,
            registry: Registry::new(),
            files: Files::default(),
            read: Seen::new(),
            last: Seen::new(),
        }
    }

    /// Reads all files, and shows what is wrong with them.
    pub(super) fn read(&mut self) -> Loaded {
        let mut loaded = self.read_once();
        // Plugins that they did not name before were not looked at before they were read.
        if self.watch && !self.look().keys().eq(self.read.keys()) {
            loaded = self.read_once();
        }
        if !loaded.problems.is_empty() {
            print_problems(&loaded.problems);
        }
        if !loaded.kept.is_empty() {
            tracing::warn!("what runs of files with mistakes goes on as it was: {}", loaded.kept.join(", "));
        }
        loaded
    }

    fn read_once(&mut self) -> Loaded {
        self.read = self.look();
        self.files.read(&self.paths, &self.host, &self.settings, &self.registry)
    }

    /// What is to run from now on, if somebody `asked` for it or files changed.
    fn next(&mut self, asked: bool) -> Option<PipelineSet> {
        if !asked {
            let now = self.look();
            let is_settled = now == self.last;
            self.last = now;
            if !is_settled || self.last == self.read {
                return None;
            }
        }
        self.compare_settings();
        let pipelines = self.read().pipelines;
        // Whoever asks has mended what a stage failed of, perhaps outside of the files.
        Some(PipelineSet { pipelines, retry_failed: asked })
    }

    fn compare_settings(&self) {
        match self.flags.read() {
            Ok(now) => {
                let changed = self.settings.differences(&now);
                if !changed.is_empty() {
                    tracing::warn!(
                        "settings that changed are not taken before the worker is restarted: {}",
                        changed.join(", ")
                    );
                }
            }
            Err(problems) => print_problems(&problems),
        }
    }

    fn look(&self) -> Seen {
        let settings = self.flags.config.clone().unwrap_or_else(|| PathBuf::from(Settings::DEFAULT_FILE));
        let plugins = self.files.plugins().iter().cloned();
        let all = files_of(&self.paths).into_iter().chain(plugins).chain([settings]);
        all.map(|path| (path.clone(), look(&path))).collect()
    }
}

fn look(path: &Path) -> Option<Look> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
}

/// Reads files again, each time that SIGHUP or a change asks for it, until the worker has gone.
pub(super) async fn follow(mut reader: Reader, mut hangups: Signal, sets: Sender<PipelineSet>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => true,
            _ = looks.tick(), if reader.watch => false,
        };
        // Compiling plugins takes its time.
        let next = tokio::task::spawn_blocking(move || {
            let set = reader.next(asked);
            (reader, set)
        });
        let Ok((back, set)) = next.await else {
            tracing::error!("reading the pipeline files panicked: they are not read any more (please report this)");
            return;
        };
        reader = back;
        if set.is_some_and(|set| sets.send(set).is_err()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_looks_different_after_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        assert_eq!(look(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = look(&path);
        assert!(first.is_some() && look(&path) == first);
        // Another file in its place, of the same length and with the same times, as editors and `mv` make.
        let other = folder.path().join("b");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(look(&path), first);
    }
}
