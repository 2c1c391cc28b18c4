//! Receipts: what a beat acknowledges becomes marks, and a client that lags catches up.

use wire::mail::{Address, Letter, Mail, Request};
use wire::protocol::{ErrorCode, ServerFrame};

use super::{Asked, BEAT_BIT, SPARE_MAX, SessionKey, Sessions};
use crate::effects::Effects;
use crate::pressure::Work;
use crate::receipts::Receipts;

impl Sessions {
    /// Cumulative receipt: everything up to `received` has reached the device.
    pub(super) fn beat<E: Effects>(&mut self, key: SessionKey, received: u64, fx: &mut E) {
        let session = &mut self.slab[key.0 as usize];
        if received > session.n {
            self.counters.bad_cursor += 1;
            return self.error(key, None, None, ErrorCode::BadCursor, 0, fx);
        }
        if let Some(mut receipts) = session.receipts.take() {
            let kept = (session.n - received).min(receipts.unacknowledged.len() as u64) as usize;
            receipts.acknowledge(kept);
            self.give_marks(key, &mut receipts, fx);
            self.put_back(key, receipts);
        }
        let client = self.slab[key.0 as usize].client;
        let queued = fx.frame(client, &ServerFrame::Beat { received });
        // With more than that queued, `drained` comes when it has gone: between the two there is no gap.
        if queued <= self.limits.outbound_bytes_max as usize {
            self.drained(key, fx);
        }
    }

    fn give_marks<E: Effects>(&mut self, key: SessionKey, receipts: &mut Receipts, fx: &mut E) {
        if self.pressure.sheds(Work::Receipt) {
            self.counters.shed_receipts += receipts.due().count() as u64;
            return;
        }
        for mark in receipts.due() {
            let request = self.request(key, Asked::Other);
            let request = Request { number: request.number | BEAT_BIT, ..request };
            let mail = Mail::Mark { request, conversation: mark.conversation, delivered: mark.delivered, read: 0 };
            if fx.post(&Letter { to: Address::User(request.user), mail, payload: &[] }) {
                mark.asked = Some(request.number);
            } else {
                self.counters.marks_put_off += 1;
            }
        }
    }

    fn put_back(&mut self, key: SessionKey, receipts: Box<Receipts>) {
        if !receipts.is_empty() {
            self.slab[key.0 as usize].receipts = Some(receipts);
        } else if self.spare.len() < SPARE_MAX {
            self.spare.push(receipts);
        }
    }

    /// A mark that a beat gave has been taken, or never will be.
    pub(super) fn mark_settled(&mut self, key: SessionKey, number: u32) {
        if let Some(mut receipts) = self.slab[key.0 as usize].receipts.take() {
            receipts.settled(number);
            self.put_back(key, receipts);
        }
    }

    /// A mark that a beat gave was refused: it goes with the next beat.
    pub(super) fn mark_refused(&mut self, key: SessionKey, number: u32, code: ErrorCode) {
        if !code.retryable() {
            return self.mark_settled(key, number);
        }
        self.counters.marks_put_off += 1;
        if let Some(receipts) = &mut self.slab[key.0 as usize].receipts {
            receipts.refused(number);
        }
    }

    /// Everything queued for the client has gone. If it has also acknowledged enough, it is told how far it is
    /// behind, and pushes go on.
    pub(crate) fn drained<E: Effects>(&mut self, key: SessionKey, fx: &mut E) {
        let half = self.limits.unacknowledged_max as usize / 2;
        let session = &mut self.slab[key.0 as usize];
        let unacknowledged = session.receipts.as_ref().map_or(0, |receipts| receipts.unacknowledged.len());
        let Some(trouble) = session.trouble.as_mut().filter(|trouble| trouble.lagging) else { return };
        if unacknowledged > half {
            return;
        }
        trouble.lagging = false;
        for (conversation, head, missed_more) in std::mem::take(&mut trouble.behind) {
            if missed_more {
                fx.frame(session.client, &ServerFrame::Lagging { conversation, head });
            }
        }
        session.tidy();
    }
}
