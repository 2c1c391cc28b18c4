//! Slots: the 4,096 parts of the hash space, and which node and shard serve each.
//!
//! The hash is called **ringway-slot-1** and never changes: a slot's number is part of what is on disk.
//! It is written out here in full so that no library can change it:
//!
//! ```text
//! mix(z):    z ^= z >> 30;  z *= 0xbf58476d1ce4e5b9      (wrapping; the finaliser of splitmix64)
//!            z ^= z >> 27;  z *= 0x94d049bb133111eb
//!            z ^= z >> 31
//! absorb(h, w) = mix((h ^ w) + 0x9e3779b97f4a7c15)       (wrapping)
//!
//! user u:                  absorb("rw-user1", u)
//! direct of low and high:  absorb(absorb(absorb("rw-conv1", 0), low), high)
//! group g:                 absorb(absorb(absorb("rw-conv1", 1), g), 0)
//! slot = the top 12 bits
//! ```
//!
//! The two starting values are those eight ASCII letters, read as a big-endian number.

use wire::ids::{ConversationId, UserId};
use wire::mail::Address;

/// How many slots there are.
pub const SLOTS: usize = 4_096;

/// One part of the hash space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of that number, unless it is out of range.
    pub fn new(number: u16) -> Option<Self> {
        (usize::from(number) < SLOTS).then_some(Self(number))
    }

    /// Its number, below [`SLOTS`].
    pub fn number(self) -> u16 {
        self.0
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u16).map(Self)
    }
}

/// The slot that a user's sessions, changes and inbox belong to.
pub fn slot_of_user(user: UserId) -> Slot {
    top_bits(absorb(u64::from_be_bytes(*b"rw-user1"), user.0))
}

/// The slot that sequences a conversation.
pub fn slot_of_conversation(conversation: ConversationId) -> Slot {
    let (tag, first, second) = match conversation {
        ConversationId::Direct(low, high) => (0, low.0, high.0),
        ConversationId::Group(group) => (1, group, 0),
    };
    let start = u64::from_be_bytes(*b"rw-conv1");
    top_bits([tag, first, second].into_iter().fold(start, absorb))
}

fn absorb(hash: u64, word: u64) -> u64 {
    let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn top_bits(hash: u64) -> Slot {
    Slot((hash >> 52) as u16)
}

/// Who serves a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotOwner {
    /// The node.
    pub node: u16,
    /// Grows with each change of owner; storage refuses whoever comes with a lower one.
    pub epoch: u64,
}

/// Where every slot is served, seen from one node.
#[derive(Debug, Clone)]
pub struct SlotMap {
    shards: u16,
    owners: Box<[SlotOwner]>,
    /// [`ELSEWHERE`] for the slots of other nodes: small, as each letter looks here.
    shard_of_slot: Box<[u16]>,
}

/// No shard of this node.
const ELSEWHERE: u16 = u16::MAX;

impl SlotMap {
    /// The map of `node`, which has `shards` shards, where `owners[n]` serves slot n.
    ///
    /// The shard is chosen by the slot's rank among the node's slots and not by its number: slots are
    /// given to nodes by ranges or strides, and either could leave some of a node's shards without work.
    pub fn new(node: u16, shards: u16, owners: &[SlotOwner]) -> Self {
        assert!(shards > 0, "a node has at least one shard");
        assert!(shards < ELSEWHERE, "one number stands for none");
        assert_eq!(owners.len(), SLOTS, "every slot has an owner");
        let mut rank = 0_usize;
        let shard_of_slot = owners
            .iter()
            .map(|owner| {
                if owner.node != node {
                    return ELSEWHERE;
                }
                rank += 1;
                ((rank - 1) % usize::from(shards)) as u16
            })
            .collect();
        Self { shards, owners: owners.into(), shard_of_slot }
    }

    /// The map of a node that is alone. Its number is 0.
    pub fn single_node(shards: u16, epoch: u64) -> Self {
        Self::new(0, shards, &vec![SlotOwner { node: 0, epoch }; SLOTS])
    }

    /// How many shards this node has.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Who serves the slot.
    pub fn owner(&self, slot: Slot) -> SlotOwner {
        self.owners[usize::from(slot.0)]
    }

    /// The shard of this node that serves the slot; none if another node does.
    pub fn shard_of_slot(&self, slot: Slot) -> Option<u16> {
        Some(self.shard_of_slot[usize::from(slot.0)]).filter(|&shard| shard != ELSEWHERE)
    }

