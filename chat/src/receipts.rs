//! What a client has not acknowledged, and the marks that follow from what it has.
//!
//! A beat acknowledges messages by their number on the connection; each conversation's owner is told by a mark.
//! A mark that finds no room or is refused is kept, and given again with the next beat, until its owner has
//! taken it or a higher one has replaced it. The client hears of none of this: it did its part.

use std::collections::VecDeque;

use wire::ids::ConversationId;

/// Conversations to which a session may owe a mark.
const OWED_MAX: usize = 4_096;

/// What a session has while something is on its way to the client or from its receipts to their owners: lent by
/// the shard, so that an idle session holds nothing and a busy one allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// Messages pushed and not acknowledged, the oldest first; the last is the last that was pushed.
    pub unacknowledged: VecDeque<(ConversationId, u64)>,
    owed: VecDeque<OwedMark>,
}

/// A mark that its conversation's owner has not taken yet.
#[derive(Debug)]
pub(crate) struct OwedMark {
    pub conversation: ConversationId,
    pub delivered: u64,
    /// Number of the request that is on its way with it.
    pub asked: Option<u32>,
}

impl Receipts {
    pub(crate) fn is_empty(&self) -> bool {
        self.unacknowledged.is_empty() && self.owed.is_empty()
    }

    /// All but the last `kept` messages have reached the device. Where nobody has taken marks for very long, the
    /// rest stays unacknowledged until a later beat, and in the end the client is told that it lags.
    pub(crate) fn acknowledge(&mut self, kept: usize) {
        while self.unacknowledged.len() > kept {
            let (conversation, delivered) = self.unacknowledged[0];
            let is_full = self.owed.len() >= OWED_MAX;
            match self.owed.iter_mut().rev().find(|mark| mark.conversation == conversation) {
                Some(mark) if mark.delivered >= delivered => {}
                Some(mark) => (mark.delivered, mark.asked) = (delivered, None),
                None if is_full => return,
                None => self.owed.push_back(OwedMark { conversation, delivered, asked: None }),
            }
            self.unacknowledged.pop_front();
        }
    }

    /// The marks that are to be given, now or again.
    pub(crate) fn due(&mut self) -> impl Iterator<Item = &mut OwedMark> {
        self.owed.iter_mut().filter(|mark| mark.asked.is_none())
    }

    /// The mark of that request has been taken, or never will be.
    pub(crate) fn settled(&mut self, request: u32) {
        if let Some(at) = self.asked(request) {
            self.owed.remove(at);
        }
    }

    /// The mark of that request was refused.
    pub(crate) fn refused(&mut self, request: u32) {
        if let Some(at) = self.asked(request) {
            self.owed[at].asked = None;
        }
    }

    fn asked(&self, request: u32) -> Option<usize> {
        // Answers come nearly in the order of the questions.
        self.owed.iter().position(|mark| mark.asked == Some(request))
    }
}

#[cfg(test)]
mod tests {
    use wire::ids::UserId;

    use super::*;

    #[test]
    fn a_higher_mark_replaces_one_that_is_on_its_way() {
        let id = ConversationId::direct(UserId(1), UserId(2));
        let mut receipts = Receipts { unacknowledged: [(id, 1), (id, 2)].into(), ..Receipts::default() };
        receipts.acknowledge(1);
        receipts.due().for_each(|mark| mark.asked = Some(7));
        receipts.acknowledge(0);
        receipts.settled(7);
        let due: Vec<_> = receipts.due().map(|mark| mark.delivered).collect();
        assert_eq!(due, [2]);
    }

    #[test]
    fn what_is_owed_is_bounded_and_nothing_is_forgotten() {
        let id = |peer: usize| ConversationId::direct(UserId(0), UserId(1 + peer as u64));
        let unacknowledged = (0..=OWED_MAX).map(|peer| (id(peer), 1)).collect();
        let mut receipts = Receipts { unacknowledged, ..Receipts::default() };
        receipts.acknowledge(0);
        assert_eq!(receipts.owed.len(), OWED_MAX);
        assert_eq!(receipts.unacknowledged, [(id(OWED_MAX), 1)]);
        // Of what is owed already, more may be acknowledged.
        receipts.unacknowledged.push_front((id(0), 2));
        receipts.acknowledge(0);
        assert_eq!((receipts.owed[0].delivered, receipts.unacknowledged.len()), (2, 1));
        receipts.due().for_each(|mark| mark.asked = Some(7));
        receipts.settled(7);
        receipts.acknowledge(0);
        assert!(receipts.unacknowledged.is_empty());
        assert_eq!(receipts.due().map(|mark| mark.conversation).collect::<Vec<_>>(), [id(OWED_MAX)]);
    }
}
