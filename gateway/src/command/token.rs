//! `ringway token`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use gateway::auth::{DEV_AUDIENCE, DEV_ISSUER, DEV_KEY_FILE, DEV_KID, TokenOrder, decode_secret, sign};
use gateway::config::KeyAlgorithm;
use wire::ids::{DeviceId, UserId};

use super::{Done, Failure, load_config, print};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Data directory of a `ringway dev` server: signs with its key.
    #[arg(long, value_name = "DIR", conflicts_with = "config", required_unless_present = "config")]
    data: Option<PathBuf>,
    /// Configuration of a `ringway serve` server: signs with its first HS256 key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user: a decimal number below 2^64.
    #[arg(long, value_name = "U")]
    user: UserId,
    /// The device, if the token is to be for one only.
    #[arg(long, value_name = "D")]
    device: Option<DeviceId>,
    /// How long it is good for: a number and s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
}

/// The secret to sign with and what the server expects of tokens signed with it.
struct Signer {
    secret: Vec<u8>,
    kid: String,
    issuer: String,
    audience: String,
}

pub(crate) fn run(arguments: &Arguments) -> Done {
    let signer = match (&arguments.data, &arguments.config) {
        (Some(data), _) => dev_signer(data)?,
        (None, Some(config)) => config_signer(config)?,
        (None, None) => unreachable!("clap demands one of the two"),
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let order = TokenOrder {
        kid: &signer.kid,
        issuer: &signer.issuer,
        audience: &signer.audience,
        user: arguments.user,
        device: arguments.device,
        now_s: now.as_secs(),
        ttl_s: arguments.ttl.as_secs(),
    };
    print(&format!("{}\n", sign(&signer.secret, &order)))
}

fn dev_signer(data: &std::path::Path) -> Result<Signer, Failure> {
    let path = data.join(DEV_KEY_FILE);
    let text = std::fs::read(&path).map_err(|error| {
        Failure(format!(
            "{} cannot be read ({error}): no `ringway dev` server has used this directory yet; start one with \
             `ringway dev --data {}`",
            path.display(),
            data.display()
        ))
    })?;
    Ok(Signer {
        secret: decode_secret(&text).map_err(|error| Failure(format!("{} is no key: {error}", path.display())))?,
        kid: DEV_KID.to_owned(),
        issuer: DEV_ISSUER.to_owned(),
        audience: DEV_AUDIENCE.to_owned(),
    })
}

fn config_signer(file: &std::path::Path) -> Result<Signer, Failure> {
    let config = load_config(file, &[])?;
    let key = config.keys.iter().find(|key| key.algorithm == KeyAlgorithm::Hs256).ok_or_else(|| {
        Failure(format!("{} has no HS256 key to sign with: its tokens come from your own issuer", file.display()))
    })?;
    let text = std::fs::read(&key.file)
        .map_err(|error| Failure(format!("the key file {} cannot be read: {error}", key.file.display())))?;
    Ok(Signer {
        secret: decode_secret(&text).map_err(|error| Failure(format!("{} is no key: {error}", key.file.display())))?,
        kid: key.kid.clone(),
        issuer: config.auth.issuer,
        audience: config.auth.audience,
    })
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || "a whole number and s, m, h or d, like 90s or 30d".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds <= 100 * 365 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_hours(48)));
        for bad in ["", "1", "h", "-1h", "1.5h", "1w", "18446744073709551615d", "1\u{e9}"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
