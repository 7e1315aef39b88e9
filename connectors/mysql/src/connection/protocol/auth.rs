//! Password authentication. The server names the plugin of the user.
//!
//! The client sends a clear-text password over TLS only. Without TLS, a plugin that requires the
//! whole password gets it encrypted with the server's RSA key, if the caller permits that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mysql_common::crypto;
use mysql_common::scramble::{scramble_native, scramble_sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::pki_types::SubjectPublicKeyInfoDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use trunkline_connector::Error;

use super::packet::Packets;
use super::{ERROR, OK, ProtocolError, server_error};
use crate::connection::options::ConnectionOptions;
use crate::decode::{Bytes, Malformed, big};

/// An authentication plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    Native,
    CachingSha2,
    Sha256,
}

/// The protection of a password that the server demands as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    Tls,
    /// The RSA key that the server sends.
    ServerKey,
    /// The client does not send it.
    None,
}

impl Plugin {
    pub(super) fn of_name(name: &[u8]) -> Option<Self> {
        match name {
            b"mysql_native_password" => Some(Self::Native),
            b"caching_sha2_password" => Some(Self::CachingSha2),
            b"sha256_password" => Some(Self::Sha256),
            _ => None,
        }
    }

    /// The first message of the client. An empty password has an empty message.
    pub(super) fn first_message(
        self,
        password: &str,
        nonce: &[u8],
        protection: Protection,
    ) -> Result<Vec<u8>, ProtocolError> {
        const REQUEST_KEY: u8 = 1;
        let bytes = password.as_bytes();
        Ok(match self {
            Self::Native => scramble_native(nonce, bytes).map_or(Vec::new(), Vec::from),
            Self::CachingSha2 => scramble_sha256(nonce, bytes).map_or(Vec::new(), Vec::from),
            Self::Sha256 if password.is_empty() => clear_text(password),
            Self::Sha256 => whole_password(password, protection, REQUEST_KEY)?,
        })
    }

    /// The answer to a further message of the server; `None` if the server continues.
    fn next(
        self,
        message: &[u8],
        password: &str,
        nonce: &[u8],
        protection: Protection,
    ) -> Result<Option<Vec<u8>>, ProtocolError> {
        const REQUEST_KEY: u8 = 2;
        match (self, message) {
            // The server has cached the password.
            (Self::CachingSha2, [3]) => Ok(None),
            (Self::CachingSha2, [4]) => whole_password(password, protection, REQUEST_KEY).map(Some),
            (Self::CachingSha2 | Self::Sha256, key) if protection == Protection::ServerKey && key.len() > 1 => {
                encrypted(password, nonce, key).map(Some)
            }
            _ => Err(ProtocolError::Broken(format!(
                "an unexpected message of {} bytes during {self:?} authentication",
                message.len()
            ))),
        }
    }
}

/// The password over TLS, or the request for the server's key.
fn whole_password(password: &str, protection: Protection, request_key: u8) -> Result<Vec<u8>, ProtocolError> {
    match protection {
        Protection::Tls => Ok(clear_text(password)),
        Protection::ServerKey => Ok(vec![request_key]),
        Protection::None => Err(ProtocolError::PasswordNeedsTls),
    }
}

fn clear_text(password: &str) -> Vec<u8> {
    password.bytes().chain([0]).collect()
}

/// The length of the server's challenge.
pub(super) const NONCE: usize = 20;

