//! The running sink: sends the records of a delivery and decides about each of them by the server's
//! answer.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Handle;
use trunkline_connector::{
    Delivery, Error, IdempotentSink, InFlight, MemoryBudget, Reason, Reservation, Result, Retry, TopicPartition,
};

use crate::bulk_answer::{self, ItemOutcome};
use crate::bulk_body::BulkBody;
use crate::client::{CALL_LIMIT, Client, MIN_ATTEMPT, NoAnswer, Response};
use crate::config::{Config, DocumentOptions, VersionRule};
use crate::document::Observers;
use crate::failover::FailoverGuard;
use crate::field_types::{FieldTypes, IndexSchemas};
use crate::request_limit::{Outcome, RequestLimit};

/// A request of this size whose connection is closed may have been over the size limit of the
/// server.
const MAYBE_TOO_LARGE: usize = 1 << 20;

/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The code of an error because the server has no room for documents.
const BUSY: &str = "elasticsearch.busy";

/// Codes of errors that a server with too many requests gives.
const OVERLOADED: [&str; 3] = [BUSY, "elasticsearch.timeout", "elasticsearch.unavailable"];

/// A running sink.
pub(crate) struct SearchSink {
    client: Client,
    documents: DocumentOptions,
    request_bytes: usize,
    in_flight: usize,
    limit: RequestLimit,
    /// With `version = "source"`.
    failover: Option<FailoverGuard>,
    field_types: Option<FieldTypes>,
    runtime: Handle,
    budget: MemoryBudget,
}

/// What the server did with a request.
enum Sent {
    /// One outcome for each document.
    Answered(Vec<ItemOutcome>),
    /// The server refused the request as a whole, and none of its documents was written.
    Refused(Reason),
}

impl SearchSink {
    /// `supersedes`: see [`DocumentOptions::supersedes`].
    pub(crate) fn new(
        client: Client,
        config: &Config,
        supersedes: bool,
        field_types: Option<FieldTypes>,
        runtime: Handle,
        budget: MemoryBudget,
    ) -> Self {
        Self {
            client,
            documents: DocumentOptions { supersedes, ..config.documents.clone() },
            request_bytes: config.request_bytes,
            in_flight: config.in_flight,
            limit: RequestLimit::new(config.in_flight),
            failover: matches!(config.documents.version, VersionRule::Source)
                .then(|| FailoverGuard::new(config.documents.epoch)),
            field_types,
            runtime,
            budget,
        }
    }

    /// Sends a request. `reserved` holds the body of the delivery, and the packed one while it is
    /// sent.
    fn send(
        &self,
        body: &BulkBody,
        operations: &Range<usize>,
        reserved: &mut Reservation,
        deadline: Instant,
    ) -> Result<Sent> {
        let bytes = body.body(operations);
        let len = bytes.len();
        let packed = self.client.packed(bytes);
        if self.client.packs() {
            reserved.resize(body.capacity() + packed.len());
        }
        match self.runtime.block_on(self.client.bulk(packed, deadline)) {
            Ok(response) => interpret(&response, operations.len(), len),
            Err(NoAnswer { error, closed }) if closed && operations.len() > 1 && len >= MAYBE_TOO_LARGE => {
                tracing::debug!(%error, bytes = len, "sending the request in two halves");
                Ok(Sent::Refused(Reason::new(error.code, error.message())))
            }
            Err(NoAnswer { error, .. }) => Err(error),
        }
    }

    /// Sends the pending records once. The call ends before the deadline.
    fn attempt(&self, delivery: &mut Delivery, deadline: Instant) -> Result<()> {
        let schemas = self.field_types.as_ref().map(|_| IndexSchemas::default());
        let mut observers = Observers { failover: self.failover.as_ref(), schemas };
        let (body, decided) = BulkBody::encode(&self.documents, &mut observers, delivery);
        // Memory in use cannot be refused: others wait until the budget has room again.
        let mut reserved = self.budget.empty();
        reserved.resize(body.capacity());
        for record in decided.superseded {
            delivery.acknowledge(record);
        }
        for (record, reason) in decided.rejected {
            delivery.reject(record, reason);
        }
        if let (Some(types), Some(schemas)) = (&self.field_types, observers.schemas) {
            self.runtime.block_on(types.ensure(&self.client, schemas))?;
        }
        let mut requests = body.requests(self.request_bytes);
        requests.reverse();
        let mut busy = None;
        while let Some(operations) = requests.pop() {
            let permit = self.limit.acquire(deadline - MIN_ATTEMPT).ok_or_else(|| {
                let message =
                    format!("the server took more than {CALL_LIMIT:?} for a delivery; the rest is sent again");
                Error::external("elasticsearch.slow", message)
            })?;
            let sent = self.send(&body, &operations, &mut reserved, deadline);
            permit.end(capacity_shown(&sent));
            match sent? {
                Sent::Answered(outcomes) => match decide(delivery, &body, operations, outcomes) {
                    // The other requests have other documents, or their order does not matter.
                    Err(error) if error.code == BUSY && !self.documents.needs_order() => busy = busy.or(Some(error)),
                    decided => decided?,
                },
                Sent::Refused(_) if operations.len() > 1 => {
                    let middle = operations.start + operations.len() / 2;
                    requests.push(middle..operations.end);
                    requests.push(operations.start..middle);
                }
                Sent::Refused(reason) => delivery.reject(body.record(operations.start), reason),
            }
        }
        busy.or(decided.held).map_or(Ok(()), Err)
    }
}

