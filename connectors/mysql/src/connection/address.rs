//! The option `url`: server and user. The password leaves this type only into a connection (I8).

use std::fmt;

use url::Url;

/// A server and a user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
}

impl Address {
    /// Parses a URL. An error is the end of the sentence "`url` ...", without any part of the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        if url.scheme() != "mysql" {
            return Err("does not begin with `mysql://`".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("contains `?` or `#`; set TLS with the options `tls` and `tls_ca`".to_owned());
        }
        if !matches!(url.path(), "" | "/") {
            return Err("names a database after the host; select tables with `tables`".to_owned());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("lacks a host")?;
        let decoded = |part: &str| {
            percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| "has a user or password that is not UTF-8".to_owned())
        };
        if url.username().is_empty() {
            return Err("lacks a user".to_owned());
        }
        Ok(Self {
            // Only a URL has brackets around an IPv6 address.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(3306),
            user: decoded(url.username())?,
            password: url.password().map(decoded).transpose()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}:{}", self.user, self.host, self.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_parsed() {
        let address = Address::parse("mysql://c%40c:p%2Fw%25@[::1]:3307/").unwrap();
        assert_eq!((address.host.as_str(), address.port, address.user.as_str()), ("::1", 3307, "c@c"));
        assert_eq!(address.password.as_deref(), Some("p/w%"));
        assert_eq!(Address::parse("mysql://root@db").unwrap().port, 3306);
    }

    #[test]
    fn a_password_is_never_printed() {
        let address = Address::parse("mysql://cdc:s3cret@db").unwrap();
        assert!(!format!("{address} {address:?}").contains("s3cret"));
        for wrong in [
            "mysql://cdc:s3cret@:0x",
            "postgres://u:s3cret@h",
            "mysql://u:s3cret@h/db",
            "mysql://u:s3cret@h?x=y",
            "s3cret",
        ] {
            assert!(!Address::parse(wrong).unwrap_err().contains("s3cret"), "{wrong}");
        }
    }
}
