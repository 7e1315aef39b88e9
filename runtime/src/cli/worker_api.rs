//! Requests of commands to `/api/v1` of the worker that runs with a data directory.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;
use trunkline_connector::{Error, Result, root_cause};

use super::addresses::running_worker;
use crate::config::Settings;
use crate::http::{HTTPS, client_of_own_worker};

/// Time for the worker to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The API of a worker.
pub(super) struct WorkerApi {
    base: String,
    address: String,
    token: Option<String>,
    client: reqwest::Client,
    runtime: Runtime,
}

impl WorkerApi {
    /// The API of the worker of these settings. Sends nothing.
    pub(super) fn connect(settings: &Settings) -> Result<Self> {
        let Some(shown) = running_worker(settings)?.http else {
            let message =
                "the worker runs without its HTTP server: remove the setting `http = \"off\"`, and restart it";
            return Err(Error::config("worker.http_off", message));
        };
        let address = reachable(&shown);
        let failed = |error: &dyn Display| no_answer(&address, error);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let builder = match shown.starts_with(HTTPS) {
            true => client_of_own_worker(settings)?,
            false => reqwest::Client::builder(),
        };
        let client = builder.no_proxy().timeout(ANSWER).build().map_err(|error| failed(&error))?;
        let base = format!("{address}/api/v1");
        Ok(Self { base, address, token: settings.http_token.clone(), client, runtime })
    }

    /// An answer, and its JSON.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String)> {
        let body = self.send(self.client.get(format!("{}/{path}", self.base)))?;
        let answer = serde_json::from_str(&body).map_err(|error| no_answer(&self.address, &error))?;
        Ok((answer, body))
    }

    /// Makes a request that changes something.
    pub(super) fn post(&self, path: &str) -> Result<()> {
        self.send(self.client.post(format!("{}/{path}", self.base))).map(drop)
    }

    fn send(&self, mut request: reqwest::RequestBuilder) -> Result<String> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        self.runtime.block_on(async {
            let failed = |error: &dyn Display| no_answer(&self.address, error);
            let answer = request.send().await.map_err(|error| failed(&root_cause(&error)))?;
            let code = answer.status();
            let body = answer.text().await.map_err(|error| failed(&error))?;
            if code.is_success() {
                return Ok(body);
            }
            let message = serde_json::from_str::<Value>(&body).ok();
            let message = message.as_ref().and_then(|body| body["message"].as_str()).unwrap_or(body.trim());
            Err(failed(&format!("{code}: {message}")))
        })
    }
}

/// The address with its scheme. A worker that listens on all addresses is reached through loopback.
fn reachable(shown: &str) -> String {
    let (scheme, shown) = match shown.strip_prefix(HTTPS) {
        Some(rest) => (HTTPS, rest),
        None => ("http://", shown),
    };
    match shown.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("{scheme}127.0.0.1:{}", address.port()),
        _ => format!("{scheme}{shown}"),
    }
}

fn no_answer(address: &str, error: &dyn Display) -> Error {
    Error::external("worker.no_answer", format!("the worker at {address} does not answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_on_all_addresses_is_reached_through_loopback() {
        let shown = ["0.0.0.0:8083", "https://[::]:9000", "127.0.0.1:8083", "https://10.0.0.7:1"].map(reachable);
        let expected =
            ["http://127.0.0.1:8083", "https://127.0.0.1:9000", "http://127.0.0.1:8083", "https://10.0.0.7:1"];
        assert_eq!(shown, expected);
    }
}
