//! Who the users are to the server: tokens, all of them there before the clock starts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use wire::ids::UserId;

use crate::key::{KeyError, TokenKey};

/// Where tokens come from.
#[derive(Clone)]
pub enum Credentials {
    /// None are needed.
    None,
    /// Signed here.
    Key(Box<TokenKey>),
    /// A file, one a line.
    File(PathBuf),
    /// What a command prints, one a line; it reads the users' numbers.
    Command(String),
}

impl From<TokenKey> for Credentials {
    fn from(key: TokenKey) -> Self {
        Self::Key(Box::new(key))
    }
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing says who the users are.
    #[error("name the server's key: --data DIR, --jwt-key FILE, --tokens FILE or --token-command COMMAND")]
    Missing,
    /// A file or a command that could not be read.
    #[error("tokens of {place} cannot be read: {error}")]
    Io {
        /// The file or the command.
        place: String,
        /// Why.
        error: std::io::Error,
    },
    /// The command failed.
    #[error("the command `{command}` that should print tokens ended with {status}")]
    Failed {
        /// Which.
        command: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// Fewer than users.
    #[error("{place} has {found} tokens for {wanted} users")]
    TooFew {
        /// The file or the command.
        place: String,
        /// How many there are.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// A token that does not say whose it is.
    #[error("{place}, line {line}: not a JWT whose `sub` is a user's number")]
    Whose {
        /// The file or the command.
        place: String,
        /// Which, from 1.
        line: usize,
    },
    /// Two tokens of one user.
    #[error("{place}, line {line}: user {user} is in line {earlier} already, and each can be simulated once only")]
    Twice {
        /// The file or the command.
        place: String,
        /// Which, from 1.
        line: usize,
        /// Whose.
        user: u64,
        /// The line before, from 1.
        earlier: usize,
    },
}

/// The tokens of all users of this process, in few bytes: what all have in common is kept once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tokens {
    common: String,
    rest: String,
    ends: Vec<u32>,
    /// Users and devices, where tokens say them and nobody could choose.
    owners: Option<Vec<(u64, u32)>>,
}

impl Tokens {
    /// These tokens.
    fn new(tokens: &[String]) -> Self {
        let common = tokens.iter().skip(1).fold(tokens.first().map_or("", String::as_str), |common, token| {
            let same = common.bytes().zip(token.bytes()).take_while(|(a, b)| a == b).count();
            &common[..same]
        });
        let common = common.to_owned();
        let mut ends = Vec::with_capacity(tokens.len());
        let mut rest = String::new();
        for token in tokens {
            rest.push_str(&token[common.len()..]);
            ends.push(rest.len() as u32);
        }
        Self { common, rest, ends, owners: None }
    }

    /// The token of the user at that place; none if there are no tokens.
    pub fn get(&self, place: u32) -> Option<Cow<'_, str>> {
        let place = place as usize;
        let end = *self.ends.get(place)? as usize;
        let start = if place == 0 { 0 } else { self.ends[place - 1] as usize };
        let rest = &self.rest[start..end];
        Some(if self.common.is_empty() { Cow::Borrowed(rest) } else { Cow::Owned(format!("{}{rest}", self.common)) })
    }

    /// Those of the users from that place on.
    #[must_use]
    pub fn part(&self, first_place: u32, users: u32) -> Self {
        let places = first_place..(first_place + users).min(self.ends.len() as u32);
        let tokens: Vec<_> = places.clone().filter_map(|place| Some(self.get(place)?.into_owned())).collect();
        let owners = self.owners.as_ref().map(|owners| owners[places.start as usize..places.end as usize].to_vec());
        Self { owners, ..Self::new(&tokens) }
    }

    /// Whose it is, where the token decides that.
    pub fn owner(&self, place: u32) -> Option<(UserId, u32)> {
        let (user, device) = *self.owners.as_ref()?.get(place as usize)?;
        Some((UserId(user), device))
    }

    /// Who is at that place: whom the token names, or else the one who is so many after the first.
    pub fn user(&self, place: u32, first_user: u64) -> UserId {
        self.owner(place).map_or(UserId(first_user + u64::from(place)), |(user, _)| user)
    }

    /// Bytes that all of them take.
    pub fn bytes(&self) -> usize {
        self.rest.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}

impl Credentials {
    /// The tokens of these users.
    pub fn mint(&self, first_user: u64, users: u32) -> Result<Tokens, CredentialsError> {
        match self {
            Self::None => Ok(Tokens::default()),
            Self::Key(key) => Ok(Tokens::new(&sign(key, first_user, users))),
            Self::File(path) => {
                let place = path.display().to_string();
                let tokens = read_file(path).map_err(|error| CredentialsError::Io { place: place.clone(), error })?;
                owned(tokens, users, &place)
            }
            Self::Command(command) => {
                let numbers = (first_user..first_user + u64::from(users)).collect();
                owned(ask(command, numbers)?, users, &format!("`{command}`"))
            }
        }
    }

