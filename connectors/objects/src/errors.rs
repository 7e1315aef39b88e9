//! The meaning of an object store's answers, and the remedy for each. Only error codes and messages
//! are printed, never the SDK's debug output, which may hold credentials (I8).

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use trunkline_connector::tls::handshake_problem;
use trunkline_connector::{Error, Retry, with_causes};

/// The code of a request that could not be signed.
const NO_CREDENTIALS: &str = "NoCredentials";

/// The code of a connection that TLS does not permit.
const TLS: &str = "Tls";

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The store's error code, such as `NoSuchUpload`.
    pub code: Option<String>,
    message: String,
    request_id: Option<String>,
}

impl Failure {
    /// Converts an error of the SDK.
    pub fn from_sdk<E>(error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        if let Some(problem) = handshake_problem(error) {
            return Self { code: Some(TLS.to_owned()), ..Self::local(problem) };
        }
        let causes = with_causes(error);
        let message = match error {
            // The causes list every place where the SDK has looked, at length.
            _ if status.is_none() && causes.contains("redentials") => {
                return Self {
                    status: None,
                    code: Some(NO_CREDENTIALS.to_owned()),
                    message: "the options, the environment, the profile and this machine's role have none".to_owned(),
                    request_id: None,
                };
            }
            SdkError::ServiceError(service) => service.err().message().unwrap_or_default().to_owned(),
            SdkError::TimeoutError(_) => "the request timed out".to_owned(),
            _ => causes,
        };
        let code = error.code().map(str::to_owned);
        Self { status, code, message, request_id: error.request_id().map(str::to_owned) }
    }

    /// A failure on this side.
    pub fn local(message: String) -> Self {
        Self { status: None, code: None, message, request_id: None }
    }

    /// The store returned this code, or this status without a code (HEAD has no body).
    pub fn is(&self, code: &str, status: u16) -> bool {
        match &self.code {
            Some(own) if own != "Unknown" && own != "UnknownError" => own == code,
            _ => self.status == Some(status),
        }
    }

    /// There is no such key, upload or bucket.
    pub fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }

    /// The error for the stage. `doing` is the failed action: "list s3://bucket/prefix".
    pub fn into_error(self, doing: &str) -> Error {
        let code = self.code.as_deref().unwrap_or_default();
        let (our_code, advice) = match (code, self.status) {
            ("NoSuchBucket", _) => ("s3.no_such_bucket", "create the bucket, or correct `url`"),
            (
                "InvalidAccessKeyId"
                | "XAdminUserNotFound"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "TokenRefreshRequired",
                _,
            ) => (
                "s3.bad_credentials",
                "check the access key and secret (`access_key_id`, `secret_access_key` or the environment's)",
            ),
            ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException", _)
            | (_, Some(301)) => {
                ("s3.wrong_region", "the bucket is in another region: set `region` to the one named here")
            }
            (NO_CREDENTIALS, _) => (
                "s3.no_credentials",
                "set `access_key_id` and `secret_access_key`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a \
                 role",
            ),
            // The message says what to do.
            (TLS, _) => {
                return Error::external("s3.tls", format!("cannot {doing}: {}", self.message)).retry(Retry::Never);
            }
            ("RequestTimeTooSkewed", _) => ("s3.clock_skew", "set this machine's clock"),
            // Amazon's codes, and those of MinIO.
            (kms, _) if kms.starts_with("KMS.") || kms.starts_with("kms:") => {
                ("s3.kms", "check `sse_kms_key_id` and that the credentials may use the key")
            }
            ("SlowDown" | "Throttling" | "RequestLimitExceeded", _) | (_, Some(429 | 503)) => {
                ("s3.throttled", "the store asks for fewer requests; it is tried again")
            }
            ("AccessDenied" | "AllAccessDisabled", _) | (_, Some(401 | 403)) => (
                "s3.access_denied",
                "the credentials need s3:PutObject, s3:GetObject, s3:AbortMultipartUpload and s3:ListBucketMultipartUploads \
                 (and for KMS kms:GenerateDataKey, kms:Decrypt)",
            ),
            ("NotImplemented", _) | (_, Some(501)) => ("s3.not_supported", "the store does not know this request"),
            (_, Some(status)) if status < 500 => ("s3.refused", "the store refused the request"),
            (_, Some(_)) => ("s3.unavailable", "the store has a problem; it is tried again"),
            (_, None) => ("s3.unavailable", "is the store up, and is `endpoint` right? It is tried again"),
        };
        let mut message = format!("cannot {doing}: ");
        if let Some(status) = self.status {
            message.push_str(&format!("HTTP {status} "));
        }
        if !code.is_empty() {
            message.push_str(&format!("{code} "));
        }
        if !self.message.is_empty() {
            message.push_str(&format!("({}) ", self.message));
        }
        if let Some(id) = &self.request_id {
            message.push_str(&format!("[request {id}] "));
        }
        let error = Error::external(our_code, format!("{}; {advice}", message.trim_end()));
        // A key that cannot be used until a person acts.
        let is_unusable_key =
            ["NotFound", "Disabled", "InvalidState", "AccessDenied"].iter().any(|reason| code.contains(reason));
        match our_code {
            // A job ends at once: waiting changes nothing.
            "s3.no_such_bucket" | "s3.bad_credentials" | "s3.wrong_region" | "s3.access_denied"
            | "s3.no_credentials" | "s3.clock_skew" => error.retry(Retry::Never),
            "s3.kms" if is_unusable_key => error.retry(Retry::Never),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::error::ConnectorError;
    use aws_sdk_s3::operation::head_bucket::HeadBucketError;

    use super::*;

    #[test]
    fn missing_credentials_are_named() {
        let cause = "an error occurred while loading credentials: failed to load IMDS session token";
        let error = SdkError::<HeadBucketError>::dispatch_failure(ConnectorError::other(cause.into(), None));
        let error = Failure::from_sdk(&error).into_error("list s3://lake/");
        assert_eq!(error.code, "s3.no_credentials");
        assert!(error.message().contains("`access_key_id`") && !error.message().contains("IMDS"), "{error}");
        let refused = SdkError::<HeadBucketError>::dispatch_failure(ConnectorError::io("refused".into()));
        let error = Failure::from_sdk(&refused).into_error("list s3://lake/");
        assert_eq!((error.code, error.retry), ("s3.unavailable", Retry::Backoff));
    }

    #[test]
    fn errors_that_do_not_pass_end_a_job() {
        let failure =
            |code: &str| Failure { code: Some(code.to_owned()), status: Some(404), ..Failure::local(String::new()) };
        for (code, retry) in [
            ("NoSuchBucket", Retry::Never),
            ("InvalidAccessKeyId", Retry::Never),
            ("AccessDenied", Retry::Never),
            (NO_CREDENTIALS, Retry::Never),
            ("RequestTimeTooSkewed", Retry::Never),
            ("KMS.NotFoundException", Retry::Never),
            ("kms:KeyNotFound", Retry::Never),
            ("KMS.DependencyTimeoutException", Retry::Backoff),
            ("SlowDown", Retry::Backoff),
            ("InternalError", Retry::Backoff),
        ] {
            assert_eq!(failure(code).into_error("list").retry, retry, "{code}");
        }
    }
}
