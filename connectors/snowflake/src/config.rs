//! Options of the sink.

use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::config::{Mismatch, OptionSpec, Section, Value};
use trunkline_connector::tls::{self, TlsCodes, TlsOptions};
use trunkline_warehouse::BucketOptions;

use crate::client::{ClientOptions, Credentials, KeyPair};
use crate::dialect::{NameCase, StageAccess};
use crate::internal_stage;

/// The options of the connector: its own, and those that all sinks for warehouses have.
pub(crate) const OPTIONS: &[OptionSpec] = &{
    const SHARED: &[OptionSpec] = trunkline_warehouse::OPTIONS;
    let mut all = [OWN[0]; OWN.len() + SHARED.len()];
    let mut index = 0;
    while index < all.len() {
        all[index] = if index < OWN.len() { OWN[index] } else { SHARED[index - OWN.len()] };
        index += 1;
    }
    all
};

const OWN: [OptionSpec; 21] = [
    OptionSpec::required(
        "account",
        "string",
        "Account identifier, as in the address of the service: `org-account`, or `xy12345.eu-central-1`.",
        "\"xy12345.eu-central-1\"",
    ),
    OptionSpec::optional(
        "url",
        "string",
        "`https://{account}.snowflakecomputing.com`",
        "Another address of the service, with `https://` or `http://`: a private link, a proxy.",
        "\"https://xy12345.eu-central-1.privatelink.snowflakecomputing.com\"",
    ),
    OptionSpec::required("user", "string", "User that loads.", "\"LOADER\""),
    OptionSpec::optional(
        "private_key",
        "string",
        "none",
        "Private key of the user in PEM format: PKCS#8, encrypted or not, or PKCS#1. Write `${file:..}` or `${env:..}`. Give exactly \
         one of `private_key`, `password`, `oauth_token` and `access_token`.",
        "\"${file:/run/secrets/loader.p8}\"",
    ),
    OptionSpec::optional(
        "private_key_passphrase",
        "string",
        "none",
        "Passphrase of an encrypted `private_key`.",
        "\"${env:LOADER_PASSPHRASE}\"",
    ),
    OptionSpec::optional(
        "password",
        "string",
        "none",
        "Password of the user. Snowflake allows it only for users without multi-factor authentication.",
        "\"${env:LOADER_PASSWORD}\"",
    ),
    OptionSpec::optional(
        "oauth_token",
        "string",
        "none",
        "OAuth access token of the user.",
        "\"${file:/run/secrets/token}\"",
    ),
    OptionSpec::optional(
        "access_token",
        "string",
        "none",
        "Programmatic access token of the user.",
        "\"${file:/run/secrets/token}\"",
    ),
    OptionSpec::optional(
        "role",
        "string",
        "the user's",
        "Role that loads. It owns the tables that the sink creates.",
        "\"LOADER\"",
    ),
    OptionSpec::optional("warehouse", "string", "the user's", "Warehouse that runs the loads.", "\"LOADING\""),
    OptionSpec::required("database", "string", "Database of the tables.", "\"ANALYTICS\""),
    OptionSpec::required("schema", "string", "Schema of the tables.", "\"RAW\""),
    OptionSpec::with_default(
        "names",
        "`upper` or `preserve`",
        "\"upper\"",
        "Case of tables and columns. `upper`: `order_id` is `ORDER_ID`, which SQL finds without quotes. `preserve`: names stay as they \
         are, and SQL must quote them.",
    ),
    OptionSpec::with_default(
        "geometry",
        "`json` or `geography`",
        "\"json\"",
        "The type of new columns for geometries of a `mysql` source: `VARIANT` with `srid` and `wkb`, or `GEOGRAPHY`. A geography has \
         longitudes and latitudes (SRID 4326, or none); other geometries go to the dead letters.",
    ),
    OptionSpec::with_default(
        "statement_timeout",
        "duration",
        "\"10m\"",
        "Limit on one statement, with its waits for locks and for the warehouse to start. 1 second to 24 hours.",
    ),
    OptionSpec::with_default(
        "lock_timeout",
        "duration",
        "\"1m\"",
        "Limit on the wait for a lock that another transaction holds. 1 second to 24 hours.",
    ),
    tls::CA,
    tls::CERT,
    tls::KEY,
    tls::KEY_PASSWORD,
    OptionSpec::optional(
        "stage.storage_integration",
        "string",
        "the keys of `stage`",
        "Storage integration with which Snowflake reads the stage. Without it, each load sends `access_key_id` and \
         `secret_access_key`.",
        "\"LAKE\"",
    ),
];

