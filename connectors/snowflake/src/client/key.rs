//! Key-pair authentication: a login is signed with the user's private key (RS256), and the service
//! checks it with the public key that the user was given by `ALTER USER .. SET RSA_PUBLIC_KEY`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use pkcs8::der::pem;
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use serde_json::json;

/// How long a signed login is valid. It is used at once; the rest is for clocks that differ.
const LIFETIME: Duration = Duration::from_secs(600);

/// The DER of `AlgorithmIdentifier { rsaEncryption, NULL }`.
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A user's private key. No `Debug`: it is a secret (I8).
pub(crate) struct KeyPair {
    key: RsaKeyPair,
    /// `SHA256:..` of the public key, as `DESCRIBE USER` shows it.
    fingerprint: String,
}

impl KeyPair {
    /// Reads a key in PEM format: PKCS#8, encrypted PKCS#8, or PKCS#1. The error says what is wrong
    /// with it.
    pub(crate) fn from_pem(text: &str, passphrase: Option<&str>) -> Result<Self, String> {
        // Environment variables often hold the line breaks as `\n`.
        let text = text.replace("\\n", "\n");
        let (label, der) = pem::decode_vec(text.trim().as_bytes())
            .map_err(|_| "is not a private key in PEM format (`-----BEGIN PRIVATE KEY-----`)".to_owned())?;
        let key = match label {
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(&der),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der),
            "ENCRYPTED PRIVATE KEY" => {
                let passphrase = passphrase.ok_or("is encrypted, and `private_key_passphrase` is missing")?;
                RsaKeyPair::from_pkcs8(decrypt(&der, passphrase)?.as_bytes())
            }
            other => return Err(format!("is a `{other}`, not a private key")),
        };
        let key =
            key.map_err(|error| format!("cannot be used: {error}; it must be an RSA key of 2048 bits or more"))?;
        let public_key = public_key_info(key.public_key().as_ref());
        let digest = ring::digest::digest(&ring::digest::SHA256, &public_key);
        Ok(Self { key, fingerprint: format!("SHA256:{}", STANDARD.encode(digest)) })
    }

    /// The fingerprint of the public key.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A signed login token of this user.
    pub(crate) fn token(&self, account: &str, user: &str) -> Result<String, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let subject = format!("{}.{}", account.to_uppercase(), user.to_uppercase());
        let claims = json!({
            "iss": format!("{subject}.{}", self.fingerprint),
            "sub": subject,
            "iat": now.as_secs(),
            "exp": (now + LIFETIME).as_secs(),
        });
        let encode = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&json!({"alg": "RS256", "typ": "JWT"})), encode(&claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| "the login token could not be signed".to_owned())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn decrypt(der: &[u8], passphrase: &str) -> Result<SecretDocument, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        format!(
            "cannot be decrypted ({error}); check `private_key_passphrase`, and encrypt the key with PBES2 (`openssl pkcs8 -topk8 -v2 aes256`)"
        )
    };
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|error| wrong(&error))?;
    encrypted.decrypt(passphrase).map_err(|error| wrong(&error))
}

/// The DER of `SubjectPublicKeyInfo`, whose hash is the fingerprint, around an `RSAPublicKey`.
fn public_key_info(rsa_public_key: &[u8]) -> Vec<u8> {
    let bits = [&[0], rsa_public_key].concat();
    let content = [RSA_ALGORITHM, &der_value(0x03, &bits)].concat();
    der_value(0x30, &content)
}

fn der_value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let mut value = vec![tag];
    if content.len() < 128 {
        value.push(content.len() as u8);
    } else {
        let significant = length.iter().skip_while(|byte| **byte == 0).count();
        value.push(0x80 | significant as u8);
        value.extend(&length[length.len() - significant..]);
    }
    value.extend(content);
    value
}
