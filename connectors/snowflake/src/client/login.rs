//! How a session logs in.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use trunkline_connector::tls::TlsOptions;

use super::key::KeyPair;

/// How the service is reached. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// As in the address: `xy12345.eu-central-1`, `org-account`.
    pub(crate) account: String,
    /// `https://..`, without a slash at its end.
    pub(crate) origin: String,
    pub(crate) user: String,
    pub(crate) credentials: Credentials,
    pub(crate) role: Option<String>,
    pub(crate) warehouse: Option<String>,
    pub(crate) database: String,
    pub(crate) schema: String,
    /// Limit on one statement, with its waits for locks and for the warehouse.
    pub(crate) statement_timeout: Duration,
    /// Limit on the wait for a lock.
    pub(crate) lock_timeout: Duration,
    pub(crate) tls: TlsOptions,
}

/// What proves who the user is. No `Debug`: it is a secret (I8).
#[derive(Clone)]
pub(crate) enum Credentials {
    Password(String),
    KeyPair(Arc<KeyPair>),
    OAuth(String),
    /// A programmatic access token.
    AccessToken(String),
}

impl ClientOptions {
    /// The schema that the sink loads, without secrets.
    pub(crate) fn place(&self) -> String {
        format!("snowflake://{}/{}/{}", self.account, self.database, self.schema)
    }

    /// The address of an account.
    pub(crate) fn origin_of(account: &str) -> String {
        // Host names have no underscores.
        format!("https://{}.snowflakecomputing.com", account.to_lowercase().replace('_', "-"))
    }

    /// The name of the account without its region and cloud.
    pub(crate) fn account_name(&self) -> String {
        let (name, rest) = self.account.split_once('.').unwrap_or((&self.account, ""));
        let name = if rest == "global" { name.rsplit_once('-').map_or(name, |(name, _)| name) } else { name };
        name.to_uppercase()
    }

    /// The parameters of the login's address.
    pub(super) fn login_query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![("databaseName", self.database.clone()), ("schemaName", self.schema.clone())];
        query.extend(self.role.clone().map(|role| ("roleName", role)));
        query.extend(self.warehouse.clone().map(|warehouse| ("warehouse", warehouse)));
        query
    }

    /// The body of the login, or why the key cannot sign it.
    pub(super) fn login_body(&self) -> Result<Value, String> {
        let mut data = Map::new();
        data.insert("ACCOUNT_NAME".to_owned(), self.account_name().into());
        data.insert("LOGIN_NAME".to_owned(), self.user.clone().into());
        data.insert("CLIENT_APP_ID".to_owned(), "Trunkline".into());
        data.insert("CLIENT_APP_VERSION".to_owned(), env!("CARGO_PKG_VERSION").into());
        data.insert("CLIENT_ENVIRONMENT".to_owned(), json!({"APPLICATION": "Trunkline"}));
        data.insert("SESSION_PARAMETERS".to_owned(), json!({}));
        let (authenticator, token) = match &self.credentials {
            Credentials::Password(password) => {
                data.insert("PASSWORD".to_owned(), password.clone().into());
                return Ok(json!({ "data": data }));
            }
            Credentials::KeyPair(key) => ("SNOWFLAKE_JWT", key.token(&self.account_name(), &self.user)?),
            Credentials::OAuth(token) => ("OAUTH", token.clone()),
            Credentials::AccessToken(token) => ("PROGRAMMATIC_ACCESS_TOKEN", token.clone()),
        };
        data.insert("AUTHENTICATOR".to_owned(), authenticator.into());
        data.insert("TOKEN".to_owned(), token.into());
        Ok(json!({ "data": data }))
    }

    /// The statement that prepares a new session.
    pub(super) fn session_parameters(&self) -> String {
        // A failed statement must not leave a transaction open for the next one, and a statement
        // whose client has died must end.
        format!(
            "ALTER SESSION SET LOCK_TIMEOUT = {}, TRANSACTION_ABORT_ON_ERROR = TRUE, ABORT_DETACHED_QUERY = TRUE, \
             STATEMENT_TIMEOUT_IN_SECONDS = {}, AUTOCOMMIT = TRUE, TIMEZONE = 'UTC', \
             TIME_INPUT_FORMAT = 'AUTO', \
             QUOTED_IDENTIFIERS_IGNORE_CASE = FALSE",
            self.lock_timeout.as_secs(),
            self.statement_timeout.as_secs()
        )
    }
}
