//! TLS of the connections to brokers, by OpenSSL, which librdkafka uses too: the properties `ssl.*`
//! mean the same in both.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use openssl::error::ErrorStack;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::provider::Provider;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslStream, SslVerifyMode,
};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509NameRef};

use super::settings::Settings;
use super::transport::{SETUP_TIMED_OUT, wait_for};
use crate::kafka::connection::certificate_problem;

/// Where systems keep their certificate authorities. The first file, or folder that is not empty,
/// counts.
const SYSTEM_AUTHORITIES: [&str; 17] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/pki/tls/certs/ca-bundle.trust.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/cacert.pem",
    "/etc/certs/ca-certificates.crt",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/certs",
    "/usr/local/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cacert.pem",
    "/usr/local/etc/ssl/certs/cert.pem",
    "/usr/local/etc/ssl/certs/cacert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
    "/etc/openssl/certs/ca-certificates.crt",
];

/// The properties that name files.
const FILES: [&str; 5] =
    ["ssl.ca.location", "ssl.crl.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location"];

/// The client's side of TLS.
pub(in crate::kafka::wire) struct TlsClient {
    context: SslContext,
    verifies: bool,
    checks_host: bool,
    /// The files that were read, and when each was changed last.
    files: Vec<(String, Option<SystemTime>)>,
}

/// What is wrong with the properties `ssl.*`. It starts with the property's name, and has no value
/// but a path.
type Problem = String;

impl TlsClient {
    /// Reads certificates and keys.
    pub(in crate::kafka::wire) fn of(settings: &Settings) -> Result<Self, Problem> {
        if settings.get("ssl.engine.location").is_some() {
            return Err("ssl.engine.location is not supported: OpenSSL 3 has providers (ssl.providers)".to_owned());
        }
        let files = FILES.iter().filter_map(|name| settings.get(name));
        let files = files.map(|path| (path.clone(), changed(&path))).collect();
        load_providers(settings)?;
        let mut context = SslContextBuilder::new(SslMethod::tls_client()).map_err(failed("TLS"))?;
        // A broker that closes a connection without a message of TLS has closed it all the same.
        context.set_options(SslOptions::NO_SSLV3 | SslOptions::NO_RENEGOTIATION | SslOptions::IGNORE_UNEXPECTED_EOF);
        // An idle connection keeps no buffers.
        let mode = SslMode::AUTO_RETRY | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER;
        context.set_mode(mode | SslMode::RELEASE_BUFFERS);
        for (name, set) in [
            ("ssl.cipher.suites", SslContextBuilder::set_cipher_list as fn(&mut _, &str) -> _),
            ("ssl.curves.list", SslContextBuilder::set_groups_list),
            ("ssl.sigalgs.list", SslContextBuilder::set_sigalgs_list),
        ] {
            if let Some(list) = settings.get(name) {
                set(&mut context, &list).map_err(failed(name))?;
            }
        }
        trust(&mut context, settings)?;
        identify(&mut context, settings)?;
        Ok(Self {
            context: context.build(),
            verifies: settings.is("enable.ssl.certificate.verification"),
            files,
            checks_host: settings.get("ssl.endpoint.identification.algorithm").as_deref() != Some("none"),
        })
    }

    /// Whether no file has changed since it was read.
    pub(in crate::kafka::wire) fn is_current(&self) -> bool {
        self.files.iter().all(|(path, time)| changed(path) == *time)
    }

    #[cfg(test)]
    pub(in crate::kafka::wire) fn trusted_authorities(&self) -> usize {
        self.context.cert_store().all_certificates().len()
    }

    /// The handshake with the broker `host` on a connected socket that does not block.
    pub(in crate::kafka::wire) fn handshake(
        &self,
        host: &str,
        socket: TcpStream,
        deadline: Instant,
    ) -> Result<SslStream<TcpStream>, String> {
        let refusal = Arc::<OnceLock<String>>::default();
        let ssl = self.session(host, &refusal).map_err(|stack| format!("SSL handshake failed: {}", reason(&stack)))?;
        let mut stream =
            SslStream::new(ssl, socket).map_err(|stack| format!("SSL handshake failed: {}", reason(&stack)))?;
        loop {
            let error = match super::stream::call(&mut stream, SslStream::connect) {
                Ok(()) => break,
                Err(error) => error,
            };
            let events = match error.code() {
                ErrorCode::WANT_READ => libc::POLLIN,
                ErrorCode::WANT_WRITE => libc::POLLOUT,
                _ => return Err(refusal.get().cloned().unwrap_or_else(|| handshake_failure(&error))),
            };
            match wait_for(stream.get_ref(), events, deadline) {
                Ok(true) => {}
                Ok(false) => return Err(format!("{SETUP_TIMED_OUT} SSL_HANDSHAKE")),
                Err(error) => return Err(format!("SSL handshake failed: {error}")),
            }
        }
        // Some ciphers, which only the user can choose, need none.
        if self.verifies && stream.ssl().peer_certificate().is_none() {
            return Err("Failed to verify broker certificate: the broker has none".to_owned());
        }
        Ok(stream)
    }

