//! The tables of a scenario. One list gives the types, the defaults and the reference.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::schedule::Arrivals;
use crate::span::Span;

macro_rules! keys {
    ($( $(#[doc = $about:literal])* $Section:ident { $( $(#[doc = $doc:literal])* $name:ident: $ty:ty = $default:expr; )* } )*) => {
        $( $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Section { $( $(#[doc = $doc])* pub $name: $ty, )* }

        impl $Section {
            /// Its keys, and what each is.
            pub const KEYS: &'static [(&'static str, &'static str)] = &[$((stringify!($name), concat!($($doc),*)),)*];
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $( $name: $default, )* }
            }
        } )*
    };
}

/// Whether a PROXY header goes ahead of everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    #[default]
    None,
    V1,
    V2,
}

/// Who writes to whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Anybody to anybody whom he knows.
    #[default]
    Uniform,
    /// A few conversations have most of the messages.
    Hot,
    /// Every user gets one message in each round.
    Permutation,
}

keys! {
    /// Where to.
    ServerKeys {
        /// `ws://` or `wss://`, host, port and, if it is not `/ws`, the path.
        url: String = "ws://127.0.0.1:8800".to_owned();
        /// Connect there, whatever the name in `url` means: an address with a port.
        address: Option<SocketAddr> = None;
        /// The name that the certificate must have, and that is asked for (SNI), if it is another than in `url`.
        server_name: Option<String> = None;
        /// With `xmpp`: the domain that the users are of; the host in `url` if none is named.
        domain: Option<String> = None;
        /// A file of certificates in PEM of those who may have signed the server's; the system's otherwise.
        ca: Option<PathBuf> = None;
        /// Send a PROXY header first: `none`, `v1` or `v2`.
        proxy: Proxy = Proxy::None;
        /// Addresses of this machine to connect from, in turn. On loopback there is one for each 10,000 sessions.
        sources: Vec<std::net::IpAddr> = Vec::new();
        /// The server's process, where it is on this machine: its processor time is counted.
        pid: Option<u32> = None;
        /// Where the server's metrics are, as text for Prometheus.
        metrics: Option<String> = None;
    }

    /// Who the users are to the server.
    CredentialKeys {
        /// Data directory of a `ringway dev` server: its key signs.
        data: Option<PathBuf> = None;
        /// A file with a key: an HS256 secret in base64url, or a private key in PEM for RS256, ES256 or EdDSA.
        jwt_key: Option<PathBuf> = None;
        /// Name of the key in `jwt_key`.
        kid: String = "dev".to_owned();
        /// Issuer that the server expects with `jwt_key`.
        issuer: String = "ringway-dev".to_owned();
        /// Audience that the server expects with `jwt_key`.
        audience: String = "ringway".to_owned();
        /// A file of tokens, one a line, as many as there are users.
        tokens: Option<PathBuf> = None;
        /// A command that prints tokens, one a line; it reads the users' numbers, one a line.
        command: Option<String> = None;
        /// With `xmpp`: the password of all users, whose names are their numbers.
        password: String = "secret".to_owned();
    }

    /// Who connects, and how fast.
    Sessions {
        /// How many users; for pairs an even number.
        users: u32 = 100;
        /// Number of the first user; the others follow it.
        first_user: u64 = 1;
        /// How many others each user talks to.
        conversations: u32 = 1;
        /// How fast sessions open.
        connections_per_second: f64 = 5_000.0;
        /// How long to wait for all sessions to open before messages begin anyway.
        ramp: Span = Span::s(60);
        /// Threads, each with rings of its own.
        threads: u32 = 1;
        /// Connections that may be under way at once; more wait their turn, and their time to open counts on.
        under_way: u32 = 1_000_000;
        /// Connections in one table of descriptors; more tables are made as needed.
        table: u32 = 17_000;
        /// Where reconnecting begins to back off; it doubles, with full jitter.
        backoff: Span = Span::s(1);
        /// Where backing off ends.
        backoff_max: Span = Span::s(60);
        /// With several agents: the part of the pairs whose two users are on two agents.
        cross_share: f64 = 0.0;
    }

    /// What is sent.
    Traffic {
        /// Messages per second, over all users.
        rate: f64 = 100.0;
        /// How long messages fall due; what is replayed lasts as long as it did.
        duration: Span = Span::s(10);
        /// `poisson`, as of people who do not know of each other, or `constant`.
        arrivals: Arrivals = Arrivals::Poisson;
        /// Who writes to whom: `uniform`, `hot` or `permutation`.
        pattern: Pattern = Pattern::Uniform;
        /// With `hot`: how many conversations are.
        hot_conversations: u32 = 10;
        /// With `hot`: the part of all messages that they have.
        hot_share: f64 = 0.9;
        /// With `permutation`: within this time every user gets a message, and writes one; `rate` follows from it.
        every: Span = Span::s(10);
        /// Write down there who wrote to whom, and when it was due.
        record: Option<PathBuf> = None;
        /// Send what was recorded there, instead of anything else.
        replay: Option<PathBuf> = None;
        /// Bytes of a message.
        payload_bytes: usize = 128;
        /// Messages in flight per user; more wait, and their latency counts on.
        in_flight: usize = 32;
        /// A message that leaves later than this after it was due counts as `late`.
        send_within: Span = Span::ms(100);
        /// How long to wait for answers at the end.
        drain: Span = Span::s(10);
        /// How long after reading a read mark is sent.
        mark_every: Span = Span::s(1);
        /// Send one acknowledged message in a hundred again: it must keep its seq.
        resend: bool = false;
        /// How long due messages wait for each other, to share a turn.
        tick: Span = Span(std::time::Duration::from_micros(250));
    }

    /// A part of the run, over which the rate goes evenly from one value to another.
    Phase {
        /// What reports call it.
        name: String = String::new();
        /// How long it lasts.
        duration: Span = Span::s(10);
        /// Messages per second at its beginning.
        from: f64 = 0.0;
        /// Messages per second at its end.
        to: f64 = 0.0;
    }

    /// Many are cut at once, and come back.
    Storm {
        /// When, after messages began.
        at: Span = Span::s(5);
        /// How long until the next one.
        every: Span = Span::s(60);
        /// How many there are.
        times: u32 = 1;
        /// The part of the users that is cut, in whole groups; the others are untouched.
        share: f64 = 0.5;
        /// They come back at moments spread over this time; with none all at once.
        jitter: Span = Span::s(0);
    }

    /// Users come and go.
    Churn {
        /// How many leave, per second.
        per_second: f64 = 10.0;
        /// How long each is away.
        away: Span = Span::s(1);
        /// Whether they say so, or are just gone.
        in_order: bool = true;
    }

    /// Some are away for a while, and catch up.
    Offline {
        /// The part of the users that is away.
        share: f64 = 0.25;
        /// From when on, after messages began.
        from: Span = Span::s(2);
        /// Until when.
        until: Span = Span::s(8);
        /// They come back at moments spread over this time.
        jitter: Span = Span::s(1);
    }

    /// Some read slowly.
    SlowReaders {
        /// The part of the users that does; with `sessions.cross_share` only of those who talk on their own agent.
        share: f64 = 0.1;
        /// How fast.
        bytes_per_second: u32 = 1_000;
    }

    /// Whether a breached threshold ends the run.
    Abort {
        /// It does, once the outcome cannot change any more.
        on_breach: bool = false;
        /// Not before so long after messages began.
        grace: Span = Span::s(10);
    }

    /// How `saturate` looks for the highest rate.
    Saturate {
        /// The first rate that is tried.
        from: f64 = 1_000.0;
        /// It tries no higher one.
        to: f64 = 1_000_000.0;
        /// It ends when the highest good and the lowest bad rate are so close: 0.05 is 5 %.
        precision: f64 = 0.05;
        /// How long each rate is tried.
        probe: Span = Span::s(10);
    }
}

impl Sessions {
    /// Users that only talk among themselves: always the same group, and a power of two.
    pub fn block(&self) -> u32 {
        (self.conversations + 1).next_power_of_two()
    }
}
