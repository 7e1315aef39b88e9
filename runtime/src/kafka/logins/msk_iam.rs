//! Tokens of Amazon MSK: a signed URL of the action `kafka-cluster:Connect`, in base64. The broker
//! verifies the signature and asks IAM for the signer's rights.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use trunkline_connector::{Error, Result};

use super::{Token, failed, refused};
use crate::aws;

/// The longest lifetime that MSK accepts.
const LIFETIME: Duration = Duration::from_secs(900);

/// Credentials that last for less than this are about to be replaced.
const MIN_LIFETIME: Duration = Duration::from_secs(5);

/// Tokens signed with the credentials of the AWS chain.
pub(in crate::kafka) struct MskIam {
    /// The cluster's region; without it, that of the AWS chain.
    pub(in crate::kafka) region: Option<String>,
}

impl MskIam {
    pub(super) async fn fetch(&self) -> Result<Token> {
        // The chain is read again each time: its files and variables may name other credentials.
        let config = aws::load(self.region.as_deref()).await.map_err(|error| refused(error.message()))?;
        let region = config.region().ok_or_else(|| {
            refused("the region of the MSK cluster is not known: set `kafka.region`, or AWS_REGION in the environment")
        })?;
        let credentials = aws::credentials(&config).await.map_err(|error| match error.is_temporary {
            true => failed(error.message),
            false => refused(error.message),
        })?;
        sign_token(&credentials, region.as_ref(), SystemTime::now())
    }
}

/// A token that is valid from `now` on.
fn sign_token(credentials: &Credentials, region: &str, now: SystemTime) -> Result<Token> {
    // A token is refused once its credentials have expired.
    let credentials_end = credentials.expiry().unwrap_or(now + LIFETIME);
    let lifetime = credentials_end.duration_since(now).unwrap_or_default().min(LIFETIME);
    if lifetime < MIN_LIFETIME {
        return Err(failed("the AWS credentials have expired"));
    }
    // Whole seconds, as in the signature.
    let lifetime = Duration::from_secs(lifetime.as_secs());
    let unsigned = |error: &dyn std::error::Error| Error::internal(super::TOKEN, format!("cannot sign: {error}"));
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(lifetime);
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kafka-cluster")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| unsigned(&error))?;
    let mut url = format!("https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect");
    let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(&[]))
        .map_err(|error| unsigned(&error))?;
    let params = SigningParams::V4(params);
    let (instructions, _) = sign(request, &params).map_err(|error| unsigned(&error))?.into_parts();
    for (name, value) in instructions.params() {
        url.push_str(&format!("&{name}={}", encode(value)));
    }
    // Not signed: MSK logs which program made the token.
    url.push_str(concat!("&User-Agent=trunkline%2F", env!("CARGO_PKG_VERSION")));
    Ok(Token {
        value: URL_SAFE_NO_PAD.encode(url),
        principal: "msk".to_owned(),
        expires: now + lifetime,
        extensions: Vec::new(),
    })
}

/// Percent-encodes all characters that a signature does not leave as they are.
fn encode(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sha2::{Digest as _, Sha256};

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    fn credentials(session: Option<&str>, expires: Option<SystemTime>) -> Credentials {
        Credentials::new("AKIDEXAMPLE", SECRET, session.map(str::to_owned), expires, "test")
    }

    fn hmac(key: &[u8], text: &str) -> Vec<u8> {
        assert!(key.len() <= 64);
        let pad = |filler: u8| -> Vec<u8> {
            (0..64).map(|index| key.get(index).copied().unwrap_or_default() ^ filler).collect()
        };
        let inner = Sha256::digest([pad(0x36), text.as_bytes().to_vec()].concat());
        Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The signature, from the definition of AWS Signature Version 4 (query parameters in order,
    /// signed with the host as the only header and an empty body).
    fn signature(region: &str, query: &BTreeMap<&str, &str>) -> String {
        let canonical: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = format!(
            "GET\n/\n{}\nhost:kafka.{region}.amazonaws.com\n\nhost\n{}",
            canonical.join("&"),
            hex(&Sha256::digest(b""))
        );
        let date = &query["X-Amz-Date"][..8];
        let scope = format!("{date}/{region}/kafka-cluster/aws4_request");
        let text =
            format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", query["X-Amz-Date"], hex(&Sha256::digest(request.as_bytes())));
        let key = hmac(format!("AWS4{SECRET}").as_bytes(), date);
        let key = hmac(&hmac(&hmac(&key, region), "kafka-cluster"), "aws4_request");
        hex(&hmac(&key, &text))
    }

    #[test]
    fn tokens_are_signed_urls_that_the_signature_algorithm_confirms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for session in [None, Some("FwoGZXIvYXdzEA//+=token")] {
            let token = sign_token(&credentials(session, None), "eu-central-1", now).unwrap();
            assert_eq!(token.expires, now + Duration::from_secs(900));
            let url = String::from_utf8(URL_SAFE_NO_PAD.decode(&token.value).unwrap()).unwrap();
            let query = url.strip_prefix("https://kafka.eu-central-1.amazonaws.com/?").unwrap();
            let mut query: BTreeMap<&str, &str> = query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
            let signed = query.remove("X-Amz-Signature").unwrap();
            assert_eq!(query.remove("User-Agent"), Some(concat!("trunkline%2F", env!("CARGO_PKG_VERSION"))));
            assert_eq!(signature("eu-central-1", &query), signed, "{url}");
            assert_eq!(query["Action"], "kafka-cluster%3AConnect");
            assert_eq!(query["X-Amz-Date"], "20231114T221320Z");
            assert_eq!(query["X-Amz-Expires"], "900");
            assert_eq!(query["X-Amz-SignedHeaders"], "host");
            assert_eq!(
                query["X-Amz-Credential"],
                "AKIDEXAMPLE%2F20231114%2Feu-central-1%2Fkafka-cluster%2Faws4_request"
            );
            assert_eq!(query.contains_key("X-Amz-Security-Token"), session.is_some());
            assert!(!url.contains(SECRET));
        }
    }

    #[test]
    fn a_token_ends_with_its_credentials() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let end = now + Duration::from_secs(60);
        let token = sign_token(&credentials(None, Some(end)), "eu-central-1", now).unwrap();
        assert_eq!(token.expires, end);
        let error = sign_token(&credentials(None, Some(now)), "eu-central-1", now).err().unwrap();
        assert!(error.to_string().contains("the AWS credentials have expired"), "{error}");
    }
}
