//! The AWS chain: region and credentials from the environment, the shared files, or the role of the
//! machine, task or pod.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_credential_types::provider::error::CredentialsError;
use trunkline_connector::aws::http_client;
use trunkline_connector::{Result, with_causes};

const NO_CREDENTIALS: &str = "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or \
                              AWS_PROFILE, or give the machine, task or pod a role";

/// Why credentials cannot be had.
pub(crate) struct NoCredentials {
    pub(crate) message: String,
    /// Another attempt may succeed.
    pub(crate) is_temporary: bool,
}

/// Reads the chain. Its files and variables may name other credentials each time.
pub(crate) async fn load(region: Option<&str>) -> Result<SdkConfig> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client(None)?);
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    Ok(loader.load().await)
}

/// The credentials of the chain.
pub(crate) async fn credentials(config: &SdkConfig) -> Result<Credentials, NoCredentials> {
    let permanent = |message| NoCredentials { message, is_temporary: false };
    let provider = config.credentials_provider().ok_or_else(|| permanent(NO_CREDENTIALS.to_owned()))?;
    provider.provide_credentials().await.map_err(|error| {
        // The chain lists its providers in lines.
        let reason = with_causes(&error).split_whitespace().collect::<Vec<_>>().join(" ");
        match error {
            CredentialsError::CredentialsNotLoaded(_) => permanent(format!("{NO_CREDENTIALS} ({reason})")),
            CredentialsError::InvalidConfiguration(_) => {
                permanent(format!("the AWS configuration is not valid: {reason}; check ~/.aws/config and AWS_*"))
            }
            _ => NoCredentials { message: format!("AWS credentials cannot be loaded: {reason}"), is_temporary: true },
        }
    })
}
