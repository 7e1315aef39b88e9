//! Passwords: how a client proves that it knows one. Which plugin a user has, the server tells.
//!
//! A password in clear goes over TLS only. Without TLS it is encrypted for the server's RSA key, where the plugin wants it whole.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mysql_common::crypto;
use mysql_common::scramble::{scramble_native, scramble_sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::pki_types::SubjectPublicKeyInfoDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use trunkline_connector::Error;

use super::packet::Packets;
use super::{ERROR, Failure, OK, server_error};
use crate::config::MysqlOptions;
use crate::connection::connect::server;
use crate::decode::{Bytes, Malformed, big};

/// A way to prove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    Native,
    CachingSha2,
    Sha256,
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

    /// What the client says first. An empty password is said by nothing.
    pub(super) fn first(self, password: &str, nonce: &[u8], is_secure: bool) -> Vec<u8> {
        const ASK_FOR_KEY: u8 = 1;
        let bytes = password.as_bytes();
        match self {
            Self::Native => scramble_native(nonce, bytes).map_or(Vec::new(), Vec::from),
            Self::CachingSha2 => scramble_sha256(nonce, bytes).map_or(Vec::new(), Vec::from),
            Self::Sha256 if password.is_empty() || is_secure => in_clear(password),
            Self::Sha256 => vec![ASK_FOR_KEY],
        }
    }

    /// What it answers to more than that; `None`: it waits for more.
    fn next(self, said: &[u8], password: &str, nonce: &[u8], is_secure: bool) -> Result<Option<Vec<u8>>, Failure> {
        const ASK_FOR_KEY: u8 = 2;
        match (self, said) {
            // The server had the password in its cache.
            (Self::CachingSha2, [3]) => Ok(None),
            (Self::CachingSha2, [4]) if is_secure => Ok(Some(in_clear(password))),
            (Self::CachingSha2, [4]) => Ok(Some(vec![ASK_FOR_KEY])),
            (Self::CachingSha2 | Self::Sha256, key) if !is_secure && key.len() > 1 => {
                encrypted(password, nonce, key).map(Some)
            }
            _ => Err(Failure::Broken(format!("{} bytes came that are no part of {self:?}", said.len()))),
        }
    }
}

fn in_clear(password: &str) -> Vec<u8> {
    password.bytes().chain([0]).collect()
}

/// Bytes of what a server has a client prove its password with.
pub(super) const NONCE: usize = 20;

/// After the first answer was sent: everything until the server lets the user in.
pub(super) async fn authenticate<L: AsyncRead + AsyncWrite + Unpin>(
    packets: &mut Packets<L>,
    options: &MysqlOptions,
    mut plugin: Plugin,
    mut nonce: Vec<u8>,
    is_secure: bool,
) -> Result<(), Failure> {
    const MORE: u8 = 1;
    const SWITCH: u8 = 0xfe;
    // Another plugin, that the password is not in the cache, and the key: no server says more before its verdict.
    const MOST_ANSWERS: usize = 8;
    let password = options.url.password.as_deref().unwrap_or_default();
    for _ in 0..MOST_ANSWERS {
        let said = packets.packet().await?;
        match said.split_first() {
            Some((&OK, _)) => return Ok(()),
            Some((&ERROR, rest)) => return Err(server_error(rest)),
            Some((&MORE, rest)) => {
                if let Some(answer) = plugin.next(rest, password, &nonce, is_secure)? {
                    packets.send(&answer).await?;
                }
            }
            Some((&SWITCH, rest)) => {
                let (name, rest) = split_at_zero(rest);
                plugin = Plugin::of_name(name).ok_or_else(|| Failure::Told(unknown(options, name)))?;
                nonce = rest.strip_suffix(&[0]).unwrap_or(rest).to_vec();
                if nonce.len() != NONCE {
                    return Err(Failure::Broken(format!("a challenge of {} bytes, {NONCE} expected", nonce.len())));
                }
                packets.send(&plugin.first(password, &nonce, is_secure)).await?;
            }
            _ => return Err(Failure::broken("an answer to the password that is none")),
        }
    }
    Err(Failure::Broken(format!("no verdict on the password in {MOST_ANSWERS} answers")))
}

/// Bytes before the first zero, and those after it.
pub(super) fn split_at_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

fn unknown(options: &MysqlOptions, name: &[u8]) -> Error {
    let (server, user) = (server(options), &options.url.user);
    let name = match name {
        // The server names it by saying nothing.
        [] => "mysql_old_password".into(),
        name => String::from_utf8_lossy(name),
    };
    let message = format!(
        "{server} wants the user `{user}` to prove its password by `{name}`; known are caching_sha2_password, mysql_native_password and sha256_password: \
         give the user one of these (ALTER USER '{user}' IDENTIFIED WITH ..)"
    );
    Error::config("mysql.auth", message)
}

