//! Random writes, rotations and restarts against a model: every line once, and in the order of its file.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::collections::BTreeMap;

use common::Bench;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write {
        log: usize,
        lines: usize,
    },
    /// The beginning of a line, which the next write to the log ends.
    WritePart {
        log: usize,
    },
    Rename {
        log: usize,
    },
    CopyTruncate {
        log: usize,
    },
    /// Copied in one step and truncated in a later one, with reading in between.
    Copy {
        log: usize,
    },
    Gzip {
        log: usize,
    },
    Read,
    ReadSome,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let log = 0..3usize;
    prop_oneof![
        6 => (log.clone(), 1..40usize).prop_map(|(log, lines)| Step::Write { log, lines }),
        1 => log.clone().prop_map(|log| Step::WritePart { log }),
        2 => log.clone().prop_map(|log| Step::Rename { log }),
        2 => log.clone().prop_map(|log| Step::CopyTruncate { log }),
        1 => log.clone().prop_map(|log| Step::Copy { log }),
        2 => log.prop_map(|log| Step::Gzip { log }),
        4 => Just(Step::Read),
        3 => Just(Step::ReadSome),
        2 => Just(Step::Restart),
    ]
}

const KEPT: usize = 40;

/// The logs as their writer and logrotate know them.
struct World {
    bench: Bench,
    written: usize,
    /// Lines of each log by generation, that is, what one file held between two rotations.
    expected: BTreeMap<String, Vec<String>>,
    generation: [usize; 3],
    part: [Option<String>; 3],
    copied: [bool; 3],
}

impl World {
    fn new(max_open_files: usize) -> Self {
        // `wait`: the model's writers end their lines.
        let options = format!("eof = \"wait\"\nmax_open_files = {max_open_files}\nrotate_wait = \"1ms\"");
        Self {
            bench: Bench::new(&options),
            written: 0,
            expected: BTreeMap::new(),
            generation: [0; 3],
            part: [const { None }; 3],
            copied: [false; 3],
        }
    }

    fn line(&mut self, log: usize) -> String {
        self.written += 1;
        // Lines of very different lengths, all different.
        let filler = "~".repeat(self.written * 7919 % 97);
        format!("log{log}.{} line{} {filler}", self.generation[log], self.written)
    }