    /// The tokens of just these users; of some there may be none.
    pub fn of_users(&self, users: &[u64]) -> Result<HashMap<u64, String>, CredentialsError> {
        let by_owner =
            |tokens: Vec<String>| tokens.into_iter().filter_map(|token| Some((owner_of(&token)?.0, token))).collect();
        match self {
            Self::None => Ok(HashMap::new()),
            Self::Key(key) => Ok(users.iter().map(|&user| (user, key.token(UserId(user), 1))).collect()),
            Self::File(path) => {
                let io = |error| CredentialsError::Io { place: path.display().to_string(), error };
                read_file(path).map(by_owner).map_err(io)
            }
            Self::Command(command) => ask(command, users.to_vec()).map(by_owner),
        }
    }
}

/// Signing takes from two microseconds to most of a millisecond, by algorithm: every core helps.
fn sign(key: &TokenKey, first_user: u64, users: u32) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u32);
    let share = users.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let part = |start: u32| {
            move || {
                (start..users.min(start + share))
                    .map(|n| key.token(UserId(first_user + u64::from(n)), 1))
                    .collect::<Vec<_>>()
            }
        };
        let signers: Vec<_> = (0..users).step_by(share as usize).map(|start| scope.spawn(part(start))).collect();
        signers.into_iter().flat_map(|signer| signer.join().expect("signing does not panic")).collect()
    })
}

fn read_file(path: &Path) -> std::io::Result<Vec<String>> {
    lines(BufReader::new(std::fs::File::open(path)?))
}

fn lines(reader: impl std::io::BufRead) -> std::io::Result<Vec<String>> {
    let lines = reader.lines().map(|line| line.map(|line| line.trim().to_owned()));
    lines.filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty()) || line.is_err()).collect()
}

fn ask(command: &str, users: Vec<u64>) -> Result<Vec<String>, CredentialsError> {
    let io = |error| CredentialsError::Io { place: format!("`{command}`"), error };
    let mut child =
        Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(io)?;
    let mut input = child.stdin.take().expect("it was asked for");
    // Beside the reading, or both would wait for the other once a pipe is full. A command that does not care for the
    // numbers closes its input, and that is no error.
    let writer = std::thread::spawn(move || {
        for user in users {
            if writeln!(input, "{user}").is_err() {
                return;
            }
        }
    });
    let tokens = lines(BufReader::new(child.stdout.take().expect("it was asked for"))).map_err(io)?;
    let status = child.wait().map_err(io)?;
    // What it did not read is nobody's.
    let _ = writer.join();
    if status.success() { Ok(tokens) } else { Err(CredentialsError::Failed { command: command.to_owned(), status }) }
}

/// Tokens that somebody else made say themselves whose they are.
fn owned(mut tokens: Vec<String>, users: u32, place: &str) -> Result<Tokens, CredentialsError> {
    let wanted = users as usize;
    if tokens.len() < wanted {
        return Err(CredentialsError::TooFew { place: place.to_owned(), found: tokens.len(), wanted });
    }
    tokens.truncate(wanted);
    let owner = |(line, token): (usize, &String)| {
        owner_of(token).ok_or(CredentialsError::Whose { place: place.to_owned(), line: line + 1 })
    };
    let owners = tokens.iter().enumerate().map(owner).collect::<Result<Vec<_>, _>>()?;
    let mut lines = HashMap::with_capacity(owners.len());
    for (at, &(user, _)) in owners.iter().enumerate() {
        if let Some(earlier) = lines.insert(user, at + 1) {
            return Err(CredentialsError::Twice { place: place.to_owned(), line: at + 1, user, earlier });
        }
    }
    Ok(Tokens { owners: Some(owners), ..Tokens::new(&tokens) })
}

fn owner_of(token: &str) -> Option<(u64, u32)> {
    #[derive(serde::Deserialize)]
    struct Whose {
        sub: String,
        device: Option<String>,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let whose: Whose = serde_json::from_slice(&claims).ok()?;
    let device = whose.device.map_or(Some(1), |device| device.parse().ok())?;
    Some((whose.sub.parse().ok()?, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went_in() {
        let key = TokenKey::of_secret(b"any secret", "dev", "issuer", "audience");
        let signed: Vec<_> = (0..50).map(|n| key.token(UserId(n), 1)).collect();
        let tokens = Tokens::new(&signed);
        for (place, token) in signed.iter().enumerate() {
            assert_eq!(tokens.get(place as u32).as_deref(), Some(token.as_str()));
        }
        assert_eq!(tokens.get(50), None);
        assert!(tokens.bytes() < signed.iter().map(String::len).sum::<usize>(), "the common part is kept once");
        assert_eq!(Tokens::new(&[]).get(0), None);
        assert_eq!(Tokens::new(&["one".to_owned()]).get(0).as_deref(), Some("one"));
    }

    #[test]
    fn tokens_of_others_say_whose_they_are() {
        let key = TokenKey::of_secret(b"any secret", "dev", "issuer", "audience");
        let line = |user| key.token(UserId(user), 3);
        let tokens = owned(vec![line(70), line(9), line(11)], 2, "f").unwrap();
        assert_eq!(tokens.owner(1), Some((UserId(9), 3)));
        assert!(matches!(owned(vec![line(1)], 2, "f"), Err(CredentialsError::TooFew { found: 1, wanted: 2, .. })));
        assert!(matches!(owned(vec!["x.y.z".to_owned()], 1, "f"), Err(CredentialsError::Whose { line: 1, .. })));
        let twice = owned(vec![line(7), line(8), line(7)], 3, "f").unwrap_err().to_string();
        assert!(twice.contains("line 3") && twice.contains("line 1") && twice.contains("user 7"), "{twice}");
    }

    #[test]
    fn a_command_gets_the_users_and_gives_the_tokens() {
        let tokens = ask("sed s/^/token-/", vec![7, 8, 9]).unwrap();
        assert_eq!(tokens, ["token-7", "token-8", "token-9"]);
        assert!(matches!(ask("exit 3", vec![1]), Err(CredentialsError::Failed { .. })));
        assert_eq!(ask("yes | head -n 100000", (0..100_000).collect()).unwrap().len(), 100_000);
    }
}
