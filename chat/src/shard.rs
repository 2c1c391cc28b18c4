//! One shard's rules: the three owners side by side, reached by the address of a letter.

use shard_router::SlotMap;
use storage_seam::{Class, StorageEvent, StoreFacts};
use wire::ids::ChangeNumber;
use wire::mail::{Address, Letter, Mail};
use wire::protocol::{ClientFrame, ErrorCode};

use crate::Counters;
use crate::effects::{ClientKey, Effects, Now};
use crate::limits::Limits;
use crate::owner::{Owner, Phase};
use crate::pressure::Pressure;
use crate::record::prefixed;
use crate::sessions::{Identity, SessionKey, Sessions};
use crate::users::Users;

/// What a shard's rules are made from.
#[derive(Debug, Clone)]
pub struct ChatConfig {
    /// Number of this shard.
    pub shard: u16,
    /// Which slots it owns.
    pub slots: SlotMap,
    /// What the store is.
    pub facts: StoreFacts,
    pub limits: Limits,
    /// Seeds hash maps and generated ids. Must be unknown to clients.
    pub seed: u64,
}

/// The rules of one shard.
#[derive(Debug)]
pub struct Chat {
    shard: u16,
    slots: SlotMap,
    owner: Owner,
    users: Users,
    sessions: Sessions,
}

/// The class as the protocol names it.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::D1 => "d1",
        Class::D2 => "d2",
    }
}

impl Chat {
    /// A shard that owns its slots of the map and waits for their recovered records.
    pub fn new(config: &ChatConfig) -> Self {
        let mut owner = Owner::new(config.limits.clone(), config.facts.clone(), config.slots.shards(), config.seed);
        for slot in config.slots.slots_of_shard(config.shard) {
            owner.open_slot(slot.number());
        }
        let class = class_name(config.facts.class);
        let seed = config.seed.rotate_left(32);
        Self {
            shard: config.shard,
            slots: config.slots.clone(),
            users: Users::new(config.limits.clone(), config.facts.epoch, config.slots.shards(), config.seed),
            sessions: Sessions::new(config.shard, config.limits.clone(), config.facts.generation, class, seed),
            owner,
        }
    }

    /// A client whose credentials have been checked opens its session. `opened` or an error follows.
    pub fn open<E: Effects>(
        &mut self,
        client: ClientKey,
        who: Identity,
        after: Option<ChangeNumber>,
        window: Option<u32>,
        fx: &mut E,
    ) -> SessionKey {
        self.sessions.open(client, who, after, window, fx)
    }

    /// A client asks over REST: each frame it gives is answered by one frame.
    pub fn rest(&mut self, client: ClientKey, who: Identity) -> SessionKey {
        self.sessions.rest(client, who)
    }

    /// Whose session it is, on which device.
    pub fn identity(&self, session: SessionKey) -> Identity {
        self.sessions.identity(session)
    }

    /// A frame from a session's client; `open` and `auth` are not for here.
    pub fn frame<E: Effects>(&mut self, now: Now, session: SessionKey, frame: &ClientFrame<'_>, fx: &mut E) {
        self.sessions.frame(now, session, frame, fx);
    }

    /// Nothing waits to be sent to the session's client any more.
    pub fn drained<E: Effects>(&mut self, session: SessionKey, fx: &mut E) {
        self.sessions.drained(session, fx);
    }

    /// The session's client is gone. The key is not valid any more.
    pub fn closed<E: Effects>(&mut self, session: SessionKey, fx: &mut E) {
        self.sessions.closed(session, fx);
    }

    /// A letter for something that this shard owns.
    pub fn letter<E: Effects>(&mut self, now: Now, letter: &Letter<'_>, fx: &mut E) {
        match letter.to {
            Address::User(user) => self.users.letter(now, user, letter, fx),
            Address::Conversation(_) => self.owner.letter(now, letter, fx),
            Address::Session(session) => self.sessions.letter(session, letter, fx),
            Address::Shard(_) => self.for_all(letter, fx),
        }
    }

    /// A letter for the shard as a whole.
    fn for_all<E: Effects>(&mut self, letter: &Letter<'_>, fx: &mut E) {
        let again = |to, from| Letter {
            to: Address::Shard(to),
            mail: Mail::TellMembers { to: self.shard, from },
            payload: &[],
        };
        match letter.mail {
            Mail::DirtyAll { from } => {
                self.users.resync_all(fx);
                self.sessions.resync_all(fx);
                fx.post(&again(from, 0));
            }
            Mail::TellMembers { to, from } => self.owner.members.tell(&self.slots, (self.shard, to), from, fx),
            Mail::NewMembers { from, next } => {
                self.users.hear_of_members(letter.payload, fx);
                fx.post(&again(from, next));
            }
            ref other => unreachable!("not for a whole shard: {other:?}"),
        }
    }

