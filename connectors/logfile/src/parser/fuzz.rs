//! Feeds lines with random changes to all parsers. The result must be JSON or a rejection within
//! the line, never a panic or an endless loop, and never take quadratic time.
//!
//! `TRUNKLINE_FUZZ_SECONDS=60 TRUNKLINE_FUZZ_SEED=7 cargo test --workspace --lib -- --nocapture
//! fuzz`; 1 s by default. A failure prints the seed that repeats it. In release, the long lines
//! have a mebibyte.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::tests::{SAMPLES, all_parsers, long_line, time_of};
use super::{Event, Expected, FileStart, Parser};

/// Limit of one line, far above the usual time, after which a loop counts as endless.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Fragments that the formats give a meaning.
const FRAGMENTS: [&str; 24] = [
    "\"",
    "\\",
    "\\\"",
    "\\x4",
    "\\u00",
    "[",
    "]",
    "{",
    "}",
    "<",
    ">",
    "(",
    "=",
    ":",
    ";",
    ",",
    " ",
    "\t",
    "\n",
    "-",
    "0",
    "1e400",
    "\u{e4}",
    "\u{1f600}",
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one_of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len())]
    }

    /// A part of a text, at the borders of characters.
    fn part<'a>(&mut self, text: &'a str) -> &'a str {
        let begin = text.floor_char_boundary(self.below(text.len() + 1));
        let end = text.floor_char_boundary(begin + self.below(text.len() - begin + 1));
        &text[begin..end]
    }

    /// A valid line with some changes.
    fn line(&mut self) -> String {
        let mut line = self.one_of(&SAMPLES).to_owned();
        for _ in 0..self.below(6) {
            let begin = line.floor_char_boundary(self.below(line.len() + 1));
            let end = line.floor_char_boundary((begin + self.below(8)).min(line.len())).max(begin);
            let added = match self.below(4) {
                0 => String::new(),
                1 => self.one_of(&FRAGMENTS).repeat(1 + self.below(3)),
                2 => {
                    let other = self.one_of(&SAMPLES);
                    self.part(other).to_owned()
                }
                _ => char::from_u32(self.below(0x300) as u32).map(String::from).unwrap_or_default(),
            };
            line.replace_range(begin..end, &added);
        }
        line
    }
}

fn try_line(name: &str, parser: &mut Parser, line: &str) {
    let mut out = Vec::new();
    match parser.parse(line, &mut out) {
        Ok(Event::Record(_)) => {
            let json = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&out);
            assert!(json.is_ok(), "{name}: {line:?} gave {}", String::from_utf8_lossy(&out));
        }
        Ok(Event::Blank) => assert!(out.is_empty(), "{name}: {line:?}"),
        Err(Expected { at, .. }) => assert!(at <= line.len(), "{name}: {line:?} failed at {at}"),
    }
}

fn try_seeds(first: u64, seconds: u64, seeds: &Sender<u64>) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut parsers = all_parsers();
    let (mut seed, mut worst) = (first, (Duration::ZERO, ""));
    while Instant::now() < end {
        seeds.send(seed).unwrap();
        let mut random = Random(seed);
        let line = random.line();
        for (name, parser) in &mut parsers {
            let first = random.line();
            parser.begin_file(&FileStart { first: &first, modified: random.next() as i64 >> 20 });
            try_line(name, parser, &line);
        }
        // A line of many equal parts, after the beginning of a valid one.
        let sample = random.one_of(&SAMPLES);
        let start = &sample[..sample.floor_char_boundary(random.below(sample.len() + 1))];
        let repeated = match random.below(2) {
            0 => random.part(&line).to_owned(),
            _ => (0..1 + random.below(3)).map(|_| random.one_of(&FRAGMENTS)).collect(),
        };
        let at = random.below(parsers.len());
        let (name, parser) = &mut parsers[at];
        let (time, limit) = time_of(parser, &long_line(start, if repeated.is_empty() { "a" } else { &repeated }));
        assert!(time < limit, "{name}: {start:?} and {repeated:?} took {time:?}");
        worst = worst.max((time, *name));
        seed = seed.wrapping_add(1);
    }
    eprintln!("{} lines from seed {first} on; the slowest took {:?} ({})", seed.wrapping_sub(first), worst.0, worst.1);
}

#[test]
fn fuzz() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let seconds = number("TRUNKLINE_FUZZ_SECONDS", 1);
    let first = number("TRUNKLINE_FUZZ_SEED", u64::from(std::process::id()) << 32);
    let (sender, seeds) = channel();
    // A separate thread, so that an endless loop can be reported.
    let trying = std::thread::spawn(move || try_seeds(first, seconds, &sender));
    let mut last = first;
    loop {
        match seeds.recv_timeout(MAX_TIME) {
            Ok(seed) => last = seed,
            Err(RecvTimeoutError::Timeout) => panic!("more than {MAX_TIME:?}: TRUNKLINE_FUZZ_SEED={last} repeats it"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(trying.join().is_ok(), "TRUNKLINE_FUZZ_SEED={last} repeats it");
}
