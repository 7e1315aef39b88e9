//! Signatures of requests to Amazon OpenSearch Service and Serverless (SigV4), with credentials of
//! the AWS chain.

use std::time::SystemTime;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::Request;
use reqwest::header::{HeaderName, HeaderValue};
use trunkline_connector::aws::http_client;
use trunkline_connector::{Error, Result, with_causes};

use crate::config::{AwsKey, AwsOptions, AwsService};

/// Signs requests.
pub(crate) struct Signer {
    credentials: SharedCredentialsProvider,
    region: String,
    service: AwsService,
}

impl Signer {
    /// Finds the region and the provider of credentials. The first signature asks the provider.
    pub(crate) async fn load(options: &AwsOptions, nodes: &[String]) -> Result<Self> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client(None)?);
        if let Some(AwsKey { id, secret, session_token }) = &options.key {
            let credentials = Credentials::new(id, secret, session_token.clone(), None, "pipeline file");
            loader = loader.credentials_provider(credentials);
        }
        if let Some(region) = options.region.clone().or_else(|| region_of(nodes)) {
            loader = loader.region(Region::new(region));
        }
        let config = loader.load().await;
        let region = config.region().ok_or_else(|| {
            let message = "no region is known: set `aws = { region = \"..\" }`, or AWS_REGION in the environment";
            Error::config("elasticsearch.no_region", message)
        })?;
        let credentials = config.credentials_provider().ok_or_else(|| no_credentials("the AWS chain is empty"))?;
        Ok(Self { credentials, region: region.to_string(), service: options.service })
    }

    /// Adds the headers with the signature. Call it for each attempt: a signature is valid for five
    /// minutes.
    pub(crate) async fn sign(&self, request: &mut Request) -> Result<()> {
        // The provider caches credentials until shortly before they expire.
        let credentials =
            self.credentials.provide_credentials().await.map_err(|error| no_credentials(&with_causes(&error)))?;
        let identity = credentials.into();
        let mut settings = SigningSettings::default();
        // Serverless requires the header.
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service.name())
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|error| cannot_sign(&error))?;
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let url = request.url().as_str();
        let signable = SignableRequest::new(request.method().as_str(), url, headers, SignableBody::Bytes(body))
            .map_err(|error| cannot_sign(&error))?;
        let (instructions, _) = sign(signable, &params.into()).map_err(|error| cannot_sign(&error))?.into_parts();
        for (name, value) in instructions.headers() {
            let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) else {
                return Err(cannot_sign(&"a header of the signature has a character that cannot be sent"));
            };
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }
}

/// The region in an address such as `https://search-a.eu-central-1.es.amazonaws.com`. The
/// environment has none on a machine outside of AWS.
fn region_of(nodes: &[String]) -> Option<String> {
    let url = reqwest::Url::parse(nodes.first()?).ok()?;
    let labels: Vec<&str> = url.host_str()?.split('.').collect();
    let service = labels.iter().position(|label| matches!(*label, "es" | "aoss"))?;
    let is_amazon = labels.get(service + 1).is_some_and(|label| *label == "amazonaws");
    let region = labels.get(service.checked_sub(1)?)?;
    is_amazon.then(|| (*region).to_owned())
}

fn no_credentials(why: &str) -> Error {
    let message = format!(
        "there are no credentials to sign requests with: {why}; give the worker a role, set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY in its environment, or set `aws = {{ access_key_id, secret_access_key }}`"
    );
    Error::external("elasticsearch.aws_credentials", message)
}

fn cannot_sign(error: &dyn std::fmt::Display) -> Error {
    Error::config("elasticsearch.signature", format!("a request cannot be signed: {error}; check `url` and `aws`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_in_the_address_of_a_domain() {
        let region = |node: &str| region_of(&[node.to_owned()]);
        assert_eq!(region("https://search-a.eu-central-1.es.amazonaws.com").as_deref(), Some("eu-central-1"));
        assert_eq!(region("https://abc.us-west-2.aoss.amazonaws.com").as_deref(), Some("us-west-2"));
        for other in ["https://search.example.com", "http://127.0.0.1:9200", "https://es.example.com"] {
            assert_eq!(region(other), None, "{other}");
        }
    }
}
