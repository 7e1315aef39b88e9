//! The S3 client: our TLS, retries that end within a minute, credentials from the options or the
//! AWS chain.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use trunkline_connector::{Error, Result};

use crate::options::{BucketOptions, Checksum};

/// One request with all its retries. A call of the sink is one round of requests, and must end
/// within a minute.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(40);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 4;

/// A client for the bucket.
pub async fn connect(options: &BucketOptions) -> Result<Client> {
    // Trunkline uses ring everywhere; the SDK's default would add a second crypto library.
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS).with_max_backoff(Duration::from_secs(5)));
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some((id, secret)) = &options.credentials {
        loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "pipeline file"));
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(options.path_style);
    if shared.region().is_none() {
        if options.endpoint.is_none() && shared.endpoint_url().is_none() {
            return Err(Error::config(
                "s3.no_region",
                "no region is known: set `region`, or AWS_REGION in the environment",
            ));
        }
        // Stores other than Amazon's rarely have regions, but a signature needs one.
        config = config.region(Region::from_static("us-east-1"));
    }
    if options.checksum == Checksum::None {
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    Ok(Client::from_conf(config.build()))
}
