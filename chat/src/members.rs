//! Memberships that the views may lack, so that they can be told again when the news of them was lost.
//!
//! A list is made from the view of memberships and from what the user's owner was told since. When so many
//! events were lost that not even whose they were is known ([`Mail::DirtyAll`]), the owner asks for the second
//! part again, piece by piece: one letter is on its way at a time, so that this finds room whenever mail does.

use std::collections::VecDeque;

use shard_router::SlotMap;
use wire::ids::{ConversationId, UserId};
use wire::mail::{Address, Letter, Mail};

use crate::effects::Effects;
use crate::overlay::Overlay;

/// Memberships in one letter.
const PIECE_MAX: usize = 256;
const ENTRY_BYTES: usize = 8 + ConversationId::KEY_BYTES;

/// The memberships that were written since the last checkpoints, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct NewMembers {
    /// With the generation of the overlay that holds the row.
    new: VecDeque<(u32, UserId, ConversationId)>,
    /// How many were forgotten: the number of the first that is kept.
    first: u64,
}

impl NewMembers {
    pub(crate) fn add(&mut self, generation: u32, user: UserId, conversation: ConversationId) {
        self.new.push_back((generation, user, conversation));
    }

    /// A checkpoint is durable: the views have what it held.
    pub(crate) fn done(&mut self, overlay: &Overlay) {
        while self.new.pop_front_if(|(generation, ..)| overlay.is_done(*generation)).is_some() {
            self.first += 1;
        }
    }

    /// Answers shard `to` with those of its users, from number `from` on.
    pub(crate) fn tell<E: Effects>(&self, slots: &SlotMap, (own, to): (u16, u16), from: u64, fx: &mut E) {
        let mut piece = Vec::new();
        let mut next = from.max(self.first);
        for (_, user, conversation) in self.new.iter().skip((next - self.first) as usize) {
            if piece.len() >= PIECE_MAX * ENTRY_BYTES {
                break;
            }
            next += 1;
            if slots.shard_of(Address::User(*user)) == to {
                piece.extend_from_slice(&user.0.to_be_bytes());
                piece.extend_from_slice(&conversation.key());
            }
        }
        if !piece.is_empty() {
            let mail = Mail::NewMembers { from: own, next };
            fx.post(&Letter { to: Address::Shard(to), mail, payload: &piece });
        }
    }
}

/// The memberships in a letter.
pub(crate) fn read(payload: &[u8]) -> impl Iterator<Item = (UserId, ConversationId)> {
    payload.chunks_exact(ENTRY_BYTES).map(|entry| {
        let (user, conversation) = entry.split_first_chunk().expect("whole entries");
        let conversation = ConversationId::from_key(conversation).expect("written by a shard of this process");
        (UserId(u64::from_be_bytes(*user)), conversation)
    })
}
