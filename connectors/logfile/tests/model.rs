//! Random writes, rotations and restarts, compared with a model: every line is emitted once, in the
//! order of its file.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

mod common;

use std::collections::BTreeMap;

use common::TestSource;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write {
        log: usize,
        lines: usize,
    },
    /// Writes the beginning of a line; the next write to the log completes it.
    WritePart {
        log: usize,
    },
    Rename {
        log: usize,
    },
    CopyTruncate {
        log: usize,
    },
    /// Copies in one step and truncates in a later one, with reads between.
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

/// The logs as their writer and logrotate see them.
struct World {
    source: TestSource,
    written: usize,
    /// Lines of each log by generation (the content of one file between two rotations).
    expected: BTreeMap<String, Vec<String>>,
    generation: [usize; 3],
    part: [Option<String>; 3],
    copied: [bool; 3],
}

impl World {
    fn new(max_open_files: usize) -> Self {
        // `wait`, because the model's writers complete their lines.
        let options = format!("eof = \"wait\"\nmax_open_files = {max_open_files}\nrotate_wait = \"1ms\"");
        Self {
            source: TestSource::new(&options),
            written: 0,
            expected: BTreeMap::new(),
            generation: [0; 3],
            part: [const { None }; 3],
            copied: [false; 3],
        }
    }

    fn line(&mut self, log: usize) -> String {
        self.written += 1;
        // Different lines with very different lengths.
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
        self.source.append(&format!("l{log}.log"), text);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { log, lines } => self.write(log, lines),
            Step::WritePart { log } if self.part[log].is_none() => {
                self.finish_copy(log);
                let line = self.line(log);
                self.source.append(&format!("l{log}.log"), &line[..line.len() / 2]);
                self.part[log] = Some(line);
            }
            Step::Rename { log } => {
                self.rotate(log, |source, name, to| source.rename(name, to));
            }
            Step::CopyTruncate { log } => {
                self.rotate(log, |source, name, to| source.copy_truncate(name, to));
            }
            Step::Copy { log } => {
                self.copied[log] = self.rotate(log, |source, name, to| {
                    std::fs::copy(source.path(name), source.path(to)).unwrap();
                });
            }
            Step::Gzip { log } => {
                self.finish_copy(log);
                for number in 1..KEPT {
                    let name = format!("l{log}.log.{number}");
                    if self.source.path(&name).exists() {
                        self.source.gzip(&name, &format!("{name}.gz"));
                        return;
                    }
                }
            }
            Step::Read => {
                self.source.read();
            }
            Step::ReadSome => {
                self.source.fill(7, std::time::Duration::from_millis(500)).unwrap();
            }
            Step::Restart => self.source.stop(),
            Step::WritePart { .. } => {}
        };
    }

    /// Completes an incomplete line, renames older files to the next number, and creates `.1`.
    fn rotate(&mut self, log: usize, make: impl Fn(&TestSource, &str, &str)) -> bool {
        self.finish_copy(log);
        if self.part[log].is_some() {
            self.write(log, 1);
        }
        let name = format!("l{log}.log");
        if !self.source.path(&name).exists() {
            return false;
        }
        for number in (1..KEPT).rev() {
            for suffix in ["", ".gz"] {
                let from = format!("{name}.{number}{suffix}");
                if self.source.path(&from).exists() {
                    self.source.rename(&from, &format!("{name}.{}{suffix}", number + 1));
                }
            }
        }
        make(&self.source, &name, &format!("{name}.1"));
        self.generation[log] += 1;
        true
    }

    fn finish_copy(&mut self, log: usize) {
        if std::mem::take(&mut self.copied[log]) {
            self.source.truncate(&format!("l{log}.log"));
        }
    }

    fn check(mut self) -> Result<(), TestCaseError> {
        for log in 0..3 {
            self.finish_copy(log);
            if self.part[log].is_some() {
                self.write(log, 1);
            }
        }
        self.source.read();
        self.source.stop();
        self.source.read();
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in self.source.texts() {
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

/// Number of cases, from `PROPTEST_CASES`. The default is low, because every case waits for the
/// file system.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn every_line_is_emitted_once_in_order(steps in proptest::collection::vec(step(), 1..40), max_open_files in prop_oneof![Just(1usize), Just(3), Just(256)]) {
        let mut world = World::new(max_open_files);
        for step in &steps {
            world.apply(step);
        }
        world.check()?;
    }
}

/// Cases that the model found: file systems give the inode of a removed file to the next created
/// one.
#[test]
fn reused_inodes_are_recognised() {
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