/// Continues after the first message, until the server accepts or rejects the user.
pub(super) async fn authenticate<L: AsyncRead + AsyncWrite + Unpin>(
    packets: &mut Packets<L>,
    options: &ConnectionOptions,
    mut plugin: Plugin,
    mut nonce: Vec<u8>,
    protection: Protection,
) -> Result<(), ProtocolError> {
    const MORE: u8 = 1;
    const SWITCH: u8 = 0xfe;
    // A server sends at most three messages before its decision: another plugin, a request for the
    // full password, and the key.
    const MAX_MESSAGES: usize = 8;
    let password = options.address.password.as_deref().unwrap_or_default();
    for _ in 0..MAX_MESSAGES {
        let message = packets.packet().await?;
        match message.split_first() {
            Some((&OK, _)) => return Ok(()),
            Some((&ERROR, rest)) => return Err(server_error(rest)),
            Some((&MORE, rest)) => {
                if let Some(answer) = plugin.next(rest, password, &nonce, protection)? {
                    packets.send(&answer).await?;
                }
            }
            Some((&SWITCH, rest)) => {
                let (name, rest) = split_at_zero(rest);
                plugin =
                    Plugin::of_name(name).ok_or_else(|| ProtocolError::Connector(unknown_plugin(options, name)))?;
                nonce = rest.strip_suffix(&[0]).unwrap_or(rest).to_vec();
                if nonce.len() != NONCE {
                    return Err(ProtocolError::Broken(format!(
                        "the server sent a challenge of {} bytes instead of {NONCE}",
                        nonce.len()
                    )));
                }
                packets.send(&plugin.first_message(password, &nonce, protection)?).await?;
            }
            _ => return Err(ProtocolError::broken("the server sent an invalid answer to the password")),
        }
    }
    Err(ProtocolError::Broken(format!("the server sent {MAX_MESSAGES} messages without a decision on the password")))
}

/// Splits at the first zero byte.
pub(super) fn split_at_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

fn unknown_plugin(options: &ConnectionOptions, name: &[u8]) -> Error {
    let (server, user) = (options.server_label(), &options.address.user);
    let name = match name {
        // The server sends an empty name for it.
        [] => "mysql_old_password".into(),
        name => String::from_utf8_lossy(name),
    };
    let message = format!(
        "{server}: the user `{user}` has the authentication plugin `{name}`, which is not supported; use caching_sha2_password, \
         mysql_native_password or sha256_password (ALTER USER '{user}' IDENTIFIED WITH ..)"
    );
    Error::config("mysql.auth", message)
}

/// The password, encrypted for the owner of the key and for this connection only.
fn encrypted(password: &str, nonce: &[u8], key: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    // The minimum size of the padding.
    const PADDING: usize = 42;
    let (key, size) = checked(key).map_err(|error| ProtocolError::Broken(format!("the server's RSA key: {error}")))?;
    let masked: Vec<u8> =
        clear_text(password).iter().zip(nonce.iter().cycle()).map(|(byte, nonce)| byte ^ nonce).collect();
    if masked.len() + PADDING > size {
        return Err(ProtocolError::Broken(format!(
            "the server's RSA key of {size} bytes is too small for the password"
        )));
    }
    Ok(crypto::encrypt(&masked, key.as_bytes()))
}

/// Validates a key, because the library panics on an invalid one. Returns the key and its size in
/// bytes.
fn checked(pem: &[u8]) -> Result<(String, usize), Malformed> {
    const SEQUENCE: u8 = 0x30;
    const BITS: u8 = 3;
    const NUMBER: u8 = 2;
    // 1024 to 16384 bits.
    const SIZES: std::ops::RangeInclusive<usize> = 128..=2048;
    const MAX_EXPONENT: usize = 8;
    let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| Malformed(error.to_string()))?;
    let mut key_bytes = Bytes::new(&key);
    let mut parts = Bytes::new(der(&mut key_bytes, SEQUENCE)?);
    der(&mut parts, SEQUENCE)?;
    let Some((0, numbers)) = der(&mut parts, BITS)?.split_first() else {
        return Err(Malformed::new("its bit string has unused bits"));
    };
    let mut numbers = Bytes::new(numbers);
    let mut numbers = Bytes::new(der(&mut numbers, SEQUENCE)?);
    let modulus = der(&mut numbers, NUMBER)?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let exponent = der(&mut numbers, NUMBER)?;
    if !SIZES.contains(&modulus.len()) || modulus[0] == 0 || exponent.len() > MAX_EXPONENT || big(exponent) == 0 {
        return Err(Malformed(format!(
            "a modulus of {} bytes with an exponent of {} bytes",
            modulus.len(),
            exponent.len()
        )));
    }
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&key));
    Ok((pem, modulus.len()))
}

