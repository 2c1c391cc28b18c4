//! Reads back from a server what it acknowledged, and says what is not there.
//!
//! [`compare`] decides and knows no server; [`verify`] fetches, conversation by conversation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use crate::acks::{self, Ack, AcksError};
use crate::body::Stamp;
use crate::credentials::{Credentials, CredentialsError};
use crate::frames::Heard;
use crate::http::{HttpClient, HttpError};
use crate::random::hash;
use crate::scenario::Scenario;
use crate::target::{Target, TargetError};
use crate::tls::TlsError;

/// A message as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub seq: u64,
    pub from: u64,
    pub body: String,
    /// Only to be seen by its author.
    pub id: Option<String>,
}

/// What was found in all conversations.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Findings {
    pub conversations: u64,
    pub acks: u64,
    pub kept: u64,
    /// Acknowledged, and not there.
    pub missing: u64,
    /// There under its seq is another message than the acknowledged one.
    pub changed: u64,
    /// One message with two seqs, or one seq for two messages.
    pub doubled: u64,
    /// Seqs below the highest for which there is no message.
    pub holes: u64,
    /// Sent and never answered; and those of them that are there, which breaks no promise either way.
    pub unknown: u64,
    pub unknown_kept: u64,
    /// The file's last line is cut, and what it may have said was not checked.
    pub is_cut: bool,
    /// The first few, in words.
    pub examples: Vec<String>,
}

/// Why it could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file.
    #[error(transparent)]
    Acks(#[from] AcksError),
    /// The address.
    #[error(transparent)]
    Url(#[from] TargetError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The tokens.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The server.
    #[error("conversation {conversation} cannot be read back: {error}")]
    Http {
        /// Which.
        conversation: String,
        /// Why.
        error: HttpError,
    },
    /// The server's answer.
    #[error("the page of conversation {conversation} is not what the protocol says: {error}")]
    Page {
        /// Which.
        conversation: String,
        /// Why.
        error: serde_json::Error,
    },
}

impl Findings {
    /// As the process ends: 1 for a broken promise, 2 where there was nothing to check, 4 where something is unknown.
    pub fn code(&self) -> u8 {
        if !self.is_good() {
            1
        } else if self.acks == 0 {
            crate::outcome::COULD_NOT_RUN
        } else if self.unknown > 0 {
            4
        } else {
            0
        }
    }

    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        self.missing + self.changed + self.doubled + self.holes == 0
    }

    fn say(&mut self, words: impl FnOnce() -> String) {
        const EXAMPLES_MAX: usize = 20;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(words());
        }
    }

    fn merge(&mut self, other: Self) {
        self.conversations += other.conversations;
        self.acks += other.acks;
        self.kept += other.kept;
        self.missing += other.missing;
        self.changed += other.changed;
        self.doubled += other.doubled;
        self.holes += other.holes;
        self.unknown += other.unknown;
        self.unknown_kept += other.unknown_kept;
        self.is_cut |= other.is_cut;
        for example in other.examples {
            self.say(|| example);
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for example in &self.examples {
            writeln!(f, "{example}")?;
        }
        write!(
            f,
            "{} acknowledged messages in {} conversations against {} that the server has: {} missing, {} changed, \
             {} doubled, {} holes",
            self.acks, self.conversations, self.kept, self.missing, self.changed, self.doubled, self.holes
        )?;
        f.write_str(match (self.is_good(), self.acks) {
            (false, _) => ".",
            (true, 0) => ". No acknowledged message is in the file: nothing was checked.",
            (true, _) => ". Every acknowledged message is there, once.",
        })?;
        if self.unknown > 0 {
            let Self { unknown, unknown_kept, .. } = self;
            write!(
                f,
                "\n{unknown} messages were sent and never answered: {unknown_kept} of them are there, {} are not, and neither \
                 breaks a promise.",
                unknown - unknown_kept
            )?;
        }
        if self.is_cut {
            f.write_str(
                "\nThe file's last line is cut, as when a run is killed or a disk is full: what it may have said was not checked.",
            )?;
        }
        Ok(())
    }
}

