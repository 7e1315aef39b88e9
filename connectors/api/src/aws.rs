//! The HTTP client of the AWS SDK, the same in all connectors: TLS with ring, private certificate
//! authorities, and the proxy that the environment names.

use std::path::Path;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use crate::tls::authorities_in;
use crate::{Error, Result};

/// A client that trusts `authorities` (PEM) besides those of the system; without them, those of the
/// file that `AWS_CA_BUNDLE` names. Requests to https addresses go through `HTTPS_PROXY` (or
/// `ALL_PROXY`) unless `NO_PROXY` lists the host.
pub fn http_client(authorities: Option<Vec<u8>>) -> Result<SharedHttpClient> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let authorities = match (authorities, variable("AWS_CA_BUNDLE")) {
        (None, Some(path)) => Some(authorities_in(Path::new(&path)).map_err(|problem| {
            let message = format!("AWS_CA_BUNDLE: {problem}; name a PEM file of certificate authorities");
            Error::config("environment.aws_ca_bundle", message)
        })?),
        (given, _) => given,
    };
    client(authorities, proxy(variable)?)
}

fn client(authorities: Option<Vec<u8>>, proxy: Option<ProxyConfig>) -> Result<SharedHttpClient> {
    // Trunkline uses ring everywhere; the SDK's default would add a second crypto library.
    let provider = Provider::Rustls(CryptoMode::Ring);
    let mut trusted = TrustStore::default();
    if let Some(pem) = authorities {
        trusted = trusted.with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| Error::internal("environment.tls", format!("cannot start TLS: {error}")))?;
    let Some(proxy) = proxy else {
        return Ok(Builder::new().tls_provider(provider).tls_context(context).build_https());
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.tls_provider(provider.clone()).tls_context(context.clone()).build()
    }))
}

/// The proxy of https addresses. Credentials of a machine or task come over http, from addresses
/// that no proxy reaches.
fn proxy(variable: impl Fn(&str) -> Option<String>) -> Result<Option<ProxyConfig>> {
    let first = |names: &[&'static str]| names.iter().find_map(|name| Some((*name, variable(name)?)));
    let Some((name, url)) = first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) else { return Ok(None) };
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    // The address may contain a password, and the SDK's error shows the address (I8).
    let proxy = ProxyConfig::https(url).map_err(|_| {
        let message = format!("{name} is not the address of a proxy: set it to `http://HOST:PORT`");
        Error::config("environment.proxy", message)
    })?;
    Ok(Some(match first(&["NO_PROXY", "no_proxy"]) {
        Some((_, hosts)) => proxy.no_proxy(hosts),
        None => proxy,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<ProxyConfig>> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        proxy(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn the_proxy_is_that_of_https_addresses() {
        assert!(of(&[("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "a")]).unwrap().is_none());
        for variables in [("HTTPS_PROXY", "http://p:1"), ("https_proxy", "p:1"), ("ALL_PROXY", "http://u:x@p:1")] {
            assert!(of(&[variables]).unwrap().is_some_and(|proxy| !proxy.is_disabled()), "{variables:?}");
        }
        let error = of(&[("HTTPS_PROXY", "ftp://hunter2@p")]).err().unwrap();
        assert!(error.message().contains("HTTPS_PROXY") && !error.message().contains("hunter2"), "{error}");
    }
}
