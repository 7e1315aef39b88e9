//! One session of the service: statements run in it one after the other.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::answer::{Answer, Envelope};
use super::error::{ErrorKind, SqlError, SqlResult};
use super::http::Http;
use super::login::{ClientOptions, Credentials};

/// The session's token has expired; its master token gives a new one for the same session.
const TOKEN_EXPIRED: &str = "390112";

/// Pauses between polls that the service answered at once. It usually holds a poll for 45 s.
const POLL_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Attempts to read a result that is known to exist.
const POLL_ATTEMPTS: u32 = 5;

/// The longest query tag, in characters.
const MAX_TAG: usize = 2000;

/// See the module's header.
pub(crate) struct Session {
    http: Http,
    runtime: Handle,
    token: String,
    master_token: String,
    id: Option<u64>,
    role: Option<String>,
    statement_timeout: Duration,
    /// Written to the service's query history with each statement.
    tag: String,
    /// The part of the tag that never changes.
    name: String,
    sequence: u64,
    /// Why the session is of no further use.
    lost: Option<SqlError>,
}

impl Session {
    /// Logs in. `name` begins the tag of the session's statements.
    pub(crate) async fn open(options: &ClientOptions, name: &str, runtime: &Handle) -> SqlResult<Self> {
        let http = Http::new(&options.origin, &options.tls)?;
        let body = options.login_body().map_err(|reason| SqlError::new(ErrorKind::LoginRefused, reason))?;
        let mut query = options.login_query();
        query.push(("requestId", Uuid::new_v4().to_string()));
        let answer = http.post("/session/v1/login-request", &query, None, &body).await?;
        let data = answer.into_data().map_err(|error| match &options.credentials {
            Credentials::KeyPair(key) if error.kind == ErrorKind::LoginRefused => {
                error.remark(&format!(" (the key's fingerprint is {})", key.fingerprint()))
            }
            _ => error,
        })?;
        let (Some(token), Some(master_token)) = (data.token, data.master_token) else {
            return Err(SqlError::new(ErrorKind::LoginRefused, "the answer to the login has no token"));
        };
        let mut session = Self {
            http,
            runtime: runtime.clone(),
            token,
            master_token,
            id: data.session_id,
            role: data.session_info.and_then(|info| info.role_name),
            statement_timeout: options.statement_timeout,
            tag: limited_tag(name),
            name: name.to_owned(),
            sequence: 0,
            lost: None,
        };
        session.execute(&options.session_parameters()).await?;
        Ok(session)
    }

    /// From now on, the tag of statements ends with this text.
    pub(crate) fn tag_with(&mut self, text: &str) {
        self.tag = limited_tag(format!("{} {text}", self.name).trim_end());
    }

    /// The id of the session, which no other one ever has.
    pub(crate) fn id(&self) -> Option<u64> {
        self.id
    }

    /// The role of the session, as the catalog has its name.
    pub(crate) fn role(&self) -> Option<&str> {
        self.role.as_deref()
    }

    /// Runs a statement and waits for its result, also behind a suspended or queued warehouse.
    pub(crate) async fn execute(&mut self, sql: &str) -> SqlResult<Answer> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let outcome = self.run(sql).await;
        if let Err(error) = &outcome
            && error.ends_session()
        {
            self.lost = Some(error.clone());
        }
        outcome
    }

    async fn run(&mut self, sql: &str) -> SqlResult<Answer> {
        let started = Instant::now();
        let request_id = Uuid::new_v4().to_string();
        let mut envelope = self.submit(sql, &request_id).await?;
        if envelope.code() == TOKEN_EXPIRED {
            // The statement was refused before it ran.
            self.renew().await?;
            envelope = self.submit(sql, &request_id).await?;
        }
        let mut pause = POLL_PAUSES.0;
        while let Some(address) = envelope.in_progress().map(str::to_owned) {
            if started.elapsed() > self.statement_timeout {
                self.cancel(sql, &request_id).await;
                let message =
                    format!("the statement did not end within {:?} and was cancelled", self.statement_timeout);
                return Err(SqlError::new(ErrorKind::Cancelled, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_PAUSES.1);
            envelope = self.poll(&address).await?;
        }
        envelope.into_data()?.into_answer()
    }

    async fn submit(&mut self, sql: &str, request_id: &str) -> SqlResult<Envelope> {
        self.sequence += 1;
        let body = json!({
            "sqlText": sql,
            "asyncExec": false,
            "sequenceId": self.sequence,
            "isInternal": false,
            "parameters": {"QUERY_TAG": self.tag},
        });
        let query = [("requestId", request_id.to_owned())];
        self.http.post("/queries/v1/query-request", &query, Some(&self.token), &body).await
    }

    /// Asks for a result. Unlike a statement, this may be repeated.
    async fn poll(&mut self, address: &str) -> SqlResult<Envelope> {
        let mut attempt = 0;
        loop {
            match self.http.get(address, &self.token).await {
                Ok(envelope) if envelope.code() == TOKEN_EXPIRED && attempt < POLL_ATTEMPTS => self.renew().await?,
                Err(error) if attempt < POLL_ATTEMPTS && is_transient(error.kind) => {
                    tokio::time::sleep(POLL_PAUSES.0 * (1 << attempt)).await;
                }
                outcome => return outcome,
            }
            attempt += 1;
        }
    }

    /// Replaces the expired token of this session.
    async fn renew(&mut self) -> SqlResult<()> {
        let body = json!({"oldSessionToken": self.token, "requestType": "RENEW"});
        let query = [("requestId", Uuid::new_v4().to_string())];
        let answer = self.http.post("/session/token-request", &query, Some(&self.master_token), &body).await?;
        let data = answer.into_data()?;
        let Some(token) = data.session_token else {
            return Err(SqlError::new(ErrorKind::SessionLost, "the session's token could not be renewed"));
        };
        if data.session_id.is_some() && data.session_id != self.id {
            // Its transaction is not this session's.
            let message = "the service replaced the session by another one while it renewed the token";
            return Err(SqlError::new(ErrorKind::SessionLost, message));
        }
        self.token = token;
        self.master_token = data.master_token.unwrap_or_else(|| std::mem::take(&mut self.master_token));
        Ok(())
    }

    /// Asks the service to end a statement. Its failure changes nothing: the session ends, too.
    async fn cancel(&self, sql: &str, request_id: &str) {
        let query = [("requestId", Uuid::new_v4().to_string())];
        let body = json!({"sqlText": sql, "requestId": request_id});
        if let Err(error) = self.http.post("/queries/v1/abort-request", &query, Some(&self.token), &body).await {
            tracing::debug!(%error, "a statement could not be cancelled");
        }
    }
}

impl Drop for Session {
    /// Logs out, which rolls back an open transaction and releases its locks.
    fn drop(&mut self) {
        let (http, token) = (self.http.clone(), std::mem::take(&mut self.token));
        self.runtime.spawn(async move {
            let query = [("delete", "true".to_owned()), ("requestId", Uuid::new_v4().to_string())];
            if let Err(error) = http.post("/session", &query, Some(&token), &json!({})).await {
                tracing::debug!(%error, "a session could not be closed; the service closes it later");
            }
        });
    }
}

/// The service refuses longer ones.
fn limited_tag(tag: &str) -> String {
    tag.chars().take(MAX_TAG).collect()
}

fn is_transient(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Busy | ErrorKind::SessionLost | ErrorKind::Unreachable)
}
