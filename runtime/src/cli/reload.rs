//! Reloads pipeline files while a worker runs: on SIGHUP, with `--watch` when they change, and when
//! connectors are created, changed or deleted by REST.
//!
//! An editor may save a file in several steps, so a change counts once the files are unchanged for
//! a second. Their stamps are taken before the files are read, so that no change is missed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::signal::unix::Signal;
use trunkline_transform_host::Host;

use super::output::print_problems;
use super::stored_connectors::StoredConnectors;
use super::{RunArgs, SettingsArgs};
use crate::config::{Settings, forget_stored_secrets, warn_about_exposed_secrets};
use crate::http::HttpTls;
use crate::plan::{Files, Loaded, Registry, files_of};
use crate::worker::PipelineSet;

/// Time between two looks at the files.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The inputs that the pipelines of a worker are read from.
pub(super) struct Reader {
    paths: Vec<PathBuf>,
    watch: bool,
    flags: SettingsArgs,
    /// The settings that the worker runs with.
    settings: Settings,
    host: Host,
    registry: Registry,
    files: Files,
    connectors: StoredConnectors,
    /// The stamps of the files before they were read.
    read: Stamps,
    /// The stamps of the files at the last look.
    last: Stamps,
    /// The warnings that were printed last.
    warned: String,
    /// The certificate of the HTTP server.
    certificate: Option<HttpTls>,
}

/// Stamps by path; `None` where no file exists.
type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Differs after every change: device, inode, length, and the time of change, which programs cannot
/// set.
type Stamp = (u64, u64, u64, i64, i64);

impl Reader {
    pub(super) fn new(args: &RunArgs, settings: Settings, host: Host, connectors: StoredConnectors) -> Self {
        Self {
            paths: args.paths.clone(),
            watch: args.watch,
            flags: args.settings.clone(),
            settings,
            host,
            registry: Registry::new(),
            files: Files::default(),
            connectors,
            read: Stamps::new(),
            last: Stamps::new(),
            warned: String::new(),
            certificate: None,
        }
    }

    /// The same, which also reads this certificate of the HTTP server on SIGHUP.
    pub(super) fn with_certificate(mut self, certificate: Option<HttpTls>) -> Self {
        self.certificate = certificate;
        self
    }

    /// Reads all files and prints their problems.
    pub(super) fn read(&mut self) -> Loaded {
        let mut loaded = self.read_once();
        // Plugins that the files did not name before have no stamp from before the read.
        if self.watch && !self.stamps().keys().eq(self.read.keys()) {
            loaded = self.read_once();
        }
        if !loaded.problems.is_empty() {
            print_problems(&loaded.problems);
        }
        // A reload repeats only warnings that changed.
        let warnings: String = loaded.warnings.iter().map(ToString::to_string).collect();
        if warnings != self.warned && !loaded.warnings.is_empty() {
            print_problems(&loaded.warnings);
        }
        self.warned = warnings;
        warn_about_exposed_secrets();
        if !loaded.kept.is_empty() {
            tracing::warn!("pipelines with invalid files keep their previous plan: {}", loaded.kept.join(", "));
        }
        loaded
    }

    fn read_once(&mut self) -> Loaded {
        self.read = self.stamps();
        self.files.read(&self.all_paths(), &self.host, &self.settings, &self.registry)
    }

    /// The user's paths, and the files of connectors that were created by REST.
    fn all_paths(&self) -> Vec<PathBuf> {
        self.paths.iter().cloned().chain(self.connectors.files()).collect()
    }

    /// The next set of pipelines, if a reload was `requested` or the files changed.
    fn next(&mut self, requested: bool) -> Option<PipelineSet> {
        if !requested && self.connectors.update() {
            return Some(PipelineSet { pipelines: self.read().pipelines, retry_failed: false, kafka: None });
        }
        if !requested {
            if !self.watch {
                return None;
            }
            let now = self.stamps();
            let is_settled = now == self.last;
            self.last = now;
            if !is_settled || self.last == self.read {
                return None;
            }
        }
        forget_stored_secrets();
        if let Some(certificate) = self.certificate.as_ref().filter(|_| requested) {
            certificate.reload();
        }
        let kafka = self.compare_settings();
        let pipelines = self.read().pipelines;
        // A request means that the cause of a failure may have been removed outside of the files.
        Some(PipelineSet { pipelines, retry_failed: requested, kafka })
    }

    /// Reads the settings again. Returns the settings `kafka` if they differ: the worker takes
    /// changed credentials over. Other changes are reported.
    fn compare_settings(&mut self) -> Option<BTreeMap<String, String>> {
        match self.flags.read() {
            Ok(now) => {
                let mut changed = self.settings.differences(&now);
                let kafka = changed.contains(&"kafka").then_some(now.kafka);
                changed.retain(|name| *name != "kafka");
                if !changed.is_empty() {
                    tracing::warn!("changed settings take effect when the worker restarts: {}", changed.join(", "));
                }
                if let Some(kafka) = &kafka {
                    self.settings.kafka.clone_from(kafka);
                }
                kafka
            }
            Err(problems) => {
                print_problems(&problems);
                None
            }
        }
    }

    fn stamps(&self) -> Stamps {
        let settings = self.flags.config.clone().unwrap_or_else(|| PathBuf::from(Settings::DEFAULT_FILE));
        let plugins = self.files.plugins().iter().cloned();
        let all = files_of(&self.all_paths()).into_iter().chain(plugins).chain([settings]);
        all.map(|path| (path.clone(), stamp(&path))).collect()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
}

/// Reloads the files on each SIGHUP, each change of a connector that was created by REST, and with
/// `--watch` each change of a file, until the worker has ended.
pub(super) async fn follow(mut reader: Reader, mut hangups: Signal, sets: Sender<PipelineSet>) {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let requested = tokio::select! {
            _ = hangups.recv() => true,
            _ = ticks.tick() => false,
        };
        // Compiling plugins takes seconds.
        let next = tokio::task::spawn_blocking(move || {
            let set = reader.next(requested);
            (reader, set)
        });
        let Ok((back, set)) = next.await else {
            tracing::error!("reading the pipeline files panicked: they are no longer reloaded (please report this)");
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
    fn every_change_of_a_file_changes_its_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        assert_eq!(stamp(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = stamp(&path);
        assert!(first.is_some() && stamp(&path) == first);
        // Editors and `mv` put another file in its place, here of the same length.
        let other = folder.path().join("b");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(stamp(&path), first);
    }
}
