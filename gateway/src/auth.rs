//! Who a client is: JWTs checked against configured keys, and the node's own resume tickets.
//!
//! Nothing in a token chooses how it is checked: `kid` is a map look-up, the algorithm belongs to the
//! key, and header fields that point at other keys (`jku`, `x5u`, `jwk`) are never read. Time comes in
//! as an argument. Why a token was refused is counted, never told to the client, and never logged with
//! the token.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use wire::ids::{DeviceId, UserId};

use crate::config::{Config, KeyAlgorithm, KeyConfig};

/// Longer tokens are refused before anything is computed from them.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// An `exp` beyond the year 9999 is nonsense, not a long life.
const EXPIRY_S_MAX: u64 = 253_402_300_799;
/// The shortest HMAC secret: as long as the digest, as RFC 7518 section 3.2 demands.
const SECRET_BYTES_MIN: usize = 32;
/// `kid` of the key that `ringway dev` makes.
pub const DEV_KID: &str = "dev";
/// `iss` of the tokens that `ringway dev` makes.
pub const DEV_ISSUER: &str = "ringway-dev";
/// `aud` of the tokens that `ringway dev` makes.
pub const DEV_AUDIENCE: &str = "ringway";
/// File of the development key in the data directory: an HS256 secret in base64url.
pub const DEV_KEY_FILE: &str = "dev-key";
/// File of the key that resume tickets are made with, in the data directory.
pub const TICKET_KEY_FILE: &str = "ticket-key";

/// A client that proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The device, if the token or ticket names it.
    pub device: Option<DeviceId>,
    /// When the proof ends: milliseconds since 1970.
    pub expires_ms: u64,
}

/// Why a token or ticket was refused. For counters; clients are only told that it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum AuthError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("longer than allowed")]
    TooLong,
    /// Not a token at all, or a claim that it needs is missing or of the wrong type.
    #[error("malformed")]
    Malformed,
    /// No key has its `kid`.
    #[error("unknown key")]
    UnknownKey,
    /// Signed in another way than its key says.
    #[error("wrong algorithm")]
    Algorithm,
    /// The signature does not match.
    #[error("wrong signature")]
    Signature,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time has not come.
    #[error("not valid yet")]
    NotYet,
    /// From another issuer, or for another audience.
    #[error("wrong issuer or audience")]
    Issuer,
    /// `sub` is not a user, or `device` not a device.
    #[error("no such user or device")]
    Subject,
}

/// Why the keys could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A key file could not be read or written.
    #[error("the key file {path} cannot be used: {error}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        error: String,
    },
    /// There is no key to check tokens with.
    #[error("no token could ever be accepted: add at least one [[auth.keys]] to the configuration")]
    NoKeys,
}

/// Checks signatures in the one way that the key is for.
enum TokenKey {
    /// With what a secret amounts to, computed once.
    Secret(Box<hmac::Key>),
    Public(DecodingKey, Algorithm),
}

impl TokenKey {
    /// Its algorithm as a token's header names it.
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::Public(_, Algorithm::RS256) => "RS256",
            Self::Public(_, Algorithm::ES256) => "ES256",
            Self::Public(_, Algorithm::EdDSA) => "EdDSA",
            Self::Public(_, other) => unreachable!("no key is for {other:?}"),
        }
    }

    fn has_signed(&self, message: &str, signature: &str) -> bool {
        match self {
            Self::Secret(key) => {
                // One byte more, so that a longer signature is one.
                let mut tag = [0; SECRET_TAG_BYTES + 1];
                URL_SAFE_NO_PAD
                    .decode_slice(signature, &mut tag)
                    .is_ok_and(|bytes| hmac::verify(key, message.as_bytes(), &tag[..bytes]).is_ok())
            }
            Self::Public(key, algorithm) => {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, *algorithm) == Ok(true)
            }
        }
    }
}

/// Checks tokens and tickets, and makes tickets. Immutable, so all shards share one.
pub struct Authenticator {
    keys: BTreeMap<String, TokenKey>,
    issuer: String,
    audience: String,
    ticket_key: hmac::Key,
    ticket_ms: u64,
    leeway_ms: u64,
}