    /// This node's slots that the shard serves, in order.
    pub fn slots_of_shard(&self, shard: u16) -> impl Iterator<Item = Slot> + '_ {
        Slot::all().filter(move |&slot| self.shard_of_slot(slot) == Some(shard))
    }

    /// The shard that a letter goes to.
    ///
    /// The slot must be this node's own: mail for other nodes leaves over a link, by [`Self::owner`].
    pub fn shard_of(&self, address: Address) -> u16 {
        let slot = match address {
            Address::Session(session) => return session.shard,
            Address::Shard(shard) => return shard,
            Address::User(user) => slot_of_user(user),
            Address::Conversation(conversation) => slot_of_conversation(conversation),
        };
        self.shard_of_slot(slot).expect("mail between shards is for this node's own slots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::mail::SessionAddress;

    /// If this fails, data directories written before can no longer be read: the hash must be put back.
    #[test]
    fn the_hash_is_what_it_has_always_been() {
        let user = |n| slot_of_user(UserId(n)).number();
        assert_eq!([0, 1, 2, 123, 456, u64::MAX].map(user), USERS);
        let direct = |(low, high)| slot_of_conversation(ConversationId::Direct(UserId(low), UserId(high))).number();
        assert_eq!([(0, 0), (1, 2), (123, 456), (0, u64::MAX)].map(direct), DIRECTS);
        let group = |n| slot_of_conversation(ConversationId::Group(n)).number();
        assert_eq!([0, 1, 789, u64::MAX].map(group), GROUPS);
    }

    // Computed apart from this code, by a few lines of Python from the description above.
    const USERS: [u16; 6] = [3_638, 2_731, 3_214, 1_849, 1_749, 1_033];
    const DIRECTS: [u16; 4] = [3_384, 1_932, 35, 167];
    const GROUPS: [u16; 4] = [3_094, 1_974, 1_371, 1_852];

    #[test]
    fn neighbouring_names_spread_over_all_slots() {
        let mut users = vec![0_u32; SLOTS];
        let mut pairs = vec![0_u32; SLOTS];
        for n in 0..409_600 {
            users[usize::from(slot_of_user(UserId(n)).0)] += 1;
            let pair = ConversationId::direct(UserId(2 * n + 1), UserId(2 * n + 2));
            pairs[usize::from(slot_of_conversation(pair).0)] += 1;
        }
        // 100 each on average, standard deviation 10: six of them on either side.
        for counts in [users, pairs] {
            assert!(counts.iter().all(|count| (40..=160).contains(count)), "{:?}", counts.iter().max());
        }
    }

    /// A node that owns every fourth slot, or a range, still uses all its shards alike.
    #[test]
    fn shards_share_a_nodes_slots_whatever_the_numbers_of_these_are() {
        let strided = |slot: usize| (slot % 4) as u16;
        let ranged = |slot: usize| (slot / 1_024) as u16;
        for share in [strided as fn(usize) -> u16, ranged] {
            let owners: Vec<_> = (0..SLOTS).map(|slot| SlotOwner { node: share(slot), epoch: 1 }).collect();
            let map = SlotMap::new(2, 4, &owners);
            for shard in 0..4 {
                assert_eq!(map.slots_of_shard(shard).count(), 256);
            }
            let foreign = Slot::all().filter(|&slot| map.shard_of_slot(slot).is_none()).count();
            assert_eq!(foreign, 3_072);
        }
    }

    #[test]
    fn the_address_alone_decides_the_shard() {
        let map = SlotMap::single_node(3, 7);
        assert_eq!(map.owner(slot_of_user(UserId(1))), SlotOwner { node: 0, epoch: 7 });
        assert_eq!(map.shard_of(Address::User(UserId(5))), slot_of_user(UserId(5)).number() % 3);
        let pair = ConversationId::direct(UserId(1), UserId(2));
        assert_eq!(map.shard_of(Address::Conversation(pair)), slot_of_conversation(pair).number() % 3);
        let session = SessionAddress { shard: 2, index: 0, generation: 0 };
        assert_eq!(map.shard_of(Address::Session(session)), 2);
        assert_eq!(map.shard_of(Address::Shard(1)), 1);
    }

    #[test]
    fn numbers_out_of_range_are_no_slots() {
        assert_eq!(Slot::new(4_095).map(Slot::number), Some(4_095));
        assert_eq!(Slot::new(4_096), None);
    }
}
