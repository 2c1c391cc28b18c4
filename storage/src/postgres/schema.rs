//! The tables, and how a server makes them its own.
//!
//! ```text
//! ringway_meta      one row: format, generation, timeline, epoch (starts of servers so far), days (see `days.rs`)
//! ringway_slots     4,096 rows: id, epoch, lsn (of the next record), checkpoint_lsn
//! ringway_journal   a row per committed part: slot, lsn (of its first record), epoch, records, bytes, checksum
//! ringway_history, ringway_heads, ringway_members, ringway_dedup    the views: key, value with checksum
//! ```

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::PostgresError;
use super::session::Fault;
use crate::checked::name_of;
use crate::days::Days;
use crate::seam::{AppendGroup, Class, Epoch, Lsn, Part, Slot, Space};
use crate::segment::SLOTS;

/// Version of the tables. Newer ones are refused.
pub(super) const FORMAT: i32 = 2;
/// Of the advisory lock that decides who tries; any number that nobody else uses.
const LOCK: i64 = 0x5249_4e47_5741_5901;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS ringway_meta (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        format integer NOT NULL, generation bigint NOT NULL, timeline text NOT NULL, epoch bigint NOT NULL, days bytea);
    CREATE TABLE IF NOT EXISTS ringway_slots (
        id integer PRIMARY KEY, epoch bigint NOT NULL DEFAULT 0, lsn bigint NOT NULL DEFAULT 0,
        checkpoint_lsn bigint NOT NULL DEFAULT 0) WITH (fillfactor = 25);
    CREATE TABLE IF NOT EXISTS ringway_journal (
        slot integer NOT NULL, lsn bigint NOT NULL, epoch bigint NOT NULL, records integer NOT NULL,
        bytes bytea NOT NULL, checksum integer NOT NULL, place bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (slot, lsn));
    CREATE TABLE IF NOT EXISTS ringway_history (key bytea PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS ringway_heads (key bytea PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS ringway_members (key bytea PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS ringway_dedup (key bytea PRIMARY KEY, value bytea NOT NULL, day integer NOT NULL);
    CREATE INDEX IF NOT EXISTS ringway_dedup_day ON ringway_dedup (day);";

/// Days were named after the times of their rows, and nothing else was known of them.
const FROM_1_TO_2: &str = "ALTER TABLE ringway_meta ADD COLUMN days bytea; UPDATE ringway_meta SET format = 2;";

/// The table of a map.
pub(super) fn table_of(space: Space) -> String {
    format!("ringway_{}", name_of(space))
}

/// Of a row of the journal. PostgreSQL checks its pages only where the cluster was made to.
pub(super) fn checksum(slot: Slot, lsn: Lsn, records: u32, bytes: &[u8]) -> i32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot.to_le_bytes());
    hasher.update(&lsn.to_le_bytes());
    hasher.update(&records.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize().cast_signed()
}

/// What a server finds when the database has become its own.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    /// Next LSN of each slot.
    pub(super) next_lsn: Vec<Lsn>,
    /// Up to where the views cover each slot.
    pub(super) checkpoint_lsn: Vec<Lsn>,
    /// Days of dedup rows.
    pub(super) days: Days,
    /// Parts behind the checkpoint, in the order of their commits.
    pub(super) recovered: Vec<AppendGroup>,
    pub(super) class: Class,
    /// Why the class is not D2.
    pub(super) class_reason: Option<String>,
}

/// Takes the lock that says that a server runs on this database. False: another has it.
pub(super) async fn try_lock(client: &Client) -> Result<bool, Fault> {
    let row = client.query_typed_one("SELECT pg_try_advisory_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    Ok(row.get(0))
}

/// Makes the tables if need be, raises the epoch of every slot, and reads what is to be replayed.
///
/// All in one transaction that ends with the epochs raised: an append of a lower epoch either committed
/// before, and is read here, or finds the higher epoch.
pub(super) async fn take_over(client: &Client, fresh_generation: u64) -> Result<Opened, PostgresError> {
    client.batch_execute("BEGIN").await?;
    // Two first starts at once must not both make the tables.
    client.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&(LOCK + 1), Type::INT8)]).await?;
    make_tables(client, fresh_generation).await?;
    let (generation, epoch) = raise_epoch(client, fresh_generation).await?;
    let slots = client.query_typed("SELECT id, lsn, checkpoint_lsn FROM ringway_slots ORDER BY id", &[]).await?;
    if slots.len() != SLOTS {
        let what = format!("table ringway_slots has {} rows, not {SLOTS}", slots.len());
        return Err(PostgresError::Damaged(what));
    }
    let column = |name: &str| -> Vec<Lsn> { slots.iter().map(|row| number(row, name)).collect() };
    let (next_lsn, checkpoint_lsn) = (column("lsn"), column("checkpoint_lsn"));
    let journal = client
        .query_typed("SELECT slot, lsn, epoch, records, bytes, checksum FROM ringway_journal ORDER BY place", &[])
        .await?;
    let recovered = replay(&journal, &checkpoint_lsn, &next_lsn)?;
    let days = days(client).await?;
    let (class, class_reason) = class_of(client).await?;
    client.batch_execute("COMMIT").await?;
    Ok(Opened { generation, epoch, next_lsn, checkpoint_lsn, days, recovered, class, class_reason })
}

