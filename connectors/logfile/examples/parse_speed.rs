//! Measures how many lines per second one core parses: `cargo run --release -p trunkline-logfile
//! --example parse_speed -- FILE [PARSER [PATTERN]]`.
//!
//! It parses the file's lines repeatedly into one buffer, without disk and batch. PARSER is
//! `combined` by default. Rejected lines are included and shown.

use std::time::{Duration, Instant};

use trunkline_logfile::ParserKind;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: parse_speed FILE [PARSER [PATTERN]]")?;
    let name = arguments.next().unwrap_or_else(|| "combined".to_owned());
    let kind = match arguments.next() {
        Some(pattern) if name == "grok" => ParserKind::grok(&pattern)?,
        Some(pattern) => ParserKind::regex(&pattern)?,
        None => {
            let known = ParserKind::named().into_iter().find(|(known, _)| *known == name);
            known.map(|(_, kind)| kind).ok_or_else(|| format!("unknown parser `{name}`"))?
        }
    };
    let text = std::fs::read_to_string(&path)?;
    let lines: Vec<&str> = text.lines().collect();
    let mut parser = kind.parser();
    let mut out = Vec::with_capacity(2 * text.len());
    for round in 1..=3 {
        let (mut parsed, mut rejected) = (0u64, 0u64);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            out.clear();
            for line in &lines {
                match parser.parse(line, &mut out) {
                    Ok(_) => parsed += 1,
                    Err(_) => rejected += 1,
                }
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let lines_a_second = (parsed + rejected) as f64 / seconds;
        let mib = lines_a_second * text.len() as f64 / lines.len() as f64 / 1_048_576.0;
        println!("round {round}: {lines_a_second:.0} lines/s, {mib:.0} MiB/s, {parsed} parsed, {rejected} rejected");
    }
    Ok(())
}
