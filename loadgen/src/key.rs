//! Tokens for simulated users, signed with a key that the server knows: HS256, RS256, ES256 or EdDSA.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use wire::ids::UserId;

/// What tokens are signed with.
#[derive(Clone)]
pub struct TokenKey {
    key: EncodingKey,
    header: Header,
    issuer: String,
    audience: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not there, or not readable.
    #[error(
        "the key {path} cannot be read ({error}): start the server with this data directory first, or name another"
    )]
    File {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Something else is in it.
    #[error(
        "{0} is not a key: it must hold an HS256 secret in base64url, or a private key in PEM (RSA, P-256 or Ed25519)"
    )]
    Encoding(String),
}

/// What is the same for all users comes first: so the tokens begin alike, and that is kept once.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    device: String,
    sub: String,
}

impl TokenKey {
    /// The key that `ringway dev` left in its data directory.
    pub fn of_dev(data: &Path) -> Result<Self, KeyError> {
        Self::of_file(&data.join("dev-key"), "dev", "ringway-dev", "ringway")
    }

    /// A key whose other half, or which itself, the server's configuration names: an HS256 secret in base64url, or a
    /// private key in PEM.
    pub fn of_file(file: &Path, kid: &str, issuer: &str, audience: &str) -> Result<Self, KeyError> {
        let path = file.display().to_string();
        let text = std::fs::read(file).map_err(|error| KeyError::File { path: path.clone(), error })?;
        if text.trim_ascii_start().starts_with(b"-----BEGIN") {
            let (algorithm, key) = of_pem(&text).ok_or(KeyError::Encoding(path))?;
            return Ok(Self::new(algorithm, key, kid, issuer, audience));
        }
        let secret = URL_SAFE_NO_PAD.decode(text.trim_ascii()).map_err(|_| KeyError::Encoding(path))?;
        Ok(Self::of_secret(&secret, kid, issuer, audience))
    }

    /// The secret itself.
    pub fn of_secret(secret: &[u8], kid: &str, issuer: &str, audience: &str) -> Self {
        Self::new(Algorithm::HS256, EncodingKey::from_secret(secret), kid, issuer, audience)
    }

    fn new(algorithm: Algorithm, key: EncodingKey, kid: &str, issuer: &str, audience: &str) -> Self {
        let mut header = Header::new(algorithm);
        header.kid = Some(kid.to_owned());
        Self { key, header, issuer: issuer.to_owned(), audience: audience.to_owned() }
    }

    /// A token for a day.
    pub fn token(&self, user: UserId, device: u32) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            iat: now,
            exp: now + 86_400,
            device: device.to_string(),
            sub: user.to_string(),
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key).expect("plain claims can be encoded")
    }
}

/// A private key says itself what it is for.
fn of_pem(text: &[u8]) -> Option<(Algorithm, EncodingKey)> {
    let rsa = || EncodingKey::from_rsa_pem(text).map(|key| (Algorithm::RS256, key));
    let p256 = || EncodingKey::from_ec_pem(text).map(|key| (Algorithm::ES256, key));
    let ed25519 = || EncodingKey::from_ed_pem(text).map(|key| (Algorithm::EdDSA, key));
    // Reading does not always tell them apart; signing does.
    let signs =
        |(algorithm, key): &(Algorithm, EncodingKey)| jsonwebtoken::encode(&Header::new(*algorithm), &0, key).is_ok();
    let candidates = [rsa().ok(), p256().ok(), ed25519().ok()];
    candidates.into_iter().flatten().find(signs)
}
