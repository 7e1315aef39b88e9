//! HashiCorp Vault and OpenBao: the engine `kv` in both versions, and every other engine whose
//! secrets are read with GET.
//!
//! The address is VAULT_ADDR; the token is VAULT_TOKEN, or the content of `~/.vault-token`, where
//! `vault login` and Vault Agent write it.

use std::path::PathBuf;

use reqwest::{Client, StatusCode, Url};
use serde_json::Value;

use super::FetchError;
use super::http::{client, is_temporary, origin, send, variable};

/// The connection to a server.
struct Vault {
    client: Client,
    address: Url,
    token: String,
    namespace: Option<String>,
}

/// The keys and values of the secret at `path`.
pub(super) async fn fetch(path: &str) -> Result<Value, FetchError> {
    if !path.split('/').all(|part| !part.is_empty() && part != "." && part != "..") {
        return Err(FetchError::permanent(format!("`{path}` is not a path"), "write it as `MOUNT/NAME`"));
    }
    let vault = Vault::from_environment()?;
    let path = vault.api_path(path).await?;
    let (status, body) = vault.get(&path).await?;
    if !status.is_success() {
        return Err(vault.refusal(&path, status, &body));
    }
    let data = body.get("data").cloned().unwrap_or_default();
    // Version 2 of the engine wraps the values, next to their version.
    match (data.get("data"), data.get("metadata")) {
        (Some(values), Some(Value::Object(_))) => Ok(values.clone()),
        _ if data.is_object() => Ok(data),
        _ => Err(FetchError::permanent(
            format!("{} answered without `data`: is it Vault?", origin(&vault.address)),
            "check VAULT_ADDR",
        )),
    }
}

impl Vault {
    fn from_environment() -> Result<Self, FetchError> {
        let address = variable("VAULT_ADDR").ok_or_else(|| {
            FetchError::permanent(
                "the environment variable VAULT_ADDR is not set",
                "set it where trunkline is started: `export VAULT_ADDR=https://vault.example.com:8200`",
            )
        })?;
        let address = Url::parse(&address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let address = address.ok_or_else(|| {
            FetchError::permanent("VAULT_ADDR is not a URL", "write it as `https://vault.example.com:8200`")
        })?;
        Ok(Self {
            client: client(&address, "VAULT_CACERT")?,
            address,
            token: token()?,
            namespace: variable("VAULT_NAMESPACE"),
        })
    }

    /// The path in the API. As `vault kv get` does, this asks for the mount: version 2 of the
    /// engine `kv` has the values below `data/`.
    async fn api_path(&self, path: &str) -> Result<String, FetchError> {
        let (status, body) = self.get(&format!("sys/internal/ui/mounts/{path}")).await?;
        let mount = body.pointer("/data/path").and_then(Value::as_str).unwrap_or_default();
        let version = body.pointer("/data/options/version").and_then(Value::as_str);
        let rest = path.strip_prefix(mount).filter(|_| !mount.is_empty());
        Ok(match rest {
            Some(rest) if status.is_success() && version == Some("2") && !rest.starts_with("data/") => {
                format!("{mount}data/{rest}")
            }
            _ => path.to_owned(),
        })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Value), FetchError> {
        let mut url = self.address.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path.split('/'));
        }
        let mut request = self.client.get(url).header("X-Vault-Request", "true").header("X-Vault-Token", &self.token);
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        send(request, &self.address).await
    }

    fn refusal(&self, path: &str, status: StatusCode, body: &Value) -> FetchError {
        let errors = body.get("errors").and_then(Value::as_array).into_iter().flatten();
        let errors: Vec<&str> = errors.filter_map(Value::as_str).collect();
        let errors = if errors.is_empty() { String::new() } else { format!(": {}", errors.join("; ")) };
        let origin = origin(&self.address);
        let (reason, help) = match status {
            StatusCode::NOT_FOUND => (
                format!("{origin} has no secret at `{path}`"),
                "check the path, and that the latest version of the secret is not deleted".to_owned(),
            ),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => (
                format!("{origin} refused to read `{path}`{errors}"),
                format!(
                    "the token of VAULT_TOKEN or ~/.vault-token may have expired; its policy needs `path \"{path}\" {{ \
                     capabilities = [\"read\"] }}`"
                ),
            ),
            _ => (
                format!("{origin} answered {status} for `{path}`{errors}"),
                "check VAULT_ADDR, and that Vault is unsealed and active".to_owned(),
            ),
        };
        FetchError { reason, help, is_temporary: is_temporary(status) }
    }
}

fn token() -> Result<String, FetchError> {
    let file = || std::fs::read_to_string(PathBuf::from(std::env::var_os("HOME")?).join(".vault-token")).ok();
    let token = variable("VAULT_TOKEN").or_else(file).map(|token| token.trim().to_owned());
    token.filter(|token| !token.is_empty()).ok_or_else(|| {
        FetchError::permanent(
            "there is no token for Vault",
            "set VAULT_TOKEN, or let `vault login` or Vault Agent write ~/.vault-token",
        )
    })
}