/// Where files wait for their load.
#[derive(Clone)]
pub(crate) enum StagePlace {
    Bucket(Box<BucketOptions>),
    /// A stage of the service: `@NAME/folder`.
    Internal(String),
}

/// The sink as configured.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) client: Arc<ClientOptions>,
    pub(crate) case: NameCase,
    pub(crate) has_geographies: bool,
    pub(crate) stage: StagePlace,
    pub(crate) access: StageAccess,
    pub(crate) loads: trunkline_warehouse::Options,
}

impl Config {
    /// Reads the component's section; `None` if a problem was reported.
    pub(crate) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        section.declare(OPTIONS);
        let before = section.report.len();
        let client = read_client(section);
        let case = section.one_of("names", &[("upper", NameCase::Upper), ("preserve", NameCase::Preserve)]);
        let has_geographies = section.one_of("geometry", &[("json", false), ("geography", true)]);
        let stage = read_stage(section);
        let loads = trunkline_warehouse::Options::read(section, template_variables);
        (section.report.len() == before).then_some(())?;
        let (stage, access) = stage?;
        Some(Self { client: Arc::new(client?), case, has_geographies, stage, access, loads: loads? })
    }
}

/// The stage, and how the service reads it.
fn read_stage(section: &Section<'_>) -> Option<(StagePlace, StageAccess)> {
    if let Some(Value::String(text)) = section.node("stage").map(|node| &node.value)
        && text.resolved.starts_with('@')
    {
        let problem = internal_stage::problem(&text.resolved);
        check(section, "stage", problem.is_none(), problem.unwrap_or_default(), "`@NAME` or `@SCHEMA.NAME/folder`");
        return problem.is_none().then(|| (StagePlace::Internal(text.resolved.clone()), StageAccess::Internal));
    }
    let mut integration = None;
    let stage = trunkline_warehouse::read_stage(section, |stage| {
        integration = stage.optional::<String>("storage_integration");
    })?;
    let access = match (integration, &stage.credentials) {
        (Some(name), _) => StageAccess::Integration(name),
        (None, Some(key)) => StageAccess::Keys(key.clone()),
        (None, None) => {
            let message = "does not say how Snowflake reads it";
            check(
                section,
                "stage",
                false,
                message,
                "`storage_integration`, or `access_key_id` and `secret_access_key`",
            );
            return None;
        }
    };
    Some((StagePlace::Bucket(Box::new(stage)), access))
}

/// The codes of errors about the files of TLS.
pub(crate) const TLS_CODES: TlsCodes = TlsCodes { ca: "snowflake.tls_ca", cert: "snowflake.tls_cert" };

fn read_client(section: &Section<'_>) -> Option<ClientOptions> {
    let account = section.required::<String>("account");
    let url = read_url(section);
    let user = section.required::<String>("user");
    let credentials = read_credentials(section);
    let role = section.optional::<String>("role");
    let warehouse = section.optional::<String>("warehouse");
    let database = section.required::<String>("database");
    let schema = section.required::<String>("schema");
    let statement_timeout = read_timeout(section, "statement_timeout");
    let lock_timeout = read_timeout(section, "lock_timeout");
    let tls = TlsOptions::read(section, TLS_CODES);
    let given = [("account", &account), ("user", &user), ("database", &database), ("schema", &schema)];
    for (key, value) in given {
        check(section, key, value.as_deref().is_none_or(|text| !text.trim().is_empty()), "is empty", "a name");
    }
    let is_host = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let message = "is not an account identifier";
    let expected = "`org-account` or `xy12345.eu-central-1`, without `.snowflakecomputing.com`";
    let is_account = account.as_deref().is_none_or(|text| is_host(text) && !text.ends_with(".snowflakecomputing.com"));
    check(section, "account", is_account, message, expected);
    let account = account?;
    Some(ClientOptions {
        origin: url.unwrap_or_else(|| ClientOptions::origin_of(&account)),
        account,
        user: user?,
        credentials: credentials?,
        role,
        warehouse,
        database: database?,
        schema: schema?,
        statement_timeout,
        lock_timeout,
        tls,
    })
}

