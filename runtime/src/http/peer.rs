//! How a worker proves to another one that it has the token of the cluster, without sending it. The
//! address of the other worker is read from Kafka, and the connection has no TLS: another program
//! that answers there, or that reads the packets, must not learn the token.
//!
//! The request for the status carries `Authorization: Trunkline-HMAC-SHA256 SECONDS.MAC`. The MAC
//! covers the method, the path, the time and the address that the other worker shows in Kafka. It
//! is valid for this request, for this worker, and for two minutes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use super::HTTPS;

const SCHEME: &str = "Trunkline-HMAC-SHA256";

/// The only request that is accepted with a MAC.
pub(super) const PATH: &str = "/api/v1/status?history=true";

/// How much the clocks of two workers may differ.
const MAX_SKEW: Duration = Duration::from_secs(120);

/// The header `Authorization` of a request to the worker at `address`.
pub(super) fn sign(token: &str, address: &str, now: SystemTime) -> String {
    let seconds = seconds(now);
    let mac = hmac::sign(&key(token), covered(address, seconds).as_bytes());
    format!("{SCHEME} {seconds}.{}", STANDARD.encode(mac))
}

/// Whether the header is that of a worker with the same token, for a worker with one of these
/// addresses, and of about now.
pub(super) fn is_signed(header: &str, token: &str, addresses: &[String], now: SystemTime) -> bool {
    let parts = header.strip_prefix(SCHEME).and_then(|rest| rest.trim_start().split_once('.'));
    let Some((Ok(then), Ok(mac))) = parts.map(|(then, mac)| (then.parse::<u64>(), STANDARD.decode(mac))) else {
        return false;
    };
    let key = key(token);
    let is_of = |address: &String| hmac::verify(&key, covered(address, then).as_bytes(), &mac).is_ok();
    seconds(now).abs_diff(then) <= MAX_SKEW.as_secs() && addresses.iter().any(is_of)
}

fn key(token: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())
}

fn covered(address: &str, seconds: u64) -> String {
    format!("GET\n{PATH}\n{address}\n{seconds}")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where a worker of `node` that shows this address can be reached from `from`.
pub(super) fn address_of(from: &str, node: &str, http: Option<&str>) -> Result<String, String> {
    let shown = http.ok_or("its HTTP server is off")?;
    let shown = shown.strip_prefix(HTTPS).unwrap_or(shown);
    let address: SocketAddr = shown.parse().map_err(|_| format!("its address `{shown}` cannot be read"))?;
    match address.ip() {
        // It listens on all addresses of its machine.
        ip if ip.is_unspecified() && node == from => {
            Ok(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port()).to_string())
        }
        ip if ip.is_unspecified() => Ok(format!("{node}:{}", address.port())),
        ip if ip.is_loopback() && node != from => {
            Err(format!("it listens on {shown}, which only its own machine reaches: set `http` and `http_token` there"))
        }
        _ => Ok(address.to_string()),
    }
}

/// The addresses at which other workers ask the worker of `node` that shows this address.
pub(super) fn own_addresses(node: &str, http: Option<&str>) -> Vec<String> {
    // The first is that from the same machine, the second that from any other.
    [node, ""].iter().filter_map(|from| address_of(from, node, http).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_asked_where_they_can_be_reached() {
        let address = |node: &str, http: Option<&str>| address_of("here", node, http);
        assert_eq!(address("here", Some("127.0.0.1:8084")).unwrap(), "127.0.0.1:8084");
        assert_eq!(address("here", Some("0.0.0.0:8084")).unwrap(), "127.0.0.1:8084");
        assert_eq!(address("there", Some("0.0.0.0:8084")).unwrap(), "there:8084");
        assert_eq!(address("there", Some("10.0.0.7:8084")).unwrap(), "10.0.0.7:8084");
        assert_eq!(address("there", Some("https://0.0.0.0:8084")).unwrap(), "there:8084");
        assert!(address("there", Some("127.0.0.1:8084")).unwrap_err().contains("only its own machine"));
        assert!(address("there", Some("x")).unwrap_err().contains("cannot be read"));
        assert!(address("there", None).unwrap_err().contains("is off"));
    }

    #[test]
    fn a_worker_knows_the_addresses_at_which_it_is_asked() {
        assert_eq!(own_addresses("n", Some("0.0.0.0:8083")), ["127.0.0.1:8083", "n:8083"]);
        assert_eq!(own_addresses("n", Some("127.0.0.1:8083")), ["127.0.0.1:8083"]);
        assert_eq!(own_addresses("n", Some("10.0.0.7:8083")), ["10.0.0.7:8083", "10.0.0.7:8083"]);
        assert_eq!(own_addresses("n", None), [""; 0]);
    }

    #[test]
    fn a_signature_holds_for_one_worker_and_two_minutes_and_hides_the_token() {
        let (token, now) = ("hunter2", UNIX_EPOCH + Duration::from_secs(1_764_395_000));
        let header = sign(token, "n2:8083", now);
        assert!(header.starts_with("Trunkline-HMAC-SHA256 1764395000.") && !header.contains(token), "{header}");
        let is_valid = |token: &str, address: &str, after: i64| {
            let now = now + Duration::from_secs(1_000) - Duration::from_secs((1_000 - after).unsigned_abs());
            is_signed(&header, token, &["127.0.0.1:8083".to_owned(), address.to_owned()], now)
        };
        assert!(is_valid(token, "n2:8083", 0) && is_valid(token, "n2:8083", 120) && is_valid(token, "n2:8083", -120));
        assert!(!is_valid(token, "n2:8083", 121) && !is_valid(token, "n2:8083", -121));
        assert!(!is_valid(token, "n3:8083", 0) && !is_valid("hunter3", "n2:8083", 0));
        for wrong in ["", "Bearer hunter2", SCHEME, "Trunkline-HMAC-SHA256 x.y", "Trunkline-HMAC-SHA256 1764395000."] {
            assert!(!is_signed(wrong, token, &["n2:8083".to_owned()], now), "{wrong}");
        }
    }
}
