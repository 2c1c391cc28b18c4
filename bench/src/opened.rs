//! T10: what it costs to accept a connection and open a session on it, against a raw probe with the same words.

use clap::Args;
use loadgen::frames;
use loadgen::key::TokenKey;
use wire::ids::UserId;
use wire::upgrade::{SUBPROTOCOL_JSON, UpgradeRequest, write_upgrade_request};
use wire::writer::write_text_with;

use crate::contest::{self, Sample};
use crate::crowd::{Crowd, to_one};
use crate::figures::{Scratch, save};
use crate::loads::opening::{self, Opening, Raw, Step};
use crate::routed::{each_frame, kind};
use crate::server::{Process, Trouble};

/// Bytes of an upgrade with a token, and of `open`.
pub const WORDS: [usize; 2] = [530, 38];
/// Bytes of the upgrade's answer with `hello`, and of `opened` without conversations.
pub const ANSWERS: [usize; 2] = [340, 330];

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Sessions opened in each round, of users who have not been there before.
    #[arg(long, default_value_t = 5_000)]
    pub sessions: u32,
    #[arg(long, default_value_t = 40)]
    pub rounds: u32,
    /// Another build of the server, measured beside this one.
    #[arg(long)]
    pub beside: Option<std::path::PathBuf>,
}

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let count = orders.sessions;
    let scratch = Scratch::new("opened")?;
    let ringway = Process::ringway(&scratch.path, Some(0), &["--shards", "1"])?;
    let key = TokenKey::of_dev(&scratch.path)?;
    let other_scratch = Scratch::new("opened-beside")?;
    let other = orders.beside.as_ref().map(|binary| {
        std::fs::copy(scratch.path.join("dev-key"), other_scratch.path.join("dev-key"))?;
        Process::ringway_of(binary, &other_scratch.path, Some(0), &["--shards", "1"])
    });
    let other = other.transpose()?;
    // The first sessions say how long the words are.
    let mut first = Sessions::mint(&key, 1, 64, &ringway);
    let mut crowd = Crowd::new(64)?;
    opening::open(&ringway, &mut crowd, &to_one(ringway.address), &mut first)?;
    crowd.cut()?;
    let (words, answers) = first.sizes();
    let method = format!(
        "{count} sessions a round, a window of 512 at once, of distinct users with an HS256 token each: accept, upgrade in, 101 and \
         `hello` out, `open` in, `opened` out. `ringway dev --shards 1` on core 0, client on core 1, tokens made before. Processor time \
         of all the server's threads until the last is open, over that of a raw ring that answers words of the same sizes ({words:?} in, \
         {answers:?} out). Cutting them off afterwards is not counted."
    );
    println!("{method}\n");
    let raw = Process::steps(&answers)?;
    let mut next_user = 1_000;
    let names = ["raw ring", "ringway", "beside"];
    let names = &names[..if other.is_some() { 3 } else { 2 }];
    let outcome = contest::run(names, 2, orders.rounds, |side| {
        let mut crowd = Crowd::new(count)?;
        let spent = if side == 0 {
            let mut words = Raw::new(count, words, answers);
            opening::open(&raw, &mut crowd, &to_one(raw.address), &mut words)?
        } else {
            let server = if side == 1 { &ringway } else { other.as_ref().expect("a third side") };
            let mut sessions = Sessions::mint(&key, next_user, count, server);
            next_user += u64::from(count);
            opening::open(server, &mut crowd, &to_one(server.address), &mut sessions)?
        };
        crowd.cut()?;
        Ok(Sample::of(&spent, u64::from(count)))
    })?;
    outcome.show("raw ring");
    let mut result = outcome.to_json(&["raw ring"]);
    result["sessions"] = count.into();
    result["must"] = 1.5.into();
    println!("{}", save("opened", &method, "cargo run --release -p bench -- opened", result)?.display());
    Ok(())
}

impl Process {
    /// A raw ring that answers the first word and the second.
    pub fn steps(answers: &[usize; 2]) -> Result<Self, Trouble> {
        let sizes = format!("{},{}", answers[0], answers[1]);
        Self::raw(&["--serve", "steps", "--sizes", &sizes, "--slots", "18900"])
    }
}

/// Sessions of Ringway that are to be opened: their tokens, and how far they are.
pub struct Sessions {
    host: String,
    tokens: Vec<String>,
    heard: Vec<Vec<u8>>,
    words: [usize; 2],
    answers: [usize; 2],
}

impl Sessions {
    /// One for each of the users from `first_user` on.
    pub fn mint(key: &TokenKey, first_user: u64, count: u32, server: &Process) -> Self {
        let tokens = (0..u64::from(count)).map(|who| key.token(UserId(first_user + who), 1)).collect();
        let heard = vec![Vec::new(); count as usize];
        Self { host: server.address.to_string(), tokens, heard, words: [0; 2], answers: [0; 2] }
    }

    /// How long words and answers were, the last time.
    pub fn sizes(&self) -> ([usize; 2], [usize; 2]) {
        (self.words, self.answers)
    }
}

impl Opening for Sessions {
    fn first(&mut self, who: u32, out: &mut Vec<u8>) {
        let mut nonce = *b"an opening nonce";
        nonce[..4].copy_from_slice(&who.to_le_bytes());
        let bearer = Some(&*self.tokens[who as usize]);
        let (host, subprotocol) = (&*self.host, Some(SUBPROTOCOL_JSON));
        write_upgrade_request(out, &UpgradeRequest { host, target: "/ws", nonce, subprotocol, bearer });
        self.words[0] = out.len();
    }

    fn heard(&mut self, who: u32, bytes: &[u8]) -> Result<Step, Trouble> {
        let heard = &mut self.heard[who as usize];
        heard.extend_from_slice(bytes);
        let Some(end) = heard.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(Step::Waits) };
        if !heard.starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(heard).into_owned().into());
        }
        let (mut step, mut unexpected) = (Step::Waits, None);
        each_frame(&mut Vec::new(), &heard[end + 4..], |text| {
            match kind(text) {
                b"hello" => step = Step::SaysSecond,
                b"opened" => step = Step::IsOpen,
                _ => unexpected = Some(String::from_utf8_lossy(text).into_owned()),
            }
            Ok(false)
        })?;
        if let Some(unexpected) = unexpected {
            return Err(unexpected.into());
        }
        match step {
            Step::SaysSecond => self.answers[0] = heard.len(),
            Step::IsOpen => {
                self.answers[1] = heard.len() - self.answers[0];
                *heard = Vec::new();
            }
            Step::Waits => {}
        }
        Ok(step)
    }

    fn second(&mut self, _: u32, out: &mut Vec<u8>) {
        write_text_with(out, Some([1, 2, 3, 4]), |out| frames::open(out, 1, None, 1));
        self.words[1] = out.len();
    }
}