impl IdempotentSink for SearchSink {
    fn deliver(&self, delivery: &mut Delivery) -> Result<()> {
        self.attempt(delivery, Instant::now() + CALL_LIMIT)
    }

    fn state(&self, partition: &TopicPartition) -> Option<Value> {
        self.failover.as_ref().and_then(|guard| guard.state(partition))
    }

    fn restore(&self, partition: &TopicPartition, state: Option<&Value>) {
        if let Some(guard) = &self.failover {
            guard.restore(partition, state);
        }
    }

    /// Several deliveries of a topic partition may be in flight, and a retry may send a document
    /// after a later one of the same id. This is safe because the server decides by version, not by
    /// arrival:
    ///
    /// - An id from the offset belongs to one record, so every write of it has the same content.
    /// - Any other id has an external version: the server refuses a version that is not newer
    ///   (409), which counts as delivered.
    /// - With `create` the second attempt is refused (409), which counts as delivered.
    ///
    /// Where the server does not decide ([`DocumentOptions::needs_order`]), one delivery of a topic
    /// partition is in flight, and [`decide`] keeps the order within it. The runtime puts documents
    /// that are sent again before later ones.
    fn in_flight(&self) -> InFlight {
        let per_partition = if self.documents.needs_order() { 1 } else { self.in_flight };
        InFlight { deliveries: self.in_flight, per_partition }
    }
}

/// What the end of a request shows about the capacity of the server.
fn capacity_shown(sent: &Result<Sent>) -> Outcome {
    match sent {
        Ok(Sent::Answered(outcomes)) => {
            let busy = outcomes.iter().filter(|outcome| matches!(outcome, ItemOutcome::Busy(_))).count();
            match busy {
                0 => Outcome::Succeeded,
                // At most 100, and at least 1 if any document was refused.
                busy => Outcome::Partly { busy: (busy * 100).div_ceil(outcomes.len()) as u8 },
            }
        }
        Err(error) if OVERLOADED.contains(&error.code) => Outcome::Overloaded,
        Ok(Sent::Refused(_)) | Err(_) => Outcome::Unknown,
    }
}

/// Decides about the documents of an answered request. An error means that some of them must be
/// sent again.
fn decide(
    delivery: &mut Delivery,
    body: &BulkBody,
    operations: Range<usize>,
    outcomes: Vec<ItemOutcome>,
) -> Result<()> {
    let total = outcomes.len();
    let (mut undecided, mut first_error) = (0, None);
    // Documents with a write that is sent again: their later writes must follow it.
    let mut held = HashSet::new();
    for (operation, outcome) in operations.zip(outcomes) {
        let (record, document) = (body.record(operation), body.ordered(operation));
        if first_error.is_none() {
            first_error = outcome.error();
        }
        match outcome {
            ItemOutcome::Done if document.is_some_and(|document| held.contains(&document)) => undecided += 1,
            ItemOutcome::Done => delivery.acknowledge(record),
            ItemOutcome::Rejected(reason) => delivery.reject(record, reason),
            ItemOutcome::Busy(_) | ItemOutcome::Blocked { .. } => {
                undecided += 1;
                held.extend(document);
            }
        }
    }
    match first_error {
        Some(error) => Err(error.context(format!("{undecided} of {total} documents were not written"))),
        None => Ok(()),
    }
}

/// The meaning of an answer to a request of `documents` documents in `bytes` bytes.
fn interpret(response: &Response, documents: usize, bytes: usize) -> Result<Sent> {
    let retry = response.retry_after().map_or(Retry::Backoff, |after| Retry::After(after.min(MAX_RETRY_AFTER)));
    let external = |code, advice: &str| Err(Error::external(code, response.describe() + advice).retry(retry));
    match response.status.as_u16() {
        200 => bulk_answer::read(&response.body, documents).map(Sent::Answered).map_err(|problem| {
            Error::external(
                "elasticsearch.bad_answer",
                format!("{}: {problem}; the documents are sent again", response.node),
            )
        }),
        413 => {
            let reason = format!(
                "{}: the document has {bytes} bytes; raise the server's `http.max_content_length`, or the limit of the proxy before it",
                response.describe()
            );
            Ok(Sent::Refused(Reason::new("elasticsearch.too_large", reason)))
        }
        400 => Ok(Sent::Refused(Reason::new("elasticsearch.refused", response.describe()))),
        429 => external("elasticsearch.busy", ""),
        // Not an error that stops the sink: it continues as soon as the right is given back.
        401 => external("elasticsearch.unauthorized", "; check the credentials"),
        403 => external(
            "elasticsearch.forbidden",
            "; give the user or API key the index privileges `create_index` and `write` (OpenSearch: `crud` and `create_index`)",
        ),
        404 | 405 => external("elasticsearch.not_a_search_server", "; check `url`, also its path"),
        _ => external("elasticsearch.unavailable", ""),
    }
}
