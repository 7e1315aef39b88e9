//! [`Emitter`]: turns lines into records or rejections.

use std::path::Path;
use std::sync::Arc;

use encoding_rs::Encoding;
use regex::RegexSet;
use trunkline_connector::batch::write_header;
use trunkline_connector::{Error, Reason, Result, SourceBatch, headers};

use crate::config::{LogfileOptions, Oversize};
use crate::labels::{ContainerNames, add_labels};
use crate::parser::{Event, FileStart, Parser};
use crate::reader::Line;
use crate::text::decode;

pub(crate) struct Emitter {
    options: Arc<LogfileOptions>,
    parser: Parser,
    oversize: Oversize,
    max_line_bytes: usize,
    schema_id: Option<String>,
    offset_text: itoa::Buffer,
}

/// The file that a line belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) name: &'a str,
    pub(crate) ordering_key: u32,
    /// What all records of the file carry.
    pub(crate) common: &'a CommonParts,
    /// Milliseconds since the Unix epoch.
    pub(crate) read_at: i64,
}

/// What all records of a file carry, encoded.
#[derive(Debug, Default)]
pub(crate) struct CommonParts {
    pub(crate) headers: Vec<u8>,
    /// A member of the value, see [`crate::labels`].
    pub(crate) labels: Vec<u8>,
}

impl Emitter {
    pub(crate) fn new(options: &Arc<LogfileOptions>) -> Self {
        Self {
            options: Arc::clone(options),
            parser: options.parser.parser(),
            oversize: options.oversize,
            max_line_bytes: options.max_line_bytes,
            schema_id: options.schema().map(|schema| schema.id().to_string()),
            offset_text: itoa::Buffer::new(),
        }
    }

    /// Encodes what all records of a file carry. `real` is its path without symbolic links, if it is
    /// another one.
    pub(crate) fn common_parts(&self, name: &Arc<str>, real: Option<&Path>) -> CommonParts {
        let mut block = Vec::new();
        write_header(&mut block, headers::PATH, Some(name.as_bytes()));
        if let Some(id) = &self.schema_id {
            write_header(&mut block, headers::SCHEMA, Some(id.as_bytes()));
        }
        let names = ContainerNames::of(name).or_else(|| ContainerNames::of(real?.to_str()?));
        let labels = &self.options.labels;
        for (header, value) in labels.headers(names.as_ref()) {
            write_header(&mut block, header, Some(value.as_bytes()));
        }
        CommonParts { headers: block, labels: labels.json(names.as_ref()) }
    }

    /// Whether the options keep a line.
    fn keeps(&self, text: &str) -> bool {
        let is_match = |set: &RegexSet| set.is_match(text);
        self.options.include_lines.as_ref().is_none_or(is_match)
            && !self.options.exclude_lines.as_ref().is_some_and(is_match)
    }

    /// The lines that follow are of a file that begins with `first` and was modified at `modified`,
    /// in milliseconds since the Unix epoch.
    pub(crate) fn begin_file(&mut self, charset: &'static Encoding, first: &[u8], modified: i64) {
        let (first, _) = decode(charset, first, true, true);
        self.parser.begin_file(&FileStart { first: &first, modified });
    }

    /// Adds a line to the batch as a record, a rejection or a dropped line. Returns whether invalid
    /// bytes were replaced. On an error the source must stop before this line.
    pub(crate) fn line(
        &mut self,
        out: &mut SourceBatch,
        origin: Origin<'_>,
        charset: &'static Encoding,
        line: &Line<'_>,
    ) -> Result<bool> {
        if let Some(len) = line.oversize {
            match self.oversize {
                Oversize::Truncate => {}
                Oversize::DeadLetter => {
                    self.oversize(out, origin, line, len);
                    return Ok(false);
                }
                Oversize::Error => return Err(self.oversize_error(origin.name, line, len)),
            }
        }
        let (text, malformed) = decode(charset, line.bytes, line.offset == 0, line.oversize.is_some());
        let header = if line.offset == 0 { self.parser.takes_header(&text) } else { Ok(false) };
        match header {
            Ok(is_header) if is_header || !self.keeps(&text) => {
                out.dropped += 1;
                return Ok(malformed);
            }
            Err(expected) => {
                let reason = self.parser.reason(&text, &expected);
                self.reject(out, origin, line, reason);
                return Ok(malformed);
            }
            Ok(_) => {}
        }
        let mut record = out.records.record();
        let mut parsed = Ok(Event::Blank);
        record.value_with(|arena| {
            let start = arena.len();
            parsed = self.parser.parse(&text, arena);
            if !origin.common.labels.is_empty() && matches!(parsed, Ok(Event::Record(_))) {
                add_labels(&origin.common.labels, arena, start);
            }
        });
        match parsed {
            Ok(Event::Record(time)) => {
                let offset = self.offset_text.format(line.offset);
                record
                    .timestamp(time.filter(|time| *time >= 0).unwrap_or(origin.read_at))
                    .ordering_key(origin.ordering_key)
                    .header_block(&origin.common.headers)
                    .header(headers::OFFSET, Some(offset.as_bytes()));
                record.finish();
            }
            Ok(Event::Blank) => {
                drop(record);
                out.dropped += 1;
            }
            Err(expected) => {
                drop(record);
                let reason = self.parser.reason(&text, &expected);
                self.reject(out, origin, line, reason);
            }
        }
        Ok(malformed)
    }

    /// Rejects a line that is too long.
    pub(crate) fn oversize(&mut self, out: &mut SourceBatch, origin: Origin<'_>, line: &Line<'_>, len: u64) {
        let message = format!(
            "line of {len} bytes, more than `max_line_bytes` ({}); its first {} bytes are kept",
            self.max_line_bytes,
            line.bytes.len()
        );
        self.reject(out, origin, line, Reason::new("line.oversize", message));
    }

    fn reject(&mut self, out: &mut SourceBatch, origin: Origin<'_>, line: &Line<'_>, reason: Reason) {
        let offset = self.offset_text.format(line.offset);
        out.rejected.push_with(reason, |record| {
            record
                .timestamp(origin.read_at)
                .ordering_key(origin.ordering_key)
                .value(line.bytes)
                .header(headers::PATH, Some(origin.name.as_bytes()))
                .header(headers::OFFSET, Some(offset.as_bytes()));
        });
    }

    fn oversize_error(&self, name: &str, line: &Line<'_>, len: u64) -> Error {
        Error::data(
            "logfile.oversize",
            format!(
                "{name}: the line at byte {} has {len} bytes, more than `max_line_bytes` ({}). The source stops \
                 before it because of `oversize = \"error\"`; raise `max_line_bytes`, or set `oversize` to \
                 \"truncate\" or \"dead_letter\"",
                line.offset, self.max_line_bytes
            ),
        )
    }
}
