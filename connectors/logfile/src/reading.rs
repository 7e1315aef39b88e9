//! [`LineReading`]: turns the content of one file into records.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_connector::{Result, SourceBatch};

use crate::config::{EndOfFile, LogfileOptions};
use crate::discovery::identify;
use crate::emit::{Emitter, Origin};
use crate::file::{OpenOutcome, PathState, TrackedFile};
use crate::reader::ReadOutcome;
use crate::text::{TextFormat, TextFormats};

/// The byte order mark of UTF-32 in little-endian order, which begins like the one of UTF-16.
const UTF_32_MARK: &[u8] = &[0xff, 0xfe, 0, 0];
const UTF_32: &str = "its byte order mark says UTF-32, which the source does not decode; convert it to UTF-8";
/// Bytes that are read of a file before another file is read.
const SLICE_BYTES: usize = 1 << 20;

/// Reads lines of tracked files and emits them.
pub(crate) struct LineReading {
    options: Arc<LogfileOptions>,
    until_idle: bool,
    emitter: Emitter,
    formats: TextFormats,
}

/// How the reading of a slice of a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadSlice {
    /// The file has nothing more to read now.
    Done,
    /// There is more, but it is another file's turn.
    More,
    /// The path leads to another file or to none. Newer files of the rotation group wait for the
    /// scan that finds the file.
    Moved,
    /// The file has other content. Newer files of the rotation group wait for the scan that finds
    /// its continuation.
    ContentChanged,
    /// The batch is full or the deadline has passed.
    Stopped,
}

impl LineReading {
    pub(crate) fn new(options: Arc<LogfileOptions>, until_idle: bool) -> Self {
        let formats = TextFormats::new(&options.delimiter, options.charset);
        Self { until_idle, emitter: Emitter::new(&options), formats, options }
    }

    /// Opens a file at the offset of its next line, unless it is open.
    pub(crate) fn open(&self, file: &mut TrackedFile) -> Result<(), ReadSlice> {
        if file.reader.is_some() {
            return Ok(());
        }
        match file.open(self.options.compression) {
            Ok(OpenOutcome::Open) => Ok(()),
            Ok(OpenOutcome::Moved) => Err(ReadSlice::Moved),
            Ok(OpenOutcome::ContentChanged) => Err(ReadSlice::ContentChanged),
            Err(error) => {
                file.fail(&error);
                Err(ReadSlice::Done)
            }
        }
    }

    /// Emits lines of an open file.
    pub(crate) fn read_slice(
        &mut self,
        file: &mut TrackedFile,
        out: &mut SourceBatch,
        deadline: Instant,
    ) -> Result<ReadSlice> {
        if file.common.headers.is_empty() {
            file.common = self.emitter.common_parts(&file.name, file.real.as_deref());
        }
        file.used = true;
        let Some(reader) = file.reader.as_mut() else { return Ok(ReadSlice::Done) };
        let origin =
            Origin { name: &file.name, ordering_key: file.ordering_key, common: &file.common, read_at: now_ms() };
        let (mut read_bytes, mut malformed, mut result) = (0, false, Ok(()));
        let mut format = self.formats.of(reader.first());
        self.emitter.begin_file(format.charset, reader.first(), file.stat.modified / 1_000_000);
        let mut known = reader.first().len();
        let limit = self.options.max_lines_per_second.filter(|_| file.caught_up);
        let rate = &mut file.rate;
        let mut excess = 0_u64;
        limit.iter().for_each(|limit| rate.refill(*limit, Instant::now()));
        let multiline = self.options.multiline.as_ref();
        let end = loop {
            if out.is_full() {
                break None;
            }
            if let Some(line) = reader.next_event(&format.delimiter, self.options.max_line_bytes, multiline) {
                if limit.is_some() && !rate.take() {
                    out.dropped += 1;
                    excess += 1;
                    continue;
                }
                result = self.emitter.line(out, origin, format.charset, &line).map(|replaced| malformed |= replaced);
                if result.is_err() {
                    break None;
                }
                continue;
            }
            if read_bytes >= SLICE_BYTES || Instant::now() >= deadline {
                break None;
            }
            match reader.read_more() {
                Ok(ReadOutcome::Bytes(count)) => {
                    read_bytes += count;
                    limit.iter().for_each(|limit| rate.refill(*limit, Instant::now()));
                    format = self.formats.of(reader.first());
                    if reader.first().len() != known {
                        known = reader.first().len();
                        self.emitter.begin_file(format.charset, reader.first(), file.stat.modified / 1_000_000);
                    }
                    if reader.first().starts_with(UTF_32_MARK) {
                        break Some(Err(io::Error::new(io::ErrorKind::Unsupported, UTF_32)));
                    }
                }
                end => break Some(end),
            }
        };
        if read_bytes > 0 || matches!(end, Some(Ok(_))) {
            file.failure = None;
        }
        warn_about_content(file, format, &self.formats, &self.options, malformed);
        if let Some(limit) = limit.filter(|_| excess > 0) {
            file.rate.report(excess, limit, &file.path);
        }
        if result.is_err() {
            file.take_back_line();
            return result.map(|()| ReadSlice::Stopped);
        }
        match end {
            Some(Ok(ReadOutcome::End)) => self.finish_slice_at_end(file, true, out),
            Some(Ok(ReadOutcome::TruncatedStream)) => {
                if self.until_idle {
                    tracing::warn!(path = %file.path.display(), "compressed file is truncated; its readable \
                        part was read");
                }
                self.finish_slice_at_end(file, false, out)
            }
            Some(Ok(ReadOutcome::Changed)) => Ok(ReadSlice::ContentChanged),
            Some(Err(error)) => {
                file.fail(&error);
                Ok(ReadSlice::Done)
            }
            Some(Ok(ReadOutcome::Bytes(_))) | None => {
                file.at_end = None;
                file.note_read();
                Ok(if read_bytes >= SLICE_BYTES && !out.is_full() { ReadSlice::More } else { ReadSlice::Stopped })
            }
        }
    }

