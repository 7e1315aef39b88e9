//! What is measured of processes and of what they wrote, and how measurements are summed up.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use parquet::file::reader::{FileReader, SerializedFileReader};

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    /// A run of an arm takes at least so long.
    pub(crate) run: Duration,
    /// How often the arms take turns.
    pub(crate) rounds: usize,
}

impl Sizes {
    /// Records for a run that is long enough, by the speed that a short one had: some more, for the short one may have been slow. One that took hardly longer
    /// than to start says nothing of it, and must not fill the disk.
    pub(crate) fn records(&self, a_second: f64) -> u64 {
        const FASTEST: f64 = 1.5e6;
        ((a_second.min(FASTEST) * self.run.as_secs_f64() * 1.15 / 1e5).ceil() as u64).max(1) * 100_000
    }
}

/// Processor seconds of another process, user and system, in steps of 10 ms.
pub(crate) fn cpu_seconds_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // "pid (name) state ppid ..": the name may hold anything. utime and stime are fields 14 and 15, in clock ticks of 10 ms.
    let ticks =
        stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}

/// The rows of a published Parquet file, by its footer; none if it is not complete.
pub(crate) fn rows_of(file: &Path) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(file).ok()?).ok()?;
    Some(reader.metadata().file_metadata().num_rows() as u64)
}

/// The published Parquet files under a folder. Hidden folders are not published.
pub(crate) fn files_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match path.extension() {
            _ if hidden => {}
            _ if path.is_dir() => files.extend(files_in(&path)),
            Some(extension) if extension == "parquet" => files.push(path),
            _ => {}
        }
    }
    files
}

/// All rows in the published files under a folder.
pub(crate) fn rows_in(folder: &Path) -> u64 {
    files_in(folder)
        .iter()
        .map(|file| rows_of(file).unwrap_or_else(|| panic!("{} has no footer", file.display())))
        .sum()
}

/// The value below which this share of the values lies.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}
