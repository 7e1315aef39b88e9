//! The source connector `logfile`: one record for each line of the files that its globs match,
//! followed through rotation.
//!
//! It emits every line of every file once, in the file's order, across rotation by renaming, by
//! copying and truncating, and by compressing, whether or not the worker ran meanwhile.
//! [`position`] describes the stored state of a file, [`tracker`] how files are identified, and
//! [`source`] when they are read.
//!
//! The options are declared in [`config`]; the folder's README documents them.

mod config;
mod copy_detection;
mod decompress;
mod discovery;
mod emit;
mod file;
mod fingerprint;
mod glob;
mod input;
mod labels;
mod moves;
mod multiline;
mod names;
mod parser;
mod parser_config;
mod position;
mod rate_limit;
mod read_queue;
mod reader;
mod reading;
mod reparse;
mod source;
mod text;
mod tracker;
mod watch;

use std::sync::Arc;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    Placement, PositionChange, PositionMoves, Reparser, Result, Schema, Source, SourceConnector, SourceContext,
    SourceSpec,
};

use labels::LABELS;

pub use config::{Compression, EndOfFile, LogfileOptions, Oversize, ReadFrom};
pub use multiline::Multiline;
pub use parser::{
    CombinedVariant, CsvOptions, Event, Expected, FileStart, PairOptions, Parser, ParserKind, ParserSpec,
};

/// The connector, for the runtime's registry.
pub struct LogfileConnector;

impl SourceConnector for LogfileConnector {
    fn name(&self) -> &'static str {
        "logfile"
    }

    fn summary(&self) -> &'static str {
        "Lines of log files, through rotation and truncation"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>) -> Option<Box<dyn SourceSpec>> {
        let options = LogfileOptions::read(section)?;
        Some(Box::new(LogfileSpec { options: Arc::new(options) }))
    }
}

struct LogfileSpec {
    options: Arc<LogfileOptions>,
}

impl SourceSpec for LogfileSpec {
    fn template_variables(&self) -> &'static [&'static str] {
        self.options.labels.template_variables()
    }

    fn fields(&self) -> Option<Vec<String>> {
        let mut fields = self.options.parser.fields()?;
        fields.extend(self.options.labels.names().map(|name| format!("{LABELS}.{name}")));
        Some(fields)
    }

    fn placement(&self) -> Placement {
        Placement::EveryNode
    }

    fn schemas(&self) -> Vec<Arc<Schema>> {
        self.options.schema().into_iter().collect()
    }

    fn shared_data(&self, position: &[(String, Vec<u8>)]) -> Vec<String> {
        position::existing_files(position)
    }

    fn reparser(&self) -> Option<Box<dyn Reparser>> {
        Some(Box::new(reparse::LineReparser::new(&self.options)))
    }

    fn position_moves(&self) -> Option<&dyn PositionMoves> {
        Some(self)
    }

    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(source::LogfileSource::open(Arc::clone(&self.options), context)?))
    }
}

impl PositionMoves for LogfileSpec {
    fn forms(&self) -> &'static str {
        moves::FORMS
    }

    fn move_to(
        &self,
        to: &str,
        position: &[(String, Vec<u8>)],
        _: &tokio::runtime::Handle,
    ) -> Result<Vec<PositionChange>> {
        moves::move_to(&self.options, to, position)
    }

    fn describe(&self, key: &str, value: &[u8]) -> Option<(String, String)> {
        moves::describe(key, value)
    }

    fn after_reset(&self) -> &'static str {
        match self.options.read_from {
            ReadFrom::Beginning => "All files are read again from their beginnings.",
            ReadFrom::End => "Only lines that are written after the next start are read (`read_from = \"end\"`).",
        }
    }
}
