//! Tokens for simulated users, signed with the server's own HS256 key.

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
    #[error("{0} is not a key: it must hold an HS256 secret in base64url")]
    Encoding(String),
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: String,
    device: String,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

impl TokenKey {
    /// The key that `ringway dev` left in its data directory.
    pub fn of_dev(data: &Path) -> Result<Self, KeyError> {
        Self::of_file(&data.join("dev-key"), "dev", "ringway-dev", "ringway")
    }

    /// An HS256 secret, in base64url, that the server's configuration names too.
    pub fn of_file(file: &Path, kid: &str, issuer: &str, audience: &str) -> Result<Self, KeyError> {
        let path = file.display().to_string();
        let text = std::fs::read(file).map_err(|error| KeyError::File { path: path.clone(), error })?;
        let secret = URL_SAFE_NO_PAD.decode(text.trim_ascii()).map_err(|_| KeyError::Encoding(path))?;
        Ok(Self::of_secret(&secret, kid, issuer, audience))
    }

    /// The secret itself.
    pub fn of_secret(secret: &[u8], kid: &str, issuer: &str, audience: &str) -> Self {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid.to_owned());
        let key = EncodingKey::from_secret(secret);
        Self { key, header, issuer: issuer.to_owned(), audience: audience.to_owned() }
    }

    /// A token for a day.
    pub fn token(&self, user: UserId, device: u32) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = Claims {
            sub: user.to_string(),
            device: device.to_string(),
            iss: &self.issuer,
            aud: &self.audience,
            iat: now,
            exp: now + 86_400,
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key).expect("plain claims can be encoded")
    }
}