/// The password for nobody but the owner of the key, and of no use in another connection.
fn encrypted(password: &str, nonce: &[u8], key: &[u8]) -> Result<Vec<u8>, Failure> {
    // Of what the padding takes.
    const PADDING: usize = 42;
    let (key, size) = checked(key).map_err(|error| Failure::Broken(format!("the server's RSA key: {error}")))?;
    let hidden: Vec<u8> =
        in_clear(password).iter().zip(nonce.iter().cycle()).map(|(byte, nonce)| byte ^ nonce).collect();
    if hidden.len() + PADDING > size {
        return Err(Failure::Broken(format!("the server's RSA key of {size} bytes is too small for the password")));
    }
    Ok(crypto::encrypt(&hidden, key.as_bytes()))
}

/// The key again, and its bytes, once all is where it should be: the library panics otherwise.
fn checked(pem: &[u8]) -> Result<(String, usize), Malformed> {
    const SEQUENCE: u8 = 0x30;
    const BITS: u8 = 3;
    const NUMBER: u8 = 2;
    // 1024 to 16384 bits, with the zero before a number that would pass for a negative one.
    const SIZES: std::ops::RangeInclusive<usize> = 128..=2048;
    const LARGEST_EXPONENT: usize = 8;
    let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| Malformed(error.to_string()))?;
    let mut key_bytes = Bytes::new(&key);
    let mut parts = Bytes::new(der(&mut key_bytes, SEQUENCE)?);
    der(&mut parts, SEQUENCE)?;
    let Some((0, numbers)) = der(&mut parts, BITS)?.split_first() else {
        return Err(Malformed::new("it has no whole bytes"));
    };
    let mut numbers = Bytes::new(numbers);
    let mut numbers = Bytes::new(der(&mut numbers, SEQUENCE)?);
    let modulus = der(&mut numbers, NUMBER)?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let exponent = der(&mut numbers, NUMBER)?;
    if !SIZES.contains(&modulus.len()) || modulus[0] == 0 || exponent.len() > LARGEST_EXPONENT || big(exponent) == 0 {
        return Err(Malformed(format!("{} bytes, with an exponent of {}", modulus.len(), exponent.len())));
    }
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&key));
    Ok((pem, modulus.len()))
}