/// Holds one conversation's acknowledged messages against what the server has of it.
pub fn compare(conversation: &str, acks: &[Ack], kept: &[Kept]) -> Findings {
    let mut findings = Findings { conversations: 1, kept: kept.len() as u64, ..Findings::default() };
    let mut by_seq: HashMap<u64, &Kept> = HashMap::with_capacity(kept.len());
    let mut by_id: HashMap<(u64, &str), u64> = HashMap::new();
    let mut by_body: HashMap<(u64, &str), u64> = HashMap::with_capacity(kept.len());
    let mut next = 1;
    for message in kept {
        if message.seq > next {
            findings.holes += message.seq - next;
            findings.say(|| format!("{conversation}: no message from {next} to {}", message.seq - 1));
        }
        next = next.max(message.seq + 1);
        let twice = |earlier: Option<u64>| earlier.filter(|&earlier| earlier != message.seq);
        let id = message.id.as_deref().and_then(|id| by_id.insert((message.from, id), message.seq));
        // Every body that a run writes is different, so that the same one again is the same message.
        let body = Stamp::read(&message.body).and_then(|_| by_body.insert((message.from, &message.body), message.seq));
        let seq = by_seq.insert(message.seq, message).map(|_| message.seq);
        if let Some(earlier) = twice(id).or(twice(body)).or(seq) {
            findings.doubled += 1;
            findings.say(|| format!("{conversation}: the same message at {earlier} and at {}", message.seq));
        }
    }
    let mut acked_seq: HashMap<(u64, u32, &str), u64> = HashMap::with_capacity(acks.len());
    let mut acked_id: HashMap<u64, &str> = HashMap::with_capacity(acks.len());
    let bodies: HashSet<(u64, String)> = if acks.iter().any(Ack::is_unknown) {
        kept.iter().map(|message| (message.from, hash_text(&message.body))).collect()
    } else {
        HashSet::new()
    };
    for ack in acks {
        let Ack { seq, id, sender, .. } = ack;
        if ack.is_unknown() {
            findings.unknown += 1;
            findings.unknown_kept += u64::from(bodies.contains(&(*sender, ack.body.clone())));
            continue;
        }
        match acked_seq.insert((*sender, ack.device, id), *seq) {
            // Acknowledged a second time, as it should be.
            Some(earlier) if earlier == *seq => continue,
            Some(earlier) => {
                findings.doubled += 1;
                findings.say(|| format!("{conversation}: message {id} was acknowledged as {earlier} and as {seq}"));
            }
            None => findings.acks += 1,
        }
        if let Some(other) = acked_id.insert(*seq, id)
            && other != id
        {
            findings.doubled += 1;
            findings.say(|| format!("{conversation}: {seq} was given to message {other} and to message {id}"));
        }
        match by_seq.get(seq) {
            None => {
                findings.missing += 1;
                findings.say(|| format!("{conversation}: message {seq} (id {id}, from {sender}) is missing"));
            }
            Some(message) if message.from != *sender || hash_text(&message.body) != ack.body => {
                findings.changed += 1;
                findings.say(|| format!("{conversation}: message {seq} is not the acknowledged one (id {id})"));
            }
            Some(_) => {}
        }
    }
    findings
}

fn hash_text(body: &str) -> String {
    format!("{:016x}", hash(body.as_bytes()))
}

/// Checks every conversation of the file against the scenario's server.
pub fn verify(
    path: &Path,
    scenario: &Scenario,
    credentials: &Credentials,
    threads: usize,
) -> Result<Findings, VerifyError> {
    let target = Target::of(scenario)?;
    let tls = target.tls(scenario)?;
    let mut conversations: BTreeMap<String, Vec<Ack>> = BTreeMap::new();
    let (acks, is_cut) = acks::read(path)?;
    for ack in acks {
        conversations.entry(ack.conversation.clone()).or_default().push(ack);
    }
    let all: Vec<_> = conversations.into_iter().collect();
    let tokens = credentials.of_users(&all.iter().map(|(_, acks)| acks[0].sender).collect::<Vec<_>>())?;
    let share = all.len().div_ceil(threads.max(1)).max(1);
    let mut findings = Findings { is_cut, ..Findings::default() };
    std::thread::scope(|scope| {
        let check = |part: &[(String, Vec<Ack>)]| -> Result<Findings, VerifyError> {
            let mut client = HttpClient::new(&target, tls.clone());
            let mut findings = Findings::default();
            for (conversation, acks) in part {
                let token = tokens.get(&acks[0].sender).map_or("", String::as_str);
                let kept = fetch(&mut client, token, conversation)?;
                findings.merge(compare(conversation, acks, &kept));
            }
            Ok(findings)
        };
        let workers: Vec<_> = all.chunks(share).map(|part| scope.spawn(move || check(part))).collect();
        for worker in workers {
            findings.merge(worker.join().expect("a reader does not panic")?);
        }
        Ok(findings)
    })
}

