//! A copy of `tests/pipelines` to load from, with plugins next to the files.

#[path = "../../../transforms/host/build_plugin.rs"]
#[allow(unreachable_pub, reason = "shared with a build script")]
mod build_plugin;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;
use trunkline::config::{FileProblems, Settings};
use trunkline::plan::{Loaded, Registry, load_each};
use trunkline_transform_host::{Host, HostOptions};

/// A folder of pipeline files.
pub(crate) struct Folder {
    folder: TempDir,
}

impl Folder {
    /// A folder that contains only the plugin `testing.wasm`, which has the port `side`.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(testing_plugin(), folder.path().join("testing.wasm")).unwrap();
        Self { folder }
    }

    /// The same with the files of `tests/pipelines`.
    pub(crate) fn with_fixtures() -> Self {
        let folder = Self::new();
        copy(&fixtures(), folder.path());
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> &Self {
        fs::write(self.path().join(name), text).unwrap();
        self
    }

    /// Loads files or folders. Their paths are relative to this folder, also in problems.
    pub(crate) fn load(&self, names: &[&str]) -> Loaded {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path().join(name)).collect();
        let settings = Settings::load(None, &Vec::new()).unwrap();
        let mut loaded = load_each(&paths, host(), &settings, &Registry::new());
        loaded.problems.iter_mut().for_each(|problems| self.shorten(problems));
        loaded
    }

    /// Removes the folder, whose name differs in every run.
    fn shorten(&self, problems: &mut FileProblems) {
        let prefix = format!("{}/", self.path().display());
        problems.file = problems.file.take().map(|file| file.strip_prefix(self.path()).unwrap_or(&file).to_owned());
        for problem in &mut problems.problems {
            problem.message = problem.message.replace(&prefix, "");
            problem.help = problem.help.take().map(|help| help.replace(&prefix, ""));
        }
    }
}

/// `tests/pipelines` in the repository.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pipelines")
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

pub(crate) fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host::new(HostOptions::default()).unwrap())
}

fn testing_plugin() -> &'static Path {
    static WASM: OnceLock<PathBuf> = OnceLock::new();
    WASM.get_or_init(|| {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../transforms/plugins");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
        build_plugin::build(&plugins, "testing", &target).unwrap_or_else(|message| panic!("{message}"))
    })
}
