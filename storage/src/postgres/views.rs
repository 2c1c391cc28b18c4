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
use crate::seam::{Epoch, ReadError, Rows, Space, ViewRead};
use crate::taken::Taken;
use crate::views::runs::{Sorted, day_at, hex};
use crate::views_threads::{ViewsReader, ViewsWriter};

/// Rows of one statement.
const ROWS_PER_STATEMENT: usize = 5_000;
/// And about so many bytes.
const BYTES_PER_STATEMENT: usize = 8 << 20;
/// As for the embedded views: seven promised days, the day on which they began, and today.
const DEDUP_DAYS: u32 = 8;
/// Days that stay whatever the clock says.
const DEDUP_DAYS_KEPT: i64 = 9;

/// Brings the views forward.
pub(super) struct Writer {
    pub(super) session: Session,
    pub(super) epoch: Epoch,
    pub(super) fence: Arc<Fence>,
}

impl ViewsWriter for Writer {
    type Job = CheckpointJob;

    fn checkpoint_of(job: &CheckpointJob) -> u64 {
        job.checkpoint
    }

    fn ingest(&mut self, job: &CheckpointJob, _urgent: &dyn Fn() -> bool) -> Result<(), String> {
        let sorted = Sorted::new(&job.runs).map_err(|error| error.to_string())?;
        let epoch = self.epoch;
        let ingested = self.session.simply(async |client: &Client| ingest(client, epoch, &sorted, &job.covered).await);
        match ingested {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.fence.raise("another server has taken over the database");
                Err("another server has taken over the database".to_owned())
            }
            Err(fault) => Err(fault.to_string()),
        }
    }

    fn expire(&mut self, now_ms: u64) -> Result<usize, String> {
        let before = day_at(now_ms).saturating_sub(DEDUP_DAYS) as i32;
        self.session.simply(async |client: &Client| expire(client, before).await).map_err(|fault| fault.to_string())
    }
}

/// Rows, checkpoints and the removal of what they cover, all or nothing. False: a higher epoch owns a slot.
///
/// The slots' rows come last, since appends wait for them. Repeating it after a lost answer changes nothing.
async fn ingest(client: &Client, mine: Epoch, sorted: &Sorted<'_>, covered: &[(u16, u64)]) -> Result<bool, Fault> {
    client.batch_execute("BEGIN").await?;
    for space in [Space::History, Space::Heads, Space::Members] {
        let rows: Vec<(&[u8], &[u8])> = sorted.plain(space).collect();
        upsert(client, space, &rows, None).await?;
    }
    for day in sorted.days() {
        let rows: Vec<(&[u8], &[u8])> = sorted.dedup(day).collect();
        upsert(client, Space::Dedup, &rows, Some(day)).await?;
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

/// Drops dedup rows of days before `before`, but never of the newest days that there are.
async fn expire(client: &Client, before: i32) -> Result<usize, Fault> {
    let oldest = client.query_typed_one("SELECT min(day) FROM ringway_dedup", &[]).await?;
    if oldest.get::<_, Option<i32>>(0).is_none_or(|oldest| oldest >= before) {
        return Ok(0);
    }
    let kept = client
        .query_typed(
            "SELECT DISTINCT day FROM ringway_dedup ORDER BY day DESC LIMIT $1",
            &[(&DEDUP_DAYS_KEPT, Type::INT8)],
        )
        .await?;
    let Some(oldest_kept) = kept.last().map(|row| row.get::<_, i32>(0)) else { return Ok(0) };
    let gone = client
        .query_typed(
            "WITH gone AS (DELETE FROM ringway_dedup WHERE day < $1 RETURNING day) \
             SELECT count(DISTINCT day) FROM gone",
            &[(&before.min(oldest_kept), Type::INT4)],
        )
        .await?;
    Ok(gone[0].get::<_, i64>(0) as usize)
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
