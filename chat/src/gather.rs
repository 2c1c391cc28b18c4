//! Lists of conversations: read a user's memberships, ask each conversation's owner how it looks,
//! answer once.

use storage_seam::{ReadError, Rows, Space, StorageRequest, Ticket, ViewRead};
use wire::ids::ConversationId;
use wire::mail::{self, Address, Letter, Mail, Request};
use wire::protocol::{ErrorCode, OpenResult};

use crate::effects::{Effects, Now};
use crate::pressure::Work;
use crate::users::{GATHER_BIT, Users, refuse_session};

/// Summaries asked for at the same time, per list.
const OUTSTANDING_MAX: usize = 32;
/// How long a list waits for room in a mailbox if no mail comes.
const STUCK_MS: u64 = 5;
/// How often a list is made again because more happened meanwhile than the tail holds.
const RESTARTS_MAX: u32 = 3;

/// What a list is for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    Snapshot {
        window: u32,
        ahead: bool,
    },
    Delta {
        changed: Vec<ConversationId>,
    },
    /// `upto`: the change up to which the list is complete.
    Changes {
        changed: Vec<ConversationId>,
        upto: u64,
    },
    List {
        skip: u32,
        limit: u32,
    },
}

/// A list in the making.
#[derive(Debug)]
pub(crate) struct Gather {
    request: Request,
    purpose: Purpose,
    /// Change counter when it began: what happens later is sent behind the list.
    since: u64,
    /// Conversations not yet asked for.
    remaining: Vec<ConversationId>,
    outstanding: usize,
    /// Letters `Summary` with the time of the last message.
    summaries: Vec<(u64, ConversationId, Vec<u8>)>,
    truncated: bool,
    restarts: u32,
    /// It was refused already, and only waits for what was asked for: its number must not be another's before.
    given_up: bool,
}

impl Users {
    /// Begins a list.
    pub(crate) fn gather<E: Effects>(&mut self, request: Request, purpose: Purpose, fx: &mut E) {
        let opens = matches!(purpose, Purpose::Snapshot { .. } | Purpose::Delta { .. });
        if !opens && self.pressure.sheds(Work::Scan) {
            self.counters.shed_scans += 1;
            return refuse_session(request, ErrorCode::Overloaded, fx);
        }
        let max = self.limits.lists_per_user_max * (1 + u32::from(opens));
        if self.lists.get(&request.user).is_some_and(|&lists| lists >= max) {
            self.counters.lists_refused += 1;
            return refuse_session(request, ErrorCode::Overloaded, fx);
        }
        let remaining = match &purpose {
            Purpose::Delta { changed } | Purpose::Changes { changed, .. } => Some(changed.clone()),
            Purpose::Snapshot { .. } | Purpose::List { .. } => None,
        };
        let since = if let Purpose::Changes { upto, .. } = purpose { upto } else { self.counter() };
        let key = self.begin(Gather {
            request,
            purpose,
            since,
            remaining: remaining.clone().unwrap_or_default(),
            outstanding: 0,
            summaries: Vec::new(),
            truncated: false,
            restarts: 0,
            given_up: false,
        });
        if remaining.is_some() { self.ask(key, fx) } else { self.read_memberships(key, fx) }
    }

    fn begin(&mut self, gather: Gather) -> usize {
        *self.lists.entry(gather.request.user).or_default() += 1;
        self.gathers.insert(gather)
    }

    fn end(&mut self, key: usize) -> Gather {
        let gather = self.gathers.remove(key);
        let lists = self.lists.get_mut(&gather.request.user).expect("counted when it began");
        *lists -= 1;
        if *lists == 0 {
            self.lists.remove(&gather.request.user);
        }
        gather
    }

    fn read_memberships<E: Effects>(&mut self, key: usize, fx: &mut E) {
        let user = self.gathers[key].request.user;
        let read = ViewRead::Range {
            space: Space::Members,
            start: [&user.0.to_be_bytes()[..], &[0; ConversationId::KEY_BYTES]].concat(),
            end: [&user.0.to_be_bytes()[..], &[0xff; ConversationId::KEY_BYTES]].concat(),
            rows_max: self.limits.conversations_per_user_max,
            bytes_max: u32::MAX,
            reverse: false,
        };
        fx.storage(StorageRequest::Read((key as Ticket) << 1 | 1, read));
    }

    /// The memberships have been read.
    pub(crate) fn answered<E: Effects>(&mut self, ticket: Ticket, answer: Result<Rows, ReadError>, fx: &mut E) {
        let key = (ticket >> 1) as usize;
        let request = self.gathers[key].request;
        let rows = match answer {
            Ok(rows) => rows,
            Err(error) => {
                self.counters.read_errors += 1;
                let damaged = matches!(error, ReadError::Damaged(_));
                let code = if damaged { ErrorCode::Damaged } else { ErrorCode::Unavailable };
                return self.give_up(key, code, fx);
            }
        };
        let mut conversations: Vec<_> =
            rows.iter().filter_map(|(key, _)| ConversationId::from_key(key.get(8..)?)).collect();
        conversations.extend(self.new_memberships(request.user));
        conversations.sort_unstable();
        conversations.dedup();
        let max = self.limits.conversations_per_user_max as usize;
        let gather = &mut self.gathers[key];
        gather.truncated = rows.more || conversations.len() > max;
        self.counters.lists_cut += u64::from(gather.truncated);
        conversations.truncate(max);
        gather.remaining = conversations;
        self.ask(key, fx);
    }

