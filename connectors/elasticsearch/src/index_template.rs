//! Creates what the options `template` ask for when the sink starts: the index template, and the
//! first index of an alias that rolls over.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use crate::client::{Client, Response, path_segment};
use crate::config::{DocumentOptions, IndexTemplate};
use crate::server::{Product, error_of_status};

/// The template of this name on the server.
pub(crate) enum Found {
    Missing,
    Template(Value),
    /// The server does not allow the question.
    Unknown(Response),
}

/// Creates the template if the server has none of its name, or an older one. A newer one stays.
/// Then creates the first index of an alias that rolls over. `sink` is the sink's name.
pub(crate) async fn create(
    client: &Client,
    product: Option<Product>,
    template: &IndexTemplate,
    documents: &DocumentOptions,
    sink: &str,
) -> Result<()> {
    check_policy(client, product, template).await?;
    let name = template.name.as_deref().unwrap_or(sink);
    if let Some(body) = template.body(product, documents) {
        put(client, name, &body).await?;
    }
    match documents.target.template().constant() {
        Some(alias) if template.options.rollover => create_first_index(client, alias).await,
        _ => Ok(()),
    }
}

async fn put(client: &Client, name: &str, body: &Value) -> Result<()> {
    let create_only = match find(client, name).await? {
        Found::Missing => true,
        Found::Template(existing) if replaces(body, &existing) => false,
        Found::Template(existing) => {
            let version = existing["version"].as_i64();
            tracing::info!(template = name, version, "the server has the index template already");
            return Ok(());
        }
        Found::Unknown(response) => return Err(refused(name, &response)),
    };
    let path = format!("/_index_template/{}{}", path_segment(name), if create_only { "?create=true" } else { "" });
    let response = client.call_json(Method::PUT, &path, body).await?;
    if response.status.is_success() {
        tracing::info!(template = name, version = body["version"].as_i64(), "created the index template");
        return Ok(());
    }
    // Another task may have created it meanwhile.
    if create_only && matches!(find(client, name).await?, Found::Template(_)) {
        return Ok(());
    }
    Err(refused(name, &response))
}

/// Checks that the policy exists and, on OpenSearch, that it is attached to the indices.
pub(crate) async fn check_policy(client: &Client, product: Option<Product>, template: &IndexTemplate) -> Result<()> {
    let Some(policy) = &template.options.lifecycle_policy else { return Ok(()) };
    let is_opensearch = product == Some(Product::OpenSearch);
    let api = if is_opensearch { "_plugins/_ism/policies" } else { "_ilm/policy" };
    let response = client.call(Method::GET, &format!("/{api}/{}", path_segment(policy))).await?;
    if response.status == StatusCode::NOT_FOUND {
        let message = format!(
            "the server has no policy `{policy}`; create it: PUT {api}/{policy}, or correct `template.lifecycle_policy`"
        );
        return Err(Error::config("elasticsearch.policy_missing", message));
    }
    let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    // A user may write without the right to read policies.
    let attaches = |policy: &Value| policy["ism_template"].as_array().is_some_and(|templates| !templates.is_empty());
    if is_opensearch && response.status.is_success() && !attaches(&answer["policy"]) {
        let message = format!(
            "the policy `{policy}` has no `ism_template`, so OpenSearch attaches it to no index; add to the policy: \
             \"ism_template\": [{{\"index_patterns\": [\"..\"]}}]"
        );
        return Err(Error::config("elasticsearch.policy_not_attached", message));
    }
    Ok(())
}

/// Creates the first index of an alias, if the alias does not exist.
async fn create_first_index(client: &Client, alias: &str) -> Result<()> {
    let exists = || async {
        let response = client.call(Method::GET, &format!("/_alias/{}", path_segment(alias))).await?;
        Ok::<_, Error>(response.status != StatusCode::NOT_FOUND)
    };
    if exists().await? {
        return Ok(());
    }
    let (index, body) = (format!("{alias}-000001"), json!({"aliases": {alias: {"is_write_index": true}}}));
    let response = client.call_json(Method::PUT, &format!("/{}", path_segment(&index)), &body).await?;
    if response.status.is_success() {
        tracing::info!(alias, index, "created the alias and its first index");
        return Ok(());
    }
    // Another task may have created it meanwhile.
    if exists().await? {
        return Ok(());
    }
    if let Some(error) = error_of_status(&response) {
        return Err(error);
    }
    let message = format!(
        "the alias `{alias}` cannot be created: {}; if `{alias}` is an index, choose another name for `index`; else create it: PUT \
         {index} {body}",
        response.describe()
    );
    Err(Error::config("elasticsearch.alias_missing", message))
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
    Ok(Found::Template(answer["index_templates"][0]["index_template"].clone()))
}

/// Whether a template replaces the existing one: it has a higher version, or the sink generated
/// both and its options have changed since.
fn replaces(own: &Value, existing: &Value) -> bool {
    let mark = |template: &Value| template["_meta"]["trunkline"].as_str().map(str::to_owned);
    if let Some(own) = mark(own) {
        return mark(existing).is_some_and(|existing| existing != own);
    }
    match (own["version"].as_i64(), existing["version"].as_i64()) {
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
        let versions = |own: Value, existing: Value| replaces(&json!({"version": own}), &json!({"version": existing}));
        assert!(versions(2.into(), 1.into()) && versions(1.into(), Value::Null));
        assert!(!versions(1.into(), 1.into()) && !versions(1.into(), 2.into()) && !versions(Value::Null, 1.into()));
        assert!(!versions(Value::Null, Value::Null));
    }

    #[test]
    fn a_generated_template_replaces_only_generated_ones_with_other_options() {
        let generated = |mark: &str| json!({"_meta": {"trunkline": mark}});
        assert!(replaces(&generated("a"), &generated("b")));
        assert!(!replaces(&generated("a"), &generated("a")) && !replaces(&generated("a"), &json!({"version": 1})));
    }
}