/// What is in the next element, which must be of this kind.
fn der<'a>(bytes: &mut Bytes<'a>, tag: u8) -> Result<&'a [u8], Malformed> {
    let found = bytes.u8()?;
    if found != tag {
        return Err(Malformed(format!("{found:#x} in the place of {tag:#x}")));
    }
    let length = match bytes.u8()? {
        short @ 0..=0x7f => usize::from(short),
        width @ 0x81..=0x83 => big(bytes.take(usize::from(width & 0x7f))?) as usize,
        other => return Err(Malformed(format!("{other:#x} begins no length"))),
    };
    bytes.take(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::options;
    use crate::replication::packet::tests::block_on;

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
    fn a_password_in_clear_goes_over_tls_only() {
        for plugin in [Plugin::Native, Plugin::CachingSha2, Plugin::Sha256] {
            let nonce = [7; NONCE];
            let mut said = plugin.first("secret", &nonce, false);
            for more in [&[4][..], KEY.as_bytes()] {
                said.extend(plugin.next(more, "secret", &nonce, false).ok().flatten().unwrap_or_default());
            }
            assert!(!said.windows(6).any(|part| part == b"secret"), "{plugin:?}");
        }
        assert_eq!(encrypted("secret", &[7; NONCE], KEY.as_bytes()).unwrap().len(), 256);
    }

    /// What a server says, and whether it waits for an answer then.
    type Said<'a> = (&'a [u8], bool);

    /// What becomes of a user with the password `p` when the server says this, and what the user answered.
    fn let_in(plugin: Plugin, is_secure: bool, says: &[Said<'_>]) -> (Result<(), Failure>, Vec<Vec<u8>>) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut client, mut server) = (Packets::go_on(client, 2), Packets::go_on(server, 2));
        let options = options();
        let user = async move { authenticate(&mut client, &options, plugin, vec![1; NONCE], is_secure).await };
        let server = async move {
            let mut heard = Vec::new();
            for (packet, is_answered) in says {
                // A user who has gone hears no more.
                if server.send(packet).await.is_ok()
                    && *is_answered
                    && let Ok(answer) = server.packet().await
                {
                    heard.push(answer);
                }
            }
            heard
        };
        block_on(async { tokio::join!(user, server) })
    }

    #[test]
    fn the_servers_way_to_the_verdict_is_followed() {
        let switch = |name: &str| [&[0xfe][..], name.as_bytes(), &[0], &[7; NONCE], &[0]].concat();
        let key = [&[1], KEY.as_bytes()].concat();
        let ok: Said<'_> = (&[0, 0, 0], false);
        let cached: Said<'_> = (&[1, 3], false);
        let whole: Said<'_> = (&[1, 4], true);
        let native = scramble_native(&[7; NONCE], b"p").unwrap().to_vec();
        let sha2 = scramble_sha256(&[7; NONCE], b"p").unwrap().to_vec();
        let [to_native, to_sha2, to_sha256] =
            ["mysql_native_password", "caching_sha2_password", "sha256_password"].map(switch);
        let expect = |is_secure, says: &[Said<'_>], answers: &[&[u8]]| {
            let (verdict, heard) = let_in(Plugin::CachingSha2, is_secure, says);
            assert!(verdict.is_ok(), "{verdict:?}");
            assert_eq!(heard, answers);
        };
        expect(false, &[ok], &[]);
        expect(false, &[cached, ok], &[]);
        expect(true, &[whole, ok], &[b"p\0"]);
        expect(false, &[(&to_native, true), ok], &[&native]);
        expect(false, &[(&to_sha2, true), cached, ok], &[&sha2]);
        expect(true, &[(&to_sha2, true), whole, ok], &[&sha2, b"p\0"]);
        expect(true, &[(&to_sha256, true), ok], &[b"p\0"]);
        // In clear nothing but an encrypted password goes after the key.
        for (says, asks) in [([whole, (&key, true), ok], 2), ([(&to_sha256, true), (&key, true), ok], 1)] {
            let (verdict, heard) = let_in(Plugin::CachingSha2, false, &says);
            assert!(verdict.is_ok(), "{verdict:?}");
            assert_eq!((heard[0].as_slice(), heard[1].len()), (&[asks][..], 256));
        }
    }

    #[test]
    fn a_server_that_goes_another_way_is_told() {
        let unknown = b"\xfeclient_ed25519\x001234567890123456789012\0";
        let (verdict, _) = let_in(Plugin::Native, true, &[(unknown, false)]);
        let Err(Failure::Told(error)) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error.code, "mysql.auth");
        for word in ["`client_ed25519`", "`u`", "caching_sha2_password", "ALTER USER 'u'"] {
            assert!(error.message().contains(word), "{error}");
        }
        // What MySQL 4.0 had is asked for without a name.
        let (verdict, _) = let_in(Plugin::Native, true, &[(b"\xfe", false)]);
        assert!(matches!(&verdict, Err(Failure::Told(error)) if error.message().contains("mysql_old_password")));
        let (verdict, _) = let_in(Plugin::Native, false, &[(b"\xff\x15\x04#28000Access denied", false)]);
        assert!(matches!(verdict, Err(Failure::Server { code: 1045, .. })));
        let short = b"\xfemysql_native_password\x0012345\0";
        for says in [&short[..], b"", b"\x01\x04", b"\x05", b"\x01"] {
            let (verdict, _) = let_in(Plugin::Native, false, &[(says, false)]);
            assert!(matches!(verdict, Err(Failure::Broken(_))), "{says:?}: {verdict:?}");
        }
        let (verdict, _) = let_in(Plugin::CachingSha2, false, &[(&[1, 3][..], false); 20]);
        assert!(matches!(&verdict, Err(Failure::Broken(why)) if why.contains("no verdict")), "{verdict:?}");
    }

    #[test]
    fn a_password_that_the_key_does_not_take_is_told() {
        let longest = "x".repeat(256 - 42 - 1);
        assert_eq!(encrypted(&longest, &[7; NONCE], KEY.as_bytes()).unwrap().len(), 256);
        let failure = encrypted(&format!("{longest}x"), &[7; NONCE], KEY.as_bytes()).unwrap_err();
        assert!(matches!(failure, Failure::Broken(why) if why.contains("too small")));
    }

    proptest! {
        #[test]
        fn any_key_is_survived(at in 0usize..294, byte in any::<u8>(), cut in 0usize..294) {
            let key = SubjectPublicKeyInfoDer::from_pem_slice(KEY.as_bytes()).unwrap();
            let mut der = key.to_vec();
            der[at] = byte;
            for der in [&der[..], &key[..cut]] {
                let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
                // Never a panic; where it is a key, then one of its own size.
                if let Ok(encrypted) = encrypted("secret", &[7; NONCE], pem.as_bytes()) {
                    prop_assert_eq!(encrypted.len(), checked(pem.as_bytes()).unwrap().1);
                }
            }
        }
    }
}
