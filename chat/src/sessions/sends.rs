//! The sends of a session: what it can check alone, and their order across failures (P5).

use wire::close::CloseCode;
use wire::ids::{ClientMessageId, ConversationId, UserId};
use wire::mail::{Address, Fence, Hop, Mail, SendMail};
use wire::protocol::{ClientFrame, ErrorCode, Kind, Send, Target};

use super::{Asked, Phase, SessionKey, Sessions, is_party};
use crate::effects::{Effects, Now};
use crate::held_back::FailedSend;

impl Sessions {
    pub(super) fn send<E: Effects>(&mut self, now: Now, key: SessionKey, send: &Send<'_>, fx: &mut E) {
        let user = self.slab[key.0 as usize].user;
        let conversation = conversation_of(user, send);
        let refused = if send.body.is_empty() {
            Some(ErrorCode::Empty)
        } else if send.body.len() > self.limits.body_bytes_max as usize {
            Some(ErrorCode::TooLarge)
        } else if matches!(send.kind, Kind::System | Kind::Edit | Kind::Delete | Kind::Pin) {
            // Reserved: who may do it needs rules about members that direct conversations do not have.
            Some(ErrorCode::BadRequest)
        } else if !is_party(conversation, user) {
            Some(ErrorCode::NotFound)
        } else {
            None
        };
        if let Some(code) = refused {
            // Of these only a reserved kind is a bad request: what the decoder finds comes with its own path.
            let path = (code == ErrorCode::BadRequest).then_some("$.kind");
            return self.error_at(key, send.id, Some(conversation), code, 0, path, fx);
        }
        let id = send.id.unwrap_or_else(|| self.new_id(now));
        let Some(fence) = self.fence(key, conversation, id, send.skip) else {
            self.counters.sends_held_back += 1;
            return self.error(key, Some(id), Some(conversation), ErrorCode::Retry, 0, fx);
        };
        let request = self.request(key, Asked::Other);
        let mail = SendMail {
            request,
            fence,
            conversation,
            id,
            kind: send.kind,
            reply_to: send.reply_to.unwrap_or(0),
            target_seq: send.target_seq.unwrap_or(0),
        };
        if !self.ask(key, Address::User(user), Mail::Send(mail), send.body.as_bytes(), fx) {
            self.send_failed_here(key, FailedSend { conversation, id, number: request.number, fence }, fx);
        }
    }

    /// A frame that is not even looked at, because too many come. A send is answered like one that failed.
    pub(crate) fn refuse<E: Effects>(
        &mut self,
        now: Now,
        key: SessionKey,
        frame: &ClientFrame<'_>,
        (code, after_ms): (ErrorCode, u32),
        fx: &mut E,
    ) {
        let session = &self.slab[key.0 as usize];
        let conversation = match frame {
            ClientFrame::Send(send) => {
                let conversation = conversation_of(session.user, send);
                let id = send.id.unwrap_or_else(|| self.new_id(now));
                let Some(fence) = self.fence(key, conversation, id, send.skip) else {
                    self.counters.sends_held_back += 1;
                    return self.error(key, Some(id), Some(conversation), ErrorCode::Retry, 0, fx);
                };
                let number = self.slab[key.0 as usize].next_number();
                self.error(key, Some(id), Some(conversation), code, after_ms, fx);
                return self.send_failed_here(key, FailedSend { conversation, id, number, fence }, fx);
            }
            ClientFrame::Mark { conversation, .. } | ClientFrame::Signal { conversation, .. } => Some(*conversation),
            ClientFrame::Pull(pull) => Some(pull.conversation),
            _ => None,
        };
        self.error(key, None, conversation, code, after_ms, fx);
    }

    /// What a send must carry; `None`: it is held back behind a failed one.
    fn fence(
        &mut self,
        key: SessionKey,
        conversation: ConversationId,
        id: ClientMessageId,
        skip: Option<ClientMessageId>,
    ) -> Option<Fence> {
        let session = &mut self.slab[key.0 as usize];
        let number = session.next_number();
        match &mut session.trouble {
            Some(trouble) => trouble.sends.fence(conversation, id, skip, number),
            None => Some(Fence::default()),
        }
    }

    pub(super) fn skip(&mut self, key: SessionKey, conversation: ConversationId, id: ClientMessageId) {
        let session = &mut self.slab[key.0 as usize];
        let number = session.next_number();
        if let Some(trouble) = &mut session.trouble {
            trouble.sends.skip(conversation, id, number);
        }
    }

    /// A send did not leave this shard.
    fn send_failed_here<E: Effects>(&mut self, key: SessionKey, send: FailedSend, fx: &mut E) {
        let session = &mut self.slab[key.0 as usize];
        if session.phase != Phase::Rest {
            session.trouble.get_or_insert_default().sends.failed_here(send);
            self.bound_held_sends(key, fx);
        }
    }

    /// A send was refused on its way, or where it was to go.
    pub(super) fn send_refused<E: Effects>(
        &mut self,
        key: SessionKey,
        send: FailedSend,
        by: Hop,
        code: ErrorCode,
        fx: &mut E,
    ) {
        let session = &mut self.slab[key.0 as usize];
        if session.phase == Phase::Rest {
            return;
        }
        if !code.retryable() {
            return self.send_passed(key, send.conversation, send.number);
        }
        let held = &mut session.trouble.get_or_insert_default().sends;
        // `retry` only says that an earlier one failed, which is known by then.
        if code == ErrorCode::Retry {
            held.held_back(send, by);
        } else {
            held.failed(send, by);
        }
        session.tidy();
        self.bound_held_sends(key, fx);
    }

    /// A send was decided by the conversation's owner: it is past all fences.
    pub(super) fn send_passed(&mut self, key: SessionKey, conversation: ConversationId, number: u32) {
        let session = &mut self.slab[key.0 as usize];
        if let Some(trouble) = &mut session.trouble {
            trouble.sends.passed(conversation, number);
            session.tidy();
        }
    }

    fn bound_held_sends<E: Effects>(&mut self, key: SessionKey, fx: &mut E) {
        let max = self.limits.tracked_per_session_max as usize;
        let session = &mut self.slab[key.0 as usize];
        let Some(trouble) = &mut session.trouble else { return };
        if !trouble.sends.shrink_to(max) {
            self.counters.too_slow += 1;
            fx.close(session.client, CloseCode::Overloaded);
        }
    }

    /// A UUIDv7 for the hand-written form that brings none.
    fn new_id(&mut self, now: Now) -> ClientMessageId {
        let mut id = [0; 16];
        for half in id.chunks_mut(8) {
            // splitmix64
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            half.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes());
        }
        id[..6].copy_from_slice(&now.wall_ms.to_be_bytes()[2..]);
        id[6] = 0x70 | id[6] & 0x0f;
        id[8] = 0x80 | id[8] & 0x3f;
        ClientMessageId(id)
    }
}

fn conversation_of(user: UserId, send: &Send<'_>) -> ConversationId {
    match send.target {
        Target::To(peer) => ConversationId::direct(user, peer),
        Target::Conversation(conversation) => conversation,
    }
}
