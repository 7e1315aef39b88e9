//! [`LineReparser`]: parses lines of dead letters once more, for `trunkline dlq redrive`.

use std::sync::Arc;

use trunkline_connector::{Reason, RecordRef, Reparser, Result, SourceBatch, headers};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::LogfileOptions;
use crate::emit::{Emitter, Origin};
use crate::names::rotation_group;
use crate::parser::ParserKind;
use crate::reader::Line;

/// The code of a line of which only the beginning is in the dead letter.
const OVERSIZE: &str = "line.oversize";

pub(crate) struct LineReparser {
    options: Arc<LogfileOptions>,
    emitter: Emitter,
}

impl LineReparser {
    pub(crate) fn new(options: &Arc<LogfileOptions>) -> Self {
        Self { options: Arc::clone(options), emitter: Emitter::new(options) }
    }

    /// Why a line cannot be parsed again.
    fn problem(&self, code: &str) -> Option<&'static str> {
        match &self.options.parser.kind {
            _ if code == OVERSIZE => Some("the dead letter has only the beginning of the line"),
            ParserKind::Csv(options) if options.columns.is_none() => Some(
                "the names of the columns are in the first line of the file, not in the dead letter: set `columns`",
            ),
            _ => None,
        }
    }
}

impl Reparser for LineReparser {
    fn reparse(&mut self, rejected: RecordRef<'_>, code: &str, out: &mut SourceBatch) -> Result<()> {
        if let Some(problem) = self.problem(code) {
            out.rejected.push(rejected, Reason::new(code.to_owned(), problem));
            return Ok(());
        }
        let text = |name: &str| rejected.header(name).map(String::from_utf8_lossy);
        let name: Arc<str> = Arc::from(text(headers::PATH).unwrap_or_default().as_ref());
        let offset = text(headers::OFFSET).and_then(|offset| offset.parse().ok()).unwrap_or(0);
        let read_at = rejected.timestamp().unwrap_or(0);
        let common = self.emitter.common_parts(&name, None);
        let origin = Origin {
            name: &name,
            // As in `TrackedFile`: the lines of a file have one partition.
            ordering_key: xxh3_64(rotation_group(&name).as_bytes()) as u32 & i32::MAX as u32,
            common: &common,
            read_at,
        };
        self.emitter.begin_file(self.options.charset, b"", read_at);
        let line = Line { offset, bytes: rejected.value().unwrap_or_default(), oversize: None };
        self.emitter.line(out, origin, self.options.charset, &line).map(|_| ())
    }
}