    /// Asks for as many summaries as may be outstanding; answers when all are there.
    fn ask<E: Effects>(&mut self, key: usize, fx: &mut E) {
        let gather = &mut self.gathers[key];
        while gather.outstanding < OUTSTANDING_MAX
            && let Some(&conversation) = gather.remaining.last()
        {
            let request = Request { number: GATHER_BIT | key as u32, ..gather.request };
            let mail = Mail::Summarise { request, conversation };
            if !fx.post(&Letter { to: Address::Conversation(conversation), mail, payload: &[] }) {
                self.counters.mailbox_refused += 1;
                self.stuck.push(key);
                return;
            }
            gather.remaining.pop();
            gather.outstanding += 1;
        }
        if gather.outstanding == 0 {
            self.finish(key, fx);
        }
    }

    /// Tries again what a full mailbox had refused.
    pub(crate) fn ask_stuck<E: Effects>(&mut self, now: Now, fx: &mut E) {
        self.stuck_until_ms = now.monotonic_ms + STUCK_MS;
        for key in std::mem::take(&mut self.stuck) {
            if self.gathers.contains(key) && !self.gathers[key].remaining.is_empty() {
                self.ask(key, fx);
            }
        }
    }

    fn gather_of(&mut self, request: Request) -> Option<usize> {
        let key = (request.number & !GATHER_BIT) as usize;
        let ours = self.gathers.get(key).is_some_and(|gather| gather.request.session == request.session);
        ours.then_some(key)
    }

    pub(crate) fn summarised<E: Effects>(&mut self, request: Request, letter: &Letter<'_>, fx: &mut E) {
        let Some(key) = self.gather_of(request) else { return };
        let Mail::Summary { summary, .. } = letter.mail else { unreachable!("matched by the caller") };
        let mut bytes = Vec::with_capacity(letter.payload.len() + 192);
        mail::write(&mut bytes, letter);
        if self.is_over(key) {
            return;
        }
        self.gathers[key].summaries.push((summary.time_ms, summary.conversation, bytes));
        self.ask(key, fx);
    }

    /// One answer less is outstanding. Whether the list had been given up before it came.
    fn is_over(&mut self, key: usize) -> bool {
        let gather = &mut self.gathers[key];
        gather.outstanding -= 1;
        let (given_up, is_last) = (gather.given_up, gather.outstanding == 0);
        if given_up && is_last {
            self.end(key);
        }
        given_up
    }

    pub(crate) fn summary_refused<E: Effects>(&mut self, request: Request, code: ErrorCode, fx: &mut E) {
        let Some(key) = self.gather_of(request) else { return };
        if self.is_over(key) {
            return;
        }
        // No longer a member: left out. Anything else would make the list silently incomplete.
        if code == ErrorCode::NotFound { self.ask(key, fx) } else { self.give_up(key, code, fx) }
    }

    fn give_up<E: Effects>(&mut self, key: usize, code: ErrorCode, fx: &mut E) {
        let gather = &mut self.gathers[key];
        refuse_session(gather.request, code, fx);
        if gather.outstanding == 0 {
            self.end(key);
        } else {
            gather.given_up = true;
            gather.remaining = Vec::new();
            gather.summaries = Vec::new();
        }
    }

    fn finish<E: Effects>(&mut self, key: usize, fx: &mut E) {
        let mut gather = self.end(key);
        gather.summaries.sort_by_key(|&(time_ms, conversation, _)| std::cmp::Reverse((time_ms, conversation)));
        let opens = matches!(gather.purpose, Purpose::Snapshot { .. } | Purpose::Delta { .. });
        if opens && !self.has_tail_after(gather.request.user, gather.since) {
            return self.start_again(gather, fx);
        }
        let (skip, window) = match gather.purpose {
            Purpose::Snapshot { window, .. } => (0, window as usize),
            Purpose::List { skip, limit } => (skip as usize, limit as usize),
            Purpose::Delta { .. } | Purpose::Changes { .. } => (0, usize::MAX),
        };
        // A list that leaves out what is over the limit ends all the same: there is no page behind the last.
        let is_page = matches!(gather.purpose, Purpose::List { .. });
        let more = (gather.truncated && !is_page) || gather.summaries.len() > skip.saturating_add(window);
        let listed: Vec<_> = gather.summaries.into_iter().skip(skip).take(window).map(|(_, _, bytes)| bytes).collect();
        let (count, summaries) = (listed.len(), listed.concat());
        let request = gather.request;
        match gather.purpose {
            Purpose::Snapshot { ahead, .. } => {
                self.opened(request, OpenResult::Snapshot, gather.since, &summaries, more, ahead, fx);
            }
            Purpose::Delta { .. } => {
                self.opened(request, OpenResult::Delta, gather.since, &summaries, more, false, fx);
            }
            Purpose::Changes { .. } | Purpose::List { .. } => {
                let mail = Mail::Listed {
                    request,
                    result: OpenResult::Delta,
                    change: wire::ids::ChangeNumber { counter: gather.since, ..self.now_change() },
                    more,
                    next: (skip + count) as u32,
                    ahead: false,
                };
                fx.post(&Letter { to: Address::Session(request.session), mail, payload: &summaries });
            }
        }
    }

    /// So much happened meanwhile that the tail no longer reaches back to the beginning of the list.
    fn start_again<E: Effects>(&mut self, mut gather: Gather, fx: &mut E) {
        if gather.restarts == RESTARTS_MAX {
            return refuse_session(gather.request, ErrorCode::Overloaded, fx);
        }
        gather.restarts += 1;
        gather.since = self.counter();
        gather.summaries.clear();
        // A delta of before may lack what changed since: list everything.
        if matches!(gather.purpose, Purpose::Delta { .. }) {
            gather.purpose = Purpose::Snapshot { window: 100, ahead: false };
        }
        let key = self.begin(gather);
        self.read_memberships(key, fx);
    }
}
