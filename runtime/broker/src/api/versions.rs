//! ApiVersions (KIP-35, KIP-511).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;

use crate::request::Call;
use crate::request::Close;
use crate::request::response::{Envelope, Response};
use crate::request::supported::{SUPPORTED, TRANSACTION_VERSION};

pub(crate) fn api_versions(call: &Call<'_>, request: ApiVersionsRequest) -> ApiVersionsResponse {
    let names = [&request.client_software_name, &request.client_software_version];
    if call.version >= 3 && !names.iter().all(|name| is_software_name(name)) {
        return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    let (name, level) = TRANSACTION_VERSION;
    let response = ApiVersionsResponse::default().with_api_keys(announced());
    if call.version < 3 {
        return response;
    }
    let finalized = FinalizedFeatureKey::default()
        .with_name(StrBytes::from_static_str(name))
        .with_min_version_level(level)
        .with_max_version_level(level);
    let response = response.with_finalized_features_epoch(0).with_finalized_features(vec![finalized]);
    if call.version < 4 {
        // Older clients do not accept a feature whose minimum is 0.
        return response;
    }
    let supported = SupportedFeatureKey::default().with_name(StrBytes::from_static_str(name)).with_max_version(level);
    response.with_supported_features(vec![supported])
}

/// Letters and digits, with dashes and dots between them (KIP-511).
fn is_software_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let ends = [name.bytes().next(), name.bytes().last()];
    ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric())) && name.bytes().all(is_inner)
}

/// The response to a client newer than the broker, always in version 0. It lists the supported
/// versions.
pub(crate) fn unsupported(correlation_id: i32) -> Result<Response, Close> {
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(announced());
    Envelope { correlation_id, version: 0 }.answer::<ApiVersionsRequest>(&response)
}

fn announced() -> Vec<ApiVersion> {
    let announce = |supported: &crate::request::supported::Supported| {
        ApiVersion::default()
            .with_api_key(supported.key as i16)
            .with_min_version(supported.announced_min())
            .with_max_version(supported.max)
    };
    SUPPORTED.iter().map(announce).collect()
}