    /// A session that accepts certificates for the host alone, and notes why it refuses another.
    fn session(&self, host: &str, refusal: &Arc<OnceLock<String>>) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        let address = host.parse::<IpAddr>().ok();
        if address.is_none() {
            ssl.set_hostname(host)?;
        }
        if self.checks_host {
            match address {
                Some(address) => ssl.param_mut().set_ip(address)?,
                None => ssl.param_mut().set_host(host)?,
            }
        }
        if self.verifies {
            let refusal = refusal.clone();
            ssl.set_verify_callback(SslVerifyMode::PEER, move |is_valid, chain| {
                if !is_valid {
                    let problem = certificate_problem(chain.error().as_raw());
                    let (subject, issuer) = chain
                        .current_cert()
                        .map(|certificate| (name(certificate.subject_name()), name(certificate.issuer_name())))
                        .unwrap_or_default();
                    // The first problem counts.
                    let _ = refusal.set(format!(
                        "Certificate (subject={subject}, issuer={issuer}) verification callback failed: {problem}"
                    ));
                }
                is_valid
            });
        } else {
            ssl.set_verify(SslVerifyMode::NONE);
        }
        Ok(ssl)
    }
}

/// When a file was changed last.
fn changed(path: &str) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Loads OpenSSL's providers for the whole process. They are never unloaded: other clients use
/// them.
fn load_providers(settings: &Settings) -> Result<(), Problem> {
    let list = settings.get("ssl.providers").unwrap_or_default();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        std::mem::forget(Provider::try_load(None, name, true).map_err(failed("ssl.providers"))?);
    }
    Ok(())
}

/// Adds the certificate authorities, and the certificates that they have revoked.
fn trust(context: &mut SslContextBuilder, settings: &Settings) -> Result<(), Problem> {
    let location = settings.get("ssl.ca.location");
    let location = location.as_deref().filter(|location| *location != "probe");
    if let Some(path) = location {
        load_authorities(context, Path::new(path)).map_err(failed("ssl.ca.location"))?;
    }
    let pem = settings.get("ssl.ca.pem");
    if let Some(pem) = &pem {
        let certificates = X509::stack_from_pem(pem.as_bytes()).map_err(failed("ssl.ca.pem"))?;
        if certificates.is_empty() {
            return Err("ssl.ca.pem failed: it has no certificate in PEM format".to_owned());
        }
        for certificate in certificates {
            context.cert_store_mut().add_cert(certificate).map_err(failed("ssl.ca.pem"))?;
        }
    }
    if location.is_none() && pem.is_none() {
        trust_system(context);
    }
    if let Some(path) = settings.get("ssl.crl.location") {
        context.load_verify_locations(Some(Path::new(&path)), None).map_err(failed("ssl.crl.location"))?;
        context.cert_store_mut().set_flags(X509VerifyFlags::CRL_CHECK).map_err(failed("ssl.crl.location"))?;
    }
    Ok(())
}

fn load_authorities(context: &mut SslContextBuilder, path: &Path) -> Result<(), ErrorStack> {
    let (file, folder) = if path.is_dir() { (None, Some(path)) } else { (Some(path), None) };
    context.load_verify_locations(file, folder)
}

/// Without any, each broker's certificate is refused.
fn trust_system(context: &mut SslContextBuilder) {
    let is_filled = |path: &Path| fs::read_dir(path).is_ok_and(|mut files| files.next().is_some());
    for path in SYSTEM_AUTHORITIES.map(Path::new) {
        let is_found = if path.is_dir() { is_filled(path) } else { path.exists() };
        if is_found && load_authorities(context, path).is_ok() {
            return;
        }
    }
    let _ = context.set_default_verify_paths();
}

