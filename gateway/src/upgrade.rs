//! Who may turn a request into a WebSocket, and what the first frame says.

use wire::http::Request;
use wire::protocol::{ErrorCode, ServerFrame};
use wire::upgrade::{SUBPROTOCOL_JSON, Subprotocol, UpgradeError, check_upgrade, write_switching};

use chat::{Effects, Work};
use storage::seam::Class;

use crate::auth::Identity;
use crate::core::Core;
use crate::effects::{BEAT_MS, OFFLINE_MS, error_frame};
use crate::http::Next;
use crate::shard::Shard;
use crate::table::{Resting, Socket, Stage};

impl Shard {
    /// `/ws`.
    pub(crate) fn upgrade(&mut self, index: u32, request: &Request<'_>) -> Next {
        let upgrade = match check_upgrade(request) {
            Ok(upgrade) => upgrade,
            Err(error) => return self.refuse_handshake(index, request, error),
        };
        if self.core.pressure.sheds(Work::Handshake) {
            self.core.counters.shed_handshakes += 1;
            let detail = "The server is refusing new work; connect again later.";
            return self.refuse(index, request, 503, detail, &[("Retry-After", "1")]);
        }
        let subprotocol = match upgrade.subprotocol {
            Subprotocol::Json => Some(SUBPROTOCOL_JSON),
            Subprotocol::NotOffered => None,
            Subprotocol::Unknown => {
                self.core.counters.handshakes_refused += 1;
                let detail = "None of the subprotocols offered is spoken here; ringway.v1.json is.";
                return self.refuse(index, request, 400, detail, &[]);
            }
        };
        if !self.core.origin_allowed(request) {
            self.core.counters.handshakes_refused += 1;
            return self.refuse(index, request, 403, "This origin is not on the list.", &[]);
        }
        let Ok(upgraded_as) = self.core.upgrade_identity(request) else {
            return self.refuse_with(index, request, &error_frame(ErrorCode::Unauthorized, None, None));
        };
        self.core.counters.upgrades += 1;
        write_switching(self.core.queue(index), upgrade.key, subprotocol);
        Next::Switched(Stage::Socket(Socket::new(upgraded_as)))
    }

    /// `/echo`.
    pub(crate) fn upgrade_echo(&mut self, index: u32, request: &Request<'_>) -> Next {
        match check_upgrade(request) {
            Ok(upgrade) => {
                self.core.counters.upgrades += 1;
                write_switching(self.core.queue(index), upgrade.key, None);
                Next::Switched(Stage::Echo(Resting::default()))
            }
            Err(error) => self.refuse_handshake(index, request, error),
        }
    }

    fn refuse_handshake(&mut self, index: u32, request: &Request<'_>, error: UpgradeError) -> Next {
        self.core.counters.handshakes_refused += 1;
        self.refuse(index, request, error.status(), &error.to_string(), error.headers())
    }

    /// A connection has just become a WebSocket: the server speaks first.
    pub(crate) fn greet(&mut self, index: u32) {
        if !matches!(self.core.table.get(index).stage, Stage::Socket(_)) {
            return;
        }
        let node = std::mem::take(&mut self.core.settings.node);
        let hello = ServerFrame::Hello {
            node: &node,
            generation: self.core.facts.generation,
            beat_ms: BEAT_MS,
            offline_ms: OFFLINE_MS as u32,
            class: class_name(self.core.facts.class),
            body_bytes_max: self.core.settings.body_bytes_max as u32,
        };
        let client = self.core.table.client(index);
        self.core.frame(client, &hello);
        self.core.settings.node = node;
        let deadline_ms = self.core.now.monotonic_ms + self.core.settings.idle_ms;
        self.core.set_deadline(index, deadline_ms);
    }
}

impl Core {
    /// Browsers say where their page is from. No cookie carries any right here, so a list is a choice.
    fn origin_allowed(&self, request: &Request<'_>) -> bool {
        let allowed = &self.settings.allowed_origins;
        match request.header("origin") {
            _ if allowed.is_empty() => true,
            Ok(None) => true,
            Ok(Some(origin)) => allowed.iter().any(|known| known == origin),
            Err(_) => false,
        }
    }

    /// Who the upgrade says the client is; nobody yet is fine, somebody who cannot prove it is not.
    fn upgrade_identity(&mut self, request: &Request<'_>) -> Result<Option<Identity>, ()> {
        if request.header_values("authorization").next().is_some() {
            let Ok(Some(token)) = request.bearer() else {
                self.counters.auth_missing += 1;
                return Err(());
            };
            return self.check_token(token).map(Some).ok_or(());
        }
        match request.parameter("token") {
            Ok(None) => Ok(None),
            Ok(Some(token)) if self.settings.token_in_url => self.check_token(&token).map(Some).ok_or(()),
            // Refused and not ignored, so that nobody goes on leaving tokens in logs.
            Ok(Some(_)) | Err(_) => {
                self.counters.auth_token_in_url += 1;
                Err(())
            }
        }
    }

    /// Checks a token, and counts.
    pub(crate) fn check_token(&mut self, token: &str) -> Option<Identity> {
        let checked = self.auth.token(token, self.now.wall_ms);
        match checked {
            Ok(_) => self.counters.tokens_accepted += 1,
            Err(_) => self.counters.auth_tokens_refused += 1,
        }
        checked.ok()
    }

    /// Checks a resume ticket, and counts.
    pub(crate) fn check_ticket(&mut self, ticket: &str) -> Option<Identity> {
        let checked = self.auth.ticket(ticket, self.now.wall_ms);
        match checked {
            Ok(_) => self.counters.tickets_accepted += 1,
            Err(_) => self.counters.auth_tickets_refused += 1,
        }
        checked.ok()
    }
}

/// The class as the protocol names it.
pub(crate) fn class_name(class: Class) -> &'static str {
    match class {
        Class::D1 => "d1",
        Class::D2 => "d2",
    }
}
