//! Reads the header of a request and passes the request to its API.

use std::sync::Arc;

use bytes::Buf;
use kafka_protocol::messages::{ApiKey, RequestHeader};
use kafka_protocol::protocol::Decodable;

use super::frame::Frame;
use super::login::Login;
use crate::api;
use crate::request::response::{Envelope, Response};
use crate::request::{Call, Close, Peer, malformed, supported, wire_outline};
use crate::request_memory::Reservation;
use crate::state::BrokerState;

/// Serves one request. `None`: the client wants no response.
pub(crate) async fn dispatch(
    broker: &Arc<BrokerState>,
    peer: Peer,
    login: &mut Login,
    frame: Frame,
) -> Result<Option<Response>, Close> {
    let Frame { bytes: mut frame, reservation } = frame;
    if frame.len() < 8 {
        return Err(Close::protocol_violation("the request is shorter than its header"));
    }
    let (mut key_bytes, mut version_bytes) = (&frame[..2], &frame[2..4]);
    let (key_number, version) = (key_bytes.get_i16(), version_bytes.get_i16());
    let Some(supported) = ApiKey::try_from(key_number).ok().and_then(supported::find) else {
        return Err(Close::protocol_violation(format!("unknown API {key_number}")));
    };
    let key = supported.key;
    if !(supported.min..=supported.max).contains(&version) {
        if key == ApiKey::ApiVersions {
            let correlation_id = (&frame[4..8]).get_i32();
            return api::versions::unsupported(correlation_id).map(Some);
        }
        return Err(Close::protocol_violation(format!("{key:?} version {version} is not supported")));
    }
    let header_version = key.request_header_version(version);
    wire_outline::check(&frame, key, version, header_version)
        .map_err(|error| Close::protocol_violation(error.to_string()))?;
    let header = RequestHeader::decode(&mut frame, header_version).map_err(malformed)?;
    let envelope = Envelope { correlation_id: header.correlation_id, version };
    let client_id = header.client_id.map(|id| id.to_string()).unwrap_or_default();
    let call = Call { broker, peer, version, client_id, envelope };

    if let Some(response) = login.answer(&call, key, &frame).await? {
        return Ok(Some(response));
    }

    #[cfg(feature = "fault-injection")]
    let injected = broker.faults.next(key);
    #[cfg(feature = "fault-injection")]
    if let Some(response) = injected.before(&call, key, &frame).await? {
        return Ok(Some(response));
    }

    // The bytes of a request that waits for other clients are freed before it waits. Others are in
    // memory until they are answered.
    let _reservation = if api::WAITING.contains(&key) { Reservation::default() } else { reservation };
    let response = api::dispatch(&call, key, frame).await?;

    #[cfg(feature = "fault-injection")]
    injected.after().await?;
    Ok(response)
}
