//! The server's answer to a `_bulk` request: the outcome of each document.
//!
//! Outcomes are classified by status, because the names of error types differ between servers. A
//! few names refine the message.

use std::borrow::Cow;

use serde::Deserialize;
use trunkline_connector::{Error, Reason};

use crate::client::shorten;

/// What became of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ItemOutcome {
    /// The server has it, or a newer version.
    Done,
    /// The server is busy: the document is sent again. The reason is only read for the first one of
    /// an answer: a busy server gives it for many documents.
    Busy(Option<String>),
    /// The server cannot take documents now, and will not until a person acts.
    Blocked { code: &'static str, message: String },
    /// The document is at fault.
    Rejected(Reason),
}

impl ItemOutcome {
    /// The error that makes the runtime deliver the document again; `None` if it is decided.
    pub(crate) fn error(&self) -> Option<Error> {
        match self {
            Self::Done | Self::Rejected(_) => None,
            Self::Busy(message) => Some(Error::external("elasticsearch.busy", message.as_deref().unwrap_or_default())),
            Self::Blocked { code, message } => Some(Error::external(code, message.clone())),
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    items: Vec<Item<'a>>,
}

#[derive(Deserialize)]
enum Item<'a> {
    /// By the name of the action.
    #[serde(rename = "index", alias = "create", alias = "delete", borrow)]
    Write(ItemResult<'a>),
    #[serde(rename = "update", borrow)]
    Update(ItemResult<'a>),
}

#[derive(Deserialize)]
struct ItemResult<'a> {
    status: u16,
    /// In a box: most documents have no error, and an answer has thousands.
    #[serde(borrow)]
    error: Option<Box<ItemError<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ItemError<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    caused_by: Option<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

/// Reads the answer to a request of `operations` documents: their outcomes, in order. `Err` says
/// what is wrong with the answer.
pub(crate) fn read(body: &[u8], operations: usize) -> Result<Vec<ItemOutcome>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| format!("the answer cannot be read: {error}"))?;
    if answer.items.len() != operations {
        return Err(format!("the answer has {} items for {operations} documents", answer.items.len()));
    }
    let mut is_first = true;
    let outcome = |item| {
        let outcome = outcome(item, is_first);
        is_first &= !matches!(outcome, ItemOutcome::Busy(_));
        outcome
    };
    Ok(answer.items.into_iter().map(outcome).collect())
}

/// `is_first`: no earlier document of the answer found the server busy.
fn outcome(item: Item<'_>, is_first: bool) -> ItemOutcome {
    let (is_update, ItemResult { status, error }) = match item {
        Item::Write(result) => (false, result),
        Item::Update(result) => (true, result),
    };
    // A delete of a document that does not exist is 404 without an error.
    let Some(error) = error.filter(|_| !(200..300).contains(&status)) else {
        return match status {
            200..=299 | 404 | 409 => ItemOutcome::Done,
            _ => ItemOutcome::Busy(Some(format!("the server answered {status} for a document without a reason"))),
        };
    };
    let is_block = error.r#type == "cluster_block_exception";
    match status {
        429 | 502..=504 if !is_block => return ItemOutcome::Busy(is_first.then(|| error.text())),
        // A newer or the same version is there, or (`create`) the document.
        409 if !is_update => return ItemOutcome::Done,
        _ => {}
    }
    let text = error.text();
    let blocked = |code, advice: &str| ItemOutcome::Blocked { code, message: format!("{text}. {advice}") };
    match (status, error.r#type.as_ref()) {
        // Another client changed the document at the same moment.
        (409, _) => ItemOutcome::Busy(Some(text)),
        (404, "document_missing_exception") => ItemOutcome::Rejected(Reason::new(
            "elasticsearch.document_missing",
            format!("{text}. Set `upsert = true` to create missing documents"),
        )),
        (403 | 429, "cluster_block_exception") => blocked(
            "elasticsearch.index_blocked",
            "The index refuses writes. If a disk is full, free space (Elasticsearch 7.4 and later then lifts the block itself); \
             otherwise lift it: PUT {index}/_settings {\"index.blocks.read_only_allow_delete\": null, \"index.blocks.write\": null}",
        ),
        (401 | 403, _) => blocked(
            "elasticsearch.forbidden",
            "Give the user or API key the index privileges `create_index` and `write` (OpenSearch: `crud` and `create_index`) on this index",
        ),
        (404, _) if error.reason.contains("require_alias") => blocked(
            "elasticsearch.alias_missing",
            "Create the alias: PUT {index} {\"aliases\": {\"{alias}\": {\"is_write_index\": true}}}, or set `require_alias = false`",
        ),
        (404, _) => blocked(
            "elasticsearch.index_missing",
            "Create the index (PUT {index}), or allow it to be created: PUT _cluster/settings \
             {\"persistent\": {\"action.auto_create_index\": \"true\"}}",
        ),
        (400, "index_closed_exception") => blocked("elasticsearch.index_closed", "Open the index: POST {index}/_open"),
        (400, _) if error.reason.contains("op_type of create are allowed in data streams") => blocked(
            "elasticsearch.is_data_stream",
            "The name is a data stream, or an index template makes it one (Elasticsearch 8 does so for `logs-*-*` and `metrics-*-*`). \
             Use the option `data_stream` in place of `index`, or another name",
        ),
        (400, _) if error.reason.starts_with("pipeline with id [") => {
            blocked("elasticsearch.pipeline_missing", "Create the ingest pipeline, or change the option `pipeline`")
        }
        _ => ItemOutcome::Rejected(rejection(&error, text)),
    }
}

fn rejection(error: &ItemError<'_>, text: String) -> Reason {
    let limit = "Limit of total fields";
    if error.reason.contains(limit) || error.caused_by.as_ref().is_some_and(|cause| cause.reason.contains(limit)) {
        let message = format!(
            "{text}. The index has too many fields: raise `index.mapping.total_fields.limit`, or set `\"dynamic\": false` in its mapping"
        );
        return Reason::new("elasticsearch.too_many_fields", message);
    }
    Reason::new("elasticsearch.rejected", text)
}

impl ItemError<'_> {
    fn text(&self) -> String {
        let cause = self.caused_by.as_ref().filter(|cause| !self.reason.contains(cause.reason.as_str()));
        let cause = cause.map(|cause| format!(" ({})", shorten(&cause.reason))).unwrap_or_default();
        format!("{}: {}{cause}", self.r#type, shorten(&self.reason)).replace('\n', " ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use super::*;

    fn codes(answer: &str, operations: usize) -> Vec<String> {
        let code = |outcome: ItemOutcome| match outcome {
            ItemOutcome::Done => "done".to_owned(),
            ItemOutcome::Busy(_) => "busy".to_owned(),
            ItemOutcome::Blocked { code, .. } => code.trim_start_matches("elasticsearch.").to_owned(),
            ItemOutcome::Rejected(reason) => reason.code.trim_start_matches("elasticsearch.").to_owned(),
        };
        read(answer.as_bytes(), operations).unwrap().into_iter().map(code).collect()
    }

    fn reason(item: &str) -> String {
        let answer = format!(r#"{{"errors":true,"items":[{{"index":{item}}}]}}"#);
        match read(answer.as_bytes(), 1).unwrap().remove(0) {
            ItemOutcome::Rejected(reason) => reason.message,
            other => panic!("{other:?}"),
        }
    }

    /// As OpenSearch 2.19 and Elasticsearch 8.19 answer.
    #[test]
    fn documents_that_are_there_already_are_done() {
        let answer = r#"{"errors":true,"items":[
            {"index":{"status":201}},{"index":{"status":200}},{"delete":{"status":200}},{"delete":{"status":404}},
            {"index":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"[1]: version conflict, current version [5] is higher or equal to the one provided [4]"}}},
            {"create":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"[1]: version conflict, document already exists (current version [5])"}}}]}"#;
        assert_eq!(codes(answer, 6), ["done"; 6]);
    }

    #[test]
    fn faulty_documents_are_rejected_with_the_reason() {
        let open_search = r#"{"status":400,"error":{"type":"mapper_parsing_exception","reason":"failed to parse field [n] of type [long] in document with id '2'. Preview of field's value: 'x'","caused_by":{"type":"illegal_argument_exception","reason":"For input string: \"x\""}}}"#;
        assert_eq!(
            reason(open_search),
            "mapper_parsing_exception: failed to parse field [n] of type [long] in document with id '2'. Preview of field's value: 'x' (For input string: \"x\")"
        );
        let elasticsearch = r#"{"status":400,"error":{"type":"document_parsing_exception","reason":"[1:2] failed to parse: [1:6] Unexpected end of file","caused_by":{"reason":"[1:6] Unexpected end of file"}}}"#;
        assert_eq!(
            reason(elasticsearch),
            "document_parsing_exception: [1:2] failed to parse: [1:6] Unexpected end of file"
        );
        // An ingest pipeline that fails on a document.
        assert_eq!(
            reason(r#"{"status":500,"error":{"type":"script_exception","reason":"runtime error"}}"#),
            "script_exception: runtime error"
        );
        let answer = r#"{"errors":true,"items":[
            {"index":{"status":400,"error":{"type":"invalid_index_name_exception","reason":"Invalid index name [BAD], must be lowercase"}}},
            {"create":{"status":400,"error":{"type":"mapper_parsing_exception","reason":"failed to parse","caused_by":{"type":"illegal_argument_exception","reason":"documents must contain a single-valued timestamp field '@timestamp' of date type"}}}},
            {"index":{"status":400,"error":{"type":"illegal_argument_exception","reason":"Limit of total fields [2] has been exceeded"}}},
            {"index":{"status":400,"error":{"type":"document_parsing_exception","reason":"[1:18] failed to parse: Limit of total fields [2] has been exceeded while adding new fields [3]","caused_by":{"reason":"x"}}}}]}"#;
        assert_eq!(codes(answer, 4), ["rejected", "rejected", "too_many_fields", "too_many_fields"]);
        let missing = r#"{"errors":true,"items":[{"update":{"status":404,"error":{"type":"document_missing_exception","reason":"[1]: document missing"}}}]}"#;
        assert_eq!(codes(missing, 1), ["document_missing"]);
    }

    #[test]
    fn documents_that_the_server_may_take_later_are_sent_again() {
        let answer = r#"{"errors":true,"items":[
            {"index":{"status":429,"error":{"type":"rejected_execution_exception","reason":"rejected execution of primary operation"}}},
            {"index":{"status":503,"error":{"type":"unavailable_shards_exception","reason":"[a][0] primary shard is not active"}}},
            {"index":{"status":429,"error":{"type":"cluster_block_exception","reason":"index [a] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has read-only-allow-delete block];"}}},
            {"index":{"status":403,"error":{"type":"cluster_block_exception","reason":"index [a] blocked by: [FORBIDDEN/8/index write (api)];"}}},
            {"index":{"status":403,"error":{"type":"security_exception","reason":"action [indices:data/write/bulk[s]] is unauthorized"}}},
            {"index":{"status":404,"error":{"type":"index_not_found_exception","reason":"no such index [nonesuch]"}}},
            {"index":{"status":404,"error":{"type":"index_not_found_exception","reason":"no such index [a] and [require_alias] request flag is [true] and [a] is not an alias"}}},
            {"update":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"[1]: version conflict"}}},
            {"index":{"status":400,"error":{"type":"index_closed_exception","reason":"closed"}}},
            {"index":{"status":400,"error":{"type":"illegal_argument_exception","reason":"only write ops with an op_type of create are allowed in data streams"}}},
            {"index":{"status":400,"error":{"type":"illegal_argument_exception","reason":"pipeline with id [none] does not exist"}}}]}"#;
        let expected = [
            "busy",
            "busy",
            "index_blocked",
            "index_blocked",
            "forbidden",
            "index_missing",
            "alias_missing",
            "busy",
            "index_closed",
            "is_data_stream",
            "pipeline_missing",
        ];
        assert_eq!(codes(answer, 11), expected);
        for outcome in read(answer.as_bytes(), 11).unwrap() {
            let error = outcome.error().unwrap();
            assert_eq!(
                (error.domain, error.retry),
                (trunkline_connector::Domain::External, trunkline_connector::Retry::Backoff)
            );
        }
    }

    #[test]
    fn incomplete_answers_acknowledge_nothing() {
        let one = r#"{"errors":false,"items":[{"index":{"status":201}}]}"#;
        assert_eq!(read(one.as_bytes(), 2).unwrap_err(), "the answer has 1 items for 2 documents");
        for wrong in [&one[..one.len() - 3], "", "<html>", "{}", r#"{"items":[{"index":{}}]}"#] {
            assert!(read(wrong.as_bytes(), 1).is_err(), "{wrong}");
        }
    }
}
