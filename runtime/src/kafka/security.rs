//! The settings `kafka.security` and `kafka.region`: short forms of librdkafka properties, and the
//! tokens of Amazon MSK IAM and of OAuth servers, which librdkafka does not fetch in this build.

use std::collections::BTreeMap;

use trunkline_connector::config::nearest;
use trunkline_connector::{Error, Result};

use super::logins::{ClientCredentials, MskIam, TokenSource};

const SECURITY: &str = "security";
const REGION: &str = "region";
const PROTOCOL: &str = "security.protocol";
const MECHANISM: &str = "sasl.mechanism";
const OAUTH_METHOD: &str = "sasl.oauthbearer.method";
const OAUTH_URL: &str = "sasl.oauthbearer.token.endpoint.url";
const OAUTH_ID: &str = "sasl.oauthbearer.client.id";
const OAUTH_SECRET: &str = "sasl.oauthbearer.client.secret";
const OAUTH_SCOPE: &str = "sasl.oauthbearer.scope";
const OAUTH_EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const OAUTH_CA: &str = "https.ca.location";

/// The values of `kafka.security`.
const KINDS: [&str; 5] = ["aws_msk_iam", "scram", "plain", "mtls", "oauth"];

/// The properties of the clients, and where they get their tokens.
pub(super) struct Security {
    pub(super) properties: BTreeMap<String, String>,
    pub(super) tokens: Option<TokenSource>,
}

impl Security {
    /// Replaces the short forms among the settings `kafka`. Properties that the user sets override
    /// what the short form stands for.
    pub(super) fn of(settings: &BTreeMap<String, String>, brokers: &str) -> Result<Self> {
        let mut properties = settings.clone();
        let region = properties.remove(REGION);
        let kind = match properties.remove(SECURITY) {
            Some(kind) => Some(known_kind(&kind)?),
            None => implied_kind(&mut properties),
        };
        if region.is_some() && kind != Some("aws_msk_iam") {
            let message = "the setting `kafka.region` has an effect only with `kafka.security` = \"aws_msk_iam\": set \
                           this, or remove the region";
            return Err(error(message));
        }
        let Some(kind) = kind else { return Ok(Self { properties, tokens: None }) };
        let (protocol, mechanism) = match kind {
            "scram" => ("sasl_ssl", Some("SCRAM-SHA-512")),
            "plain" => ("sasl_ssl", Some("PLAIN")),
            "mtls" => ("ssl", None),
            _ => ("sasl_ssl", Some("OAUTHBEARER")),
        };
        properties.entry(PROTOCOL.to_owned()).or_insert_with(|| protocol.to_owned());
        if let Some(mechanism) = mechanism
            && !properties.contains_key("sasl.mechanisms")
        {
            properties.entry(MECHANISM.to_owned()).or_insert_with(|| mechanism.to_owned());
        }
        let is_set = |name: &str| properties.get(name).is_some_and(|value| !value.is_empty());
        let missing = |names: &[&'static str]| names.iter().copied().filter(|name| !is_set(name)).collect::<Vec<_>>();
        match kind {
            "scram" | "plain" => require(kind, &missing(&["sasl.username", "sasl.password"]))?,
            // The certificate and key may also be texts, or both in a key store.
            "mtls" if !is_set("ssl.keystore.location") => {
                let given = |form: &str| ["location", "pem"].iter().any(|end| is_set(&format!("ssl.{form}.{end}")));
                let needed = [("certificate", "ssl.certificate.location"), ("key", "ssl.key.location")];
                let missing: Vec<_> = needed.iter().filter(|(form, _)| !given(form)).map(|(_, name)| *name).collect();
                require(kind, &missing)?;
            }
            "oauth" => require(kind, &missing(&[OAUTH_URL, OAUTH_ID, OAUTH_SECRET]))?,
            _ => {}
        }
        let tokens = match kind {
            "aws_msk_iam" => {
                let region = region.or_else(|| region_of(brokers));
                Some(TokenSource::MskIam(MskIam { region }))
            }
            "oauth" => Some(TokenSource::ClientCredentials(client_credentials(&mut properties)?)),
            _ => None,
        };
        Ok(Self { properties, tokens })
    }
}

/// The kinds that Kafka's Java clients and librdkafka select by other properties.
fn implied_kind(properties: &mut BTreeMap<String, String>) -> Option<&'static str> {
    for name in [MECHANISM, "sasl.mechanisms"] {
        if properties.get(name).is_some_and(|mechanism| mechanism == "AWS_MSK_IAM") {
            properties.remove(name);
            return Some("aws_msk_iam");
        }
    }
    if properties.get(OAUTH_METHOD).is_some_and(|method| method == "oidc") {
        properties.remove(OAUTH_METHOD);
        return Some("oauth");
    }
    None
}

