//! The data of benchmarks: lines of access logs, all of one length.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use trunkline_tests::LogWriter;

/// Length of a line with its newline, and of a record.
pub(crate) const LINE_BYTES: usize = 300;

/// Lines in memory.
pub(crate) struct Lines {
    bytes: Vec<u8>,
    line_bytes: usize,
}

impl Lines {
    /// Generated lines, each padded to the same length in its last field.
    pub(crate) fn generate(seed: u64, count: u64) -> Self {
        const PADDING: &[u8] = b" (compatible; padding of a fixed text, as long as most agents' names are these days)";
        let padding = PADDING.repeat(4);
        let mut bytes = Vec::with_capacity(count as usize * LINE_BYTES);
        for line in generated(seed, count).split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let short = (LINE_BYTES - 1).checked_sub(line.len()).expect("generated lines are shorter");
            // The last character of a line is the quote after its last field.
            bytes.extend_from_slice(&line[..line.len() - 1]);
            bytes.extend_from_slice(&padding[..short]);
            bytes.extend_from_slice(b"\"\n");
        }
        assert_eq!(bytes.len(), count as usize * LINE_BYTES);
        Self { bytes, line_bytes: LINE_BYTES }
    }

    /// Lines of any length, cut out of the same text anywhere: for `parser = "none"`.
    pub(crate) fn of_length(seed: u64, count: u64, line_bytes: usize) -> Self {
        // Generated lines have more than 80 bytes.
        let mut bytes = generated(seed, count * line_bytes as u64 / 80 + 1);
        bytes.truncate(count as usize * line_bytes);
        bytes.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        bytes.chunks_exact_mut(line_bytes).for_each(|line| line[line_bytes - 1] = b'\n');
        assert_eq!(bytes.len(), count as usize * line_bytes);
        Self { bytes, line_bytes }
    }

    /// The lines, each with its newline.
    pub(crate) fn records(&self) -> std::slice::Chunks<'_, u8> {
        self.bytes.chunks(self.line_bytes)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("generated lines are ASCII")
    }
}

fn generated(seed: u64, count: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.log");
    LogWriter::new(&path, seed).append(count);
    fs::read(path).unwrap()
}

/// A log file.
pub(crate) struct Log {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Log {
    /// A log of `count` lines, which repeat the given ones.
    pub(crate) fn write(lines: &Lines, count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let mut file = BufWriter::new(File::create(&path).unwrap());
        let mut left = count as usize * lines.line_bytes;
        while left > 0 {
            let part = left.min(lines.bytes.len());
            file.write_all(&lines.bytes[..part]).unwrap();
            left -= part;
        }
        // Written to disk now, and not during a measurement.
        file.into_inner().unwrap().sync_all().unwrap();
        Self { _folder: folder, path }
    }

    /// Links it into the folder that a case reads.
    pub(crate) fn link(&self, folder: &Path, name: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::hard_link(&self.path, folder.join(name)).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
