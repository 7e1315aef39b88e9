//! How a connection begins: the server introduces itself, TLS begins if it is wanted, and the user is let in.

use mysql_common::constants::CapabilityFlags;
use mysql_common::packets::{AuthPlugin, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize;

use super::auth::{NONCE, Plugin, authenticate, split_at_zero};
use super::packet::Packets;
use super::{ERROR, Failure, LARGEST, server_error};
use crate::config::{MysqlOptions, Tls};
use crate::connection::tls::Link;
use crate::decode::{Bytes, Malformed};

/// What the server says first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    capabilities: CapabilityFlags,
    nonce: Vec<u8>,
    plugin: Plugin,
}

impl Hello {
    /// Reads the packet, without the version of the protocol in its first byte.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let (_version, rest) = split_at_zero(bytes);
        let mut bytes = Bytes::new(rest);
        // The number of the connection.
        bytes.take(4)?;
        let mut nonce = bytes.take(8)?.to_vec();
        bytes.take(1)?;
        let lower = bytes.little(2)?;
        // Its collation and its status.
        bytes.take(3)?;
        let upper = bytes.little(2)?;
        let capabilities = CapabilityFlags::from_bits_truncate((upper << 16 | lower) as u32);
        let nonce_bytes = usize::from(bytes.u8()?);
        bytes.take(10)?;
        nonce.extend_from_slice(bytes.take(nonce_bytes.saturating_sub(8).max(13))?);
        // A zero ends it.
        nonce.truncate(NONCE);
        let (name, _) = split_at_zero(bytes.rest());
        // A user with any other one is told so, in answer to this.
        let plugin = match Plugin::of_name(name) {
            Some(Plugin::CachingSha2) => Plugin::CachingSha2,
            _ => Plugin::Native,
        };
        Ok(Self { capabilities, nonce, plugin })
    }
}

/// Connects, and has the user let in.
pub(super) async fn connect(options: &MysqlOptions) -> Result<Packets<Link>, Failure> {
    const PROTOCOL: u8 = 10;
    // All that a server has that is newer than 5.5.
    const NEEDED: CapabilityFlags = CapabilityFlags::CLIENT_PROTOCOL_41
        .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
        .union(CapabilityFlags::CLIENT_PLUGIN_AUTH);
    let mut packets = Packets::new(Link::connect(options).await?);
    let said = packets.packet().await?;
    let hello = match said.split_first() {
        Some((&ERROR, rest)) => return Err(server_error(rest)),
        Some((&PROTOCOL, rest)) => {
            Hello::read(rest).map_err(|error| Failure::Broken(format!("its greeting: {error}")))?
        }
        _ => return Err(Failure::broken("its greeting is none of MySQL's protocol 10")),
    };
    if !hello.capabilities.contains(NEEDED) {
        return Err(Failure::broken("the server is older than MySQL 5.6 and MariaDB 10"));
    }
    let mut capabilities = NEEDED | CapabilityFlags::CLIENT_TRANSACTIONS;
    // MariaDB does not offer it: without it, it looks for capabilities of its own behind these, and finds none.
    capabilities |= hello.capabilities & CapabilityFlags::CLIENT_LONG_PASSWORD;
    let has_tls = hello.capabilities.contains(CapabilityFlags::CLIENT_SSL);
    if options.tls != Tls::Disable && has_tls {
        const UTF8MB4_GENERAL_CI: u8 = 45;
        capabilities |= CapabilityFlags::CLIENT_SSL;
        packets.send(&bytes_of(&SslRequest::new(capabilities, LARGEST, UTF8MB4_GENERAL_CI))).await?;
        let (link, number) = packets.into_link()?;
        packets = Packets::go_on(link.secure(options).await?, number);
    } else if !matches!(options.tls, Tls::Disable | Tls::Prefer) {
        return Err(Failure::Tls("the server has no TLS".to_owned()));
    }
    let is_secure = capabilities.contains(CapabilityFlags::CLIENT_SSL);
    let password = options.url.password.as_deref().unwrap_or_default();
    let plugin = match hello.plugin {
        Plugin::CachingSha2 => AuthPlugin::CachingSha2Password,
        _ => AuthPlugin::MysqlNativePassword,
    };
    let response = HandshakeResponse::new(
        Some(hello.plugin.first(password, &hello.nonce, is_secure)),
        // Any that knows utf8mb4.
        (8, 0, 0),
        Some(options.url.user.as_bytes()),
        None::<&[u8]>,
        Some(plugin),
        capabilities,
        None,
        LARGEST,
    );
    packets.send(&bytes_of(&response)).await?;
    authenticate(&mut packets, options, hello.plugin, hello.nonce, is_secure).await?;
    Ok(packets)
}

/// A packet of the library's as bytes.
pub(super) fn bytes_of(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MySQL 8.0's.
    fn greeting() -> Vec<u8> {
        let mut bytes = b"8.0.36\0".to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(b"abcdefgh\0");
        bytes.extend_from_slice(&[0xff, 0xff, 45, 2, 0, 0xff, 0xdf, 21]);
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(b"ijklmnopqrst\0caching_sha2_password\0");
        bytes
    }

    #[test]
    fn a_greeting_is_read() {
        let hello = Hello::read(&greeting()).unwrap();
        assert_eq!((hello.nonce.as_slice(), hello.plugin), (&b"abcdefghijklmnopqrst"[..], Plugin::CachingSha2));
        assert!(hello.capabilities.contains(CapabilityFlags::CLIENT_SSL | CapabilityFlags::CLIENT_PLUGIN_AUTH));
    }

    proptest! {
        #[test]
        fn any_greeting_is_survived(at in 0usize..80, byte in any::<u8>(), cut in 0usize..80) {
            let mut bytes = greeting();
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = Hello::read(&bytes);
            prop_assert!(Hello::read(&greeting()[..cut.min(40)]).is_err());
            let _ = Hello::read(&bytes[..cut.min(length)]);
        }
    }
}
