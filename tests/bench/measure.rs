//! Measurements of processes and files, and their summaries.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use parquet::file::reader::{FileReader, SerializedFileReader};

/// How long and how often each arm runs.
#[derive(Clone, Copy)]
pub(crate) struct Sampling {
    /// The minimum time of a run.
    pub(crate) run: Duration,
    /// The number of runs of each arm.
    pub(crate) rounds: usize,
}

impl Sampling {
    /// The number of records for a run that is long enough, given the speed of a short run. It adds
    /// some, because the short run may have been slow. The speed is limited: a run that takes
    /// hardly longer than the start of the process measures no speed, and must not fill the disk.
    pub(crate) fn records(&self, per_second: f64) -> u64 {
        const MAX_SPEED: f64 = 1.5e6;
        ((per_second.min(MAX_SPEED) * self.run.as_secs_f64() * 1.15 / 1e5).ceil() as u64).max(1) * 100_000
    }
}

/// User and system processor seconds of another process, in steps of 10 ms.
pub(crate) fn cpu_seconds_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // "pid (name) state ppid ..": the name may contain anything. utime and stime are fields 14 and
    // 15, in clock ticks of 10 ms.
    let ticks =
        stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}

/// Processor seconds that the threads of another process with this prefix of their names take in
/// this time. Threads that begin or end meanwhile count.
pub(crate) fn cpu_seconds_of_threads(pid: u32, prefix: &str, time: Duration) -> f64 {
    const INTERVAL: Duration = Duration::from_millis(100);
    let started = Instant::now();
    // Of each thread: its seconds when it was seen first, and last.
    let mut seen = HashMap::<String, (f64, f64)>::new();
    let mut is_first = true;
    loop {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let folder = thread.unwrap().path();
            // A thread may have ended.
            let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
            let Ok(times) = fs::read_to_string(folder.join("schedstat")) else { continue };
            if name.starts_with(prefix) {
                let seconds = times.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9;
                let thread = folder.file_name().unwrap().to_str().unwrap().to_owned();
                seen.entry(thread).or_insert((if is_first { seconds } else { 0.0 }, seconds)).1 = seconds;
            }
        }
        if started.elapsed() >= time {
            return seen.values().map(|(first, last)| last - first).sum();
        }
        is_first = false;
        std::thread::park_timeout(INTERVAL.min(time.saturating_sub(started.elapsed())));
    }
}

/// The rows of a Parquet file, by its footer; `None` if the file is incomplete.
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

/// All rows of the published files under a folder.
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
