//! Expands the paths of a command to pipeline files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::config::{FileProblems, problem_at};

/// The files that paths stand for. Unreadable folders are left out.
pub fn files_of(paths: &[PathBuf]) -> Vec<PathBuf> {
    discover(paths).0
}

/// The files that paths stand for: a file for itself, a folder for all `*.toml` in it by name. Each
/// file once.
pub(super) fn discover(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<FileProblems>) {
    let (mut files, mut known) = (Vec::new(), HashSet::new());
    let mut problems = Vec::new();
    for path in paths {
        let found = match path.is_dir() {
            true => in_folder(path),
            false => Ok(vec![path.clone()]),
        };
        match found {
            Ok(found) => files.extend(found.into_iter().filter(|file| known.insert(real_path(file)))),
            Err(problem) => problems.push(problem),
        }
    }
    (files, problems)
}

/// The same for `a.toml`, `./a.toml` and a link to it.
fn real_path(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| file.to_owned())
}

fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, FileProblems> {
    let unreadable = |error: std::io::Error| {
        problem_at(
            Some(folder),
            "config.unreadable",
            format!("cannot read the folder {}: {error}", folder.display()),
            None,
        )
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_pipeline = path.extension().is_some_and(|extension| extension == "toml") && path.is_file();
        // The worker's settings may be in the same folder; editors leave hidden files.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_pipeline && name != "trunkline.toml" && !name.starts_with('.') {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        let message = format!("the folder {} has no pipeline files", folder.display());
        let help = "a pipeline file ends in `.toml`; subfolders are not read".to_owned();
        return Err(problem_at(Some(folder), "plan.no_pipelines", message, Some(help)));
    }
    files.sort();
    Ok(files)
}
