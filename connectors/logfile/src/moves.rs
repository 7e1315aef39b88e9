//! `trunkline offsets set`: other bytes of files, at which the source continues.
//!
//! A stored position has a fingerprint of the content before its byte. So the files are read here,
//! on the machine that has them.

use std::fs::File;
use std::path::{Path, PathBuf};

use trunkline_connector::{Error, PositionChange, Result, io_error};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{LogfileOptions, ReadFrom};
use crate::discovery::{self, Found};
use crate::fingerprint::Fingerprint;
use crate::input::{ContentBefore, Input, RawRead};
use crate::names::{is_same_path, path_text, rotation_group, text_path};
use crate::position::{self, FilePosition, STARTED_KEY};
use crate::text::{Delimiter, TextFormats};

/// Positions, for messages.
pub(crate) const FORMS: &str =
    "PATH:BYTE, or several of them with commas: the byte of the (decompressed) content at which the next line begins";

/// Bytes after the chosen one that are searched for the end of its line.
const LINE_SEARCH: usize = 1 << 20;

/// The changes of the stored position that make the source continue at these bytes.
pub(crate) fn move_to(options: &LogfileOptions, to: &str, stored: &[(String, Vec<u8>)]) -> Result<Vec<PositionChange>> {
    let chosen = parse(to).ok_or_else(|| bad(to, &format!("write {FORMS}")))?;
    let scan = discovery::scan(options);
    let mut known = Vec::new();
    for (key, value) in stored.iter().filter(|(key, _)| key != STARTED_KEY) {
        let (id, saved) = position::decode(key, value)?;
        known.push((key, id, saved));
    }
    if stored.is_empty() && options.read_from == ReadFrom::End {
        let reason = "the source has not started yet, and with `read_from = \"end\"` it would then read all other files from their \
                      beginnings: start it once";
        return Err(bad(to, reason));
    }
    let mut changes: Vec<PositionChange> = Vec::new();
    for (path, byte) in chosen {
        let label = format!("{}:{byte}", path.display());
        let found = find(&path, &label)?;
        let saved = known.iter().find(|(_, id, _)| *id == found.id);
        if saved.is_none() && !scan.found.iter().any(|other| other.id == found.id) {
            let globs: Vec<&str> = options.paths.iter().map(|glob| glob.written.as_str()).collect();
            let reason = format!("the source does not read this file: its `paths` are {}", globs.join(", "));
            return Err(bad(&label, &reason));
        }
        let read = content_before(options, &found, byte, &label)?;
        let (key, value) = match saved {
            Some((key, _, saved)) => ((*key).clone(), FilePosition { read, at_end: None, cut: false, ..saved.clone() }),
            None => (position::key(found.id, &read), first_position(&found, read)),
        };
        if changes.iter().any(|change| change.key == key) {
            return Err(bad(to, &format!("it names {} twice", path.display())));
        }
        changes.push(PositionChange { key, value: Some(position::encode(&value)?) });
    }
    Ok(changes)
}

/// A part of a stored position, for people.
pub(crate) fn describe(key: &str, value: &[u8]) -> Option<(String, String)> {
    let (_, saved) = position::decode(key, value).ok()?;
    Some((saved.real_path.unwrap_or(saved.path), format!("byte {}", saved.read.offset)))
}

/// `PATH:BYTE,PATH:BYTE`. A path may have commas and colons.
fn parse(text: &str) -> Option<Vec<(PathBuf, u64)>> {
    let (mut chosen, mut begun) = (Vec::new(), String::new());
    for part in text.split(',') {
        begun.push_str(part);
        match begun.rsplit_once(':').map(|(path, byte)| (path.trim(), byte.trim().parse())) {
            Some((path, Ok(byte))) if !path.is_empty() => {
                chosen.push((text_path(path), byte));
                begun.clear();
            }
            _ => begun.push(','),
        }
    }
    (begun.is_empty() && !chosen.is_empty()).then_some(chosen)
}

fn find(path: &Path, label: &str) -> Result<Found> {
    let absolute = std::path::absolute(path).map_err(|error| io_error("find", path, &error))?;
    let found = discovery::regular_file(&absolute).map_err(|error| io_error("read", path, &error))?;
    found.ok_or_else(|| {
        let message = format!(
            "`{label}` is no position any more: this machine has no such file. `trunkline offsets show` prints the files of the source; run \
             the command on the machine that has them"
        );
        Error::data("offsets.position_gone", message)
    })
}

