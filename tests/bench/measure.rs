//! What is measured of other processes, and how measurements are summed up.

use std::fs;

/// Processor seconds of another process, user and system, in steps of 10 ms.
pub(crate) fn cpu_seconds_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // "pid (name) state ppid ..": the name may hold anything. utime and stime are fields 14 and 15, in clock ticks of 10 ms.
    let ticks =
        stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
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