/// What a token's header says of how it is signed. The rest of it is not looked at.
#[derive(Deserialize)]
struct TokenHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow, default)]
    kid: Option<Text<'a>>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The claims that matter here. Others are ignored; one that is repeated is an error.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    iss: Cow<'a, str>,
    #[serde(borrow)]
    aud: Audience<'a>,
    #[serde(borrow)]
    sub: Cow<'a, str>,
    exp: u64,
    #[serde(default)]
    nbf: Option<u64>,
    #[serde(default)]
    device: Option<Device>,
}

/// One name, or a list of them (RFC 7519, section 4.1.3).
enum Audience<'a> {
    One(Text<'a>),
    Several(Vec<Text<'a>>),
}

impl Audience<'_> {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one.0 == name,
            Self::Several(several) => several.iter().any(|one| one.0 == name),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Audience<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Audience<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a name or a list of names")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Audience::One(Text(Cow::Borrowed(name))))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Audience::One(Text(Cow::Owned(name.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Self::Value, A::Error> {
                let mut several = Vec::new();
                while let Some(name) = names.next_element()? {
                    several.push(name);
                }
                Ok(Audience::Several(several))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

/// `"7"` as everywhere in the protocol, or `7` as most issuers would write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Device {
    Text(String),
    Number(u32),
}

impl Authenticator {
    /// Keys as configured, for tokens of this issuer and audience.
    pub fn new(
        keys: impl IntoIterator<Item = (String, KeyAlgorithm, Vec<u8>)>,
        issuer: &str,
        audience: &str,
        ticket_secret: &[u8; 32],
    ) -> Result<Self, KeyError> {
        let mut map = BTreeMap::new();
        for (kid, algorithm, bytes) in keys {
            let file = |error: String| KeyError::File { path: format!("of kid `{kid}`"), error };
            let key = token_key(algorithm, &bytes).map_err(file)?;
            map.insert(kid, key);
        }
        if map.is_empty() {
            return Err(KeyError::NoKeys);
        }
        let ticket_key = hmac::Key::new(hmac::HMAC_SHA256, ticket_secret);
        let (issuer, audience) = (issuer.to_owned(), audience.to_owned());
        Ok(Self { keys: map, issuer, audience, ticket_key, ticket_ms: 86_400_000, leeway_ms: 5_000 })
    }

    /// What a configuration says; reads the key files, and makes the ticket key if there is none yet.
    pub fn from_config(config: &Config) -> Result<Self, KeyError> {
        let keys = config.keys.iter().map(read_key).collect::<Result<Vec<_>, _>>()?;
        Self::with_keys(config, keys, &config.auth.issuer, &config.auth.audience)
    }

    /// What `ringway dev` uses: its own key in the data directory, made if there is none yet.
    pub fn for_dev(config: &Config) -> Result<Self, KeyError> {
        let secret = secret_file(&config.storage.data.join(DEV_KEY_FILE))?;
        let text = URL_SAFE_NO_PAD.encode(secret).into_bytes();
        Self::with_keys(config, [(DEV_KID.to_owned(), KeyAlgorithm::Hs256, text)], DEV_ISSUER, DEV_AUDIENCE)
    }

    fn with_keys(
        config: &Config,
        keys: impl IntoIterator<Item = (String, KeyAlgorithm, Vec<u8>)>,
        issuer: &str,
        audience: &str,
    ) -> Result<Self, KeyError> {
        let ticket_secret = secret_file(&config.storage.data.join(TICKET_KEY_FILE))?;
        let mut made = Self::new(keys, issuer, audience, &ticket_secret)?;
        made.ticket_ms = config.auth.ticket_s.get() * 1000;
        made.leeway_ms = config.auth.leeway_s.get() * 1000;
        Ok(made)
    }

    /// By how much clocks may differ.
    pub fn leeway_ms(&self) -> u64 {
        self.leeway_ms
    }

