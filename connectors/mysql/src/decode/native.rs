//! MariaDB's UUID, INET4 and INET6, which row images encode as BINARY, in the server's text format.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Malformed, big};

/// A UUID. MariaDB stores UUIDs of versions 1 to 5 with the high part of the time first, so that
/// they sort by time.
pub(crate) fn uuid(stored: &[u8]) -> Result<String, Malformed> {
    let stored: [u8; 16] = stored.try_into().map_err(|_| Malformed(format!("a UUID of {} bytes", stored.len())))?;
    let is_turned = stored[6] & 0x80 != 0 && (0x01..0x60).contains(&stored[8]);
    let mut bytes = stored;
    if is_turned {
        bytes[..4].copy_from_slice(&stored[12..]);
        bytes[4..6].copy_from_slice(&stored[10..12]);
        bytes[6..8].copy_from_slice(&stored[8..10]);
        bytes[8..10].copy_from_slice(&stored[6..8]);
        bytes[10..].copy_from_slice(&stored[..6]);
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// An IPv4 address.
pub(crate) fn inet4(stored: &[u8]) -> Result<String, Malformed> {
    let bytes: [u8; 4] = stored.try_into().map_err(|_| Malformed(format!("an INET4 of {} bytes", stored.len())))?;
    Ok(Ipv4Addr::from(bytes).to_string())
}

/// An IPv6 address. An embedded IPv4 address is printed in dotted form. The first longest run of
/// zero groups is omitted, even a run of one.
pub(crate) fn inet6(stored: &[u8]) -> Result<String, Malformed> {
    let bytes: [u8; 16] = stored.try_into().map_err(|_| Malformed(format!("an INET6 of {} bytes", stored.len())))?;
    let [head @ .., a, b, c, d] = bytes;
    if head == [0; 12] && big(&[a, b, c, d]) > 1 {
        return Ok(format!("::{}", Ipv4Addr::new(a, b, c, d)));
    }
    let groups = Ipv6Addr::from(bytes).segments();
    if groups[..6] == [0, 0, 0, 0, 0, 0xffff] {
        return Ok(format!("::ffff:{}", Ipv4Addr::new(a, b, c, d)));
    }
    let zeros = |from: usize| groups[from..].iter().take_while(|group| **group == 0).count();
    let mut gap = 0..0;
    for from in 0..groups.len() {
        if zeros(from) > gap.len() {
            gap = from..from + zeros(from);
        }
    }
    let join = |groups: &[u16]| groups.iter().map(|group| format!("{group:x}")).collect::<Vec<_>>().join(":");
    if gap.is_empty() {
        return Ok(join(&groups));
    }
    Ok(format!("{}::{}", join(&groups[..gap.start]), join(&groups[gap.end..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_and_addresses_match_the_servers_text() {
        let hex = |text: &str| u128::from_str_radix(text, 16).unwrap().to_be_bytes();
        // Version 1, version 7, and no version.
        for (stored, text) in [
            ("00a0c91e6bf6a76511d07decf81d4fae", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
            ("01890a5dac96774bbcceb302099a8057", "01890a5d-ac96-774b-bcce-b302099a8057"),
            ("00000000000000000000000000000000", "00000000-0000-0000-0000-000000000000"),
        ] {
            assert_eq!(uuid(&hex(stored)).unwrap(), text);
        }
        for text in [
            "::",
            "::1",
            "1::",
            "::192.0.2.128",
            "::ffff:192.0.2.128",
            "1:0:0:2::3",
            "1::2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8",
        ] {
            assert_eq!(inet6(&text.parse::<Ipv6Addr>().unwrap().octets()).unwrap(), text);
        }
        assert!(uuid(&[0; 15]).is_err() && inet4(&[0; 5]).is_err() && inet6(&[]).is_err());
    }
}
