//! Writes and rotations by another thread during scans: whatever intermediate state a scan meets,
//! every line is emitted once.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Files, TestSource};

/// Steps of one round, and so the highest number of a rotated file.
const STEPS: u64 = 60;

/// `xorshift64*`: a seed determines the steps.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Renames older files to the next number, so that `.1` is free.
fn shift(files: &Files) {
    for number in (1..=STEPS).rev() {
        for suffix in ["", ".gz"] {
            let from = format!("a.log.{number}{suffix}");
            if files.path(&from).exists() {
                files.rename(&from, &format!("a.log.{}{suffix}", number + 1));
            }
        }
    }
}

/// Writes and rotates as fast as possible; returns the number of lines.
fn rotate(files: &Files, seed: u64) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut lines = 0;
    for _ in 0..STEPS {
        match random.below(10) {
            0..6 => {
                let count = 1 + random.below(400);
                let text: String =
                    (lines..lines + count).map(|line| format!("line {line} {}\n", "~".repeat(40))).collect();
                files.append("a.log", text);
                lines += count;
            }
            6 if files.path("a.log").exists() => {
                shift(files);
                files.rename("a.log", "a.log.1");
            }
            7 | 8 if files.path("a.log").exists() => {
                shift(files);
                files.copy_truncate("a.log", "a.log.1");
            }
            9 => {
                let plain = (1..=STEPS).map(|number| format!("a.log.{number}")).find(|name| files.path(name).exists());
                if let Some(name) = plain {
                    files.gzip(&name, &format!("{name}.gz"));
                }
            }
            _ => {}
        }
        if random.below(3) == 0 {
            let until = Instant::now() + Duration::from_micros(random.below(3000));
            while Instant::now() < until {
                std::thread::yield_now();
            }
        }
    }
    lines
}

fn round(seed: u64) {
    let max_open_files = [1, 256][seed as usize % 2];
    let mut source =
        TestSource::following(&format!("max_open_files = {max_open_files}\neof = \"wait\"\npoll_interval = \"1ms\""));
    let files = source.files.clone();
    let ended = AtomicBool::new(false);
    let lines = std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            let lines = rotate(&files, seed);
            ended.store(true, Ordering::Release);
            lines
        });
        while !ended.load(Ordering::Acquire) {
            source.fill(1000, Duration::from_millis(5)).unwrap();
        }
        rotating.join().unwrap()
    });
    source.until_idle = true;
    source.stop();
    source.read();
    let mut seen: Vec<u64> =
        source.texts().iter().map(|text| text.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    seen.sort_unstable();
    let doubled: Vec<u64> = seen.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    seen.dedup();
    let missing: Vec<u64> = (0..lines).filter(|line| seen.binary_search(line).is_err()).collect();
    assert!(
        missing.is_empty() && doubled.is_empty(),
        "seed {seed}, {lines} lines: {} missing from {:?}, {} doubled from {:?}",
        missing.len(),
        missing.first(),
        doubled.len(),
        doubled.first()
    );
}

/// `TRUNKLINE_RACES` sets the number of rounds.
#[test]
fn rotation_during_a_scan_loses_and_repeats_no_line() {
    let rounds = std::env::var("TRUNKLINE_RACES").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    for seed in 0..rounds {
        round(seed);
    }
}