    /// Checks a JWT at `wall_ms` milliseconds since 1970.
    pub fn token(&self, token: &str, wall_ms: u64) -> Result<Identity, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AuthError::Malformed);
        };
        let message = &token[..header.len() + 1 + claims.len()];
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| AuthError::Malformed)?;
        let header: TokenHeader<'_> = serde_json::from_slice(&header).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() {
            // RFC 7515 section 4.1.11: what must be understood and is not, is refused.
            return Err(AuthError::Malformed);
        }
        let key = match &header.kid {
            Some(kid) => self.keys.get(&*kid.0),
            // Small issuers leave `kid` out; with several keys that would mean trying, so it is refused.
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        };
        let key = key.ok_or(AuthError::UnknownKey)?;
        if header.alg != key.algorithm() {
            return Err(AuthError::Algorithm);
        }
        if !key.has_signed(message, signature) {
            return Err(AuthError::Signature);
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| AuthError::Malformed)?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).map_err(|_| AuthError::Malformed)?;
        if claims.iss != self.issuer || !claims.aud.has(&self.audience) {
            return Err(AuthError::Issuer);
        }
        self.check_times(&claims, wall_ms)?;
        let device = match &claims.device {
            None => None,
            Some(Device::Number(number)) => Some(DeviceId(*number)),
            Some(Device::Text(text)) => Some(text.parse().map_err(|_| AuthError::Subject)?),
        };
        let user = claims.sub.parse().map_err(|_| AuthError::Subject)?;
        Ok(Identity { user, device, expires_ms: claims.exp * 1000 })
    }

    fn check_times(&self, claims: &Claims<'_>, wall_ms: u64) -> Result<(), AuthError> {
        if claims.exp > EXPIRY_S_MAX {
            return Err(AuthError::Malformed);
        }
        if claims.exp * 1000 + self.leeway_ms <= wall_ms {
            return Err(AuthError::Expired);
        }
        match claims.nbf {
            Some(nbf) if nbf.saturating_mul(1000) > wall_ms + self.leeway_ms => Err(AuthError::NotYet),
            _ => Ok(()),
        }
    }

    /// A ticket that opens a session of the same user and device again, at the cost of one HMAC.
    ///
    /// ```text
    /// base64url( version 1 | user 8 | device 4 | expiry in ms 8 | HMAC-SHA256 over these: 32 )
    /// ```
    pub fn issue_ticket(&self, user: UserId, device: DeviceId, token_expires_ms: u64, wall_ms: u64) -> String {
        let expires_ms = token_expires_ms.min(wall_ms + self.ticket_ms);
        let mut bytes = [0; TICKET_BYTES];
        bytes[0] = TICKET_VERSION;
        bytes[1..9].copy_from_slice(&user.0.to_be_bytes());
        bytes[9..13].copy_from_slice(&device.0.to_be_bytes());
        bytes[13..21].copy_from_slice(&expires_ms.to_be_bytes());
        let tag = hmac::sign(&self.ticket_key, &bytes[..TICKET_SIGNED_BYTES]);
        bytes[TICKET_SIGNED_BYTES..].copy_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Checks a ticket that [`Self::issue_ticket`] made, on this node or another with the same key.
    pub fn ticket(&self, ticket: &str, wall_ms: u64) -> Result<Identity, AuthError> {
        let mut bytes = [0; TICKET_BYTES];
        if ticket.len() != TICKET_TEXT_BYTES {
            return Err(AuthError::Malformed);
        }
        let written = URL_SAFE_NO_PAD.decode_slice(ticket, &mut bytes).map_err(|_| AuthError::Malformed)?;
        if written != TICKET_BYTES || bytes[0] != TICKET_VERSION {
            return Err(AuthError::Malformed);
        }
        let (signed, tag) = bytes.split_at(TICKET_SIGNED_BYTES);
        hmac::verify(&self.ticket_key, signed, tag).map_err(|_| AuthError::Signature)?;
        let number =
            |range: std::ops::Range<usize>| signed[range].iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        let expires_ms = number(13..21);
        if expires_ms <= wall_ms {
            return Err(AuthError::Expired);
        }
        Ok(Identity { user: UserId(number(1..9)), device: Some(DeviceId(number(9..13) as u32)), expires_ms })
    }
}

