//! What is checked when the sink is opened: that a supported server answers, and that what the
//! options name exists.

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use trunkline_connector::{Error, Result, Template};

use crate::client::{Client, Response, path_segment};
use crate::config::{Config, Target};
use crate::index_template;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    Elasticsearch,
    OpenSearch,
}

impl Product {
    fn name(self) -> &'static str {
        match self {
            Self::Elasticsearch => "Elasticsearch",
            Self::OpenSearch => "OpenSearch",
        }
    }

    /// The major versions that are supported.
    fn versions(self) -> std::ops::RangeInclusive<u32> {
        match self {
            Self::Elasticsearch => 7..=9,
            Self::OpenSearch => 1..=3,
        }
    }
}

/// Checks the server, creates the index template and the data stream, and checks the ingest
/// pipeline. `name` is the sink's.
pub(crate) async fn check(client: &Client, config: &Config, name: &str) -> Result<Option<Product>> {
    let product = check_server(client).await?;
    if let Some(template) = &config.template {
        index_template::create(client, product, template, &config.documents, name).await?;
    }
    check_pipeline(client).await?;
    if let Target::DataStream(template) = &config.documents.target
        && let Some(name) = Template::constant(template)
    {
        create_data_stream(client, name).await?;
    }
    Ok(product)
}

/// Checks that a supported server answers.
pub(crate) async fn check_server(client: &Client) -> Result<Option<Product>> {
    if client.is_serverless {
        // It has no version, and answers 404.
        return Ok(Some(Product::OpenSearch));
    }
    check_version(&client.call(Method::GET, "/").await?)
}

/// Checks that the ingest pipeline exists.
pub(crate) async fn check_pipeline(client: &Client) -> Result<()> {
    let Some(pipeline) = &client.pipeline else { return Ok(()) };
    let response = client.call(Method::GET, &format!("/_ingest/pipeline/{}", path_segment(pipeline))).await?;
    if response.status != StatusCode::NOT_FOUND {
        return Ok(());
    }
    let message = format!(
        "the server has no ingest pipeline `{pipeline}`; create it: PUT _ingest/pipeline/{pipeline} {{\"processors\": []}}"
    );
    Err(Error::config("elasticsearch.pipeline_missing", message))
}

/// The part of the answer to `GET /` that is read.
#[derive(Deserialize)]
struct Root {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    number: String,
    distribution: Option<String>,
}

/// The product; `None` if the server does not say.
fn check_version(response: &Response) -> Result<Option<Product>> {
    if let Some(error) = error_of_status(response) {
        return Err(error);
    }
    let Ok(root) = serde_json::from_slice::<Root>(&response.body) else {
        // A user may be denied this request and may write all the same. A proxy may answer 405 for
        // requests that it does not pass.
        let has_header = response.headers.contains_key("x-elastic-product");
        let is_denied = response.status == StatusCode::FORBIDDEN;
        if is_denied || (has_header && response.status == StatusCode::METHOD_NOT_ALLOWED) {
            tracing::info!(node = response.node, status = %response.status, "the server does not show its version");
            return Ok(has_header.then_some(Product::Elasticsearch));
        }
        let message = format!(
            "{}; this is not an Elasticsearch or OpenSearch server: check `url`, also its path",
            response.describe()
        );
        return Err(Error::config("elasticsearch.not_a_search_server", message));
    };
    let product = match root.version.distribution.as_deref() {
        Some("opensearch") => Product::OpenSearch,
        _ => Product::Elasticsearch,
    };
    let Version { number, .. } = root.version;
    let major: Option<u32> = number.split('.').next().and_then(|major| major.parse().ok());
    let (name, supported) = (product.name(), product.versions());
    match major {
        Some(major) if major < *supported.start() => {
            let message = format!(
                "{} is {name} {number}, and Trunkline needs {} or later; upgrade the cluster",
                response.node,
                supported.start()
            );
            return Err(Error::config("elasticsearch.old_version", message));
        }
        Some(major) if major > *supported.end() => {
            tracing::warn!(node = response.node, "{name} {number} is newer than the versions that were tested");
        }
        _ => tracing::info!(node = response.node, "{name} {number}"),
    }
    Ok(Some(product))
}

