//! The audit log: what people did to pipelines, and who did it. Each entry is a record of the topic
//! `_trunkline.audit`, which nothing else reads.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use trunkline_connector::{Error, Result, host_name};

use crate::kafka::{Cluster, RowWriter, TopicSpec};

/// Entries of the audit log, in the order of time.
pub const AUDIT: &str = "_trunkline.audit";

/// The errors of a principal that may not write entries, or not create the topic.
const FORBIDDEN: [&str; 2] = ["kafka.access_denied", "kafka.missing_topics"];

/// Time for the brokers to accept an entry.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// What a person did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditEntry {
    /// When, in UTC.
    pub time: String,
    /// The user of the operating system; `http` for a request to a worker.
    pub user: String,
    /// The user who ran `sudo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// The machine.
    pub host: String,
    /// The name of the Trunkline cluster.
    pub cluster: String,
    /// The command: `pause`, `replay`, `offsets set`.
    pub command: String,
    /// Its arguments, without values that may be secrets (I8).
    pub arguments: Value,
}

impl AuditEntry {
    /// A command that the user of this process runs now.
    pub fn of_command(cluster: &str, command: &str, arguments: Value) -> Self {
        let sudo_user = std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty());
        Self { sudo_user, ..Self::new(user_name(), cluster, command, arguments) }
    }

    /// A request over HTTP to this worker. Its token is shared, so the person is not known.
    pub fn of_request(cluster: &str, command: &str, arguments: Value) -> Self {
        Self::new("http".to_owned(), cluster, command, arguments)
    }

    fn new(user: String, cluster: &str, command: &str, arguments: Value) -> Self {
        Self {
            time: Timestamp::now().to_string(),
            user,
            sudo_user: None,
            host: host_name().unwrap_or_else(|| "unknown".to_owned()),
            cluster: cluster.to_owned(),
            command: command.to_owned(),
            arguments,
        }
    }

    /// The entry as a line of JSON.
    pub fn line(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal("checkpoint.audit", error.to_string()))
    }

    /// Writes the entry, and waits until it is stored. The topic must exist.
    pub fn write(&self, cluster: &Cluster) -> Result<()> {
        let (topic, line) = (cluster.own_topic(AUDIT), self.line()?);
        let writer = RowWriter::new(cluster, "trunkline-audit");
        writer.write(&topic, 0, self.cluster.as_bytes(), Some(line.as_bytes()), WRITE_LIMIT)?;
        Ok(())
    }

    /// Writes the entry of an action that only shows records. `Some` with a warning if the
    /// principal may not write entries.
    pub fn write_if_permitted(&self, cluster: &Cluster) -> Result<Option<String>> {
        self.unless_forbidden(self.write(cluster))
    }

    /// `Some` with a warning if `written` failed because the principal may not write entries.
    pub fn unless_forbidden(&self, written: Result<()>) -> Result<Option<String>> {
        match written {
            Ok(()) => Ok(None),
            Err(error) if FORBIDDEN.contains(&error.code) => {
                Ok(Some(format!("`{}` is not recorded in the audit log: {error}", self.command)))
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    /// The error of an action that is not done, because its entry cannot be written.
    pub fn refused(&self, error: Error) -> Error {
        error.context(format!("`{}` is not done, because it cannot be recorded", self.command))
    }
}

/// The topic of the log. Entries stay until the topic gets a limit (`retention.ms`).
pub fn audit_topic(cluster: &Cluster, replication: i16) -> TopicSpec {
    let config = [("cleanup.policy", "delete"), ("retention.ms", "-1")];
    let config: BTreeMap<_, _> = config.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    TopicSpec { name: cluster.own_topic(AUDIT), partitions: 1, replication, config }
}

/// The user of this process, by name if it has one.
pub fn user_name() -> String {
    let mut buffer: Vec<c_char> = vec![0; 16 << 10];
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: the entry and the buffer outlive the call and the copy of the name. `found` is the
    // entry if the call has written it, and null otherwise.
    let (user, name) = unsafe {
        let user = libc::geteuid();
        libc::getpwuid_r(user, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found);
        let name = (!found.is_null()).then(|| CStr::from_ptr((*found).pw_name).to_string_lossy().into_owned());
        (user, name)
    };
    name.unwrap_or_else(|| format!("uid {user}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_names_user_host_time_and_command() {
        let entry = AuditEntry::of_command("team.trunkline", "pause", json!({ "name": "shop.lake" }));
        let line = entry.line().unwrap();
        let read: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n') && read["time"].as_str().unwrap().parse::<Timestamp>().is_ok(), "{line}");
        let id = std::process::Command::new("id").arg("-un").output().unwrap();
        assert_eq!(read["user"], String::from_utf8(id.stdout).unwrap().trim());
        assert_eq!((&read["cluster"], &read["command"]), (&json!("team.trunkline"), &json!("pause")));
        assert_eq!(read["arguments"], json!({ "name": "shop.lake" }));
        assert!(!read["host"].as_str().unwrap().is_empty());
        assert_eq!(AuditEntry::of_request("c", "pause", Value::Null).user, "http");
    }

    #[test]
    fn only_a_missing_right_lets_a_reader_continue() {
        let entry = AuditEntry::of_command("c", "tap", Value::Null);
        let denied = || Error::external("kafka.access_denied", "no Write on topic `_trunkline.audit`");
        let warning = entry.unless_forbidden(Err(denied())).unwrap().unwrap();
        assert_eq!(
            warning,
            "`tap` is not recorded in the audit log: no Write on topic `_trunkline.audit` [kafka.access_denied]"
        );
        assert!(entry.unless_forbidden(Ok(())).unwrap().is_none());
        let error = entry.unless_forbidden(Err(Error::external("kafka.unreachable", "no answer"))).unwrap_err();
        assert_eq!(error.message(), "`tap` is not done, because it cannot be recorded: no answer");
    }
}
