//! How a thread of users ends: when all that was promised is there, or there is no time left to wait for it.
//!
//! Every user keeps books of what it wrote and got; here they are held against each other, again and again until nothing is
//! missing, and once more when the thread hangs up.

use std::sync::atomic::Ordering;

use wire::ids::UserId;

use super::{AUDIT_EVERY_NS, Ended, Worker, user_of};
use crate::client::{Account, Client, Want, audit, audit_pairs};
use crate::link::MS;
use crate::process;
use crate::tally::{Busy, Counts};

/// How long what is in flight at the end may take at least.
const SETTLE_NS: u64 = 5_000 * MS;
/// How long what is on its way may take to arrive after it was told to stop: without that, it would be called lost.
const STOP_NS: u64 = 2_000 * MS;

impl<C: Client> Worker<C> {
    /// Over when told so, or when all have all; unsent after the drain is given up, and what was sent has as long again.
    pub(super) fn is_over(&mut self) -> bool {
        if self.orders.phase.stop.load(Ordering::Relaxed) {
            let at = *self.stopped_at.get_or_insert(self.now_ns);
            self.end();
            self.give_up_unsent();
            return self.now_ns >= at + STOP_NS || (self.looks_settled() && !self.is_held());
        }
        let start_ns = self.orders.phase.start_ns.load(Ordering::Acquire);
        let end_ns = start_ns + self.orders.scenario.duration().ns();
        if start_ns == 0 || self.now_ns < end_ns {
            return false;
        }
        self.end();
        let drain_ns = self.orders.scenario.traffic.drain.ns();
        if self.now_ns >= end_ns + drain_ns {
            self.give_up_unsent();
        }
        if self.now_ns >= end_ns + drain_ns + SETTLE_NS.max(drain_ns) {
            return true;
        }
        self.looks_settled() && !self.is_held()
    }

    /// Others may still have something for those who are done here.
    fn is_held(&self) -> bool {
        self.orders.phase.hold.load(Ordering::Relaxed)
    }

    /// No more messages fall due: what is to be known of the time in which they did.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.tally.counts.acked_in_time = self.acked + self.tally.counts.acked;
        if let Some((cpu_ns, at_ns)) = self.began {
            self.tally.busy = Busy::of_thread(process::thread_cpu_ns() - cpu_ns, self.now_ns - at_ns);
        }
    }

    fn give_up_unsent(&mut self) {
        if std::mem::replace(&mut self.gave_up, true) {
            return;
        }
        for index in 0..self.lines.len() as u32 {
            self.with(index, |client, around| {
                client.give_up_unsent(around);
                Want::Nothing
            });
        }
    }

    /// Whether all have all, now and then looked at.
    fn looks_settled(&mut self) -> bool {
        if self.now_ns < self.audited_at + AUDIT_EVERY_NS {
            return false;
        }
        self.audited_at = self.now_ns;
        let all_back = self.lines.iter().all(|line| line.client.link().absent.1 <= self.now_ns);
        self.settled = all_back && self.lines.iter().all(|line| line.client.is_settled()) && self.lost() == 0;
        self.settled
    }

    pub(super) fn lost(&self) -> u64 {
        let mut counts = Counts::default();
        self.audit(&mut counts);
        counts.lost
    }

    /// Holds all books against each other; accounts with users who are not here come back.
    fn audit(&self, counts: &mut Counts) -> Vec<Account> {
        let open = audit_pairs(self.lines.iter().flat_map(|line| line.client.accounts()), counts);
        let (alone, abroad): (Vec<_>, Vec<_>) = open.into_iter().partition(|account| self.is_here(account.peer));
        for account in alone {
            // The other has not even heard of it.
            audit(&account, &account.unheard_of(), counts);
        }
        abroad
    }

    fn is_here(&self, user: UserId) -> bool {
        let (orders, users) = (&self.orders, self.orders.share.users);
        if orders.tokens.owner(0).is_some() {
            return (0..users).any(|index| user_of(orders, index) == user);
        }
        (user_of(orders, 0).0..user_of(orders, 0).0 + u64::from(users)).contains(&user.0)
    }

    pub(super) fn hang_up(&mut self) {
        self.hung_up = true;
        // Counted before they forget what they wait for.
        let mut counts = self.tally.counts;
        self.abroad = self.audit(&mut counts);
        self.tally.counts = counts;
        for index in 0..self.lines.len() as u32 {
            self.with(index, |client, around| {
                client.tell_unknown(around);
                Want::Nothing
            });
        }
        for index in 0..self.lines.len() as u32 {
            self.with(index, C::hang_up);
        }
        self.send();
    }

    pub(super) fn finish(mut self) -> Ended {
        self.flush_files();
        Ended { tally: self.tally, abroad: self.abroad }
    }
}