/// Reads a conversation from its beginning, as one of its users.
fn fetch(client: &mut HttpClient, token: &str, conversation: &str) -> Result<Vec<Kept>, VerifyError> {
    let mut kept: Vec<Kept> = Vec::new();
    loop {
        let after = kept.last().map_or(0, |message| message.seq);
        let target = format!("/v1/conversations/{conversation}/messages?after={after}&limit=100");
        let failed = |error| VerifyError::Http { conversation: conversation.to_owned(), error };
        let body = match client.get(&target, token) {
            // A conversation that is not there at all: its messages are missing, and that is an answer.
            Err(HttpError::Status { status: 404, .. }) => return Ok(kept),
            answer => answer.map_err(failed)?,
        };
        let text = String::from_utf8_lossy(&body);
        let page =
            Heard::read(&text).map_err(|error| VerifyError::Page { conversation: conversation.to_owned(), error })?;
        kept.extend(page.messages.iter().map(|item| Kept {
            seq: item.seq.0,
            from: item.from.0.parse().unwrap_or(0),
            body: item.body.0.to_string(),
            id: item.id.as_ref().map(|id| id.0.to_string()),
        }));
        // A page that goes nowhere would be asked for for ever.
        if !page.more || kept.last().is_none_or(|message| message.seq <= after) {
            return Ok(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(counter: u32) -> String {
        let mut body = String::new();
        Stamp { run: 7, counter, due_ns: 1_000 }.write(&mut body, 64);
        body
    }

    fn ack(seq: u64, counter: u32) -> Ack {
        Ack {
            conversation: "dm.1.2".to_owned(),
            seq,
            id: format!("id-{counter}"),
            generation: 1,
            time: 1,
            sender: 1,
            device: 1,
            body: format!("{:016x}", hash(body(counter).as_bytes())),
        }
    }

    fn kept(seq: u64, counter: u32) -> Kept {
        Kept { seq, from: 1, body: body(counter), id: Some(format!("id-{counter}")) }
    }

    fn counts(acks: &[Ack], messages: &[Kept]) -> [u64; 4] {
        let findings = compare("dm.1.2", acks, messages);
        assert_eq!(findings.is_good(), findings.examples.is_empty());
        [findings.missing, findings.changed, findings.doubled, findings.holes]
    }

    #[test]
    fn what_is_there_once_is_good_and_more_may_be_there() {
        let messages = [kept(1, 0), kept(2, 1), kept(3, 2)];
        assert_eq!(counts(&[ack(1, 0), ack(2, 1)], &messages), [0; 4]);
        assert_eq!(counts(&[ack(1, 0), ack(1, 0)], &messages), [0; 4]);
        assert_eq!(counts(&[], &[]), [0; 4]);
    }

    #[test]
    fn what_is_not_there_is_missing() {
        assert_eq!(counts(&[ack(1, 0), ack(2, 1)], &[kept(1, 0)]), [1, 0, 0, 0]);
        assert_eq!(counts(&[ack(1, 0)], &[]), [1, 0, 0, 0]);
    }

    #[test]
    fn another_message_under_its_seq_is_a_change() {
        assert_eq!(counts(&[ack(1, 0)], &[kept(1, 9)]), [0, 1, 0, 0]);
        assert_eq!(counts(&[ack(1, 0)], &[Kept { from: 2, ..kept(1, 0) }]), [0, 1, 0, 0]);
    }

    #[test]
    fn one_message_with_two_seqs_is_doubled_however_it_shows() {
        let anonymous = |seq, counter| Kept { id: None, ..kept(seq, counter) };
        assert_eq!(counts(&[], &[kept(1, 0), kept(2, 0)]), [0, 0, 1, 0]);
        assert_eq!(counts(&[], &[anonymous(1, 0), anonymous(2, 0)]), [0, 0, 1, 0]);
        assert_eq!(counts(&[], &[kept(1, 0), kept(1, 1)]), [0, 0, 1, 0]);
        let other_id = Ack { id: "id-1".to_owned(), ..ack(1, 0) };
        assert_eq!(counts(&[ack(1, 0), other_id], &[kept(1, 0)]), [0, 0, 1, 0]);
        assert_eq!(counts(&[ack(1, 0), ack(2, 0)], &[kept(1, 0), anonymous(2, 0)])[2], 2);
    }

    #[test]
    fn what_nobody_answered_is_neither_missing_nor_good() {
        let unknown = |counter| ack(0, counter);
        let findings = compare("dm.1.2", &[ack(1, 0), unknown(1), unknown(2)], &[kept(1, 0), kept(2, 1)]);
        assert_eq!((findings.acks, findings.unknown, findings.unknown_kept), (1, 2, 1));
        assert_eq!((findings.is_good(), findings.code()), (true, 4));
        assert_eq!(compare("dm.1.2", &[], &[kept(1, 0)]).code(), 2);
        assert_eq!(compare("dm.1.2", &[unknown(0)], &[]).code(), 2, "what nobody promised is nothing to check");
        assert_eq!(compare("dm.1.2", &[ack(1, 0)], &[kept(1, 0)]).code(), 0);
        assert_eq!(compare("dm.1.2", &[ack(1, 0), unknown(1)], &[]).code(), 1);
        let cut = Findings { is_cut: true, ..compare("dm.1.2", &[ack(1, 0)], &[kept(1, 0)]) };
        assert!(cut.code() == 0 && cut.to_string().contains("last line is cut"), "it is said, and no error");
    }

    #[test]
    fn a_seq_that_nobody_has_is_a_hole() {
        assert_eq!(counts(&[], &[kept(2, 1), kept(5, 4)]), [0, 0, 0, 3]);
    }
}