async fn make_tables(client: &Client, fresh_generation: u64) -> Result<(), PostgresError> {
    let known = client.query_typed("SELECT to_regclass('ringway_meta') IS NOT NULL", &[]).await?;
    if known[0].get(0) {
        let row = client.query_typed_one("SELECT format FROM ringway_meta", &[]).await?;
        let found: i32 = row.get(0);
        if found > FORMAT {
            return Err(PostgresError::Newer { found, known: FORMAT });
        }
        if found < 2 {
            client.batch_execute(FROM_1_TO_2).await?;
        }
        return Ok(());
    }
    client.batch_execute(TABLES).await?;
    client
        .query_typed(
            "INSERT INTO ringway_meta (format, generation, timeline, epoch) VALUES ($1, $2, $3, 0)",
            &[(&FORMAT, Type::INT4), (&(fresh_generation as i64), Type::INT8), (&timeline(client).await?, Type::TEXT)],
        )
        .await?;
    let fill = format!("INSERT INTO ringway_slots (id) SELECT generate_series(0, {})", SLOTS - 1);
    Ok(client.batch_execute(&fill).await?)
}

/// The days of dedup rows.
async fn days(client: &Client) -> Result<Days, PostgresError> {
    let row = client.query_typed_one("SELECT days FROM ringway_meta", &[]).await?;
    if let Some(bytes) = row.get::<_, Option<&[u8]>>(0) {
        let what = || PostgresError::Damaged("the days of ringway_meta can not be read".to_owned());
        return Days::decode(bytes).ok_or_else(what);
    }
    let rows = client.query_typed("SELECT DISTINCT day FROM ringway_dedup ORDER BY day", &[]).await?;
    Ok(Days::of_records(rows.iter().map(|row| row.get::<_, i32>(0).cast_unsigned())))
}

/// The generation and this server's epoch.
async fn raise_epoch(client: &Client, fresh_generation: u64) -> Result<(u64, Epoch), PostgresError> {
    let row = client
        .query_typed_one("UPDATE ringway_meta SET epoch = epoch + 1 RETURNING epoch, generation, timeline", &[])
        .await?;
    let (epoch, mut generation) = (number(&row, "epoch"), row.get::<_, i64>("generation") as u64);
    let timeline = timeline(client).await?;
    if row.get::<_, String>("timeline") != timeline {
        // A standby was promoted or a backup restored: the end of history may be missing, and clients are told.
        generation = fresh_generation;
        client
            .query_typed(
                "UPDATE ringway_meta SET generation = $1, timeline = $2",
                &[(&(generation as i64), Type::INT8), (&timeline, Type::TEXT)],
            )
            .await?;
    }
    client.query_typed("SELECT 1 FROM ringway_slots ORDER BY id FOR UPDATE", &[]).await?;
    client
        .query_typed("UPDATE ringway_slots SET epoch = $1 WHERE epoch < $1", &[(&(epoch as i64), Type::INT8)])
        .await?;
    Ok((generation, epoch))
}

/// Which history of which cluster this is. It changes when a standby takes over.
async fn timeline(client: &Client) -> Result<String, PostgresError> {
    let question = "SELECT (SELECT system_identifier FROM pg_control_system()) || '/' \
                    || left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    Ok(client.query_typed_one(question, &[]).await?.get(0))
}

/// Parts that the views do not cover, which must continue each slot without a hole up to its LSN.
fn replay(journal: &[Row], checkpoint_lsn: &[Lsn], next_lsn: &[Lsn]) -> Result<Vec<AppendGroup>, PostgresError> {
    let mut reached = checkpoint_lsn.to_vec();
    let mut recovered = Vec::new();
    for row in journal {
        let (slot, lsn) = (row.get::<_, i32>("slot"), number(row, "lsn"));
        let place = reached.get_mut(slot as usize);
        let place = place.ok_or_else(|| PostgresError::Damaged(format!("ringway_journal names slot {slot}")))?;
        let records = row.get::<_, i32>("records") as u32;
        if lsn != *place {
            let what = format!("ringway_journal: slot {slot} continues at LSN {lsn} where {place} is expected");
            return Err(PostgresError::Damaged(what));
        }
        *place += u64::from(records);
        let bytes: Vec<u8> = row.get("bytes");
        if row.get::<_, i32>("checksum") != checksum(slot as Slot, lsn, records, &bytes) {
            let what = format!("ringway_journal: slot {slot}, LSN {lsn}: the checksum does not match");
            return Err(PostgresError::Damaged(what));
        }
        let range = 0..bytes.len() as u32;
        let part = Part { slot: slot as Slot, epoch: number(row, "epoch"), expected_lsn: lsn, records, bytes: range };
        recovered.push(AppendGroup { ticket: 0, parts: vec![part], bytes });
    }
    match (0..SLOTS).find(|&slot| reached[slot] != next_lsn[slot]) {
        None => Ok(recovered),
        Some(slot) => Err(PostgresError::Damaged(format!(
            "ringway_journal: slot {slot} ends at LSN {}, and its row says {}",
            reached[slot], next_lsn[slot]
        ))),
    }
}

/// D2 where a commit is on the server's disk, and on those of its synchronous standbys, before it is answered.
async fn class_of(client: &Client) -> Result<(Class, Option<String>), PostgresError> {
    let row = client
        .query_typed_one(
            "SELECT current_setting('synchronous_commit'), current_setting('fsync'), \
             current_setting('full_page_writes')",
            &[],
        )
        .await?;
    let setting = |at: usize| row.get::<_, String>(at);
    let reason = match (setting(0).as_str(), setting(1).as_str(), setting(2).as_str()) {
        ("on" | "remote_apply", "on", "on") => None,
        ("on" | "remote_apply", "on", other) => Some(format!("full_page_writes is {other}")),
        ("on" | "remote_apply", other, _) => Some(format!("fsync is {other}")),
        (other, _, _) => Some(format!("synchronous_commit is {other}")),
    };
    Ok((if reason.is_none() { Class::D2 } else { Class::D1 }, reason))
}

pub(super) fn number(row: &Row, column: &str) -> u64 {
    row.get::<_, i64>(column) as u64
}
