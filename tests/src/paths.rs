//! Paths: the repository, the worker's binary, and test data outside of the repository.

use std::env;
use std::path::{Path, PathBuf};

use crate::Skip;

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The worker's binary: `TRUNKLINE_BIN`, or the one that cargo built with this executable.
pub fn worker_binary() -> PathBuf {
    if let Some(path) = env::var_os("TRUNKLINE_BIN") {
        return path.into();
    }
    let path = profile_directory().join("trunkline");
    assert!(path.exists(), "{} does not exist: run `cargo build --workspace --all-targets` first", path.display());
    path
}

/// `target/debug` or `target/release`: benchmarks are in this folder, tests in its folder `deps`.
fn profile_directory() -> PathBuf {
    let executable = env::current_exe().unwrap();
    let folder = executable.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().into() } else { folder.into() }
}

/// The target folder of this executable.
pub(crate) fn target_directory() -> PathBuf {
    profile_directory().parent().unwrap().into()
}

/// 10,000 lines of a real web server's log. Its licence does not allow a copy in the repository, so
/// it is in `TRUNKLINE_TEST_DATA`, by default the folder `../shared/data`.
pub fn sample_access_log() -> Result<PathBuf, Skip> {
    let folder = env::var_os("TRUNKLINE_TEST_DATA").map_or_else(|| repository().join("../shared/data"), PathBuf::from);
    let path = folder.join("access-combined.log");
    path.canonicalize().map_err(|error| Skip::new(format!("{}: {error}; set TRUNKLINE_TEST_DATA", path.display())))
}
