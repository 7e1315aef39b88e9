//! Unsigned tokens (RFC 7515, appendix A.5), for brokers of tests: the properties
//! `enable.sasl.oauthbearer.unsecure.jwt` and `sasl.oauthbearer.config` of librdkafka.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::kafka::logins::Token;

const PROPERTY: &str = "sasl.oauthbearer.config";

/// The contents of `sasl.oauthbearer.config`.
#[derive(Debug)]
pub(in crate::kafka) struct UnsecuredToken {
    principal_claim: String,
    principal: String,
    scope_claim: String,
    scope: Vec<String>,
    lifetime: Duration,
    extensions: Vec<(String, String)>,
}

impl UnsecuredToken {
    /// Reads pairs `NAME=VALUE`, separated by spaces. Errors show no value.
    pub(in crate::kafka::wire) fn of(config: &str) -> Result<Self, String> {
        let mut token = Self {
            principal_claim: "sub".to_owned(),
            principal: String::new(),
            scope_claim: "scope".to_owned(),
            scope: Vec::new(),
            lifetime: Duration::from_secs(3600),
            extensions: Vec::new(),
        };
        for pair in config.split(' ').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| problem("expected NAME=VALUE"))?;
            let is_extension = name.starts_with("extension_");
            if value.contains('"') || value.is_empty() && !is_extension {
                return Err(problem("a value is empty, or has a quotation mark"));
            }
            let text = || value.to_owned();
            match name {
                "principalClaimName" => token.principal_claim = text(),
                "principal" => token.principal = text(),
                "scopeClaimName" => token.scope_claim = text(),
                "scope" => {
                    for part in value.split(',').filter(|part| !part.is_empty()) {
                        if !token.scope.iter().any(|known| known == part) {
                            token.scope.push(part.to_owned());
                        }
                    }
                }
                "lifeSeconds" => {
                    let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
                    let seconds: u32 = seconds.ok_or_else(|| problem("lifeSeconds must be a positive number"))?;
                    token.lifetime = Duration::from_secs(seconds.into());
                }
                _ => match name.strip_prefix("extension_").filter(|name| !name.is_empty()) {
                    Some(extension) => token.extensions.push((extension.to_owned(), text())),
                    None => {
                        let known = "principal, principalClaimName, scope, scopeClaimName, lifeSeconds, extension_NAME";
                        return Err(problem(&format!("a name is unknown: expected {known}")));
                    }
                },
            }
        }
        if token.principal.is_empty() { Err(problem("principal is missing")) } else { Ok(token) }
    }

    /// A token that is valid from `now` on.
    pub(in crate::kafka::wire) fn make(&self, now: SystemTime) -> Token {
        let expires = now + self.lifetime;
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let scope = match self.scope.join("\",\"") {
            scope if scope.is_empty() => String::new(),
            scope => format!(",\"{}\":[\"{scope}\"]", self.scope_claim),
        };
        let claims = format!(
            "{{\"{}\":\"{}\",\"iat\":{:.3},\"exp\":{:.3}{scope}}}",
            self.principal_claim,
            self.principal,
            seconds(now),
            seconds(expires)
        );
        let value = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims));
        Token { value, principal: self.principal.clone(), expires, extensions: self.extensions.clone() }
    }
}

fn problem(reason: &str) -> String {
    format!("{PROPERTY} is not valid: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(config: &str) -> (String, Token) {
        let token = UnsecuredToken::of(config).unwrap().make(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        let mut parts = token.value.split('.');
        assert_eq!(parts.next(), Some("eyJhbGciOiJub25lIn0"));
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts.next().unwrap()).unwrap()).unwrap();
        assert_eq!((parts.next(), parts.next()), (Some(""), None));
        (claims, token)
    }

    /// The claims are those of librdkafka, to the byte.
    #[test]
    fn tokens_have_the_claims_that_the_property_names() {
        let (text, token) = claims("principal=fubar");
        assert_eq!(text, r#"{"sub":"fubar","iat":1.500,"exp":3601.500}"#);
        assert_eq!(token.expires, SystemTime::UNIX_EPOCH + Duration::from_millis(3_601_500));
        let (text, token) = claims(
            "principal=fubar principalClaimName=azp  scope=role1,,role2,role1 scopeClaimName=roles lifeSeconds=60 \
             extension_a=b extension_c=",
        );
        assert_eq!(text, r#"{"azp":"fubar","iat":1.500,"exp":61.500,"roles":["role1","role2"]}"#);
        let extensions = [("a", "b"), ("c", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(token.extensions, extensions);
    }

    #[test]
    fn mistakes_are_reported_without_the_values() {
        for (config, expected) in [
            ("", "principal is missing"),
            ("lifeSeconds=60", "principal is missing"),
            ("principal=hunter2 lifeSeconds=0", "positive number"),
            ("principal=hunter2 lifeSeconds=hunter2", "positive number"),
            ("principal=", "empty"),
            ("principal=hunter\"2", "quotation mark"),
            ("hunter2", "NAME=VALUE"),
            ("hunter2=a", "a name is unknown"),
            ("principal=hunter2 extension_=a", "a name is unknown"),
        ] {
            let problem = UnsecuredToken::of(config).unwrap_err();
            assert!(problem.contains(expected) && problem.contains(PROPERTY), "{problem}");
            assert!(!problem.contains("hunter"), "{problem}");
        }
    }
}
