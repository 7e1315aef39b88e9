//! TLS of the connectors: the options `tls_ca`, `tls_cert`, `tls_key` and `tls_key_password`,
//! declared once, and the reasons of failed handshakes.
//!
//! All connectors use rustls, which speaks TLS 1.2 and 1.3 and no older version.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use pkcs8::der::pem::{self, LineEnding};
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as TlsError, RootCertStore};

use crate::config::{Mismatch, OptionSpec, Section};
use crate::{Error, Result};

/// The option `tls_ca`.
pub const CA: OptionSpec = OptionSpec::optional(
    "tls_ca",
    "path",
    "the system's authorities",
    "PEM file with the certificate authorities to trust, such as that of a company.",
    "\"ca.pem\"",
);

/// The option `tls_cert`.
pub const CERT: OptionSpec = OptionSpec::optional(
    "tls_cert",
    "path",
    "none",
    "PEM file with the client's certificate and its chain, for a server that asks for one. Given with `tls_key`.",
    "\"client-cert.pem\"",
);

/// The option `tls_key`.
pub const KEY: OptionSpec = OptionSpec::optional(
    "tls_key",
    "path",
    "none",
    "PEM file with the private key of `tls_cert`.",
    "\"client-key.pem\"",
);

/// The option `tls_key_password`.
pub const KEY_PASSWORD: OptionSpec = OptionSpec::optional(
    "tls_key_password",
    "string",
    "none",
    "Password of an encrypted `tls_key` (PKCS#8). Write `${env:..}` or `${file:..}`.",
    "\"${file:/run/secrets/tls-key}\"",
);

/// The codes of a connector's errors about its files.
#[derive(Debug, Clone, Copy)]
pub struct TlsCodes {
    /// `tls_ca` cannot be used.
    pub ca: &'static str,
    /// `tls_cert`, `tls_key` or `tls_key_password` cannot be used.
    pub cert: &'static str,
}

/// The values of the options.
#[derive(Clone)]
pub struct TlsOptions {
    codes: TlsCodes,
    /// What messages write before the names of the options.
    prefix: &'static str,
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
    key_password: Option<String>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password is a secret (I8).
        let Self { codes: _, prefix: _, ca, identity, key_password } = self;
        let password = key_password.as_ref().map(|_| "***");
        formatter
            .debug_struct("TlsOptions")
            .field("ca", ca)
            .field("identity", identity)
            .field("key_password", &password)
            .finish()
    }
}

/// A client's certificate with its chain, and its key: each in PEM format, not encrypted. No
/// `Debug`: it holds a secret (I8).
pub struct TlsIdentity {
    /// The certificate and its chain.
    pub certificate: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

impl TlsOptions {
    /// No option is given.
    pub fn none(codes: TlsCodes) -> Self {
        Self { codes, prefix: "", ca: None, identity: None, key_password: None }
    }

    /// Files that settings name. `prefix`: the names of the settings are those of the options after
    /// it.
    pub fn of_files(
        codes: TlsCodes,
        prefix: &'static str,
        ca: Option<&Path>,
        identity: Option<(&Path, &Path)>,
    ) -> Self {
        let identity = identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        Self { codes, prefix, ca: ca.map(Path::to_owned), identity, key_password: None }
    }

    /// Reads all options.
    pub fn read(section: &Section<'_>, codes: TlsCodes) -> Self {
        let path = |key| section.optional::<PathBuf>(key).map(|path| section.base.join(path));
        let (ca, certificate, key) = (path(CA.key), path(CERT.key), path(KEY.key));
        let given = |key| section.table.get(key).is_some();
        match (given(CERT.key), given(KEY.key)) {
            (true, false) => section.missing(KEY.key, "it is given together with `tls_cert`"),
            (false, true) => section.missing(CERT.key, "it is given together with `tls_key`"),
            _ => {}
        }
        let key_password = section.optional::<String>(KEY_PASSWORD.key);
        if let Some(node) = section.node(KEY_PASSWORD.key).filter(|_| !given(KEY.key)) {
            let mismatch = Mismatch::new("has no effect without `tls_key`");
            section.mismatch(KEY_PASSWORD.key, node, mismatch, "`tls_key` too".to_owned());
        }
        Self { codes, prefix: "", ca, identity: certificate.zip(key), key_password }
    }

    /// Reads `tls_ca` alone, for a protocol without client certificates.
    pub fn read_ca(section: &Section<'_>, code: &'static str) -> Self {
        let ca = section.optional::<PathBuf>(CA.key).map(|path| section.base.join(path));
        Self { ca, ..Self::none(TlsCodes { ca: code, cert: code }) }
    }

    /// The authorities of `tls_ca` in PEM format, checked.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>> {
        let Some(path) = &self.ca else { return Ok(None) };
        authorities_in(path).map(Some).map_err(|problem| {
            let option = format!("{}{}", self.prefix, CA.key);
            Error::config(self.codes.ca, format!("`{option}`: {problem}; name a PEM file of certificate authorities"))
        })
    }

