//! The combined parser alone: lines in memory to JSON in memory, on one thread.

use std::hint::black_box;
use std::time::Instant;

use trunkline_logfile::{CombinedVariant, ParserKind};

use crate::measure::Sampling;
use crate::pipeline::SAMPLE;
use crate::records::Lines;
use crate::table::{Row, Target};

/// Lines whose JSON is collected before it is dropped, as in a batch.
const BATCH: usize = 1000;

pub(crate) fn row(sampling: Sampling) -> Row {
    let lines = Lines::generate(1, SAMPLE);
    let lines: Vec<&str> = lines.text().lines().collect();
    let mut parser = ParserKind::Combined(CombinedVariant::Combined).parser();
    let mut out = Vec::new();
    let mut measured = Vec::new();
    for _ in 0..sampling.rounds {
        let started = Instant::now();
        let mut parsed = 0;
        for batch in lines.chunks(BATCH).cycle() {
            out.clear();
            for line in batch {
                assert!(parser.parse(line, &mut out).is_ok(), "not parsed: {line}");
            }
            black_box(&out);
            parsed += batch.len();
            if started.elapsed() >= sampling.run {
                break;
            }
        }
        measured.push(parsed as f64 / started.elapsed().as_secs_f64());
    }
    Row {
        name: "combined parser alone, one core".to_owned(),
        unit: "lines/s",
        reference: Vec::new(),
        measured,
        target: Target::AtLeast(1.5e6),
    }
}
