//! The session's part of keeping one sender's order across a failure (P5); the owners' part is in `fence`.
//!
//! After a retryable failure the session lets nothing pass in that conversation until the failed send comes
//! again or is given up, and tells each owner on the way, by the [`Fence`] of what it sends, which failures it
//! knows of. An entry is forgotten when a send that carried its fence has been answered: all in front of that
//! one were answered before, and the owners have forgotten the failures as it passed.

use wire::ids::{ClientMessageId, ConversationId};
use wire::mail::{Fence, Hop};

use crate::sessions::is_before;

/// The sends of one conversation after a failure.
#[derive(Debug, Clone, Copy)]
struct HeldBack {
    conversation: ConversationId,
    /// Failures so far; carried by each send.
    fence: Fence,
    /// The failed send that must come again, or be skipped, before others pass: of those that failed, the
    /// one that was sent first. With the number of its request.
    waits_for: Option<(u32, ClientMessageId)>,
    /// Since nothing is waited for: the request from which on sends carry this fence, and the one that had failed.
    passes_from: u32,
    dealt_with: u32,
}

/// One session's conversations in which a send has failed.
#[derive(Debug, Default)]
pub(crate) struct HeldSends(Vec<HeldBack>);

/// A send that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedSend {
    pub conversation: ConversationId,
    pub id: ClientMessageId,
    /// Number of its request.
    pub number: u32,
    /// What it carried.
    pub fence: Fence,
}

impl HeldSends {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&mut self, conversation: ConversationId) -> Option<&mut HeldBack> {
        self.0.iter_mut().find(|held| held.conversation == conversation)
    }

    fn of_or_new(&mut self, conversation: ConversationId) -> &mut HeldBack {
        let at = self.0.iter().position(|held| held.conversation == conversation).unwrap_or_else(|| {
            let (fence, waits_for) = (Fence::default(), None);
            self.0.push(HeldBack { conversation, fence, waits_for, passes_from: 0, dealt_with: 0 });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// What a send must carry whose request will be `number`; `None`: it is held back behind a failed one.
    pub(crate) fn fence(
        &mut self,
        conversation: ConversationId,
        id: ClientMessageId,
        skip: Option<ClientMessageId>,
        number: u32,
    ) -> Option<Fence> {
        let Some(held) = self.of(conversation) else { return Some(Fence::default()) };
        held.deal_with(number, |failed| failed == id || Some(failed) == skip);
        held.waits_for.is_none().then_some(held.fence)
    }

    /// The client gives a failed send up; the next request will be `number`.
    pub(crate) fn skip(&mut self, conversation: ConversationId, id: ClientMessageId, number: u32) {
        if let Some(held) = self.of(conversation) {
            held.deal_with(number, |failed| failed == id);
        }
    }

    /// A send was refused before it left: no owner has to be told.
    pub(crate) fn failed_here(&mut self, send: FailedSend) {
        let held = self.of_or_new(send.conversation);
        held.fence = send.fence.max(held.fence);
        held.wait_for(send);
    }

    /// A send was refused retryably: what the client sent behind it is held back until it comes again. Its fence
    /// says the number of the failure.
    pub(crate) fn failed(&mut self, mut send: FailedSend, by: Hop) {
        let held = self.of_or_new(send.conversation);
        let is_news = *send.fence.of(by) >= *held.fence.of(by);
        *send.fence.of(by) += 1;
        held.fence = send.fence.max(held.fence);
        // Answers need not come in the order of the sends. One that was sent behind a failed one which the client
        // has dealt with since, before it knew of that, is for the client to put into its place.
        if is_news || held.waits_for.is_some() || is_before(send.number, held.dealt_with) {
            held.wait_for(send);
        }
    }

    /// A send was answered `retry` for a failure of that number, of which it did not know.
    pub(crate) fn held_back(&mut self, mut send: FailedSend, by: Hop) {
        let known = self.of(send.conversation).map_or(0, |held| *held.fence.of(by));
        if known <= *send.fence.of(by) {
            // It was forgotten here, with others that had been given up.
            *send.fence.of(by) += 1;
            let held = self.of_or_new(send.conversation);
            held.fence = send.fence.max(held.fence);
            held.wait_for(send);
        }
    }

    /// A send reached the conversation and was decided.
    pub(crate) fn passed(&mut self, conversation: ConversationId, number: u32) {
        self.0.retain(|held| {
            held.conversation != conversation || held.waits_for.is_some() || is_before(number, held.passes_from)
        });
    }

    /// Forgets what was given up and not followed by anything, down to `max` entries. `false`: there are more.
    pub(crate) fn shrink_to(&mut self, max: usize) -> bool {
        while self.0.len() > max
            && let Some(at) = self.0.iter().position(|held| held.waits_for.is_none())
        {
            self.0.remove(at);
        }
        self.0.len() <= max
    }
}

impl HeldBack {
    /// The failed send comes again as request `number`, or is given up before it.
    fn deal_with(&mut self, number: u32, is_it: impl Fn(ClientMessageId) -> bool) {
        if let Some((failed, _)) = self.waits_for.take_if(|(_, id)| is_it(*id)) {
            (self.passes_from, self.dealt_with) = (number, failed);
        }
    }

    fn wait_for(&mut self, send: FailedSend) {
        if self.waits_for.is_none_or(|(number, _)| is_before(send.number, number)) {
            self.waits_for = Some((send.number, send.id));
        }
    }
}
