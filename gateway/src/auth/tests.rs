//! Every row of bad tokens, and what good ones look like.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

const NOW_S: u64 = 1_700_000_000;
const NOW_MS: u64 = NOW_S * 1000;
const SECRET: [u8; 32] = [7; 32];

fn authenticator(keys: Vec<(&str, KeyAlgorithm, Vec<u8>)>) -> Authenticator {
    let keys = keys.into_iter().map(|(kid, algorithm, bytes)| (kid.to_owned(), algorithm, bytes));
    Authenticator::new(keys, "issuer", "audience", &[9; 32]).unwrap()
}

fn with_secret() -> Authenticator {
    authenticator(vec![("k", KeyAlgorithm::Hs256, URL_SAFE_NO_PAD.encode(SECRET).into_bytes())])
}

fn good_claims() -> Value {
    json!({ "sub": "42", "iss": "issuer", "aud": "audience", "exp": NOW_S + 60 })
}

/// Signs whatever header and claims say, however odd.
fn signed(header: &Value, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn with_claims(claims: &Value) -> String {
    signed(&json!({ "alg": "HS256", "kid": "k" }), &claims.to_string(), &SECRET)
}

fn with_claim(name: &str, value: Value) -> String {
    let mut claims = good_claims();
    claims[name] = value;
    with_claims(&claims)
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
}

#[test]
fn a_good_token_says_who_it_is_and_until_when() {
    let identity = Identity { user: UserId(42), device: None, expires_ms: NOW_MS + 60_000 };
    assert_eq!(with_secret().token(&with_claims(&good_claims()), NOW_MS), Ok(identity));
    for device in [json!("7"), json!(7)] {
        let device = with_secret().token(&with_claim("device", device), NOW_MS).unwrap().device;
        assert_eq!(device, Some(DeviceId(7)));
    }
    let audiences = with_claim("aud", json!(["other", "audience"]));
    assert!(with_secret().token(&audiences, NOW_MS).is_ok());
    let escaped = r#"{"sub":"4\u0032","iss":"iss\u0075er","aud":["\u0061udience"],"exp":1700000060}"#;
    assert_eq!(with_secret().token(&signed(&json!({ "alg": "HS256" }), escaped, &SECRET), NOW_MS), Ok(identity));
    // Only one key: its tokens need not name it.
    let nameless = signed(&json!({ "alg": "HS256" }), &good_claims().to_string(), &SECRET);
    assert!(with_secret().token(&nameless, NOW_MS).is_ok());
}

#[test]
fn our_own_tokens_are_accepted_by_the_dev_key() {
    let data = tempfile::tempdir().unwrap();
    let flags = [("storage.data", data.path().display().to_string())];
    let authenticator = Authenticator::for_dev(&Config::load(None, [], &flags).unwrap()).unwrap();
    let secret = secret_file(&data.path().join(DEV_KEY_FILE)).unwrap();
    let order = TokenOrder {
        kid: DEV_KID,
        issuer: DEV_ISSUER,
        audience: DEV_AUDIENCE,
        user: UserId(u64::MAX),
        device: Some(DeviceId(3)),
        now_s: NOW_S,
        ttl_s: 60,
    };
    let identity = authenticator.token(&sign(&secret, &order), NOW_MS).unwrap();
    assert_eq!((identity.user, identity.device), (UserId(u64::MAX), Some(DeviceId(3))));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(data.path().join(DEV_KEY_FILE)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // The key stays: a second start accepts the tokens of the first.
    assert_eq!(secret_file(&data.path().join(DEV_KEY_FILE)).unwrap(), secret);
}

#[test]
fn every_asymmetric_algorithm_works_with_its_own_key_and_no_other() {
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let public = |der: &[u8]| pem("PUBLIC KEY", der);
    let ec_public = public(AsDer::<PublicKeyX509Der<'_>>::as_der(ec.public_key()).unwrap().as_ref());
    let ed_public = public(AsDer::<PublicKeyX509Der<'_>>::as_der(ed.public_key()).unwrap().as_ref());
    let rsa_public = public(AsDer::<PublicKeyX509Der<'_>>::as_der(rsa.public_key()).unwrap().as_ref());
    let authenticator = authenticator(vec![
        ("ec", KeyAlgorithm::Es256, ec_public.clone()),
        ("ed", KeyAlgorithm::EdDsa, ed_public),
        ("rsa", KeyAlgorithm::Rs256, rsa_public.clone()),
    ]);
    let private = |der: &[u8]| pem("PRIVATE KEY", der);
    let ec_private = private(ec.to_pkcs8v1().unwrap().as_ref());
    let ed_private = private(AsDer::<Pkcs8V1Der<'_>>::as_der(&ed).unwrap().as_ref());
    let rsa_private = private(AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap().as_ref());
    let keys = [
        ("ec", Algorithm::ES256, EncodingKey::from_ec_pem(&ec_private).unwrap()),
        ("ed", Algorithm::EdDSA, EncodingKey::from_ed_pem(&ed_private).unwrap()),
        ("rsa", Algorithm::RS256, EncodingKey::from_rsa_pem(&rsa_private).unwrap()),
    ];
    for (kid, algorithm, key) in &keys {
        for claimed in ["ec", "ed", "rsa"] {
            let mut header = jsonwebtoken::Header::new(*algorithm);
            header.kid = Some(claimed.to_owned());
            let token = jsonwebtoken::encode(&header, &good_claims(), key).unwrap();
            assert_eq!(authenticator.token(&token, NOW_MS).is_ok(), *kid == claimed, "{kid} as {claimed}");
        }
    }
    // The classic confusion: an HMAC keyed with the public key that everyone knows.
    for (kid, public) in [("ec", ec_public), ("rsa", rsa_public)] {
        let forged = signed(&json!({ "alg": "HS256", "kid": kid }), &good_claims().to_string(), &public);
        assert_eq!(authenticator.token(&forged, NOW_MS), Err(AuthError::Algorithm));
    }
    // Several keys: a token that names none is not tried against each.
    let nameless = signed(&json!({ "alg": "HS256" }), &good_claims().to_string(), &SECRET);
    assert_eq!(authenticator.token(&nameless, NOW_MS), Err(AuthError::UnknownKey));
}

#[test]
fn the_header_cannot_choose_how_a_token_is_checked() {
    let claims = good_claims().to_string();
    let check = |header: Value| with_secret().token(&signed(&header, &claims, &SECRET), NOW_MS);
    for algorithm in ["none", "None", "NONE", "HS1", "", "../HS256"] {
        assert!(check(json!({ "alg": algorithm, "kid": "k" })).is_err(), "{algorithm}");
    }
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(json!({ "alg": "none", "kid": "k" }).to_string()),
        URL_SAFE_NO_PAD.encode(&claims)
    );
    assert!(with_secret().token(&unsigned, NOW_MS).is_err());
    for algorithm in ["HS384", "HS512", "RS256", "ES256", "EdDSA"] {
        assert_eq!(check(json!({ "alg": algorithm, "kid": "k" })), Err(AuthError::Algorithm), "{algorithm}");
    }
    for kid in ["../../dev/null", "k' OR '1'='1", "", "K", "k\0"] {
        assert_eq!(check(json!({ "alg": "HS256", "kid": kid })), Err(AuthError::UnknownKey), "{kid}");
    }
    assert_eq!(check(json!({ "alg": "HS256", "kid": "k", "crit": ["exp"] })), Err(AuthError::Malformed));
    // Keys that a token brings along are not even looked at: the signature must match ours.
    let jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([1_u8; 32]) });
    let header =
        json!({ "alg": "HS256", "kid": "k", "jwk": jwk, "jku": "http://127.0.0.1/keys", "x5u": "http://127.0.0.1/" });
    assert_eq!(with_secret().token(&signed(&header, &claims, &[1; 32]), NOW_MS), Err(AuthError::Signature));
    assert!(check(header).is_ok());
}

#[test]
fn claims_that_are_missing_odd_or_not_ours_are_refused() {
    let check = |token: String| with_secret().token(&token, NOW_MS);
    for missing in ["sub", "iss", "aud", "exp"] {
        let mut claims = good_claims();
        claims.as_object_mut().unwrap().remove(missing);
        assert!(check(with_claims(&claims)).is_err(), "{missing}");
        assert!(check(with_claim(missing, Value::Null)).is_err(), "{missing} null");
    }
    for exp in
        [json!("1700000060"), json!(-1), json!(1e300), json!(u64::MAX), json!(EXPIRY_S_MAX + 1), json!([NOW_S + 60])]
    {
        assert_eq!(check(with_claim("exp", exp.clone())), Err(AuthError::Malformed), "{exp}");
    }
    assert_eq!(check(with_claim("exp", json!(NOW_S - 5))), Err(AuthError::Expired));
    assert!(check(with_claim("exp", json!(NOW_S - 4))).is_ok(), "within the leeway");
    assert_eq!(check(with_claim("nbf", json!(NOW_S + 6))), Err(AuthError::NotYet));
    assert_eq!(check(with_claim("nbf", json!(u64::MAX))), Err(AuthError::NotYet));
    assert!(check(with_claim("nbf", json!(NOW_S + 5))).is_ok(), "within the leeway");
    assert_eq!(check(with_claim("nbf", json!("soon"))), Err(AuthError::Malformed));
    assert_eq!(check(with_claim("iss", json!("other"))), Err(AuthError::Issuer));
    assert_eq!(check(with_claim("iss", json!(["issuer"]))), Err(AuthError::Malformed));
    assert_eq!(check(with_claim("aud", json!("other"))), Err(AuthError::Issuer));
    assert_eq!(check(with_claim("aud", json!([]))), Err(AuthError::Issuer));
    for sub in ["", "alice", "-1", "007", "18446744073709551616", "1 "] {
        assert_eq!(check(with_claim("sub", json!(sub))), Err(AuthError::Subject), "{sub}");
    }
    assert!(check(with_claim("sub", json!(42))).is_err());
    assert_eq!(check(with_claim("device", json!("x"))), Err(AuthError::Subject));
    let twice = r#"{"sub":"1","sub":"2","iss":"issuer","aud":"audience","exp":1700000060}"#;
    assert!(check(signed(&json!({ "alg": "HS256", "kid": "k" }), twice, &SECRET)).is_err());
}

#[test]
fn what_is_not_a_token_is_refused_whatever_its_length() {
    for text in ["", ".", "..", "a.b.c", "a.b", "....", "\u{1f512}.\u{1f512}.\u{1f512}"] {
        assert_eq!(with_secret().token(text, NOW_MS), Err(AuthError::Malformed), "{text}");
    }
    assert_eq!(with_secret().token(&"a".repeat(64 * 1024), NOW_MS), Err(AuthError::TooLong));
    assert_eq!(with_secret().token("eyJhbGciOiJIUzI1NiJ9..", NOW_MS), Err(AuthError::Signature));
    let mut altered = with_claims(&good_claims());
    let last = altered.pop().unwrap();
    altered.push(if last == 'A' { 'E' } else { 'A' });
    assert!(with_secret().token(&altered, NOW_MS).is_err());
    let wrong = signed(&json!({ "alg": "HS256", "kid": "k" }), &good_claims().to_string(), &[8; 32]);
    assert_eq!(with_secret().token(&wrong, NOW_MS), Err(AuthError::Signature));
}

#[test]
fn a_ticket_is_bounded_by_its_token_and_cannot_be_altered() {
    let authenticator = with_secret();
    let ticket = authenticator.issue_ticket(UserId(42), DeviceId(7), NOW_MS + 60_000, NOW_MS);
    assert_eq!(ticket.len(), TICKET_TEXT_BYTES);
    let identity = Identity { user: UserId(42), device: Some(DeviceId(7)), expires_ms: NOW_MS + 60_000 };
    assert_eq!(authenticator.ticket(&ticket, NOW_MS), Ok(identity));
    assert_eq!(authenticator.ticket(&ticket, NOW_MS + 60_000), Err(AuthError::Expired));
    let long = authenticator.issue_ticket(UserId(42), DeviceId(7), u64::MAX, NOW_MS);
    assert_eq!(authenticator.ticket(&long, NOW_MS).unwrap().expires_ms, NOW_MS + 86_400_000);
    let bytes = URL_SAFE_NO_PAD.decode(&ticket).unwrap();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        assert!(authenticator.ticket(&URL_SAFE_NO_PAD.encode(altered), NOW_MS).is_err(), "byte {at}");
    }
    for text in ["", "a", &ticket[1..], &"A".repeat(1 << 16)] {
        assert_eq!(authenticator.ticket(text, NOW_MS), Err(AuthError::Malformed));
    }
    let other = Authenticator::new(
        [("k".to_owned(), KeyAlgorithm::Hs256, URL_SAFE_NO_PAD.encode(SECRET).into_bytes())],
        "issuer",
        "audience",
        &[10; 32],
    );
    assert_eq!(other.unwrap().ticket(&ticket, NOW_MS), Err(AuthError::Signature));
}

#[test]
fn weak_or_absent_keys_are_refused_at_the_start() {
    let short = URL_SAFE_NO_PAD.encode([1_u8; 31]).into_bytes();
    let key = |algorithm, bytes| Authenticator::new([("k".to_owned(), algorithm, bytes)], "i", "a", &[0; 32]);
    assert!(key(KeyAlgorithm::Hs256, short).is_err());
    assert!(key(KeyAlgorithm::Rs256, b"not a key".to_vec()).is_err());
    assert!(Authenticator::new([], "i", "a", &[0; 32]).is_err());
}
