//! The explicit list of connectors. A new connector adds one line here.

use trunkline_connector::{SinkConnector, SourceConnector};

/// The connectors that pipeline files may use.
pub struct Registry {
    sources: Vec<Box<dyn SourceConnector>>,
    sinks: Vec<Box<dyn SinkConnector>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// All connectors of this binary.
    pub fn new() -> Self {
        Self {
            sources: vec![Box::new(trunkline_logfile::LogfileConnector), Box::new(trunkline_mysql::MysqlConnector)],
            sinks: vec![
                Box::new(trunkline_elasticsearch::ElasticsearchConnector),
                Box::new(trunkline_redshift::RedshiftConnector),
                Box::new(trunkline_s3::S3Connector),
                Box::new(trunkline_snowflake::SnowflakeConnector),
            ],
        }
    }

    /// The source connector of that name.
    pub fn source(&self, name: &str) -> Option<&dyn SourceConnector> {
        self.sources.iter().find(|connector| connector.name() == name).map(Box::as_ref)
    }

    /// The sink connector of that name.
    pub fn sink(&self, name: &str) -> Option<&dyn SinkConnector> {
        self.sinks.iter().find(|connector| connector.name() == name).map(Box::as_ref)
    }

    /// All source connectors.
    pub fn sources(&self) -> impl Iterator<Item = &dyn SourceConnector> {
        self.sources.iter().map(Box::as_ref)
    }

    /// All sink connectors.
    pub fn sinks(&self) -> impl Iterator<Item = &dyn SinkConnector> {
        self.sinks.iter().map(Box::as_ref)
    }

    /// Names of all source connectors.
    pub fn source_names(&self) -> Vec<&'static str> {
        self.sources().map(SourceConnector::name).collect()
    }

    /// Names of all sink connectors.
    pub fn sink_names(&self) -> Vec<&'static str> {
        self.sinks().map(SinkConnector::name).collect()
    }
}
