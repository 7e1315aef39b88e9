//! Certificates that openssl makes.

/// A file with a new certificate for 127.0.0.1 and its key. Without openssl it prints the reason
/// and returns `None`.
pub fn certificate() -> Option<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=search", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", path])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let key = std::fs::read(file.path()).unwrap();
            std::fs::write(file.path(), [key, output.stdout].concat()).unwrap();
            Some(file)
        }
        other => {
            eprintln!("SKIP certificates: openssl cannot make one: {other:?}");
            None
        }
    }
}