fn known_kind(kind: &str) -> Result<&'static str> {
    if let Some(known) = KINDS.iter().find(|known| **known == kind) {
        return Ok(known);
    }
    // The value is not shown: users also paste a password here.
    let hint = match nearest(kind, &KINDS) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("expected {}", KINDS.map(|kind| format!("`{kind}`")).join(", ")),
    };
    Err(error(format!("the value of the setting `kafka.security` is not valid: {hint}")))
}

fn require(kind: &str, missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
    Err(error(format!("`kafka.security` = \"{kind}\" needs the settings {} in the table `kafka`", names.join(", "))))
}

/// Takes the properties of the OAuth server, which librdkafka does not need.
fn client_credentials(properties: &mut BTreeMap<String, String>) -> Result<ClientCredentials> {
    properties.remove(OAUTH_METHOD);
    let mut take = |name: &str| properties.remove(name).unwrap_or_default();
    let url = take(OAUTH_URL);
    let url =
        reqwest::Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
            error(format!("the value of the Kafka property `{OAUTH_URL}` is not valid: expected https://HOST/PATH"))
        })?;
    let mut extensions = Vec::new();
    for pair in take(OAUTH_EXTENSIONS).split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            error(format!("the value of the Kafka property `{OAUTH_EXTENSIONS}` is not valid: expected NAME=VALUE,.."))
        })?;
        extensions.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(ClientCredentials {
        url,
        id: take(OAUTH_ID),
        secret: take(OAUTH_SECRET),
        scope: Some(take(OAUTH_SCOPE)).filter(|scope| !scope.is_empty()),
        extensions,
        ca: properties.remove(OAUTH_CA).filter(|path| path != "probe").map(Into::into),
    })
}

/// The region in the name of an MSK broker, such as
/// `b-1.shop.a1.c2.kafka.eu-central-1.amazonaws.com`.
fn region_of(brokers: &str) -> Option<String> {
    let host = brokers.split(',').next()?.trim().rsplit_once(':')?.0;
    let mut parts = host.split('.').skip_while(|part| !matches!(*part, "kafka" | "kafka-serverless")).skip(1);
    let region = parts.next()?;
    (parts.next() == Some("amazonaws")).then(|| region.to_owned())
}

