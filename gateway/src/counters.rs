//! What a shard counts: for metrics, and for tests that demand that a counter goes up.

use wire::close::CloseCode;
use wire::protocol::ErrorCode;

macro_rules! counters {
    ($($name:ident $doc:literal,)*) => {
        /// Counts of one shard since its start. They only grow.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct ShardCounters {
            $(#[doc = $doc] pub $name: u64,)*
            /// Closes that the server began, by code, in the order of [`CloseCode::ALL`].
            pub closes: [u64; CloseCode::ALL.len()],
            /// Error frames and problem documents, by code, in the order of [`ErrorCode::ALL`].
            pub errors: [u64; ErrorCode::ALL.len()],
            /// Answers over HTTP, by the first digit of their status.
            pub http_statuses: [u64; 6],
        }

        impl Default for ShardCounters {
            fn default() -> Self {
                Self {
                    $($name: 0,)*
                    closes: [0; CloseCode::ALL.len()],
                    errors: [0; ErrorCode::ALL.len()],
                    http_statuses: [0; 6],
                }
            }
        }

        impl ShardCounters {
            /// Name, value and meaning of each plain count.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [$((stringify!($name), self.$name, $doc),)*].into_iter()
            }

            /// Adds another shard's counts.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for (sum, more) in [
                    (&mut self.closes[..], &other.closes[..]),
                    (&mut self.errors[..], &other.errors[..]),
                    (&mut self.http_statuses[..], &other.http_statuses[..]),
                ] {
                    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                }
            }
        }
    };
}

counters! {
    turns "Turns taken.",
    accepted "Connections accepted.",
    ended "Connections that ended, whoever began it.",
    http_requests "HTTP requests read, upgrades included.",
    http_malformed "Requests refused before anything looked at what they ask for.",
    upgrades "Connections upgraded to WebSocket.",
    handshakes_refused "Upgrades refused because of the handshake, its subprotocol or its origin.",
    handshake_timeouts "Connections cut off because a request did not arrive whole in time.",
    idle_timeouts "Connections closed because no request, no `open` or no beat came.",
    request_timeouts "Requests over REST answered `unavailable` because their answer took too long.",
    frames_in "Frames of the client protocol read.",
    frames_bad "Frames and requests answered with an error before the rules saw them.",
    frames_out "Frames of the client protocol written.",
    sends "Sends handed to the ring: merged, so fewer than frames.",
    send_bytes "Bytes handed to the ring.",
    echoes "Messages echoed.",
    pings "Pings answered.",
    pongs "Pongs received.",
    floods "Connections closed because of too many pings, pongs or frames.",
    rate_limited "Frames refused because their client sent too many.",
    shed_handshakes "Handshakes refused because the shard was under pressure.",
    tokens_accepted "Tokens accepted.",
    tickets_accepted "Resume tickets accepted.",
    auth_missing "Requests and `open`s without credentials.",
    auth_tokens_refused "Tokens refused.",
    auth_tickets_refused "Resume tickets refused.",
    auth_wrong_device "`open`s for another device than the token names.",
    auth_token_in_url "Tokens in a URL, where this node does not accept them.",
    tokens_expired "Connections closed because their token ended and no new one came.",
    answers_refused "Pages and lists that a client was refused because it had not taken the last ones.",
    reading_paused "Times that a connection was not read from because too much was waiting for it.",
    stalled "Connections cut off because the peer took nothing of what was sent.",
    overfull "Connections cut off because far too much was waiting for them, or came before they took their answers.",
    isolated_panics "Connections closed because their input made a decoder panic.",
}

impl ShardCounters {
    /// Counts a close that the server begins.
    pub fn close(&mut self, code: CloseCode) {
        let index = CloseCode::ALL.iter().position(|known| *known == code).expect("all codes are listed");
        self.closes[index] += 1;
    }

    /// Counts an error that a client is told.
    pub fn error(&mut self, code: ErrorCode) {
        self.errors[code as usize] += 1;
    }

    /// Counts an answer over HTTP.
    pub fn status(&mut self, status: u16) {
        self.http_statuses[usize::from(status / 100).min(5)] += 1;
    }
}