/// The error of an answer that any request can have.
pub(crate) fn error_of_status(response: &Response) -> Option<Error> {
    let status = response.status;
    if status == StatusCode::UNAUTHORIZED {
        let message = format!(
            "{}; check the credentials: `username` and `password`, `api_key`, `bearer_token` or `auth`",
            response.describe()
        );
        return Some(Error::config("elasticsearch.unauthorized", message));
    }
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Some(Error::external("elasticsearch.unavailable", response.describe()));
    }
    None
}

/// Creates the data stream if it is missing. A server that does not allow the question is not asked
/// further.
async fn create_data_stream(client: &Client, name: &str) -> Result<()> {
    let path = format!("/_data_stream/{}", path_segment(name));
    if client.call(Method::GET, &path).await?.status != StatusCode::NOT_FOUND {
        return Ok(());
    }
    let response = client.call(Method::PUT, &path).await?;
    if response.status.is_success() {
        tracing::info!(data_stream = name, "created the data stream");
        return Ok(());
    }
    if let Some(error) = error_of_status(&response) {
        return Err(error);
    }
    let reason = response.describe();
    if response.status == StatusCode::BAD_REQUEST && reason.contains("no matching index template") {
        let message = format!(
            "{reason}. Create one: PUT _index_template/{name} \
             {{\"index_patterns\": [\"{name}\"], \"data_stream\": {{}}, \"priority\": 200}}"
        );
        return Err(Error::config("elasticsearch.no_data_stream_template", message));
    }
    // Another task may have created it meanwhile; anything else shows in the deliveries.
    tracing::info!(data_stream = name, reason, "the data stream was not created");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn code(status: u16, header: Option<&'static str>, body: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        if let Some(name) = header {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("Elasticsearch"));
        }
        let status = StatusCode::from_u16(status).unwrap();
        let response = Response { node: "http://node".to_owned(), status, headers, body: body.to_owned().into() };
        check_version(&response).err().map(|error| error.code)
    }

    #[test]
    fn supported_versions_are_found_in_the_answer_of_the_server() {
        let open_search =
            |number| format!(r#"{{"name":"n","version":{{"distribution":"opensearch","number":"{number}"}}}}"#);
        let elasticsearch =
            |number| format!(r#"{{"name":"n","version":{{"number":"{number}","build_flavor":"default"}}}}"#);
        for body in ["1.3.20", "2.19.1", "3.8.0", "4.0.0"].map(open_search) {
            assert_eq!(code(200, None, &body), None, "{body}");
        }
        for body in ["7.10.2", "8.19.21", "9.5.0", "10.0.0"].map(elasticsearch) {
            assert_eq!(code(200, None, &body), None, "{body}");
        }
        assert_eq!(code(200, None, &elasticsearch("6.8.23")), Some("elasticsearch.old_version"));
    }

    #[test]
    fn other_answers_are_explained() {
        assert_eq!(code(401, None, "{}"), Some("elasticsearch.unauthorized"));
        assert_eq!(code(503, None, ""), Some("elasticsearch.unavailable"));
        assert_eq!(code(200, None, "<html>"), Some("elasticsearch.not_a_search_server"));
        assert_eq!(code(404, None, "{}"), Some("elasticsearch.not_a_search_server"));
        assert_eq!(code(403, None, "{}"), None);
        assert_eq!(code(405, Some("x-elastic-product"), "{}"), None);
        assert_eq!(code(405, None, "{}"), Some("elasticsearch.not_a_search_server"));
        // A path that Elasticsearch does not have.
        assert_eq!(code(400, Some("x-elastic-product"), "{}"), Some("elasticsearch.not_a_search_server"));
    }
}
