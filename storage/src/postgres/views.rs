//! The views as tables: brought forward once per checkpoint, read by key.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_core::Stream;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, RowStream};

use super::schema::table_of;
use super::session::{Fault, STALE_WITHIN, Session};
use super::{CheckpointJob, Fence};
use crate::checked::{seal, value_of};
use crate::days::Days;
use crate::seam::{Epoch, ReadError, Rows, Space, ViewRead};
use crate::taken::Taken;
use crate::views::runs::{Sorted, hex};
use crate::views_threads::{ViewsReader, ViewsWriter};

/// Rows of one statement.
const ROWS_PER_STATEMENT: usize = 5_000;
/// And about so many bytes.
const BYTES_PER_STATEMENT: usize = 8 << 20;

/// Brings the views forward.
pub(super) struct Writer {
    pub(super) session: Session,
    pub(super) epoch: Epoch,
    pub(super) fence: Arc<Fence>,
    pub(super) days: Days,
    pub(super) day_ms: u64,
    /// Since when this process has the database, and its uptime then.
    pub(super) opened: (Instant, u64),
    /// There may be rows of days that are forgotten.
    pub(super) drops: bool,
}

impl ViewsWriter for Writer {
    type Job = CheckpointJob;

    fn checkpoint_of(job: &CheckpointJob) -> u64 {
        job.checkpoint
    }

    fn ingest(&mut self, job: &CheckpointJob, _urgent: &dyn Fn() -> bool) -> Result<u64, String> {
        let sorted = Sorted::new(&job.runs).map_err(|error| error.to_string())?;
        self.drop_forgotten();
        let mut days = self.days.clone();
        let (opened, uptime_ms) = self.opened;
        let uptime_ms = uptime_ms + opened.elapsed().as_millis() as u64;
        // Days that go lose their rows only with the next checkpoint: until then every shard has been told.
        let day = days.checkpoint(uptime_ms, self.day_ms, sorted.times());
        let next = Next { sorted: &sorted, covered: &job.covered, days: &days, day };
        let epoch = self.epoch;
        let ingested = self.session.simply(async |client: &Client| ingest(client, epoch, &next).await);
        match ingested {
            Ok(true) => {
                self.drops |= !days.numbers().eq(self.days.numbers());
                self.days = days;
                Ok(self.days.forgotten_until_ms())
            }
            Ok(false) => {
                self.fence.raise("another server has taken over the database");
                Err("another server has taken over the database".to_owned())
            }
            Err(fault) => Err(fault.to_string()),
        }
    }
}

impl Writer {
    /// Drops rows of days that are forgotten. What cannot be dropped now is with a later checkpoint.
    fn drop_forgotten(&mut self) {
        let kept: Vec<i32> = self.days.numbers().map(u32::cast_signed).collect();
        let Some(&newest) = kept.last().filter(|_| self.drops) else { return };
        let drop = "DELETE FROM ringway_dedup WHERE day < $1 AND day <> ALL($2)";
        let types: [(&(dyn ToSql + Sync), Type); 2] = [(&newest, Type::INT4), (&kept, Type::INT4_ARRAY)];
        let dropped = self.session.simply(async |client: &Client| Ok(client.query_typed(drop, &types).await?));
        match dropped {
            Ok(_) => self.drops = false,
            Err(error) => tracing::warn!(%error, "old dedup rows not dropped"),
        }
    }
}

/// What a checkpoint changes.
struct Next<'a> {
    sorted: &'a Sorted<'a>,
    covered: &'a [(u16, u64)],
    days: &'a Days,
    /// The day that takes its dedup rows.
    day: Option<u32>,
}

