//! The opening of a connection: the server's greeting, TLS, and authentication.

use mysql_common::constants::CapabilityFlags;
use mysql_common::packets::{AuthPlugin, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize;

use super::auth::{NONCE, Plugin, Protection, authenticate, split_at_zero};
use super::packet::Packets;
use super::{ERROR, MAX_PACKET, ProtocolError, server_error};
use crate::connection::dialect::Dialect;
use crate::connection::options::{ConnectionOptions, Tls};
use crate::connection::tls::ServerStream;
use crate::decode::{Bytes, Malformed};

/// The first packet of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    capabilities: CapabilityFlags,
    dialect: Dialect,
    nonce: Vec<u8>,
    plugin: Plugin,
}

impl Greeting {
    /// Decodes the packet, after the protocol version in its first byte.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let (version, rest) = split_at_zero(bytes);
        let mut bytes = Bytes::new(rest);
        // The connection id.
        bytes.take(4)?;
        let mut nonce = bytes.take(8)?.to_vec();
        bytes.take(1)?;
        let lower = bytes.little(2)?;
        // Collation and status.
        bytes.take(3)?;
        let upper = bytes.little(2)?;
        let capabilities = CapabilityFlags::from_bits_truncate((upper << 16 | lower) as u32);
        let nonce_bytes = usize::from(bytes.u8()?);
        bytes.take(10)?;
        nonce.extend_from_slice(bytes.take(nonce_bytes.saturating_sub(8).max(13))?);
        // Without the terminating zero.
        nonce.truncate(NONCE);
        let (name, _) = split_at_zero(bytes.rest());
        // The server answers with the plugin of the user if it is another one.
        let plugin = match Plugin::of_name(name) {
            Some(Plugin::CachingSha2) => Plugin::CachingSha2,
            _ => Plugin::Native,
        };
        let dialect = Dialect::of_version(&String::from_utf8_lossy(version));
        Ok(Self { capabilities, dialect, nonce, plugin })
    }
}

/// Whether a client without TLS encrypts a password with the RSA key that the server sends.
///
/// Nothing proves that the key is the server's. The first connection of a source therefore needs
/// TLS for a password that the server has not cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyUse {
    Allowed,
    Refused,
}

/// Connects and authenticates.
pub(crate) async fn connect(
    options: &ConnectionOptions,
    key_use: KeyUse,
) -> Result<(Packets<ServerStream>, Dialect), ProtocolError> {
    const PROTOCOL: u8 = 10;
    // Every server since MySQL 5.6 and MariaDB 10 has these.
    const NEEDED: CapabilityFlags = CapabilityFlags::CLIENT_PROTOCOL_41
        .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
        .union(CapabilityFlags::CLIENT_PLUGIN_AUTH);
    let mut packets = Packets::new(ServerStream::connect(options).await?);
    let packet = packets.packet().await?;
    let greeting = match packet.split_first() {
        Some((&ERROR, rest)) => return Err(server_error(rest)),
        Some((&PROTOCOL, rest)) => {
            Greeting::read(rest).map_err(|error| ProtocolError::Broken(format!("the greeting: {error}")))?
        }
        _ => return Err(ProtocolError::broken("the greeting does not have MySQL's protocol version 10")),
    };
    if !greeting.capabilities.contains(NEEDED) {
        return Err(ProtocolError::broken("the server is older than MySQL 5.6 and MariaDB 10"));
    }
    let mut capabilities = NEEDED | CapabilityFlags::CLIENT_TRANSACTIONS;
    // MariaDB does not offer it: a client without it has MariaDB's extended capabilities, of which
    // the client uses none.
    capabilities |= greeting.capabilities & CapabilityFlags::CLIENT_LONG_PASSWORD;
    let has_tls = greeting.capabilities.contains(CapabilityFlags::CLIENT_SSL);
    if options.tls != Tls::Disable && has_tls {
        const UTF8MB4_GENERAL_CI: u8 = 45;
        capabilities |= CapabilityFlags::CLIENT_SSL;
        packets.send(&bytes_of(&SslRequest::new(capabilities, MAX_PACKET, UTF8MB4_GENERAL_CI))).await?;
        let (stream, sequence) = packets.into_stream()?;
        packets = Packets::resume(stream.secure(options).await?, sequence);
    } else if !matches!(options.tls, Tls::Disable | Tls::Prefer) {
        return Err(ProtocolError::Tls(
            "the server does not offer TLS; give it a certificate, or set `tls = \"prefer\"`".to_owned(),
        ));
    }
    let protection = match key_use {
        _ if capabilities.contains(CapabilityFlags::CLIENT_SSL) => Protection::Tls,
        KeyUse::Allowed => Protection::ServerKey,
        KeyUse::Refused => Protection::None,
    };
    let password = options.address.password.as_deref().unwrap_or_default();
    let plugin = match greeting.plugin {
        Plugin::CachingSha2 => AuthPlugin::CachingSha2Password,
        _ => AuthPlugin::MysqlNativePassword,
    };
    let response = HandshakeResponse::new(
        Some(greeting.plugin.first_message(password, &greeting.nonce, protection)?),
        // Any version that has utf8mb4.
        (8, 0, 0),
        Some(options.address.user.as_bytes()),
        None::<&[u8]>,
        Some(plugin),
        capabilities,
        None,
        MAX_PACKET,
    );
    packets.send(&bytes_of(&response)).await?;
    authenticate(&mut packets, options, greeting.plugin, greeting.nonce, protection).await?;
    Ok((packets, greeting.dialect))
}

/// The bytes of a packet of the library.
pub(crate) fn bytes_of(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The greeting of MySQL 8.0.
    fn packet() -> Vec<u8> {
        let mut bytes = b"8.0.36\0".to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(b"abcdefgh\0");
        bytes.extend_from_slice(&[0xff, 0xff, 45, 2, 0, 0xff, 0xdf, 21]);
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(b"ijklmnopqrst\0caching_sha2_password\0");
        bytes
    }

    #[test]
    fn a_greeting_is_decoded() {
        let greeting = Greeting::read(&packet()).unwrap();
        assert_eq!((greeting.nonce.as_slice(), greeting.plugin), (&b"abcdefghijklmnopqrst"[..], Plugin::CachingSha2));
        assert!(greeting.capabilities.contains(CapabilityFlags::CLIENT_SSL | CapabilityFlags::CLIENT_PLUGIN_AUTH));
    }

    proptest! {
        #[test]
        fn invalid_greetings_never_panic(at in 0usize..80, byte in any::<u8>(), cut in 0usize..80) {
            let mut bytes = packet();
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = Greeting::read(&bytes);
            prop_assert!(Greeting::read(&packet()[..cut.min(40)]).is_err());
            let _ = Greeting::read(&bytes[..cut.min(length)]);
        }
    }
}
