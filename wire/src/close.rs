//! Close codes: why a connection ended, and by the number alone what a client does next.

/// What a client does after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterClose {
    /// Connect again, with back-off, and open with the same session: resume ticket and last change number.
    Resume,
    /// Get a new token first, then connect and open with it.
    Afresh,
    /// Stop: connecting again by itself would end the same way.
    Stop,
}

macro_rules! close_codes {
    ($($variant:ident $number:literal $after:ident $reason:literal $doc:literal,)*) => {
        /// Every code that the server closes a connection with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum CloseCode { $(#[doc = $doc] $variant = $number,)* }

        impl CloseCode {
            /// All of them, for the table in docs/protocol.md.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$variant,)*];
            /// The number on the wire.
            pub fn number(self) -> u16 { self as u16 }
            /// The reason text on the wire: short, for logs.
            pub fn reason(self) -> &'static str { match self { $(Self::$variant => $reason,)* } }
            /// One sentence on what it means.
            pub fn meaning(self) -> &'static str { match self { $(Self::$variant => $doc,)* } }
            /// What the client does next.
            pub fn after(self) -> AfterClose { match self { $(Self::$variant => AfterClose::$after,)* } }
        }
    };
}

close_codes! {
    Normal 1000 Stop "bye" "The client closed; the server answers in kind.",
    GoingAway 1001 Resume "going away" "The server is going away.",
    Protocol 1002 Stop "protocol error" "A frame broke RFC 6455.",
    Unsupported 1003 Stop "unsupported data" "A binary frame came where the protocol has text only.",
    BadText 1007 Stop "invalid utf-8" "A text is not UTF-8.",
    TooBig 1009 Stop "too big" "A frame, message or number of fragments is over the limit.",
    Internal 1011 Resume "internal error" "The server met a fault of its own on this connection.",
    Restart 1012 Resume "restart" "The server restarts.",
    Moved 4001 Resume "moved" "The deadline of `move` has passed.",
    TooSlow 4002 Resume "too slow" "The client made no progress reading for 30 s, or lags behind in too many conversations.",
    Idle 4003 Resume "idle" "No frame came from the client for as long as `hello` allows (`offline_ms`).",
    OpenTimeout 4004 Resume "no open" "No `open` came in the time allowed after the upgrade.",
    Flood 4008 Resume "flood" "Too many pings, pongs or frames.",
    Overloaded 4009 Resume "overloaded" "The server sheds load; back off.",
    TokenExpired 4101 Afresh "token expired" "The token expired or was revoked, and no new one came in time.",
    InvalidSession 4102 Afresh "invalid session" "The resume ticket is altered, too old or not this user's.",
    Unauthorized 4103 Afresh "unauthorized" "The first `open` carried no valid credentials.",
    Superseded 4210 Stop "superseded" "A newer connection of the same device took over.",
    TooManySessions 4211 Stop "too many sessions" "The user has as many sessions as allowed.",
}

impl AfterClose {
    /// What a client does after any code, known or not.
    ///
    /// 1006 stands for a connection that ended without a close frame.
    pub fn of(number: u16) -> Self {
        match number {
            1001 | 1006 | 1011..=1014 | 4000..=4099 => Self::Resume,
            4100..=4199 => Self::Afresh,
            _ => Self::Stop,
        }
    }
}

/// Whether RFC 6455, section 7.4, lets `number` appear in a close frame.
pub fn is_allowed_on_the_wire(number: u16) -> bool {
    matches!(number, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_alone_says_what_to_do_next() {
        for code in CloseCode::ALL {
            assert_eq!(AfterClose::of(code.number()), code.after(), "{code:?}");
            assert!(is_allowed_on_the_wire(code.number()), "{code:?}");
            assert!(code.reason().len() <= 123, "{code:?}");
        }
    }

    #[test]
    fn codes_that_never_travel_are_refused() {
        for number in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(!is_allowed_on_the_wire(number), "{number}");
        }
    }
}
