//! The data of benchmarks: lines of access logs, all of one length.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use trunkline_tests::{LogWriter, Random};

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

    /// JSON objects with this many members, all numbers.
    pub(crate) fn json(seed: u64, count: u64, columns: usize) -> Self {
        let mut bytes = Vec::new();
        let mut state = seed;
        for _ in 0..count {
            bytes.push(b'{');
            for column in 0..columns {
                // Constants of Knuth's generator; the upper bits are random enough.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let number = 100_000 + (state >> 33) % 900_000;
                let end = if column + 1 < columns { ',' } else { '}' };
                write!(bytes, "\"c{column:04}\":{number}{end}").unwrap();
            }
            bytes.push(b'\n');
        }
        let line_bytes = bytes.len() / count as usize;
        Self { bytes, line_bytes }
    }

    /// JSON objects whose member `key` has this many values, in random order.
    pub(crate) fn keyed(seed: u64, count: u64, values: u64) -> Self {
        let mut bytes = Vec::new();
        let mut random = Random::new(seed);
        for number in 0..count {
            writeln!(bytes, "{{\"key\":\"k{:06}\",\"number\":{}}}", random.below(values), 1_000_000 + number).unwrap();
        }
        let line_bytes = bytes.len() / count as usize;
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
