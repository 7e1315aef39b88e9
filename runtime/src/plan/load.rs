//! Loads and reloads sets of pipeline files.

use std::path::{Path, PathBuf};

use trunkline_transform_host::Host;

use super::planned_file::{PlannedFile, plan};
use super::registry::Registry;
use super::{Pipeline, cross_file_checks, files};
use crate::config::{Document, FileProblems, Settings, problem_at};

/// The result of loading a set of pipeline files.
#[derive(Default)]
pub struct Loaded {
    /// Valid pipelines, in the order of their files.
    pub pipelines: Vec<Pipeline>,
    /// Names of those pipelines that keep their previous plan, because their files are invalid now.
    pub kept: Vec<String>,
    /// Problems by file.
    pub problems: Vec<FileProblems>,
    /// Warnings by file: problems that do not keep a pipeline from running.
    pub warnings: Vec<FileProblems>,
}

/// Loads the pipelines of the given files and folders. An invalid file does not affect the others
/// (I7). Of two files that use the same name or topic, the first by path runs.
pub fn load_each(paths: &[PathBuf], host: &Host, settings: &Settings, registry: &Registry) -> Loaded {
    Files::default().read(paths, host, settings, registry)
}

/// Loads one pipeline file with other options of a sink: TOML text, as in the file.
pub fn load_with_options(
    file: &Path,
    (kind, component): (&str, &str),
    options: &str,
    host: &Host,
    settings: &Settings,
    registry: &Registry,
) -> Result<Pipeline, FileProblems> {
    let mut document = Document::read(file, settings.secrets.as_deref())?;
    document.override_component(kind, component, options, settings.secrets.as_deref());
    let planned = plan(document, host, registry);
    let problems = planned.file_problems();
    match (planned.pipeline, problems) {
        (Some(pipeline), None) => Ok(pipeline),
        (_, Some(problems)) => Err(problems),
        // A file without a pipeline has problems.
        (None, None) => Err(problem_at(Some(file), "plan.empty", "the file defines no pipeline".to_owned(), None)),
    }
}

/// Pipeline files that are reloaded while a worker runs.
#[derive(Default)]
pub struct Files {
    /// The last valid version of each file.
    valid: Vec<PlannedFile>,
    /// Paths of the plugins that the files name, valid files or not.
    plugins: Vec<PathBuf>,
}

impl Files {
    /// Reads the files. A file that was valid before and is invalid now keeps its previous plan
    /// (I7); the names and topics of that plan stay taken. The plan of a deleted file is dropped.
    pub fn read(&mut self, paths: &[PathBuf], host: &Host, settings: &Settings, registry: &Registry) -> Loaded {
        let (files, mut problems) = files::discover(paths);
        let mut planned = Vec::new();
        for file in &files {
            match Document::read(file, settings.secrets.as_deref()) {
                Ok(document) => planned.push(plan(document, host, registry)),
                Err(unreadable) => problems.push(unreadable),
            }
        }
        // A conflict between two files is a problem of the later one: unchanged files come first.
        planned.sort_by_key(|file| self.is_changed(file));
        cross_file_checks::check(&mut planned);
        let (valid, invalid): (Vec<_>, Vec<_>) = planned.into_iter().partition(|file| file.file_problems().is_none());

        let Kept { mut kept, mut valid, mut invalid } =
            keep_previous(std::mem::take(&mut self.valid), valid, invalid, &problems);
        let place = |planned: &PlannedFile| files.iter().position(|file| *file == planned.document.file);
        invalid.sort_by_key(place);
        problems.extend(invalid.iter().filter_map(PlannedFile::file_problems));
        let name = |planned: &PlannedFile| planned.pipeline.as_ref().map(|pipeline| pipeline.name.clone());
        let kept_names = kept.iter().filter_map(name).collect();
        valid.append(&mut kept);
        valid.sort_by_key(place);
        self.plugins = valid.iter().chain(&invalid).flat_map(|file| file.plugins.iter().cloned()).collect();
        self.valid = valid;
        let pipelines = self.valid.iter().filter_map(|file| file.pipeline.clone()).collect();
        let warnings = self.valid.iter().chain(&invalid).filter_map(PlannedFile::file_warnings).collect();
        Loaded { pipelines, kept: kept_names, problems, warnings }
    }

    /// Paths of the plugins that the files named when they were read.
    pub fn plugins(&self) -> &[PathBuf] {
        &self.plugins
    }

    fn is_changed(&self, planned: &PlannedFile) -> bool {
        let known = self.valid.iter().find(|known| known.document.file == planned.document.file);
        known.is_none_or(|known| known.document.source != planned.document.source)
    }
}

struct Kept {
    /// Previous versions that stay in use.
    kept: Vec<PlannedFile>,
    valid: Vec<PlannedFile>,
    invalid: Vec<PlannedFile>,
}

/// Keeps the previous version of each file that is invalid or unreadable now. A kept version may
/// conflict with a changed file, which is then invalid, too, and keeps its own previous version. So
/// this runs in rounds, at most one per file.
fn keep_previous(
    mut previous: Vec<PlannedFile>,
    mut valid: Vec<PlannedFile>,
    mut invalid: Vec<PlannedFile>,
    unreadable: &[FileProblems],
) -> Kept {
    let mut kept: Vec<PlannedFile> = Vec::new();
    loop {
        let is_kept = |known: &PlannedFile| {
            let file = &known.document.file;
            let contains = |problems: &FileProblems| problems.file.as_ref().is_some_and(|at| file.starts_with(at));
            let is_invalid =
                invalid.iter().any(|other| other.document.file == *file) || unreadable.iter().any(contains);
            is_invalid && !is_deleted(file)
        };
        let (keep, rest): (Vec<_>, Vec<_>) = previous.into_iter().partition(is_kept);
        previous = rest;
        if keep.is_empty() {
            return Kept { kept, valid, invalid };
        }
        kept.extend(keep);
        let count = kept.len();
        kept.append(&mut valid);
        cross_file_checks::check(&mut kept);
        let (still_valid, conflicting): (Vec<_>, Vec<_>) =
            kept.split_off(count).into_iter().partition(|file| file.file_problems().is_none());
        valid = still_valid;
        invalid.extend(conflicting);
    }
}

/// Was the file deleted? A file whose folder is missing, too, may be on a disk that is not mounted.
fn is_deleted(file: &Path) -> bool {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.is_dir() && matches!(file.try_exists(), Ok(false))
}