/// The position of a file that the source has not read.
fn first_position(found: &Found, read: Fingerprint) -> FilePosition {
    let path = path_text(&found.path);
    let real = std::fs::canonicalize(&found.path).ok().filter(|real| !is_same_path(real, &found.path));
    FilePosition {
        ordering_key: xxh3_64(rotation_group(&path).as_bytes()) as u32 & i32::MAX as u32,
        path,
        read,
        at_end: None,
        cut: false,
        real_path: real.map(|real| path_text(&real)),
    }
}

/// The fingerprint at the beginning of a line.
fn content_before(options: &LogfileOptions, found: &Found, byte: u64, label: &str) -> Result<Fingerprint> {
    let failed = |error: std::io::Error| io_error("read", &found.path, &error);
    let mut input = Input::open(File::open(&found.path).map_err(failed)?, options.compression).map_err(failed)?;
    let Some(ContentBefore { read, first, before }) = input.fingerprint_at(byte).map_err(failed)? else {
        return Err(bad(label, "the file has fewer bytes"));
    };
    let formats = TextFormats::new(&options.delimiter, options.charset);
    let delimiter = &formats.of(&first).delimiter;
    if byte == 0 || delimiter.ends(&before, byte) {
        return Ok(read);
    }
    let mut after = vec![0; LINE_SEARCH];
    let mut len = 0;
    while len < after.len() {
        match input.read(&mut after[len..], byte + len as u64).map_err(failed)? {
            RawRead::Bytes(count) => len += count,
            RawRead::End | RawRead::TruncatedStream => break,
        }
    }
    Err(bad(label, &between_lines(delimiter, byte, &before, &after[..len])))
}

/// What is wrong with a byte inside of a line.
fn between_lines(delimiter: &Delimiter, byte: u64, before: &[u8], after: &[u8]) -> String {
    let begin = byte - before.len() as u64;
    // The beginning of the file begins a line, too.
    let mut line = (begin == 0).then_some(0);
    let mut from = 0;
    while let Some(at) = delimiter.find(&before[from..], begin + from as u64) {
        from += at + delimiter.len();
        line = Some(begin + from as u64);
    }
    // A delimiter may begin before the byte.
    let kept = before.len().min(delimiter.len() - 1);
    let around = [&before[before.len() - kept..], after].concat();
    let start = byte - kept as u64;
    let next = delimiter.find(&around, start).map(|at| start + (at + delimiter.len()) as u64);
    let lines: Vec<String> = [line, next].into_iter().flatten().map(|line| line.to_string()).collect();
    match lines.is_empty() {
        true => "it is inside of a line".to_owned(),
        false => format!("it is inside of a line; lines begin at {}", lines.join(" and ")),
    }
}

fn bad(to: &str, reason: &str) -> Error {
    Error::config("offsets.bad_position", format!("`{to}` is no position: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_bytes_are_read() {
        let parsed = |text: &str| {
            parse(text).map(|chosen| {
                chosen.into_iter().map(|(path, byte)| format!("{} {byte}", path.display())).collect::<Vec<_>>()
            })
        };
        let some = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
        assert_eq!(parsed("/v/a.log:0"), some(&["/v/a.log 0"]));
        assert_eq!(parsed("/v/a.log:7, /v/b:1.log:9"), some(&["/v/a.log 7", "/v/b:1.log 9"]));
        assert_eq!(parsed("/v/a,b.log:7"), some(&["/v/a,b.log 7"]));
        for wrong in ["", "/v/a.log", "/v/a.log:", ":5", "/v/a.log:x", "/v/a.log:1,", "/v/a.log:-1"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_byte_inside_of_a_line_is_refused_with_its_neighbours() {
        let delimiter = Delimiter::new("\n", encoding_rs::UTF_8);
        let text = b"one\ntwo\nthree\n";
        let at = |byte: usize| between_lines(&delimiter, byte as u64, &text[..byte], &text[byte..]);
        assert_eq!(at(5), "it is inside of a line; lines begin at 4 and 8");
        assert_eq!(at(2), "it is inside of a line; lines begin at 0 and 4");
        let long = Delimiter::new("\r\n", encoding_rs::UTF_8);
        let text = b"one\r\ntwo\r\n";
        assert_eq!(between_lines(&long, 4, &text[..4], &text[4..]), "it is inside of a line; lines begin at 0 and 5");
        assert!(long.ends(&text[..5], 5) && !long.ends(&text[..4], 4));
        let wide = Delimiter::new("\n", encoding_rs::UTF_16LE);
        assert!(wide.ends(b"a\0\n\0", 4) && !wide.ends(b"\0a\0\n\0", 5));
    }
}