fn check(section: &Section<'_>, key: &'static str, holds: bool, message: &str, expected: &str) {
    if let (false, Some(node)) = (holds, section.node(key)) {
        section.mismatch(key, node, Mismatch::new(message), expected.to_owned());
    }
}

fn read_timeout(section: &Section<'_>, key: &'static str) -> Duration {
    let timeout: Duration = section.value(key);
    let in_range = (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&timeout);
    check(section, key, in_range, "is out of range", "a duration from `1s` to `24h`");
    timeout
}

fn read_url(section: &Section<'_>) -> Option<String> {
    let url = section.optional::<String>("url")?;
    let problem = match reqwest::Url::parse(&url) {
        Err(_) => Some("is not an address"),
        Ok(parsed) if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() => {
            Some("has no `http://` or `https://`")
        }
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            Some("has a user in it: use `user`")
        }
        Ok(parsed) if parsed.query().is_some() || parsed.fragment().is_some() || parsed.path() != "/" => {
            Some("has a path, a query or a fragment")
        }
        Ok(_) => None,
    };
    if let Some(problem) = problem {
        check(
            section,
            "url",
            false,
            problem,
            "an address such as `https://xy12345.privatelink.snowflakecomputing.com`",
        );
    }
    Some(url.trim_end_matches('/').to_owned())
}

/// Exactly one kind of credentials.
fn read_credentials(section: &Section<'_>) -> Option<Credentials> {
    const KINDS: [&str; 4] = ["private_key", "password", "oauth_token", "access_token"];
    let passphrase = section.optional::<String>("private_key_passphrase");
    let mut values = KINDS.map(|key| section.optional::<String>(key));
    let given: Vec<&'static str> = KINDS.into_iter().filter(|key| section.table.get(key).is_some()).collect();
    match given.as_slice() {
        [] => section.missing("private_key", "or `password`, `oauth_token`, `access_token`"),
        [_] => {}
        [first, others @ ..] => {
            let message = format!("is given together with `{first}`");
            others.iter().for_each(|key| check(section, key, false, &message, "one of the two"));
        }
    }
    let has_key = given.contains(&"private_key");
    check(
        section,
        "private_key_passphrase",
        has_key,
        "is given without `private_key`",
        "a `private_key`, or no passphrase",
    );
    let [private_key, password, oauth_token, access_token] = &mut values;
    if let Some(text) = private_key {
        return match KeyPair::from_pem(text, passphrase.as_deref()) {
            Ok(key) => Some(Credentials::KeyPair(Arc::new(key))),
            Err(problem) => {
                // What is expected is shown for values of files and variables, too.
                let expected = format!("an RSA key in PEM format; it {problem}");
                check(section, "private_key", false, "cannot be used", &expected);
                None
            }
        };
    }
    password
        .take()
        .map(Credentials::Password)
        .or_else(|| oauth_token.take().map(Credentials::OAuth))
        .or_else(|| access_token.take().map(Credentials::AccessToken))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use std::path::Path;

    use trunkline_connector::config::Report;
    use trunkline_connector::conformance::read_toml;

    use super::*;

    #[test]
    fn a_key_that_cannot_be_used_is_reported_with_its_problem() {
        let pem = |label: &str| format!("-----BEGIN {label}-----\\nAAAA\\n-----END {label}-----");
        for (key, problem) in [
            ("hunter2".to_owned(), "it is not a private key in PEM format"),
            (pem("ENCRYPTED PRIVATE KEY"), "it is encrypted, and `private_key_passphrase` is missing"),
            (pem("CERTIFICATE"), "it is a `CERTIFICATE`, not a private key"),
            (pem("PRIVATE KEY"), "it must be an RSA key of 2048 bits or more"),
        ] {
            let table = read_toml(&format!("private_key = \"{key}\""));
            let report = Report::default();
            let section = Section::new(&table, 0..0, "sinks.dw", Path::new("."), &report);
            assert!(read_credentials(&section).is_none());
            let problems = report.into_problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            let shown = format!("{:?}", problems[0]);
            assert!(problems[0].expected.contains(problem) && !shown.contains("hunter2"), "{shown}");
        }
    }
}