/// Adds the client's certificate and key.
fn identify(context: &mut SslContextBuilder, settings: &Settings) -> Result<(), Problem> {
    if let Some(path) = settings.get("ssl.certificate.location") {
        use_chain(context, "ssl.certificate.location", &read("ssl.certificate.location", &path)?)?;
    }
    if let Some(pem) = settings.get("ssl.certificate.pem") {
        use_chain(context, "ssl.certificate.pem", pem.as_bytes())?;
    }
    let password = settings.get("ssl.key.password");
    let mut has_key = false;
    for name in ["ssl.key.location", "ssl.key.pem"] {
        let Some(value) = settings.get(name) else { continue };
        let pem = if name == "ssl.key.location" { read(name, &value)? } else { value.into_bytes() };
        let key = private_key(&pem, password.as_deref()).map_err(failed(name))?;
        context.set_private_key(&key).map_err(failed(name))?;
        has_key = true;
    }
    if let Some(path) = settings.get("ssl.keystore.location") {
        let password = settings.get("ssl.keystore.password").unwrap_or_default();
        use_key_store(context, &read("ssl.keystore.location", &path)?, &password)?;
        has_key = true;
    }
    if has_key {
        context.check_private_key().map_err(|stack| format!("Private key check failed: {}", reason(&stack)))?;
    }
    Ok(())
}

fn read(name: &str, path: &str) -> Result<Vec<u8>, Problem> {
    fs::read(path).map_err(|error| format!("{name} failed: {error}"))
}

/// Uses a certificate, followed by those of intermediate authorities.
fn use_chain(context: &mut SslContextBuilder, name: &'static str, pem: &[u8]) -> Result<(), Problem> {
    let mut certificates = X509::stack_from_pem(pem).map_err(failed(name))?.into_iter();
    let own = certificates.next().ok_or_else(|| format!("{name} failed: it has no certificate in PEM format"))?;
    context.set_certificate(&own).map_err(failed(name))?;
    certificates.try_for_each(|other| context.add_extra_chain_cert(other)).map_err(failed(name))
}

fn private_key(pem: &[u8], password: Option<&str>) -> Result<PKey<Private>, ErrorStack> {
    // Always with a callback: without one, OpenSSL asks on the terminal.
    PKey::private_key_from_pem_callback(pem, |buffer| {
        let password = password.unwrap_or_default().as_bytes();
        let length = password.len().min(buffer.len());
        buffer[..length].copy_from_slice(&password[..length]);
        Ok(length)
    })
}

fn use_key_store(context: &mut SslContextBuilder, der: &[u8], password: &str) -> Result<(), Problem> {
    const NAME: &str = "ssl.keystore.location";
    let store = Pkcs12::from_der(der).and_then(|store| store.parse2(password)).map_err(failed(NAME))?;
    let (Some(certificate), Some(key)) = (store.cert, store.pkey) else {
        return Err(format!("{NAME} failed: it has no certificate with a private key"));
    };
    context.set_certificate(&certificate).map_err(failed(NAME))?;
    context.set_private_key(&key).map_err(failed(NAME))?;
    let others = store.ca.into_iter().flatten();
    others.into_iter().try_for_each(|other| context.add_extra_chain_cert(other)).map_err(failed(NAME))
}

fn failed(name: &str) -> impl Fn(ErrorStack) -> Problem {
    move |stack| format!("{name} failed: {}", reason(&stack))
}

/// The last error of OpenSSL, which is the most general one, in librdkafka's form.
pub(in crate::kafka::wire) fn reason(stack: &ErrorStack) -> String {
    let Some(error) = stack.errors().last() else { return "no further information".to_owned() };
    let detail = error.data().filter(|data| !data.is_empty()).map(|data| format!(": {data}")).unwrap_or_default();
    let (library, reason) = (error.library().unwrap_or_default(), error.reason().unwrap_or_default());
    format!("error:{:08X}:{library}::{reason}{detail}", error.code())
}

fn handshake_failure(error: &ssl::Error) -> String {
    let disconnected =
        |how: &str| format!("SSL handshake failed: Disconnected: {how}: connecting to a PLAINTEXT broker listener?");
    if let Some(stack) = error.ssl_error().filter(|stack| !stack.errors().is_empty()) {
        let reason = reason(stack);
        let hint = if reason.contains("unexpected message") {
            ": client SSL authentication might be required (see ssl.key.location and ssl.certificate.location)"
        } else {
            ""
        };
        return format!("SSL handshake failed: {reason}{hint}");
    }
    match error.io_error() {
        None => disconnected("connection closed by peer"),
        Some(error) if error.kind() == io::ErrorKind::ConnectionReset => disconnected("connection reset by peer"),
        Some(error) => format!("SSL handshake failed: SSL transport error: {error}"),
    }
}

/// A name in the form `/C=DE/CN=broker`.
fn name(name: &X509NameRef) -> String {
    let part = |entry: &openssl::x509::X509NameEntryRef| {
        let value = entry.data().to_string().unwrap_or_default();
        format!("/{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    };
    name.entries().map(part).collect()
}
