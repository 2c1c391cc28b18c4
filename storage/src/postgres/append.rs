//! The transaction of a group commit, and what became of one whose answer was lost.

use std::collections::HashMap;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::schema::{checksum, number};
use super::session::Fault;
use crate::seam::{Epoch, Lsn, Outcome, Slot};

/// A part on its way into the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) slot: Slot,
    pub(super) lsn: Lsn,
    pub(super) records: u32,
    pub(super) bytes: &'a [u8],
}

/// How often a group has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    /// An earlier commit was not answered: the parts may be there, and are then found, not added.
    Again,
}

/// What the database answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// One per part, in order.
    pub(super) outcomes: Vec<Outcome>,
    /// A higher epoch owns a slot: another server has taken over.
    pub(super) fenced: bool,
    /// Slots of the group as they are now.
    pub(super) next_lsn: Vec<(Slot, Lsn)>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum AppendFault {
    /// The commit had not been asked for, so nothing was written.
    BeforeCommit(Fault),
    /// The commit was on its way.
    Unknown(Fault),
}

impl From<Fault> for AppendFault {
    fn from(fault: Fault) -> AppendFault {
        AppendFault::BeforeCommit(fault)
    }
}

impl From<tokio_postgres::Error> for AppendFault {
    fn from(error: tokio_postgres::Error) -> AppendFault {
        AppendFault::BeforeCommit(error.into())
    }
}

#[derive(Clone, Copy)]
struct SlotRow {
    epoch: Epoch,
    lsn: Lsn,
}

/// Commits what may be committed of `parts`, which are of different slots. `committing` is set just
/// before the commit is asked for: a call that is cut off after that has an unknown end.
///
/// The slots' rows are locked in the order of their numbers, so that no two groups wait for each other.
/// A transaction that a lost connection left behind still holds them: whoever gets the locks sees its end.
pub(super) async fn append(
    client: &Client,
    mine: Epoch,
    parts: &[Wanted<'_>],
    attempt: Attempt,
    committing: &std::cell::Cell<bool>,
) -> Result<Answer, AppendFault> {
    client.batch_execute("BEGIN").await?;
    let slots = lock_slots(client, parts).await?;
    let mut answer = Answer::default();
    let mut chosen = Vec::new();
    for part in parts {
        let Some(&row) = slots.get(&part.slot) else {
            answer.outcomes.push(Outcome::Conflict);
            continue;
        };
        answer.fenced |= row.epoch > mine;
        let mut outcome = match row {
            SlotRow { epoch, .. } if epoch > mine => Outcome::Fenced,
            SlotRow { lsn, .. } if lsn != part.lsn => Outcome::Conflict,
            _ => Outcome::Committed,
        };
        if outcome == Outcome::Committed {
            chosen.push(*part);
        } else if attempt == Attempt::Again && is_there(client, mine, part).await? {
            outcome = Outcome::Committed;
        }
        let added = if chosen.last().is_some_and(|last| last.slot == part.slot) { u64::from(part.records) } else { 0 };
        answer.next_lsn.push((part.slot, row.lsn + added));
        answer.outcomes.push(outcome);
    }
    if chosen.is_empty() {
        client.batch_execute("ROLLBACK").await?;
        return Ok(answer);
    }
    insert(client, mine, &chosen).await?;
    committing.set(true);
    client.batch_execute("COMMIT").await.map_err(|error| AppendFault::Unknown(error.into()))?;
    Ok(answer)
}

async fn lock_slots(client: &Client, parts: &[Wanted<'_>]) -> Result<HashMap<Slot, SlotRow>, AppendFault> {
    let ids: Vec<i32> = parts.iter().map(|part| i32::from(part.slot)).collect();
    let rows = client
        .query_typed(
            "SELECT id, epoch, lsn FROM ringway_slots WHERE id = ANY($1) ORDER BY id FOR UPDATE",
            &[(&ids, Type::INT4_ARRAY)],
        )
        .await?;
    let slot = |row: &tokio_postgres::Row| row.get::<_, i32>("id") as Slot;
    Ok(rows.iter().map(|row| (slot(row), SlotRow { epoch: number(row, "epoch"), lsn: number(row, "lsn") })).collect())
}

/// Whether exactly this part is in the journal, written at this server's epoch.
async fn is_there(client: &Client, mine: Epoch, part: &Wanted<'_>) -> Result<bool, AppendFault> {
    let found = client
        .query_typed_opt(
            "SELECT 1 FROM ringway_journal WHERE slot = $1 AND lsn = $2 AND epoch = $3 AND records = $4 AND bytes = $5",
            &[
                (&i32::from(part.slot), Type::INT4),
                (&(part.lsn as i64), Type::INT8),
                (&(mine as i64), Type::INT8),
                (&(part.records as i32), Type::INT4),
                (&part.bytes, Type::BYTEA),
            ],
        )
        .await?;
    Ok(found.is_some())
}

/// The condition on epoch and LSN stands in the update itself: it is what refuses an old owner, whatever
/// this program believes to have read before.
async fn insert(client: &Client, mine: Epoch, chosen: &[Wanted<'_>]) -> Result<(), AppendFault> {
    let slots: Vec<i32> = chosen.iter().map(|part| i32::from(part.slot)).collect();
    let lsns: Vec<i64> = chosen.iter().map(|part| part.lsn as i64).collect();
    let records: Vec<i32> = chosen.iter().map(|part| part.records as i32).collect();
    let bytes: Vec<&[u8]> = chosen.iter().map(|part| part.bytes).collect();
    let sum = |part: &Wanted<'_>| checksum(part.slot, part.lsn, part.records, part.bytes);
    let checksums: Vec<i32> = chosen.iter().map(sum).collect();
    let moved = client
        .query_typed(
            "UPDATE ringway_slots s SET lsn = s.lsn + w.records \
             FROM unnest($1::int4[], $2::int8[], $3::int4[]) AS w(id, lsn, records) \
             WHERE s.id = w.id AND s.epoch = $4 AND s.lsn = w.lsn RETURNING s.id",
            &[
                (&slots, Type::INT4_ARRAY),
                (&lsns, Type::INT8_ARRAY),
                (&records, Type::INT4_ARRAY),
                (&(mine as i64), Type::INT8),
            ],
        )
        .await?;
    if moved.len() != chosen.len() {
        let what = format!("{} of {} slots moved although their rows are locked", moved.len(), chosen.len());
        return Err(Fault::Away(what).into());
    }
    client
        .query_typed(
            "INSERT INTO ringway_journal (slot, lsn, epoch, records, bytes, checksum) \
             SELECT w.slot, w.lsn, $6, w.records, w.bytes, w.checksum \
             FROM unnest($1::int4[], $2::int8[], $3::int4[], $4::bytea[], $5::int4[]) \
             AS w(slot, lsn, records, bytes, checksum)",
            &[
                (&slots, Type::INT4_ARRAY),
                (&lsns, Type::INT8_ARRAY),
                (&records, Type::INT4_ARRAY),
                (&bytes, Type::BYTEA_ARRAY),
                (&checksums, Type::INT4_ARRAY),
                (&(mine as i64), Type::INT8),
            ],
        )
        .await?;
    Ok(())
}
