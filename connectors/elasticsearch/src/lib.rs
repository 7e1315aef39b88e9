//! Sink connector `elasticsearch`: documents in Elasticsearch 7 to 9 and OpenSearch 1 to 3, each
//! indexed once.
//!
//! A delivery becomes one or more `_bulk` requests. Every document has an id that is the same in
//! each delivery of its record, and documents that change have external versions, so repeated and
//! reordered deliveries change nothing ([`trunkline_connector::IdempotentSink`]).
//!
//! In the order in which a record passes them:
//!
//! | file | subject |
//! |---|---|
//! | `config` | options |
//! | `preflight` | what `trunkline validate --check` asks the cluster |
//! | `server` | product and version of the server, data streams: checked when the sink is opened |
//! | `index_template` | the index template, and the first index of an alias |
//! | `change_event` | Debezium's envelope |
//! | `field_types` | the fields of schemas, added to the mapping of an index |
//! | `failover` | a failover of MySQL, after which binlog positions begin again |
//! | `document` | a record to an operation: index, id, version, document |
//! | `bulk_body` | the records of a delivery to the bodies of requests |
//! | `client` | nodes, authentication, TLS, requests |
//! | `aws` | signatures of requests to Amazon's services |
//! | `bulk_answer` | the server's answer to the outcome of each document |
//! | `request_limit` | the number of requests in flight, adapted to the server |
//! | `sink` | the running sink: sends, splits, decides |
//! | `audit` | counts documents by the offsets in their ids |
//! | `locate` | the documents of single records, for `trunkline trace` |

mod audit;
mod aws;
mod bulk_answer;
mod bulk_body;
mod change_event;
mod client;
mod config;
mod document;
mod failover;
mod field_types;
mod index_template;
mod locate;
mod preflight;
mod request_limit;
mod server;
mod sink;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    Batch, Error, OffsetRanges, PreflightIssue, Result, RowCounts, Sink, SinkConnector, SinkContext, SinkSpec,
    Supersede,
};

use client::Client;
use config::{Config, IdRule, Mode, VersionRule};
use field_types::FieldTypes;

/// The connector `elasticsearch`.
pub struct ElasticsearchConnector;

impl SinkConnector for ElasticsearchConnector {
    fn name(&self) -> &'static str {
        "elasticsearch"
    }

    fn summary(&self) -> &'static str {
        "Documents in Elasticsearch and OpenSearch indices and data streams"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        Config::read(section, template_variables)
            .map(|config| Box::new(ElasticsearchSpec { config }) as Box<dyn SinkSpec>)
    }
}

struct ElasticsearchSpec {
    config: Config,
}

impl SinkSpec for ElasticsearchSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let (client, product) = context.runtime.block_on(async {
            let client = Client::new(&self.config.client).await?;
            let product = server::check(&client, &self.config, &context.name).await?;
            Ok::<_, Error>((client, product))
        })?;
        let field_types = FieldTypes::new(&self.config, product, &context.name, context.schemas);
        let supersedes = context.replay.is_some_and(|replay| replay.supersedes);
        let sink =
            sink::SearchSink::new(client, &self.config, supersedes, field_types, context.runtime, context.budget);
        Ok(Sink::Idempotent(Box::new(sink)))
    }

    fn preflight(&self, name: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        runtime.block_on(preflight::check(&self.config, name))
    }

    fn at_least_once(&self) -> Option<(&'static str, &'static str)> {
        let documents = &self.config.documents;
        match documents.id {
            IdRule::None => Some(("id", "the server gives ids, so a repeated delivery adds its documents again")),
            _ => None,
        }
    }

    fn destination(&self) -> Option<String> {
        let mut nodes = self.config.client.nodes.clone();
        nodes.sort_unstable();
        Some(format!("{}/{}", nodes.join(","), self.config.documents.target.template().source()))
    }

    fn repeats_change_nothing(&self) -> bool {
        // Ids and versions of a document are the same in each delivery.
        !matches!(self.config.documents.id, IdRule::None) && !self.config.documents.needs_order()
    }

    fn count_rows(
        &self,
        ranges: &OffsetRanges,
        gaps: usize,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Option<RowCounts>> {
        runtime.block_on(audit::count(&self.config, ranges, gaps)).map(Some)
    }

    fn find_documents(&self, records: &Batch, runtime: &tokio::runtime::Handle) -> Result<Option<Vec<String>>> {
        runtime.block_on(locate::find(&self.config, records)).map(Some)
    }

    fn supersede(&self) -> Supersede {
        let documents = &self.config.documents;
        if documents.mode != Mode::Index {
            return Supersede::Refused(
                "only `mode = \"index\"` replaces documents: data streams and `create` keep the first one, and `update` merges \
                 each record into what is there",
            );
        }
        match (&documents.id, &documents.version) {
            (IdRule::None, _) => Supersede::Refused(
                "with `id = \"none\"` the server gives each delivery another id, so existing documents cannot be found",
            ),
            (IdRule::Offset, _) => Supersede::Documents { up_to_live: false },
            (_, VersionRule::Offset) => Supersede::Documents { up_to_live: true },
            _ => Supersede::Refused(
                "it needs `version = \"offset\"`: with another version, a record of the range could replace a later one",
            ),
        }
    }
}
