//! The client's part of SCRAM (RFC 5802, RFC 7677), without channel binding.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hmac, pbkdf2};

const NONCE_LENGTH: usize = 24;

/// A broker that asks for fewer iterations would make passwords easy to guess; Kafka stores none
/// with fewer.
const MIN_ITERATIONS: u32 = 4096;

/// More would keep the client busy for long.
const MAX_ITERATIONS: u32 = 1_000_000;

/// The hash function of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum ScramHash {
    Sha1,
    Sha256,
    Sha512,
}

impl ScramHash {
    pub(in crate::kafka::wire) fn mechanism(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn algorithms(self) -> (&'static digest::Algorithm, hmac::Algorithm, pbkdf2::Algorithm) {
        match self {
            Self::Sha1 => {
                (&digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, pbkdf2::PBKDF2_HMAC_SHA1)
            }
            Self::Sha256 => (&digest::SHA256, hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
            Self::Sha512 => (&digest::SHA512, hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
        }
    }
}

/// An exchange. Errors have no value of a secret.
pub(in crate::kafka::wire) struct ScramClient {
    hash: ScramHash,
    nonce: String,
    /// The first message without its header.
    bare: String,
}

/// What the broker must answer at last, because it knows the password too.
pub(in crate::kafka::wire) struct ServerSignature {
    key: hmac::Key,
    signed: String,
}

impl ScramClient {
    /// Fails if the system provides no random numbers.
    pub(in crate::kafka::wire) fn new(hash: ScramHash, user: &str) -> Result<Self, String> {
        let mut random = [0; NONCE_LENGTH];
        SystemRandom::new().fill(&mut random).map_err(|_| "the system provides no random numbers".to_owned())?;
        Ok(Self::with_nonce(hash, user, STANDARD.encode(random)))
    }

    fn with_nonce(hash: ScramHash, user: &str, nonce: String) -> Self {
        let bare = format!("n={},r={nonce}", user.replace('=', "=3D").replace(',', "=2C"));
        Self { hash, nonce, bare }
    }

    pub(in crate::kafka::wire) fn first_message(&self) -> Vec<u8> {
        format!("n,,{}", self.bare).into_bytes()
    }

    /// The last message, which proves that the client knows the password, in answer to the broker's
    /// first message.
    pub(in crate::kafka::wire) fn answer(
        &self,
        password: &str,
        message: &[u8],
    ) -> Result<(Vec<u8>, ServerSignature), String> {
        let message = text(message)?;
        if attribute(message, 'm').is_some() {
            return Err("the broker requires an extension of SCRAM that is not supported".to_owned());
        }
        let missing = |what: &str| format!("the broker's first message has no {what}");
        let nonce = attribute(message, 'r').ok_or_else(|| missing("nonce"))?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err("the broker's nonce does not continue that of the client".to_owned());
        }
        let salt = attribute(message, 's').and_then(|salt| STANDARD.decode(salt).ok());
        let salt = salt.ok_or_else(|| missing("valid salt"))?;
        let iterations = attribute(message, 'i').and_then(|count| count.parse::<NonZeroU32>().ok());
        let iterations = iterations
            .filter(|count| (MIN_ITERATIONS..=MAX_ITERATIONS).contains(&count.get()))
            .ok_or_else(|| missing(&format!("number of iterations from {MIN_ITERATIONS} to {MAX_ITERATIONS}")))?;

        let (digest, hmac, pbkdf2) = self.hash.algorithms();
        let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac, key), text);
        let mut salted = vec![0; digest.output_len()];
        pbkdf2::derive(pbkdf2, iterations, &salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(digest, client_key.as_ref());
        // The header of the first message, in base64, comes first.
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{message},{without_proof}", self.bare);
        let signature = sign(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        let last = format!("{without_proof},p={}", STANDARD.encode(proof));
        let key = hmac::Key::new(hmac, sign(&salted, b"Server Key").as_ref());
        Ok((last.into_bytes(), ServerSignature { key, signed }))
    }
}

impl ServerSignature {
    /// Fails if the broker refuses the login, or does not know the password either.
    pub(in crate::kafka::wire) fn verify(&self, message: &[u8]) -> Result<(), String> {
        let message = text(message)?;
        if let Some(reason) = attribute(message, 'e') {
            return Err(format!("the broker refuses the login: {reason}"));
        }
        let signature = attribute(message, 'v').and_then(|signature| STANDARD.decode(signature).ok());
        let is_right =
            signature.is_some_and(|signature| hmac::verify(&self.key, self.signed.as_bytes(), &signature).is_ok());
        is_right.then_some(()).ok_or_else(|| "the broker does not know the password: its signature is wrong".to_owned())
    }
}

fn text(message: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(message).map_err(|_| "the broker's message is no text".to_owned())
}

fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchanges of RFC 5802, section 5, and RFC 7677, section 3.
    #[test]
    fn the_examples_of_the_specifications_are_reproduced() {
        let cases = [
            (
                ScramHash::Sha1,
                "fyko+d2lbbFgONRv9qkxdawL",
                "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
                "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
                "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            ),
            (
                ScramHash::Sha256,
                "rOprNGfwEbeRWgbNEkqO",
                "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
                "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
        ];
        for (hash, nonce, server_first, last, server_last) in cases {
            let client = ScramClient::with_nonce(hash, "user", nonce.to_owned());
            assert_eq!(client.first_message(), format!("n,,n=user,r={nonce}").into_bytes());
            let (answer, signature) = client.answer("pencil", server_first.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), last);
            signature.verify(server_last.as_bytes()).unwrap();
            for (wrong, expected) in [
                (server_last.replace("v=", "v=AAAA"), "does not know the password"),
                (String::new(), "does not know the password"),
                ("e=other-error".to_owned(), "other-error"),
            ] {
                let problem = signature.verify(wrong.as_bytes()).unwrap_err();
                assert!(problem.contains(expected), "{problem}");
            }
            for (wrong, expected) in [
                (server_first.replace("r=", "r=x"), "nonce"),
                (format!("r={nonce},s=AAAA,i=4096"), "nonce"),
                (server_first.replace("s=", "s=*"), "salt"),
                (server_first.replace("4096", "4095"), "iterations"),
                (server_first.replace("4096", "1000001"), "iterations"),
                (format!("m=x,{server_first}"), "extension"),
            ] {
                let problem = client.answer("pencil", wrong.as_bytes()).err().unwrap();
                assert!(problem.contains(expected) && !problem.contains("pencil"), "{problem}");
            }
        }
    }

    #[test]
    fn names_with_separators_are_escaped() {
        let client = ScramClient::with_nonce(ScramHash::Sha512, "a=b,c", "x".to_owned());
        assert_eq!(client.first_message(), b"n,,n=a=3Db=2Cc,r=x");
        let random = |_| ScramClient::new(ScramHash::Sha512, "a").unwrap().nonce;
        assert_ne!(random(0), random(1));
    }
}
