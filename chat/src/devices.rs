//! The sessions of one user. Most users have one device, and that one costs no memory of its own.

use wire::ids::DeviceId;
use wire::mail::SessionAddress;

/// One session of a user, packed: an address of its own type would end in two unused bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserSession {
    index: u32,
    generation: u32,
    pub device: DeviceId,
    shard: u16,
    /// Its `opened` has not been sent: events wait in the tail.
    pub opening: bool,
}

impl UserSession {
    pub(crate) fn new(address: SessionAddress, device: DeviceId) -> Self {
        let SessionAddress { shard, index, generation } = address;
        Self { index, generation, device, shard, opening: true }
    }

    pub(crate) fn address(&self) -> SessionAddress {
        SessionAddress { shard: self.shard, index: self.index, generation: self.generation }
    }
}

/// All sessions of a user: at most one per device.
#[derive(Debug, Default)]
pub(crate) enum UserSessions {
    #[default]
    None,
    One(UserSession),
    #[expect(clippy::box_collection, reason = "few have several, and all would pay for a vector's three words")]
    Several(Box<Vec<UserSession>>),
}

impl UserSessions {
    pub(crate) fn as_slice(&self) -> &[UserSession] {
        match self {
            Self::None => &[],
            Self::One(session) => std::slice::from_ref(session),
            Self::Several(sessions) => sessions,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [UserSession] {
        match self {
            Self::None => &mut [],
            Self::One(session) => std::slice::from_mut(session),
            Self::Several(sessions) => sessions,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(crate) fn push(&mut self, session: UserSession) {
        match self {
            Self::None => *self = Self::One(session),
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, session])),
            Self::Several(sessions) => sessions.push(session),
        }
    }

    /// Takes out the first session that `is_it`.
    pub(crate) fn remove(&mut self, is_it: impl Fn(&UserSession) -> bool) -> Option<UserSession> {
        let at = self.as_slice().iter().position(is_it)?;
        match self {
            Self::None => unreachable!("one was found"),
            Self::One(session) => {
                let session = *session;
                *self = Self::None;
                Some(session)
            }
            Self::Several(sessions) => {
                let session = sessions.swap_remove(at);
                if let [last] = sessions[..] {
                    *self = Self::One(last);
                }
                Some(session)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(device: u32) -> UserSession {
        UserSession::new(SessionAddress { shard: 1, index: device * 10, generation: 3 }, DeviceId(device))
    }

    fn devices(sessions: &UserSessions) -> Vec<u32> {
        let mut devices: Vec<_> = sessions.as_slice().iter().map(|session| session.device.0).collect();
        devices.sort_unstable();
        devices
    }

    #[test]
    fn sessions_come_and_go_one_by_one() {
        let mut sessions = UserSessions::default();
        assert!(sessions.is_empty());
        for device in 1..=3 {
            sessions.push(session(device));
        }
        assert_eq!(devices(&sessions), [1, 2, 3]);
        assert!(sessions.remove(|session| session.device == DeviceId(9)).is_none());
        let second = sessions.remove(|session| session.device == DeviceId(2)).expect("it is there");
        assert_eq!(second.address(), SessionAddress { shard: 1, index: 20, generation: 3 });
        assert_eq!(devices(&sessions), [1, 3]);
        sessions.remove(|session| session.device == DeviceId(1));
        assert!(matches!(sessions, UserSessions::One(_)), "the vector went with the second");
        sessions.remove(|session| session.device == DeviceId(3));
        assert!(matches!(sessions, UserSessions::None));
    }
}
