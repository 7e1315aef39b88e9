//! Creates the index template of the option `template` when the sink starts.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use trunkline_connector::{Error, Result};

use crate::client::{Client, Response, path_segment};
use crate::config::IndexTemplate;
use crate::server::error_of_status;

/// The template of this name on the server.
pub(crate) enum Found {
    Missing,
    /// With its `version`.
    Version(Option<i64>),
    /// The server does not allow the question.
    Unknown(Response),
}

/// Creates the template if the server has none of its name, or an older one. A newer one stays.
pub(crate) async fn create(client: &Client, template: &IndexTemplate, sink: &str) -> Result<()> {
    let name = template.name.as_deref().unwrap_or(sink);
    let create_only = match find(client, name).await? {
        Found::Missing => true,
        Found::Version(existing) if is_newer(template.version(), existing) => false,
        Found::Version(existing) => {
            tracing::info!(template = name, version = existing, "the server has the index template already");
            return Ok(());
        }
        Found::Unknown(response) => return Err(refused(name, &response)),
    };
    let path = format!("/_index_template/{}{}", path_segment(name), if create_only { "?create=true" } else { "" });
    let response = client.call_json(Method::PUT, &path, &template.body).await?;
    if response.status.is_success() {
        tracing::info!(template = name, version = template.version(), "created the index template");
        return Ok(());
    }
    // Another task may have created it meanwhile.
    if create_only && matches!(find(client, name).await?, Found::Version(_)) {
        return Ok(());
    }
    Err(refused(name, &response))
}

/// Looks for the template of this name.
pub(crate) async fn find(client: &Client, name: &str) -> Result<Found> {
    let response = client.call(Method::GET, &format!("/_index_template/{}", path_segment(name))).await?;
    if response.status == StatusCode::NOT_FOUND {
        return Ok(Found::Missing);
    }
    if !response.status.is_success() {
        return Ok(Found::Unknown(response));
    }
    let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    Ok(Found::Version(answer["index_templates"][0]["index_template"]["version"].as_i64()))
}

fn is_newer(own: Option<i64>, existing: Option<i64>) -> bool {
    match (own, existing) {
        (Some(own), Some(existing)) => own > existing,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// The error of a server that did not take the template.
fn refused(name: &str, response: &Response) -> Error {
    if let Some(error) = error_of_status(response) {
        return error;
    }
    let reason = response.describe();
    if response.status == StatusCode::FORBIDDEN {
        let message = format!(
            "the index template `{name}` cannot be read or created: {reason}; give the cluster privilege `manage_index_templates` \
             (OpenSearch: `indices:admin/index_template/*`), or create the template yourself and remove the option `template`"
        );
        return Error::config("elasticsearch.template_forbidden", message);
    }
    let message = format!("the server refused the index template `{name}`: {reason}; correct the option `template`");
    Error::config("elasticsearch.template_refused", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_template_replaces_another_one() {
        assert!(is_newer(Some(2), Some(1)) && is_newer(Some(1), None));
        assert!(!is_newer(Some(1), Some(1)) && !is_newer(Some(1), Some(2)) && !is_newer(None, Some(1)));
        assert!(!is_newer(None, None));
    }
}
