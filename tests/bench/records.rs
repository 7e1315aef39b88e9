//! The bytes that are moved: lines of an access log, all of one length.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use trunkline_tests::LogWriter;

/// Length of a line with its newline, and of a record.
pub(crate) const LINE_BYTES: usize = 300;

/// The log file that is read, also as the lines that the bare producer sends.
pub(crate) struct Log {
    _folder: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Log {
    /// Generated lines, each brought to the same length by its last field.
    pub(crate) fn write(lines: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (generated, path) = (folder.path().join("generated.log"), folder.path().join("access.log"));
        let mut writer = LogWriter::new(&generated, 1);
        writer.append(lines);
        let mut file = BufWriter::new(File::create(&path).unwrap());
        for line in fs::read(&generated).unwrap().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let short = (LINE_BYTES - 1).checked_sub(line.len()).expect("generated lines are shorter");
            file.write_all(&line[..line.len() - 1]).unwrap();
            file.write_all(
                &b" (compatible; padding of a fixed text, as long as most agents' names are these days)".repeat(4)
                    [..short],
            )
            .unwrap();
            file.write_all(b"\"\n").unwrap();
        }
        file.into_inner().unwrap();
        fs::remove_file(generated).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), lines as usize * LINE_BYTES);
        Self { _folder: folder, path, bytes }
    }

    /// Puts it where a case reads it.
    pub(crate) fn link(&self, folder: &Path) {
        fs::hard_link(&self.path, folder.join("access.log")).unwrap();
    }

    /// The lines, each as a record.
    pub(crate) fn records(&self) -> std::slice::Chunks<'_, u8> {
        self.bytes.chunks(LINE_BYTES)
    }
}
