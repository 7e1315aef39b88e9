//! The server's part of SCRAM (RFC 5802, RFC 7677), without channel binding.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use super::Users;

/// Kafka's minimum and default.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

const SALT_LENGTH: usize = 16;
const NONCE_LENGTH: usize = 18;

/// The hash function of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScramHash {
    Sha256,
    Sha512,
}

impl ScramHash {
    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }

    fn sign(self, key: &[u8], text: &[u8]) -> hmac::Tag {
        hmac::sign(&hmac::Key::new(self.hmac(), key), text)
    }
}

/// What the server stores of a password.
pub(crate) struct ScramKeys {
    hash: ScramHash,
    salt: [u8; SALT_LENGTH],
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl ScramKeys {
    /// `None` without random numbers.
    pub(super) fn derive(hash: ScramHash, password: &[u8]) -> Option<Self> {
        let mut salt = [0; SALT_LENGTH];
        SystemRandom::new().fill(&mut salt).ok()?;
        Some(Self::with_salt(hash, password, salt))
    }

    fn with_salt(hash: ScramHash, password: &[u8], salt: [u8; SALT_LENGTH]) -> Self {
        let mut salted = vec![0; hash.digest().output_len()];
        pbkdf2::derive(hash.pbkdf2(), ITERATIONS, &salt, password, &mut salted);
        let client_key = hash.sign(&salted, b"Client Key");
        let stored_key = digest::digest(hash.digest(), client_key.as_ref()).as_ref().to_vec();
        let server_key = hash.sign(&salted, b"Server Key").as_ref().to_vec();
        Self { hash, salt, stored_key, server_key }
    }

    pub(super) fn is_password(&self, password: &[u8]) -> bool {
        let other = Self::with_salt(self.hash, password, self.salt);
        is_equal(&self.stored_key, &other.stored_key)
    }
}

/// Compares in a time that does not depend on the contents.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |difference, (left, right)| difference | (left ^ right)) == 0
}

/// An exchange after the client's first message.
pub(crate) struct ScramExchange {
    hash: ScramHash,
    /// The user who logs in.
    pub(crate) user: String,
    /// The header of the client's first message; the last message repeats it.
    header: String,
    nonce: String,
    /// The first messages of both sides, which the signatures cover.
    first_messages: String,
}

impl ScramExchange {
    /// Reads the client's first message. `None`: it is malformed, or the user is unknown. The
    /// second value is the server's answer.
    pub(crate) fn start(hash: ScramHash, users: &Users, message: &[u8]) -> Option<(Self, String)> {
        let mut random = [0; NONCE_LENGTH];
        SystemRandom::new().fill(&mut random).ok()?;
        Self::start_with(hash, users, message, &STANDARD.encode(random))
    }

    fn start_with(hash: ScramHash, users: &Users, message: &[u8], own_nonce: &str) -> Option<(Self, String)> {
        let message = std::str::from_utf8(message).ok()?;
        // `n,,` or `y,,`: no channel binding, and perhaps `a=` with the name to act as.
        let (binding, rest) = message.split_once(',')?;
        let (acting_as, bare) = rest.split_once(',')?;
        if !matches!(binding, "n" | "y") {
            return None;
        }
        let mut attributes = bare.split(',');
        let user = attributes.next()?.strip_prefix("n=")?.replace("=2C", ",").replace("=3D", "=");
        let client_nonce = attributes.next()?.strip_prefix("r=")?;
        // Delegation tokens are not supported.
        let is_token = attributes.any(|attribute| attribute == "tokenauth=true");
        if client_nonce.is_empty() || is_token || !(acting_as.is_empty() || acting_as == format!("a={user}")) {
            return None;
        }
        let keys = users.keys(&user, hash)?;
        let nonce = format!("{client_nonce}{own_nonce}");
        let answer = format!("r={nonce},s={},i={ITERATIONS}", STANDARD.encode(keys.salt));
        let header = format!("{binding},{acting_as},");
        let first_messages = format!("{bare},{answer}");
        Some((Self { hash, user, header, nonce, first_messages }, answer))
    }

    /// Reads the client's last message. `None`: the client does not know the password.
    pub(crate) fn finish(&self, users: &Users, message: &[u8]) -> Option<String> {
        let message = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let binding = STANDARD.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let proof = STANDARD.decode(proof).ok()?;
        let keys = users.keys(&self.user, self.hash)?;
        if binding != self.header.as_bytes() || nonce != self.nonce || proof.len() != keys.stored_key.len() {
            return None;
        }
        let signed = format!("{},{without_proof}", self.first_messages);
        let signature = self.hash.sign(&keys.stored_key, signed.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(proof, sign)| proof ^ sign).collect();
        let proven = digest::digest(self.hash.digest(), &client_key);
        is_equal(proven.as_ref(), &keys.stored_key)
            .then(|| format!("v={}", STANDARD.encode(self.hash.sign(&keys.server_key, signed.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::User;
    use super::*;

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_example_of_the_specification_is_reproduced() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
        let keys = |hash| ScramKeys::with_salt(hash, b"pencil", salt);
        let user = User { sha256: keys(ScramHash::Sha256), sha512: keys(ScramHash::Sha512) };
        let users = Users(Arc::new(BTreeMap::from([("user".to_owned(), user)])));
        let own_nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let (exchange, answer) = ScramExchange::start_with(ScramHash::Sha256, &users, first, own_nonce).unwrap();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        assert_eq!(answer, format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let last = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let confirmed = exchange.finish(&users, last.as_bytes()).unwrap();
        assert_eq!(confirmed, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");

        for false_message in [
            last.replace("p=d", "p=e"),
            last.replace("biws", "eSws"),
            last.replace("k0", "k1"),
            last.replace("p=dHzb", "p="),
            String::new(),
        ] {
            assert!(exchange.finish(&users, false_message.as_bytes()).is_none(), "{false_message}");
        }
        for false_first in
            ["p=tls-unique,,n=user,r=a", "n,,n=other,r=a", "n,a=other,n=user,r=a", "n,,n=user,r=", "n,,r=a"]
        {
            assert!(ScramExchange::start(ScramHash::Sha256, &users, false_first.as_bytes()).is_none(), "{false_first}");
        }
    }
}