    /// Handles the current end of a file. `complete`: the end is not inside a member of a
    /// compressed file.
    fn finish_slice_at_end(
        &mut self,
        file: &mut TrackedFile,
        complete: bool,
        out: &mut SourceBatch,
    ) -> Result<ReadSlice> {
        let now = Instant::now();
        let Some(reader) = file.reader.as_ref() else { return Ok(ReadSlice::Done) };
        let is_compressed = reader.is_compressed();
        file.has_rest = reader.has_rest(&self.formats.of(reader.first()).delimiter);
        file.has_only_event = reader.has_only_event();
        if !is_compressed {
            let (_, stat) = match reader.file().metadata() {
                Ok(metadata) => identify(&metadata),
                Err(error) => {
                    file.fail(&error);
                    return Ok(ReadSlice::Done);
                }
            };
            let undecided = reader.undecided_len() > 0 && reader.undecided_len() == stat.size;
            if stat.size != reader.end() && !undecided {
                // The file has grown since, or was truncated, which the next read detects.
                file.note_read();
                return Ok(ReadSlice::More);
            }
            file.observe(stat, now);
        } else if reader.has_trailing_bytes() && !file.warned.trailing_bytes {
            file.warned.trailing_bytes = true;
            tracing::warn!(
                path = %file.path.display(),
                "compressed file has other bytes after its end; they were ignored"
            );
        }
        file.complete = complete && is_compressed;
        file.truncated_stream = !complete;
        file.at_end = Some(file.stat);
        // A job reads what exists, and a backlog is not a flood.
        file.caught_up = !self.until_idle;
        if file.has_rest && self.rest_is_due(file, now) {
            self.emit_rest(file, out)?;
        }
        if let Some(reader) = &mut file.reader {
            reader.shrink();
        }
        file.note_read();
        Ok(ReadSlice::Done)
    }

    /// Emits what is left at the end of a file. Lines emitted before keep their position if one of
    /// these stops the source.
    fn emit_rest(&mut self, file: &mut TrackedFile, out: &mut SourceBatch) -> Result<()> {
        let Some(reader) = file.reader.as_mut() else { return Ok(()) };
        let format = self.formats.of(reader.first());
        self.emitter.begin_file(format.charset, reader.first(), file.stat.modified / 1_000_000);
        let origin =
            Origin { name: &file.name, ordering_key: file.ordering_key, common: &file.common, read_at: now_ms() };
        let (max_bytes, multiline) = (self.options.max_line_bytes, self.options.multiline.as_ref());
        while let Some(line) = reader.take_rest_event(&format.delimiter, max_bytes, multiline) {
            if let Err(error) = self.emitter.line(out, origin, format.charset, &line) {
                file.take_back_line();
                return Err(error);
            }
        }
        file.has_rest = false;
        file.has_only_event = false;
        Ok(())
    }

