//! Sink connector `redshift`: tables in Amazon Redshift, each record loaded exactly once.
//!
//! The library `trunkline-warehouse` stages, loads and evolves; this crate adds the options
//! (`config`), types and SQL texts (`dialect`), and sessions over sqlx (`session`).

mod config;
mod dialect;
mod session;

use std::sync::{Arc, LazyLock};

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    CommitPolicy, PreflightIssue, RecordSample, Result, Sink, SinkConnector, SinkContext, SinkSpec, Supersede, Template,
};
use trunkline_warehouse::{S3Stage, Stage, check, check_records, open_sink};

use config::Config;
use dialect::RedshiftDialect;

/// The connector `redshift`.
pub struct RedshiftConnector;

impl SinkConnector for RedshiftConnector {
    fn name(&self) -> &'static str {
        "redshift"
    }

    fn summary(&self) -> &'static str {
        "Tables in Amazon Redshift"
    }

    fn options(&self) -> &'static [OptionSpec] {
        static ALL: LazyLock<Vec<OptionSpec>> =
            LazyLock::new(|| [config::OPTIONS, trunkline_warehouse::OPTIONS].concat());
        &ALL
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        section.declare(self.options());
        let config = Config::read(section, template_variables)?;
        Some(Box::new(RedshiftSpec { config }))
    }
}

struct RedshiftSpec {
    config: Config,
}

impl SinkSpec for RedshiftSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let dialect = RedshiftDialect::new(&self.config, &context.name, context.runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), context.runtime.clone())?;
        open_sink(Arc::new(dialect), Box::new(stage), self.config.options.clone(), context)
    }

    fn preflight(&self, name: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        let dialect = RedshiftDialect::new(&self.config, name, runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), runtime.clone());
        check(&dialect, stage.map(|stage| Box::new(stage) as Box<dyn Stage>), name)
    }

    fn preflight_records(&self, context: SinkContext, records: &mut RecordSample<'_>) -> Vec<PreflightIssue> {
        let dialect = RedshiftDialect::new(&self.config, &context.name, context.runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), context.runtime.clone());
        let stage = stage.map(|stage| Box::new(stage) as Box<dyn Stage>);
        check_records(Arc::new(dialect), stage, &self.config.options, context, records)
    }

    fn commit_policy(&self) -> CommitPolicy {
        self.config.options.commit_policy()
    }

    fn supersede(&self) -> Supersede {
        Supersede::Refused(trunkline_warehouse::NOT_SUPERSEDED)
    }

    fn templates(&self) -> Vec<(&'static str, &Template)> {
        self.config.options.templates()
    }
}
