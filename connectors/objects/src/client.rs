//! The S3 client: retries that end within a minute, authorities and credentials from the options or
//! the environment.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation};
use trunkline_connector::aws::http_client;
use trunkline_connector::{Error, Result};

use crate::options::{AccessKey, BucketOptions, Checksum};

/// One request with all its retries. A call of the sink is one round of requests, and must end
/// within a minute.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(40);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 4;

/// A client for the bucket.
pub async fn connect(options: &BucketOptions) -> Result<Client> {
    let http = http_client(options.tls.authorities()?)?;
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
    if let Some(AccessKey { id, secret, session_token }) = &options.credentials {
        let credentials = Credentials::new(id, secret, session_token.clone(), None, "pipeline file");
        loader = loader.credentials_provider(credentials);
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