    /// Something from storage.
    pub fn storage<E: Effects>(&mut self, now: Now, event: StorageEvent, fx: &mut E) {
        match event {
            StorageEvent::Recovered(group) => {
                for part in &group.parts {
                    let bytes = &group.bytes[part.bytes.start as usize..part.bytes.end as usize];
                    for (lsn, record) in (part.expected_lsn..).zip(prefixed(bytes)) {
                        self.owner.recovered(now, lsn, record, fx);
                    }
                }
            }
            StorageEvent::RecoveredAll { tails, forgotten_until_ms } => {
                self.owner.recovered_all(&tails, forgotten_until_ms, fx);
            }
            StorageEvent::Appended { group, outcomes } => self.owner.appended(now, group, &outcomes, fx),
            StorageEvent::Read(ticket, answer) if ticket & 1 == 0 => self.owner.answered(now, ticket, answer, fx),
            StorageEvent::Read(ticket, answer) => self.users.answered(ticket, answer, fx),
            StorageEvent::Freeze { checkpoint } => self.owner.freeze(checkpoint),
            StorageEvent::CheckpointDone { checkpoint, forgotten_until_ms } => {
                self.owner.checkpoint_done(checkpoint, forgotten_until_ms);
                self.users.checkpoint_done();
            }
        }
    }

    /// Once per turn, after everything else: what is due by now, then the next group for storage.
    pub fn finish_turn<E: Effects>(&mut self, now: Now, fx: &mut E) {
        self.owner.give_up(now, fx);
        self.owner.give_up_waiting(now, fx);
        self.owner.stage_due_marks(now);
        self.owner.submit(now, fx);
        self.owner.hand_over(fx);
        self.owner.let_go();
        self.users.ask_stuck(now, fx);
    }

    /// Puts a bug into this shard's rules.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: crate::PlantedBug) {
        self.owner.planted.0 = Some(bug);
        self.users.plant(bug);
    }

    /// How near the rules are to their limits.
    pub fn pressure(&self, now: Now) -> Pressure {
        self.owner.own_pressure(now)
    }

    /// How near the shard is to its limits: what is to be shed until this is called again.
    pub fn set_pressure(&mut self, pressure: Pressure) {
        self.owner.pressure = pressure;
        self.users.pressure = pressure;
        self.sessions.pressure = pressure;
    }

    /// Refuses a frame that is not even looked at, because too many come.
    pub fn refuse<E: Effects>(
        &mut self,
        now: Now,
        session: SessionKey,
        frame: &ClientFrame<'_>,
        (code, after_ms): (ErrorCode, u32),
        fx: &mut E,
    ) {
        self.sessions.refuse(now, session, frame, (code, after_ms), fx);
    }

    /// The next time at which something is due though nothing happens (monotonic milliseconds).
    pub fn deadline(&self) -> Option<u64> {
        let mark = self.owner.marks_due.front().map(|due| due.0);
        let stuck = (!self.users.stuck.is_empty()).then_some(self.users.stuck_until_ms);
        // More heads wait for the checkpoint, and nothing else may come to bring the next turn.
        let heads = self.owner.overlay.is_closing().then_some(0);
        let waiting = self.owner.waiting.deadline_ms();
        [mark, stuck, heads, waiting, self.owner.stall_deadline()].into_iter().flatten().min()
    }

    /// Whether every slot of this shard has been recovered.
    pub fn is_serving(&self) -> bool {
        self.owner.serving
    }

    /// Whether a higher epoch took one of this shard's slots: the process must make way.
    pub fn is_fenced(&self) -> bool {
        self.owner.slots.iter().flatten().any(|slot| slot.phase == Phase::Fenced)
    }

    /// Nothing waits for storage: the shard may stop without leaving anybody unanswered.
    pub fn is_quiet(&self) -> bool {
        self.owner.is_quiet()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        let mut all = self.owner.counters;
        all.add(&self.users.counters);
        all.add(&self.sessions.counters);
        all
    }

    /// What is held now, by name.
    pub fn sizes(&self) -> [(&'static str, u64); 11] {
        let (users, idle_users, tails_bytes) = self.users.sizes();
        [
            ("sessions", self.sessions.len() as u64),
            ("sessions_bytes", self.sessions.memory_bytes() as u64),
            ("users", users as u64),
            ("users_bytes", self.users.memory_bytes() as u64),
            ("idle_users", idle_users as u64),
            ("tails_bytes", tails_bytes as u64),
            ("conversations", self.owner.conversations as u64),
            ("overlay_bytes", self.owner.overlay.bytes() as u64),
            ("parked_bytes", self.owner.parked_bytes as u64),
            ("awaited_reads", self.owner.awaited.len() as u64),
            ("waiting_reads", self.owner.waiting.len() as u64),
        ]
    }
}
