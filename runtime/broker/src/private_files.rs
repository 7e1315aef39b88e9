//! Files and directories that only the broker's user can access: they hold records in plain text.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Creates a directory and its missing parents.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Options that create a file with the right mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

/// Creates a file, or empties an existing one.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    options().write(true).create(true).truncate(true).open(path)
}

/// Opens a file for reading and appending. Creates it if missing.
pub(crate) fn open_for_append(path: &Path) -> io::Result<File> {
    options().read(true).append(true).create(true).open(path)
}

/// Warns if other users can access the data directory, for example one of an older version.
pub(crate) fn check_mode(data_dir: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(data_dir)?.mode() & 0o777;
    if mode & !DIRECTORY_MODE != 0 {
        let directory = data_dir.display();
        tracing::warn!(
            %directory,
            mode = format!("{mode:04o}"),
            "other users can access the data directory, which holds records in plain text; run `chmod -R go= {directory}`"
        );
    }
    Ok(())
}