    /// When a file is read again if it does not change; `None` if only a change makes that useful.
    pub(crate) fn due_at(&self, file: &TrackedFile) -> Option<Instant> {
        match &file.failure {
            Some(failure) => failure.retry_at(),
            None if file.has_rest => self.rest_due_at(file),
            None => None,
        }
    }

    /// Whether a last line without delimiter is emitted now, see [`EndOfFile`].
    pub(crate) fn rest_is_due(&self, file: &TrackedFile, now: Instant) -> bool {
        self.rest_due_at(file).is_some_and(|due| due <= now)
    }

    /// When a last line without delimiter is emitted if its file does not change.
    fn rest_due_at(&self, file: &TrackedFile) -> Option<Instant> {
        if file.continued || (file.truncated_stream && file.path_state == PathState::Matched) {
            return None;
        }
        let after = |wait: Duration| file.resting_since.checked_add(wait);
        let at_once = after(Duration::ZERO);
        let finished = file.complete || (file.path_state == PathState::Detached && self.until_idle);
        let rotated = if file.is_rotated() { after(self.options.rotate_wait) } else { None };
        let event = self.options.multiline.as_ref().filter(|_| file.has_only_event);
        let event = event.and_then(|multiline| if file.is_superseded { at_once } else { after(multiline.timeout) });
        let eof = match self.options.eof {
            EndOfFile::Auto => at_once.filter(|_| self.until_idle),
            EndOfFile::Wait => None,
            EndOfFile::Emit => after(self.options.eof_after),
        };
        [at_once.filter(|_| finished), rotated, event, eof].into_iter().flatten().min()
    }

    /// Emits the lines that the reader of a file without a continuation still holds.
    pub(crate) fn emit_buffered(&mut self, mut file: TrackedFile, out: &mut SourceBatch) {
        let common = self.emitter.common_parts(&file.name, file.real.as_deref());
        let origin = Origin { name: &file.name, ordering_key: file.ordering_key, common: &common, read_at: now_ms() };
        let Some(reader) = &mut file.reader else { return };
        let format = self.formats.of(reader.first());
        self.emitter.begin_file(format.charset, reader.first(), file.stat.modified / 1_000_000);
        loop {
            let (max_bytes, multiline) = (self.options.max_line_bytes, self.options.multiline.as_ref());
            let mut line = reader.next_event(&format.delimiter, max_bytes, multiline);
            if line.is_none() {
                line = reader.take_rest_event(&format.delimiter, max_bytes, multiline);
            }
            let Some(line) = line else { break };
            if self.emitter.line(out, origin, format.charset, &line).is_err() {
                // `oversize = "error"` stops the source before a line, but this line can be read
                // only now.
                self.emitter.oversize(out, origin, &line, line.oversize.unwrap_or(line.bytes.len() as u64));
            }
        }
    }
}

/// Logs properties of a file's content that the user should know, each once.
fn warn_about_content(
    file: &mut TrackedFile,
    format: &TextFormat,
    formats: &TextFormats,
    options: &LogfileOptions,
    malformed: bool,
) {
    let charset = format.charset.name();
    if malformed && !std::mem::replace(&mut file.warned.malformed, true) {
        tracing::warn!(
            path = %file.path.display(), charset,
            "bytes that are invalid in the charset were replaced by U+FFFD; set `charset` if the file has another one"
        );
    }
    let contradicts = options.charset_is_set && formats.contradicts(format);
    if contradicts && !std::mem::replace(&mut file.warned.byte_order_mark, true) {
        tracing::warn!(
            path = %file.path.display(), configured = options.charset.name(),
            "the byte order mark says that the file has the charset {charset}; it is read as that"
        );
    }
    let zeros = file.reader.as_mut().map_or(0, |reader| reader.take_skipped_zeros());
    if zeros > 0 && !std::mem::replace(&mut file.warned.hole, true) {
        tracing::warn!(
            path = %file.path.display(), zeros,
            "zero bytes before a line were skipped: the file was probably truncated while its writer kept its \
             offset. Open it with O_APPEND, or rotate it by renaming"
        );
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