    /// The client's certificate and its key, checked.
    pub fn identity(&self) -> Result<Option<TlsIdentity>> {
        let Some((certificate_file, key_file)) = &self.identity else { return Ok(None) };
        let failed = |option: &str, problem: String| {
            Error::config(self.codes.cert, format!("`{}{option}`: {problem}", self.prefix))
        };
        let certificate = read(certificate_file).map_err(|problem| failed("tls_cert", problem))?;
        let chain = certificates(certificate_file, &certificate).map_err(|problem| failed("tls_cert", problem))?;
        let key = read(key_file).map_err(|problem| failed("tls_key", problem))?;
        let key =
            self.decrypted(key).map_err(|problem| failed("tls_key", format!("{} {problem}", key_file.display())))?;
        let parsed = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| failed("tls_key", format!("{} is not a private key in PEM format", key_file.display())))?;
        CertifiedKey::from_der(chain, parsed, &ring::default_provider()).map_err(|error| {
            let files = format!("{} and {}", certificate_file.display(), key_file.display());
            failed("tls_cert", format!("{files}: {error}; name a certificate and its private key"))
        })?;
        Ok(Some(TlsIdentity { certificate, key }))
    }

    /// The key without its encryption. The error completes "The file ..".
    fn decrypted(&self, key: Vec<u8>) -> Result<Vec<u8>, String> {
        let text = String::from_utf8_lossy(&key);
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            let advice = "convert it with `openssl pkcs8 -topk8 -v2 aes256`";
            return Err(format!("is encrypted in the format of OpenSSL before 1.0: {advice}"));
        }
        const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
        const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
        let Some(start) = text.find(BEGIN) else { return Ok(key) };
        let end = text[start..].find(END).map_or(text.len(), |end| start + end + END.len());
        let password = self.key_password.as_deref().ok_or("is encrypted: set `tls_key_password`")?;
        decrypt(&text[start..end], password).ok_or_else(|| {
            "cannot be decrypted: check `tls_key_password`, and that the key is encrypted with PBES2 (`openssl pkcs8 -topk8 -v2 \
             aes256`)"
                .to_owned()
        })
    }
}

/// The authorities of a PEM file, checked. The error says what is wrong with the file.
pub fn authorities_in(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &pem)? {
        roots.add(certificate).map_err(|error| format!("{}: a certificate is not valid: {error}", path.display()))?;
    }
    Ok(pem)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| format!("{} has no certificate in PEM format", path.display()))
}

fn decrypt(text: &str, password: &str) -> Option<Vec<u8>> {
    let (_, encrypted) = pem::decode_vec(text.as_bytes()).ok()?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(encrypted.as_slice()).ok()?;
    let key: SecretDocument = encrypted.decrypt(password).ok()?;
    let text = key.to_pem("PRIVATE KEY", LineEnding::LF).ok()?;
    Some(text.as_bytes().to_vec())
}

/// Why a TLS handshake failed, and what to do, if `error` or one of its causes says that. Another
/// attempt fails too, until a file, an option or the server changes.
pub fn handshake_problem(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref::<TlsError>() {
            return explain(found);
        }
        // The source of an I/O error is that of the error inside of it.
        if let Some(inner) = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            let inner: &(dyn StdError + 'static) = inner;
            return handshake_problem(inner);
        }
        cause = current.source();
    }
    None
}

fn explain(error: &TlsError) -> Option<String> {
    let (problem, advice) = match error {
        TlsError::InvalidCertificate(reason) => explain_certificate(reason),
        TlsError::InvalidMessage(_) => {
            ("the server's answer is not TLS", "check the port, and whether the server offers TLS there")
        }
        TlsError::PeerIncompatible(_) | TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
            ("the server supports neither TLS 1.2 nor TLS 1.3 as this client does", "update the server's TLS")
        }
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        ) => (
            "the server refuses the handshake",
            "if it requires a client certificate, set `tls_cert` and `tls_key` to one that it trusts",
        ),
        _ => return None,
    };
    Some(format!("{problem} ({error}); {advice}"))
}