fn error(message: impl Into<String>) -> Error {
    Error::config("kafka.settings", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(settings: &[(&str, &str)]) -> Result<Security> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Security::of(&settings, "b-1.shop.a1.c2.kafka.eu-central-1.amazonaws.com:9098,b-2:9098")
    }

    fn properties(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        security(settings).unwrap().properties.into_iter().collect()
    }

    fn problem(settings: &[(&str, &str)]) -> String {
        security(settings).err().unwrap().to_string()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn short_forms_stand_for_properties_and_the_users_properties_override_them() {
        let user = [("sasl.username", "u"), ("sasl.password", "p")];
        let scram = [&user[..], &[("security", "scram")]].concat();
        let expected = [
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.password", "p"),
            ("sasl.username", "u"),
            ("security.protocol", "sasl_ssl"),
        ];
        assert_eq!(properties(&scram), pairs(&expected));
        let weaker = [&scram[..], &[("sasl.mechanism", "SCRAM-SHA-256"), ("security.protocol", "sasl_plaintext")]];
        assert!(properties(&weaker.concat()).contains(&("sasl.mechanism".to_owned(), "SCRAM-SHA-256".to_owned())));
        let plain = [&user[..], &[("security", "plain")]].concat();
        assert!(properties(&plain).contains(&("sasl.mechanism".to_owned(), "PLAIN".to_owned())));
        let certificate = [("security", "mtls"), ("ssl.certificate.pem", "c"), ("ssl.key.location", "k")];
        assert!(properties(&certificate).contains(&("security.protocol".to_owned(), "ssl".to_owned())));
        assert_eq!(properties(&[("acks", "all")]), pairs(&[("acks", "all")]));
    }

    #[test]
    fn iam_uses_the_region_that_is_set_or_that_of_the_brokers() {
        let region = |settings: &[(&str, &str)]| match security(settings).unwrap().tokens {
            Some(TokenSource::MskIam(MskIam { region })) => region,
            _ => panic!("no tokens of MSK"),
        };
        assert_eq!(region(&[("security", "aws_msk_iam")]).as_deref(), Some("eu-central-1"));
        assert_eq!(region(&[("security", "aws_msk_iam"), ("region", "us-east-1")]).as_deref(), Some("us-east-1"));
        // The setting of Kafka's Java clients.
        assert_eq!(region(&[("sasl.mechanism", "AWS_MSK_IAM")]).as_deref(), Some("eu-central-1"));
        assert_eq!(region_of("boot-x.c1.kafka-serverless.us-west-2.amazonaws.com:9098").as_deref(), Some("us-west-2"));
        assert_eq!(region_of("b-1.x.kafka.cn-north-1.amazonaws.com.cn:9098").as_deref(), Some("cn-north-1"));
        assert_eq!(region_of("kafka.internal.example.com:9092"), None);
    }

    #[test]
    fn oauth_properties_are_taken_from_librdkafka() {
        let settings = [
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.token.endpoint.url", "https://id.example.com/token"),
            ("sasl.oauthbearer.client.id", "trunkline"),
            ("sasl.oauthbearer.client.secret", "hunter2"),
            ("sasl.oauthbearer.extensions", "logicalCluster=a, pool=b"),
        ];
        let security = security(&settings).unwrap();
        let expected = [("sasl.mechanism", "OAUTHBEARER"), ("security.protocol", "sasl_ssl")];
        assert_eq!(security.properties.into_iter().collect::<Vec<_>>(), pairs(&expected));
        let Some(TokenSource::ClientCredentials(source)) = security.tokens else { panic!("no OAuth server") };
        assert_eq!((source.id.as_str(), source.secret.as_str(), source.scope), ("trunkline", "hunter2", None));
        assert_eq!(source.extensions, pairs(&[("logicalCluster", "a"), ("pool", "b")]));
    }

    #[test]
    fn incomplete_and_unknown_settings_are_reported_without_their_values() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("security", "scran")], "did you mean `scram`?"),
            (&[("security", "hunter2")], "expected `aws_msk_iam`, `scram`"),
            (&[("security", "scram"), ("sasl.username", "u")], "needs the settings `sasl.password`"),
            (&[("security", "mtls")], "`ssl.certificate.location`, `ssl.key.location`"),
            (&[("security", "oauth")], "`sasl.oauthbearer.token.endpoint.url`, `sasl.oauthbearer.client.id`"),
            (&[("region", "eu-central-1")], "`kafka.region` has an effect only with"),
        ];
        for (settings, expected) in cases {
            let problem = problem(settings);
            assert!(problem.contains(expected) && !problem.contains("hunter2"), "{problem}");
        }
        let url = [
            ("security", "oauth"),
            ("sasl.oauthbearer.token.endpoint.url", "hunter2"),
            ("sasl.oauthbearer.client.id", "i"),
            ("sasl.oauthbearer.client.secret", "s"),
        ];
        let problem = problem(&url);
        assert!(problem.contains("token.endpoint.url` is not valid") && !problem.contains("hunter2"), "{problem}");
    }
}