/// Bytes of an HMAC-SHA256.
const SECRET_TAG_BYTES: usize = 32;
const TICKET_VERSION: u8 = 1;
const TICKET_SIGNED_BYTES: usize = 21;
const TICKET_BYTES: usize = TICKET_SIGNED_BYTES + SECRET_TAG_BYTES;
const TICKET_TEXT_BYTES: usize = (TICKET_BYTES * 4).div_ceil(3);

/// What is signed into a token of our own.
#[derive(Serialize)]
struct NewClaims<'a> {
    sub: String,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

/// Whom a new token is for, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenOrder<'a> {
    /// The `kid` of the key.
    pub kid: &'a str,
    /// `iss`.
    pub issuer: &'a str,
    /// `aud`.
    pub audience: &'a str,
    /// `sub`.
    pub user: UserId,
    /// `device`.
    pub device: Option<DeviceId>,
    /// When it begins, in seconds since 1970.
    pub now_s: u64,
    /// For how long it is good.
    pub ttl_s: u64,
}

/// Signs a token with an HS256 secret: for `ringway dev`, `ringway token` and tests.
pub fn sign(secret: &[u8], order: &TokenOrder<'_>) -> String {
    let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
    header.kid = Some(order.kid.to_owned());
    let claims = NewClaims {
        sub: order.user.to_string(),
        iss: order.issuer,
        aud: order.audience,
        iat: order.now_s,
        exp: order.now_s.saturating_add(order.ttl_s),
        device: order.device.map(|device| device.to_string()),
    };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).expect("plain claims can be encoded")
}

/// The secret in `path`; made from the system's randomness, readable by its owner only, if there is none.
pub fn secret_file(path: &Path) -> Result<[u8; 32], KeyError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |error: String| KeyError::File { path: path.display().to_string(), error };
    match std::fs::read(path) {
        Ok(text) => {
            let bytes = URL_SAFE_NO_PAD.decode(text.trim_ascii()).map_err(|error| failed(error.to_string()))?;
            bytes.try_into().map_err(|_| failed("it must hold 32 bytes in base64url".to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(|error| failed(error.to_string()))?;
            // Under another name first: a crash in between must not leave half a key behind.
            let temporary = path.with_extension("new");
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)
                .map_err(|error| failed(error.to_string()))?;
            writeln!(file, "{}", URL_SAFE_NO_PAD.encode(secret))
                .and_then(|()| file.sync_all())
                .and_then(|()| std::fs::rename(&temporary, path))
                .map_err(|error| failed(error.to_string()))?;
            Ok(secret)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The bytes of an HS256 secret as key files hold it.
pub fn decode_secret(text: &[u8]) -> Result<Vec<u8>, String> {
    let secret = URL_SAFE_NO_PAD.decode(text.trim_ascii()).map_err(|error| error.to_string())?;
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!("an HS256 secret has at least {SECRET_BYTES_MIN} bytes, this one {}", secret.len()));
    }
    Ok(secret)
}

fn read_key(key: &KeyConfig) -> Result<(String, KeyAlgorithm, Vec<u8>), KeyError> {
    let bytes = std::fs::read(&key.file)
        .map_err(|error| KeyError::File { path: key.file.display().to_string(), error: error.to_string() })?;
    Ok((key.kid.clone(), key.algorithm, bytes))
}

fn token_key(algorithm: KeyAlgorithm, bytes: &[u8]) -> Result<TokenKey, String> {
    let (key, kind) = match algorithm {
        KeyAlgorithm::Hs256 => {
            let secret = decode_secret(bytes)?;
            return Ok(TokenKey::Secret(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret))));
        }
        KeyAlgorithm::Rs256 => (DecodingKey::from_rsa_pem(bytes), Algorithm::RS256),
        KeyAlgorithm::Es256 => (DecodingKey::from_ec_pem(bytes), Algorithm::ES256),
        KeyAlgorithm::EdDsa => (DecodingKey::from_ed_pem(bytes), Algorithm::EdDSA),
    };
    let key = key.map_err(|error| format!("it holds no {} public key in PEM ({error})", algorithm.as_str()))?;
    Ok(TokenKey::Public(key, kind))
}

#[cfg(test)]
mod tests;