fn explain_certificate(reason: &CertificateError) -> (&'static str, &'static str) {
    match reason {
        // The second: another authority of the same name has signed it.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "the server's certificate is signed by an authority that is not trusted",
            "set `tls_ca` to the PEM file of this authority",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("the server's certificate has expired", "renew it on the server")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("the server's certificate is not valid yet", "correct the clock of this machine or of the server")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("the server's certificate is for another host", "use a name of the certificate as the host")
        }
        _ => ("the server's certificate is refused", "renew it on the server, or check `tls_ca`"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::config::Report;
    use crate::conformance::read_toml;

    use super::*;

    const CODES: TlsCodes = TlsCodes { ca: "test.tls_ca", cert: "test.tls_cert" };

    fn options(folder: &Path, toml: &str) -> (TlsOptions, Vec<String>) {
        let (table, report) = (read_toml(toml), Report::default());
        let section = Section::new(&table, 0..0, "sinks.a", folder, &report);
        let options = TlsOptions::read(&section, CODES);
        section.finish();
        (options, report.into_problems().into_iter().map(|problem| problem.message).collect())
    }

    /// A folder with a certificate, its key, the key encrypted with `hunter2`, and another key.
    fn files() -> Option<tempfile::TempDir> {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &str| {
            let arguments = arguments.split_whitespace();
            let output = Command::new("openssl").args(arguments).current_dir(folder.path()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a";
        let made = run(&format!("{new} -keyout key.pem -out cert.pem"))
            && run(&format!("{new} -keyout other.pem -out other-cert.pem"))
            && run("pkcs8 -topk8 -v2 aes256 -in key.pem -out encrypted.pem -passout pass:hunter2");
        if !made {
            eprintln!("SKIP tls: openssl cannot make certificates");
        }
        made.then_some(folder)
    }

    #[test]
    fn encrypted_keys_are_decrypted_with_the_password() {
        let Some(folder) = files() else { return };
        let identity = |toml: &str| options(folder.path(), toml).0.identity();
        let plain = identity("tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"").unwrap().unwrap();
        let encrypted = "tls_cert = \"cert.pem\"\ntls_key = \"encrypted.pem\"\n";
        let decrypted = identity(&format!("{encrypted}tls_key_password = \"hunter2\"")).unwrap().unwrap();
        let der = |identity: &TlsIdentity| PrivateKeyDer::from_pem_slice(&identity.key).unwrap().secret_der().to_vec();
        assert!(der(&plain) == der(&decrypted), "the keys differ");
        assert!(plain.certificate == decrypted.certificate, "the certificates differ");
        for (toml, expected) in [
            (encrypted.to_owned(), "is encrypted: set `tls_key_password`"),
            (format!("{encrypted}tls_key_password = \"wrong\""), "check `tls_key_password`"),
            ("tls_cert = \"cert.pem\"\ntls_key = \"other.pem\"".to_owned(), "a certificate and its private key"),
            ("tls_cert = \"cert.pem\"\ntls_key = \"cert.pem\"".to_owned(), "is not a private key in PEM format"),
            ("tls_cert = \"none.pem\"\ntls_key = \"key.pem\"".to_owned(), "none.pem: No such file"),
        ] {
            let error = identity(&toml).err().unwrap();
            assert!(error.code == CODES.cert && error.message().contains(expected), "{toml}: {error}");
            assert!(!error.message().contains("hunter2") && !error.message().contains("wrong"), "{error}");
        }
    }

    #[test]
    fn authorities_must_be_certificates_in_pem_format() {
        let Some(folder) = files() else { return };
        let authorities = |name: &str| options(folder.path(), &format!("tls_ca = {name:?}")).0.authorities();
        assert!(authorities("cert.pem").unwrap().unwrap().starts_with(b"-----BEGIN CERTIFICATE-----"));
        assert!(TlsOptions::none(CODES).authorities().unwrap().is_none());
        for (name, expected) in [("key.pem", "has no certificate in PEM format"), ("none.pem", "No such file")] {
            let error = authorities(name).unwrap_err();
            let message = error.message();
            assert_eq!(error.code, CODES.ca);
            assert!(
                message.starts_with("`tls_ca`: ") && message.contains(name) && message.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn options_that_do_not_fit_are_reported_and_passwords_are_not_printed() {
        let base = Path::new("/base");
        assert_eq!(options(base, "tls_cert = \"a\"").1, ["`sinks.a.tls_key` is missing"]);
        assert_eq!(options(base, "tls_key = \"a\"").1, ["`sinks.a.tls_cert` is missing"]);
        let lonely = options(base, "tls_key_password = \"hunter2\"").1;
        assert_eq!(lonely, ["`sinks.a.tls_key_password` has no effect without `tls_key`"]);
        let (all, problems) =
            options(base, "tls_ca = \"a\"\ntls_cert = \"b\"\ntls_key = \"c\"\ntls_key_password = \"hunter2\"");
        assert_eq!(problems, [""; 0]);
        let shown = format!("{all:?}");
        assert!(shown.contains("/base/a") && shown.contains("/base/c") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn failed_handshakes_are_explained_by_their_innermost_cause() {
        let unknown = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let nested = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown()));
        let text = handshake_problem(&nested).unwrap();
        assert!(text.contains("UnknownIssuer") && text.contains("set `tls_ca`"), "{text}");
        for (error, expected) in [
            (TlsError::InvalidCertificate(CertificateError::Expired), "has expired"),
            (TlsError::InvalidCertificate(CertificateError::NotValidForName), "for another host"),
            (TlsError::AlertReceived(AlertDescription::CertificateRequired), "`tls_cert` and `tls_key`"),
            (TlsError::AlertReceived(AlertDescription::ProtocolVersion), "TLS 1.2"),
        ] {
            let text = handshake_problem(&error).unwrap();
            assert!(text.contains(expected), "{text}");
        }
        for other in [io::Error::other("closed"), io::Error::from(io::ErrorKind::ConnectionReset)] {
            assert_eq!(handshake_problem(&other), None);
        }
        // A connection that breaks during the handshake may succeed the next time.
        assert_eq!(handshake_problem(&TlsError::AlertReceived(AlertDescription::CloseNotify)), None);
    }
}
