//! The source connector `logfile`: one record a line of every file that its globs match, followed through rotation.
//!
//! What it promises: every line of every file once, in the file's order, across rotation by renaming, by copying and truncating, and by
//! compressing, whether the worker was up or down meanwhile. What that rests on is said in [`position`] (what is remembered of a file),
//! [`tracker`] (how files are recognised) and [`source`] (when a line is handed out).
//!
//! The options are documented on [`LogfileOptions`] and in the folder's README.

mod config;
mod discovery;
mod emit;
mod file;
mod fingerprint;
mod heirs;
mod input;
mod names;
mod parser;
mod position;
mod reader;
mod source;
mod text;
mod tracker;
mod watch;

use std::sync::Arc;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{Placement, Result, Schema, Source, SourceConnector, SourceContext, SourceSpec};

pub use config::{Compression, EndOfFile, LogfileOptions, Oversize, ReadFrom};
pub use parser::{Event, Expected, Parser, ParserKind};

/// The connector, as the runtime's registry lists it.
pub struct LogfileConnector;

impl SourceConnector for LogfileConnector {
    fn name(&self) -> &'static str {
        "logfile"
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
        &["path"]
    }

    fn placement(&self) -> Placement {
        Placement::EveryNode
    }

    fn schemas(&self) -> Vec<Arc<Schema>> {
        self.options.parser.schema().into_iter().collect()
    }

    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(source::LogfileSource::open(Arc::clone(&self.options), context)?))
    }
}