/// The content of the next DER element, which must have this tag.
fn der<'a>(bytes: &mut Bytes<'a>, tag: u8) -> Result<&'a [u8], Malformed> {
    let found = bytes.u8()?;
    if found != tag {
        return Err(Malformed(format!("the DER tag {found:#x} instead of {tag:#x}")));
    }
    let length = match bytes.u8()? {
        short @ 0..=0x7f => usize::from(short),
        width @ 0x81..=0x83 => big(bytes.take(usize::from(width & 0x7f))?) as usize,
        other => return Err(Malformed(format!("{other:#x} is not the first byte of a DER length"))),
    };
    bytes.take(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::connection::protocol::packet::tests::block_on;
    use crate::fuzz::options;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAxSKOcxiet8lLMn8ImyUE
bGGKob5EdRz/4wdiw12ED0GfKKTKhVnodFCfm1mdy7bKOX5QxL9skrvYodpW43eR
R5bfOzIgy1qIB8RYb6qOXRBw1oA4snBDqtUjDv/lbHLJN+IbzM4oU+e3Lt9rXyLX
VY289ewONPweXHqSCnTL91w+wkU1peIFV2QhZ+upUCdCtwOn5hnJPNgxtbklFoya
C8W3Z7Xx7He2QDJsEWAqX197efw0L6j8X8Tyd8Uwb7zUB1tfMGhHfm9EwejPAtzx
4GztQNtNMtGS2oGZLQBLV9hib4dDL92iiZeckg2LAf4GsJofLLR8mcHCRoqVbQJ1
YQIDAQAB
-----END PUBLIC KEY-----
";

    #[test]
    fn a_clear_text_password_is_sent_over_tls_only() {
        for plugin in [Plugin::Native, Plugin::CachingSha2, Plugin::Sha256] {
            for protection in [Protection::ServerKey, Protection::None] {
                let nonce = [7; NONCE];
                let mut sent = plugin.first_message("secret", &nonce, protection).unwrap_or_default();
                for more in [&[4][..], KEY.as_bytes()] {
                    sent.extend(plugin.next(more, "secret", &nonce, protection).ok().flatten().unwrap_or_default());
                }
                assert!(!sent.windows(6).any(|part| part == b"secret"), "{plugin:?}");
                // Nothing that depends on the whole password.
                assert!(protection == Protection::ServerKey || sent.len() <= 32, "{plugin:?}");
            }
        }
        assert_eq!(encrypted("secret", &[7; NONCE], KEY.as_bytes()).unwrap().len(), 256);
    }

    /// A message of the server, and whether the server waits for an answer.
    type Message<'a> = (&'a [u8], bool);

    /// The result for a user with the password `p` and a server that sends these messages, and the
    /// answers of the client.
    fn log_in(
        plugin: Plugin,
        protection: Protection,
        messages: &[Message<'_>],
    ) -> (Result<(), ProtocolError>, Vec<Vec<u8>>) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut client, mut server) = (Packets::resume(client, 2), Packets::resume(server, 2));
        let options = options();
        let user =
            async move { authenticate(&mut client, &options.connection, plugin, vec![1; NONCE], protection).await };
        let server = async move {
            let mut answers = Vec::new();
            for (packet, is_answered) in messages {
                // The client may have closed the connection.
                if server.send(packet).await.is_ok()
                    && *is_answered
                    && let Ok(answer) = server.packet().await
                {
                    answers.push(answer);
                }
            }
            answers
        };
        block_on(async { tokio::join!(user, server) })
    }

    #[test]
    fn every_authentication_exchange_succeeds() {
        let switch = |name: &str| [&[0xfe][..], name.as_bytes(), &[0], &[7; NONCE], &[0]].concat();
        let key = [&[1], KEY.as_bytes()].concat();
        let ok: Message<'_> = (&[0, 0, 0], false);
        let cached: Message<'_> = (&[1, 3], false);
        let whole: Message<'_> = (&[1, 4], true);
        let native = scramble_native(&[7; NONCE], b"p").unwrap().to_vec();
        let sha2 = scramble_sha256(&[7; NONCE], b"p").unwrap().to_vec();
        let [to_native, to_sha2, to_sha256] =
            ["mysql_native_password", "caching_sha2_password", "sha256_password"].map(switch);
        let expect = |protection, messages: &[Message<'_>], answers: &[&[u8]]| {
            let (verdict, heard) = log_in(Plugin::CachingSha2, protection, messages);
            assert!(verdict.is_ok(), "{verdict:?}");
            assert_eq!(heard, answers);
        };
        expect(Protection::ServerKey, &[ok], &[]);
        expect(Protection::ServerKey, &[cached, ok], &[]);
        expect(Protection::Tls, &[whole, ok], &[b"p\0"]);
        expect(Protection::ServerKey, &[(&to_native, true), ok], &[&native]);
        expect(Protection::ServerKey, &[(&to_sha2, true), cached, ok], &[&sha2]);
        expect(Protection::Tls, &[(&to_sha2, true), whole, ok], &[&sha2, b"p\0"]);
        expect(Protection::Tls, &[(&to_sha256, true), ok], &[b"p\0"]);
        // Without TLS the client sends only an encrypted password after the key.
        for (messages, request) in [([whole, (&key, true), ok], 2), ([(&to_sha256, true), (&key, true), ok], 1)] {
            let (verdict, heard) = log_in(Plugin::CachingSha2, Protection::ServerKey, &messages);
            assert!(verdict.is_ok(), "{verdict:?}");
            assert_eq!((heard[0].as_slice(), heard[1].len()), (&[request][..], 256));
        }
        // A cached password needs neither TLS nor the key.
        for messages in [&[cached, ok][..], &[(&to_sha2, true), cached, ok], &[(&to_native, true), ok]] {
            let (verdict, _) = log_in(Plugin::CachingSha2, Protection::None, messages);
            assert!(verdict.is_ok(), "{verdict:?}");
        }
        for messages in [[whole, (&key, true), ok], [(&to_sha256, true), (&key, true), ok]] {
            let (verdict, heard) = log_in(Plugin::CachingSha2, Protection::None, &messages);
            assert!(matches!(verdict, Err(ProtocolError::PasswordNeedsTls)), "{verdict:?}");
            assert!(heard.is_empty());
        }
    }

    #[test]
    fn unsupported_and_invalid_exchanges_are_reported() {
        let unknown = b"\xfeclient_ed25519\x001234567890123456789012\0";
        let (verdict, _) = log_in(Plugin::Native, Protection::Tls, &[(unknown, false)]);
        let Err(ProtocolError::Connector(error)) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error.code, "mysql.auth");
        for word in ["`client_ed25519`", "`u`", "caching_sha2_password", "ALTER USER 'u'"] {
            assert!(error.message().contains(word), "{error}");
        }
        // The server requests the plugin of MySQL 4.0 without a name.
        let (verdict, _) = log_in(Plugin::Native, Protection::Tls, &[(b"\xfe", false)]);
        assert!(
            matches!(&verdict, Err(ProtocolError::Connector(error)) if error.message().contains("mysql_old_password"))
        );
        let (verdict, _) =
            log_in(Plugin::Native, Protection::ServerKey, &[(b"\xff\x15\x04#28000Access denied", false)]);
        assert!(matches!(verdict, Err(error) if error.is_server_error(1045)));
        let short = b"\xfemysql_native_password\x0012345\0";
        for message in [&short[..], b"", b"\x01\x04", b"\x05", b"\x01"] {
            let (verdict, _) = log_in(Plugin::Native, Protection::ServerKey, &[(message, false)]);
            assert!(matches!(verdict, Err(ProtocolError::Broken(_))), "{message:?}: {verdict:?}");
        }
        let (verdict, _) = log_in(Plugin::CachingSha2, Protection::ServerKey, &[(&[1, 3][..], false); 20]);
        assert!(
            matches!(&verdict, Err(ProtocolError::Broken(why)) if why.contains("without a decision")),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_password_too_long_for_the_key_is_reported() {
        let longest = "x".repeat(256 - 42 - 1);
        assert_eq!(encrypted(&longest, &[7; NONCE], KEY.as_bytes()).unwrap().len(), 256);
        let failure = encrypted(&format!("{longest}x"), &[7; NONCE], KEY.as_bytes()).unwrap_err();
        assert!(matches!(failure, ProtocolError::Broken(why) if why.contains("too small")));
    }

    proptest! {
        #[test]
        fn invalid_keys_never_panic(at in 0usize..294, byte in any::<u8>(), cut in 0usize..294) {
            let key = SubjectPublicKeyInfoDer::from_pem_slice(KEY.as_bytes()).unwrap();
            let mut der = key.to_vec();
            der[at] = byte;
            for der in [&der[..], &key[..cut]] {
                let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
                // An accepted key encrypts to its own size.
                if let Ok(encrypted) = encrypted("secret", &[7; NONCE], pem.as_bytes()) {
                    prop_assert_eq!(encrypted.len(), checked(pem.as_bytes()).unwrap().1);
                }
            }
        }
    }
}
