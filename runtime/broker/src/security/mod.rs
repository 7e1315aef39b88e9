//! TLS and logins of a broker that listens beyond a trusted network.

mod scram;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use scram::{ScramExchange, ScramHash};
pub(crate) use tls::{TlsError, acceptor};

use scram::ScramKeys;

/// The certificate of a broker and its key, as PEM files. The key is not encrypted.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The users that may log in, with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Each of them has all
/// rights. Passwords are not kept: only keys that are derived from them.
#[derive(Clone)]
pub struct Users(Arc<BTreeMap<String, User>>);

pub(crate) struct User {
    sha256: ScramKeys,
    sha512: ScramKeys,
}

impl Users {
    /// Derives the keys of users from names and passwords. `Err` names a user who cannot log in.
    pub fn new(passwords: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut users = BTreeMap::new();
        for (name, password) in passwords {
            // Other characters have several forms in Unicode (RFC 4013), and clients differ.
            let is_plain =
                |text: &str| !text.is_empty() && text.chars().all(|character| (' '..='~').contains(&character));
            if !is_plain(&name) || !is_plain(&password) {
                return Err(format!("name and password of the user `{name}` must be printable ASCII characters"));
            }
            let derive = |hash| {
                ScramKeys::derive(hash, password.as_bytes())
                    .ok_or_else(|| "the system provides no random numbers".to_owned())
            };
            let user = User { sha256: derive(ScramHash::Sha256)?, sha512: derive(ScramHash::Sha512)? };
            users.insert(name, user);
        }
        if users.is_empty() { Err("no user is named".to_owned()) } else { Ok(Self(Arc::new(users))) }
    }

    /// Is this the password of the user?
    pub(crate) fn is_password(&self, name: &str, password: &str) -> bool {
        self.0.get(name).is_some_and(|user| user.sha256.is_password(password.as_bytes()))
    }

    pub(crate) fn keys(&self, name: &str, hash: ScramHash) -> Option<&ScramKeys> {
        let user = self.0.get(name)?;
        Some(match hash {
            ScramHash::Sha256 => &user.sha256,
            ScramHash::Sha512 => &user.sha512,
        })
    }
}

/// Not derived: the keys are secrets.
impl fmt::Debug for Users {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_verified_and_not_shown() {
        let pair = |name: &str, password: &str| (name.to_owned(), password.to_owned());
        let users = Users::new([pair("worker", "hunter2"), pair("admin", "other")]).unwrap();
        assert!(users.is_password("worker", "hunter2") && users.is_password("admin", "other"));
        for (name, password) in [("worker", "hunter"), ("worker", ""), ("admin", "hunter2"), ("unknown", "hunter2")] {
            assert!(!users.is_password(name, password), "{name} {password}");
        }
        assert_eq!(format!("{users:?}"), r#"["admin", "worker"]"#);
        for (name, password) in [("", "a"), ("a", ""), ("a", "päss"), ("a\n", "b")] {
            assert!(Users::new([pair(name, password)]).is_err(), "{name:?} {password:?}");
        }
        assert!(Users::new([]).is_err());
    }
}
