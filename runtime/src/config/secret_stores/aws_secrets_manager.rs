//! AWS Secrets Manager, with the credentials and the region of the AWS chain.
//!
//! The action GetSecretValue is one signed request: the service's SDK would add a crate of
//! megabytes.

use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use super::FetchError;
use super::http::{client, is_temporary, origin, send, variable};
use crate::aws;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "secretsmanager.GetSecretValue";

/// The text of the secret `name`, which may be an ARN.
pub(super) async fn fetch(name: &str) -> Result<Value, FetchError> {
    let config = aws::load(region_of_arn(name)).await.map_err(|error| {
        FetchError::permanent(error.message().to_owned(), "the AWS chain needs it for its requests")
    })?;
    let region = config.region().map(ToString::to_string).ok_or_else(|| {
        FetchError::permanent("the AWS region is not known", "set AWS_REGION, or name the secret by its ARN")
    })?;
    let credentials = aws::credentials(&config).await.map_err(|error| FetchError {
        reason: error.message,
        help: "the AWS chain is that of the AWS command line: try `aws sts get-caller-identity`".to_owned(),
        is_temporary: error.is_temporary,
    })?;
    let url = endpoint(&config, &region)?;
    let body = json!({ "SecretId": name }).to_string();
    let mut request = client(&url, "AWS_CA_BUNDLE")?
        .post(url.clone())
        .header("content-type", CONTENT_TYPE)
        .header("x-amz-target", TARGET);
    for (header, value) in signature(&url, &body, &credentials, &region)? {
        request = request.header(header, value);
    }
    let (status, answer) = send(request.body(body), &url).await?;
    if !status.is_success() {
        return Err(refusal(&url, name, status, &answer));
    }
    match answer.get("SecretString") {
        Some(text @ Value::String(_)) => Ok(text.clone()),
        _ => Err(FetchError::permanent(
            format!("the secret `{name}` has no text"),
            "store the value as text or as keys and values, not as binary data",
        )),
    }
}

/// The region in `arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME`.
fn region_of_arn(name: &str) -> Option<&str> {
    name.starts_with("arn:").then(|| name.split(':').nth(3)).flatten().filter(|region| !region.is_empty())
}

fn endpoint(config: &SdkConfig, region: &str) -> Result<Url, FetchError> {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let own = || config.endpoint_url().map(str::to_owned);
    let address = variable("AWS_ENDPOINT_URL_SECRETS_MANAGER").or_else(own);
    let address = address.unwrap_or_else(|| format!("https://secretsmanager.{region}.{domain}"));
    Url::parse(&address).map_err(|error| {
        let reason = format!("the address of Secrets Manager is not a URL: {error}");
        FetchError::permanent(reason, "check AWS_REGION, AWS_ENDPOINT_URL_SECRETS_MANAGER and AWS_ENDPOINT_URL")
    })
}

/// The headers of a signature.
fn signature(
    url: &Url,
    body: &str,
    credentials: &Credentials,
    region: &str,
) -> Result<Vec<(String, String)>, FetchError> {
    let unsigned = |error: &dyn std::error::Error| {
        FetchError::permanent(format!("the request cannot be signed: {error}"), "please report this")
    };
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("secretsmanager")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| unsigned(&error))?;
    let headers = [("content-type", CONTENT_TYPE), ("x-amz-target", TARGET)].into_iter();
    let request = SignableRequest::new("POST", url.as_str(), headers, SignableBody::Bytes(body.as_bytes()))
        .map_err(|error| unsigned(&error))?;
    let (instructions, _) = sign(request, &SigningParams::V4(params)).map_err(|error| unsigned(&error))?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn refusal(url: &Url, name: &str, status: StatusCode, answer: &Value) -> FetchError {
    // `com.amazonaws.secretsmanager#ResourceNotFoundException`, or only its last part.
    let kind = answer.get("__type").and_then(Value::as_str).unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default();
    let message = answer.get("Message").or_else(|| answer.get("message")).and_then(Value::as_str).unwrap_or_default();
    let origin = origin(url);
    let help = match kind {
        "ResourceNotFoundException" => "check the name, AWS_REGION, and the account of the credentials",
        "AccessDeniedException" => {
            "the identity needs `secretsmanager:GetSecretValue` on the secret, and `kms:Decrypt` on its key if that is \
             not `aws/secretsmanager`"
        }
        "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidSignatureException" => {
            "the AWS credentials are not accepted: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or \
             the role"
        }
        _ => "check AWS_REGION and the endpoint",
    };
    let reason =
        [kind, message].iter().filter(|text| !text.is_empty()).map(|text| format!(": {text}")).collect::<String>();
    FetchError {
        reason: format!("{origin} answered {status} for `{name}`{reason}"),
        help: help.to_owned(),
        is_temporary: is_temporary(status) || kind == "ThrottlingException",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_of_an_arn_is_used() {
        assert_eq!(region_of_arn("arn:aws:secretsmanager:eu-west-1:123456789012:secret:db-x1"), Some("eu-west-1"));
        assert_eq!(region_of_arn("prod/db"), None);
    }

    #[test]
    fn refusals_name_the_cause_and_the_next_step() {
        let url = Url::parse("https://secretsmanager.eu-west-1.amazonaws.com").unwrap();
        let answer = json!({ "__type": "com.x#AccessDeniedException", "Message": "User: arn:x is not authorized" });
        let error = refusal(&url, "prod/db", StatusCode::BAD_REQUEST, &answer);
        assert!(error.reason.ends_with("`prod/db`: AccessDeniedException: User: arn:x is not authorized"));
        assert!(error.help.contains("secretsmanager:GetSecretValue") && !error.is_temporary);
        let throttled = json!({ "__type": "ThrottlingException" });
        assert!(refusal(&url, "a", StatusCode::BAD_REQUEST, &throttled).is_temporary);
    }
}