/// Rows, checkpoints and the removal of what they cover, all or nothing. False: a higher epoch owns a slot.
///
/// The slots' rows come last, since appends wait for them. Repeating it after a lost answer changes nothing.
async fn ingest(client: &Client, mine: Epoch, next: &Next<'_>) -> Result<bool, Fault> {
    let Next { sorted, covered, days, day } = next;
    client.batch_execute("BEGIN").await?;
    for space in [Space::History, Space::Heads, Space::Members] {
        let rows: Vec<(&[u8], &[u8])> = sorted.rows(space).collect();
        upsert(client, space, &rows, None).await?;
    }
    if day.is_some() {
        let rows: Vec<(&[u8], &[u8])> = sorted.rows(Space::Dedup).collect();
        upsert(client, Space::Dedup, &rows, *day).await?;
    }
    let slots: Vec<i32> = covered.iter().map(|&(slot, _)| i32::from(slot)).collect();
    let lsns: Vec<i64> = covered.iter().map(|&(_, lsn)| lsn as i64).collect();
    let mine = mine as i64;
    let both: [(&(dyn ToSql + Sync), Type); 2] = [(&slots, Type::INT4_ARRAY), (&lsns, Type::INT8_ARRAY)];
    // Held against a new owner, which raises this number first, until this has committed or not.
    let meta = client.query_typed_one("SELECT epoch FROM ringway_meta FOR SHARE", &[]).await?;
    let locked = client
        .query_typed(
            "SELECT 1 FROM ringway_slots WHERE id = ANY($1) AND epoch = $2 ORDER BY id FOR UPDATE",
            &[(&slots, Type::INT4_ARRAY), (&mine, Type::INT8)],
        )
        .await?;
    if meta.get::<_, i64>(0) != mine || locked.len() != covered.len() {
        client.batch_execute("ROLLBACK").await?;
        return Ok(false);
    }
    client
        .query_typed(
            "UPDATE ringway_slots s SET checkpoint_lsn = greatest(s.checkpoint_lsn, w.lsn) \
             FROM unnest($1::int4[], $2::int8[]) AS w(id, lsn) WHERE s.id = w.id",
            &both,
        )
        .await?;
    client
        .query_typed(
            "DELETE FROM ringway_journal j USING unnest($1::int4[], $2::int8[]) AS w(id, lsn) \
             WHERE j.slot = w.id AND j.lsn < w.lsn",
            &both,
        )
        .await?;
    let mut bytes = Vec::new();
    days.encode(&mut bytes);
    client.query_typed("UPDATE ringway_meta SET days = $1", &[(&bytes, Type::BYTEA)]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(true)
}

/// Adds or replaces rows, each key once and in order.
async fn upsert(client: &Client, space: Space, rows: &[(&[u8], &[u8])], day: Option<u32>) -> Result<(), Fault> {
    let table = table_of(space);
    let statement = match day {
        None => format!(
            "INSERT INTO {table} (key, value) SELECT * FROM unnest($1::bytea[], $2::bytea[]) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        ),
        Some(day) => format!(
            "INSERT INTO {table} (key, value, day) SELECT k, v, {day} FROM unnest($1::bytea[], $2::bytea[]) AS w(k, v) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, day = excluded.day"
        ),
    };
    let mut rest = rows;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |(key, value): &&(&[u8], &[u8])| {
            bytes += key.len() + value.len();
            bytes <= BYTES_PER_STATEMENT
        };
        let count = rest.iter().take(ROWS_PER_STATEMENT).take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        let keys: Vec<&[u8]> = now.iter().map(|&(key, _)| key).collect();
        let values: Vec<Vec<u8>> = now.iter().map(|&(key, value)| sealed(key, value)).collect();
        client.query_typed(&statement, &[(&keys, Type::BYTEA_ARRAY), (&values, Type::BYTEA_ARRAY)]).await?;
        rest = later;
    }
    Ok(())
}

fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(value.len() + 4);
    seal(key, value, &mut stored);
    stored
}

/// Answers questions.
pub(super) struct Reader {
    pub(super) session: Session,
}

impl ViewsReader for Reader {
    fn read(&mut self, question: &ViewRead) -> Result<Rows, ReadError> {
        let mut ask = || self.session.simply(async |client: &Client| read(client, question).await);
        // The first failure may only be news of a connection that ended while nobody asked.
        let asked = Instant::now();
        let answer = ask().or_else(|fault| if asked.elapsed() < STALE_WITHIN { ask() } else { Err(fault) });
        answer.unwrap_or_else(|fault| {
            let what = match question {
                ViewRead::Get { space, key } => format!("{space:?} {}", hex(key)),
                ViewRead::Range { space, .. } => format!("{space:?}"),
            };
            Err(ReadError::Unavailable(format!("{what}: {fault}")))
        })
    }
}

/// The inner error is damage: asking again would not help.
async fn read(client: &Client, question: &ViewRead) -> Result<Result<Rows, ReadError>, Fault> {
    match question {
        ViewRead::Get { space, key } => {
            let statement = format!("SELECT value FROM {} WHERE key = $1", table_of(*space));
            let found = client.query_typed_opt(&statement, &[(key, Type::BYTEA)]).await?;
            let mut rows = Rows::default();
            if let Some(row) = found {
                match value_of(*space, key, row.get(0)) {
                    Ok(value) => rows.push(key, value),
                    Err(damaged) => return Ok(Err(damaged)),
                }
            }
            Ok(Ok(rows))
        }
        ViewRead::Range { space, start, end, rows_max, bytes_max, reverse } => {
            let order = if *reverse { "DESC" } else { "ASC" };
            let table = table_of(*space);
            let statement =
                format!("SELECT key, value FROM {table} WHERE key >= $1 AND key < $2 ORDER BY key {order} LIMIT $3");
            // One more than is wanted shows whether there are more.
            let limit = i64::from(*rows_max) + 1;
            let parameters: [(&(dyn ToSql + Sync), Type); 3] =
                [(start, Type::BYTEA), (end, Type::BYTEA), (&limit, Type::INT8)];
            let mut rows = pin!(client.query_typed_raw(&statement, parameters).await?);
            let mut taken = Taken::new(*rows_max, *bytes_max);
            while let Some(row) = next(rows.as_mut()).await {
                let row = row?;
                if !taken.has_room() {
                    break;
                }
                let key = row.get(0);
                match value_of(*space, key, row.get(1)) {
                    Ok(value) => taken.push(key, value),
                    Err(damaged) => return Ok(Err(damaged)),
                }
            }
            Ok(Ok(taken.into_rows()))
        }
    }
}

async fn next(mut rows: std::pin::Pin<&mut RowStream>) -> Option<Result<tokio_postgres::Row, tokio_postgres::Error>> {
    std::future::poll_fn(|context| rows.as_mut().poll_next(context)).await
}