    fn write(&mut self, log: usize, lines: usize) {
        self.finish_copy(log);
        let mut text = String::new();
        for _ in 0..lines {
            let line = match self.part[log].take() {
                Some(line) => {
                    text.push_str(&line[line.len() / 2..]);
                    line
                }
                None => {
                    let line = self.line(log);
                    text.push_str(&line);
                    line
                }
            };
            text.push('\n');
            self.expected.entry(origin(&line).to_owned()).or_default().push(line);
        }
        self.bench.append(&format!("l{log}.log"), text);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { log, lines } => self.write(log, lines),
            Step::WritePart { log } if self.part[log].is_none() => {
                self.finish_copy(log);
                let line = self.line(log);
                self.bench.append(&format!("l{log}.log"), &line[..line.len() / 2]);
                self.part[log] = Some(line);
            }
            Step::Rename { log } => {
                self.rotate(log, |bench, name, to| bench.rename(name, to));
            }
            Step::CopyTruncate { log } => {
                self.rotate(log, |bench, name, to| bench.copy_truncate(name, to));
            }
            Step::Copy { log } => {
                self.copied[log] = self.rotate(log, |bench, name, to| {
                    std::fs::copy(bench.path(name), bench.path(to)).unwrap();
                });
            }
            Step::Gzip { log } => {
                self.finish_copy(log);
                for number in 1..KEPT {
                    let name = format!("l{log}.log.{number}");
                    if self.bench.path(&name).exists() {
                        self.bench.gzip(&name, &format!("{name}.gz"));
                        return;
                    }
                }
            }
            Step::Read => {
                self.bench.read();
            }
            Step::ReadSome => {
                self.bench.fill(7, std::time::Duration::from_millis(500)).unwrap();
            }
            Step::Restart => self.bench.stop(),
            Step::WritePart { .. } => {}
        };
    }

    /// Ends an open line, moves older files on by one, and makes `.1`.
    fn rotate(&mut self, log: usize, make: impl Fn(&Bench, &str, &str)) -> bool {
        self.finish_copy(log);
        if self.part[log].is_some() {
            self.write(log, 1);
        }
        let name = format!("l{log}.log");
        if !self.bench.path(&name).exists() {
            return false;
        }
        for number in (1..KEPT).rev() {
            for suffix in ["", ".gz"] {
                let from = format!("{name}.{number}{suffix}");
                if self.bench.path(&from).exists() {
                    self.bench.rename(&from, &format!("{name}.{}{suffix}", number + 1));
                }
            }
        }
        make(&self.bench, &name, &format!("{name}.1"));
        self.generation[log] += 1;
        true
    }

    fn finish_copy(&mut self, log: usize) {
        if std::mem::take(&mut self.copied[log]) {
            self.bench.truncate(&format!("l{log}.log"));
        }
    }

    fn check(mut self) -> Result<(), TestCaseError> {
        for log in 0..3 {
            self.finish_copy(log);
            if self.part[log].is_some() {
                self.write(log, 1);
            }
        }
        self.bench.read();
        self.bench.stop();
        self.bench.read();
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in self.bench.texts() {
            seen.entry(origin(line)).or_default().push(line);
        }
        for (log, expected) in &self.expected {
            let seen = seen.remove(log.as_str()).unwrap_or_default();
            let missing: Vec<_> = expected.iter().filter(|line| !seen.contains(&line.as_str())).take(3).collect();
            let mut sorted = seen.clone();
            sorted.sort();
            let doubled: Vec<_> =
                sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).take(3).collect();
            prop_assert!(
                missing.is_empty() && doubled.is_empty(),
                "log {log}: missing {missing:?}, doubled {doubled:?}"
            );
            prop_assert_eq!(seen.len(), expected.len());
            let first_out_of_order = seen.iter().zip(expected).find(|(seen, expected)| seen != expected);
            prop_assert!(first_out_of_order.is_none(), "log {log}: order: {first_out_of_order:?}");
        }
        Ok(())
    }
}

/// `log1.3`: the log and the generation that a line belongs to.
fn origin(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

/// Few by default, because every case waits for the file system; `PROPTEST_CASES` says how many when it is to be thorough.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn every_line_once(steps in proptest::collection::vec(step(), 1..40), max_open_files in prop_oneof![Just(1usize), Just(3), Just(256)]) {
        let mut world = World::new(max_open_files);
        for step in &steps {
            world.apply(step);
        }
        world.check()?;
    }
}

/// File systems give the inode of a file that was removed to the next one that is made: cases that the model found.
#[test]
fn inodes_given_to_other_files() {
    use Step::{CopyTruncate, Gzip, Read, ReadSome, Rename, Write, WritePart};
    let cases = [
        vec![
            Write { log: 0, lines: 1 },
            Write { log: 2, lines: 7 },
            CopyTruncate { log: 0 },
            ReadSome,
            Gzip { log: 0 },
            CopyTruncate { log: 2 },
        ],
        vec![
            Write { log: 2, lines: 7 },
            Write { log: 1, lines: 1 },
            Rename { log: 1 },
            ReadSome,
            Gzip { log: 1 },
            WritePart { log: 0 },
            Read,
            Read,
        ],
        vec![
            WritePart { log: 1 },
            Write { log: 2, lines: 1 },
            Read,
            Rename { log: 1 },
            Gzip { log: 1 },
            CopyTruncate { log: 2 },
            Write { log: 2, lines: 17 },
            Read,
        ],
    ];
    for steps in cases {
        let mut world = World::new(1);
        for step in &steps {
            world.apply(step);
        }
        world.check().unwrap();
    }
}
