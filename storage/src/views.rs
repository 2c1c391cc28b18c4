//! The embedded views: ordered maps in fjall that follow the journal by sorted runs.
//!
//! Rows never pass through fjall's own log. Each checkpoint is sorted and written as tables
//! (`start_ingestion`), which are synced when that returns, and only then the mark of the directory is
//! replaced (`docs/decisions/0002-views-by-sorted-runs.md`). A crash in between leaves rows that are
//! newer than the mark; the journal still holds them and ingesting them again changes nothing.
//!
//! Below the journal's checkpoint the views are the only copy. So every value carries a checksum over
//! its key and itself that is compared at each read, and a directory that should be there is never
//! created anew.
//!
//! ```text
//! views/MARK       format version, checkpoint, position, days (see `mark.rs`)
//! views/rows/      fjall: keyspaces history, heads, members, and dedup-<number of the day> (see `days.rs`)
//! stored value     value | crc32 of key and value, u32 little-endian
//! ```

mod mark;
pub(crate) mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{AbstractTree, CompressionType, Database, Guard, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode};

pub use mark::VIEWS_FORMAT;

use crate::checked::{name_of, seal, value_of};
use crate::days::{DAY_MS, Days};
use crate::seam::{ReadError, Rows, Run, Space, ViewRead};
use crate::taken::Taken;
use mark::Mark;
use runs::{Sorted, hex};

/// How long a read waits for a store that is being reopened.
const REOPENING_MAX: Duration = Duration::from_secs(1);

const ROWS_DIR: &str = "rows";
/// fjall takes a directory without this file for a new one. Ours must not be new when a mark exists.
const FJALL_MARKER: &str = "version";
const DEDUP_PREFIX: &str = "dedup-";

/// How the views are opened and how much they may take.
#[derive(Debug, Clone)]
pub struct ViewsConfig {
    /// The store has a checkpoint, so the views must be there: an empty or missing directory is an
    /// error, not a fresh start.
    pub expect_existing: bool,
    /// Cache of blocks, shared by all maps.
    pub cache_bytes: u64,
    /// Size of a table after compaction. Smaller ones make a compaction that small runs cause cheaper.
    pub table_bytes: u64,
    /// Open table files that are kept for reuse.
    pub open_files_max: usize,
    /// Ingested runs of one map that may wait for compaction before the next ingestion has to.
    pub runs_waiting_max: usize,
    /// How long an ingestion waits for compaction before it is refused as [`ViewsError::Behind`].
    pub wait_ms_max: u64,
    /// How long closing may take before it is given up and left to its thread.
    pub close_ms_max: u64,
    /// An ingestion that is not urgent works for one part of its time and rests for so many.
    pub rests: u32,
    /// How long the store runs until the dedup rows that it takes go into another day. Other than a day only in
    /// tests: rows are promised to stay for seven.
    pub dedup_day_ms: u64,
}

impl Default for ViewsConfig {
    fn default() -> ViewsConfig {
        ViewsConfig {
            expect_existing: false,
            cache_bytes: 64 << 20,
            table_bytes: 16 << 20,
            open_files_max: 256,
            runs_waiting_max: 24,
            wait_ms_max: 10_000,
            close_ms_max: 10_000,
            rests: 3,
            dedup_day_ms: DAY_MS,
        }
    }
}

/// Why the views could not be opened or brought forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewsError {
    /// A checkpoint says that there are views, and there are none.
    #[error(
        "the views in {0} are missing although the journal relies on them; \
         restore the directory from a backup (`ringway storage restore`)"
    )]
    Missing(String),
    /// They are there and cannot be trusted.
    #[error(
        "the views are damaged: {0}; `ringway storage check` says more, \
         `ringway storage restore` brings back a backup"
    )]
    Damaged(String),
    /// A later version of Ringway wrote them.
    #[error("the views have format {found}, this version knows up to {known}: use a newer ringway")]
    TooNew {
        /// Format found.
        found: u32,
        /// Newest format known here.
        known: u32,
    },
    /// Another process has them open.
    #[error("the views are in use by another process")]
    Locked,
    /// No room on the device. The same ingestion succeeds once there is room.
    #[error("no room for the views: {0}")]
    Full(String),
    /// Compaction does not keep up. The same ingestion may be tried later.
    #[error("the views wait for compaction")]
    Behind,
    /// The store does not answer. The same ingestion may be tried later; it reopens the store first.
    #[error("the views do not answer: {0}")]
    Unavailable(String),
    /// A row breaks the contract of its map: a bug of the caller, nothing was marked.
    #[error("a row cannot be kept: {0}")]
    BadRow(String),
}

/// The maps of one node. Read from any thread; brought forward by one.
pub struct Views {
    dir: PathBuf,
    config: ViewsConfig,
    /// `None` after a failed reopening: nothing answers until the next one succeeds.
    engine: RwLock<Option<Arc<Engine>>>,
    writer: Mutex<Writer>,
}

struct Writer {
    mark: Mark,
    /// Since when this process has them open, and their uptime then.
    opened: (Instant, u64),
    /// fjall met an I/O error. It may be poisoned, its compaction thread may be gone and half-written
    /// tables may take room, so the next ingestion starts it afresh.
    reopen_first: bool,
}

impl Views {
    /// Opens the views in `dir`, creating them only when nothing relies on them.
    pub fn open(dir: &Path, config: ViewsConfig) -> Result<Views, ViewsError> {
        let mark = match Mark::read(dir)? {
            Some(mark) => mark,
            None if config.expect_existing => {
                return Err(ViewsError::Missing(dir.display().to_string()));
            }
            None => create(dir, &config)?,
        };
        let engine = Engine::open(dir, &config, &mark)?;
        let opened = (Instant::now(), mark.days.uptime_ms());
        Ok(Views {
            dir: dir.to_owned(),
            config,
            engine: RwLock::new(Some(Arc::new(engine))),
            writer: Mutex::new(Writer { mark, opened, reopen_first: false }),
        })
    }

    /// The last checkpoint whose rows are all durable here, and the journal position that it covers.
    pub fn checkpoint(&self) -> (u64, u64) {
        let writer = self.writer();
        (writer.mark.checkpoint, writer.mark.position)
    }

    /// Dedup rows of records up to this time may have been forgotten.
    pub fn forgotten_until_ms(&self) -> u64 {
        self.writer().mark.days.forgotten_until_ms()
    }

    /// As if it had run for so much longer.
    #[cfg(test)]
    fn pass(&self, uptime_ms: u64) {
        self.writer().opened.1 += uptime_ms;
    }

    /// Answers a question from what has been ingested.
    pub fn read(&self, question: &ViewRead) -> Result<Rows, ReadError> {
        let engine = self.current_soon().ok_or_else(|| ReadError::Unavailable("they are closed".to_owned()))?;
        // fjall asserts what it believes about its files. A damaged one must cost this read, not the node.
        catch_unwind(AssertUnwindSafe(|| match question {
            ViewRead::Get { space, key } => engine.get(*space, key),
            ViewRead::Range { space, start, end, rows_max, bytes_max, reverse } => engine.range(
                *space,
                Bounds { start, end, reverse: *reverse },
                Taken::new(*rows_max, *bytes_max),
                *rows_max,
            ),
        }))
        .unwrap_or_else(|panic| Err(ReadError::Damaged(panic_text(&*panic))))
    }

    /// Adds the rows of a checkpoint; durable when this returns. Later rows of a key win over earlier
    /// ones, within a run, across `runs` and across calls, so repeating the newest call changes nothing.
    ///
    /// After an error nothing is marked and the same call may be repeated. A repetition after an I/O
    /// error reopens the store first.
    pub fn ingest(&self, checkpoint: u64, position: u64, runs: &[Run]) -> Result<(), ViewsError> {
        self.ingest_paced(checkpoint, position, runs, &|| true)
    }

    /// [`Views::ingest`], with rests for as long as it is not `urgent`: a checkpoint's rows written in one go
    /// take a core from those who serve for hundreds of milliseconds.
    pub fn ingest_paced(
        &self,
        checkpoint: u64,
        position: u64,
        runs: &[Run],
        urgent: &dyn Fn() -> bool,
    ) -> Result<(), ViewsError> {
        let mut writer = self.writer();
        if writer.reopen_first {
            self.reopen_with(&mut writer)?;
        }
        let pace = Pace { rests: self.config.rests, urgent };
        let result = self.ingest_with(&mut writer, (checkpoint, position), runs, &pace);
        if let Err(error) = &result {
            writer.reopen_first = error.is_of_the_device();
        }
        result
    }

    /// The most ingested runs of one map that wait for compaction. Each costs every read a look.
    pub fn runs_waiting(&self) -> usize {
        let keyspaces = self.current().map(|engine| engine.keyspaces()).unwrap_or_default();
        keyspaces.iter().map(|(_, keyspace)| keyspace.tree.l0_run_count()).max().unwrap_or(0)
    }

    /// Closes and opens the store again, which is what fjall wants after an I/O error.
    pub fn reopen(&self) -> Result<(), ViewsError> {
        self.reopen_with(&mut self.writer())
    }

    /// Reads every row and calls `damaged` with the map and the place of each that cannot be trusted.
    /// Returns the number of good rows.
    pub fn verify(&self, damaged: &mut dyn FnMut(Space, String)) -> Result<u64, ViewsError> {
        let engine = self.current().ok_or_else(closed)?;
        let mut rows = 0;
        for (space, keyspace) in engine.keyspaces() {
            let checked = catch_unwind(AssertUnwindSafe(|| {
                for item in keyspace.iter() {
                    match item.into_inner() {
                        Ok((key, stored)) => match value_of(space, &key, &stored) {
                            Ok(_) => rows += 1,
                            Err(_) => damaged(space, format!("row with key {}", hex(&key))),
                        },
                        // A block that cannot be read hides its rows; the iterator goes no further.
                        Err(error) => {
                            damaged(space, format!("{}: {error}", keyspace.path().display()));
                            break;
                        }
                    }
                }
            }));
            if let Err(panic) = checked {
                let text = panic_text(&*panic);
                damaged(space, format!("{}: {text}", keyspace.path().display()));
            }
        }
        Ok(rows)
    }

    fn ingest_with(
        &self,
        writer: &mut Writer,
        (checkpoint, position): (u64, u64),
        runs: &[Run],
        pace: &Pace<'_>,
    ) -> Result<(), ViewsError> {
        let engine = self.current().ok_or_else(closed)?;
        let sorted = Sorted::new(runs)?;
        engine.drop_forgotten(&writer.mark.days);
        engine.wait_for_compaction(&self.config)?;
        for space in [Space::History, Space::Heads, Space::Members] {
            write_run(engine.plain(space), sorted.rows(space), pace)?;
        }
        let mut days = writer.mark.days.clone();
        let (opened, uptime_ms) = writer.opened;
        let uptime_ms = uptime_ms + opened.elapsed().as_millis() as u64;
        // Days that go lose their rows only with the next checkpoint: until then every shard has been told.
        if let Some(day) = days.checkpoint(uptime_ms, self.config.dedup_day_ms, sorted.times()) {
            write_run(&engine.day(day)?, sorted.rows(Space::Dedup), pace)?;
        }
        engine.must_be_healthy()?;
        let mark = Mark { checkpoint, position, days };
        mark.write(&self.dir)?;
        writer.mark = mark;
        Ok(())
    }

    fn reopen_with(&self, writer: &mut Writer) -> Result<(), ViewsError> {
        writer.reopen_first = true;
        let old = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = old {
            close(engine, Duration::from_millis(self.config.close_ms_max))?;
        }
        let mark = Mark::read(&self.dir)?.ok_or_else(|| ViewsError::Missing(self.dir.display().to_string()))?;
        let engine = Engine::open(&self.dir, &self.config, &mark)?;
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(engine));
        writer.mark = mark;
        writer.reopen_first = false;
        Ok(())
    }

    fn current(&self) -> Option<Arc<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// [`Views::current`], after a reopening that is under way.
    fn current_soon(&self) -> Option<Arc<Engine>> {
        let started = Instant::now();
        loop {
            let engine = self.current();
            if engine.is_some() || started.elapsed() > REOPENING_MAX {
                return engine;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked left at most rows without a mark, which is what a crash leaves too.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// fjall with its maps open.
struct Engine {
    /// Indexed by [`Space`]; dedup has one per day instead.
    plain: [Option<Keyspace>; Space::ALL.len()],
    /// Newest day first.
    dedup: RwLock<Vec<(u32, Keyspace)>>,
    options: KeyspaceCreateOptions,
    database: Database,
}

#[derive(Clone, Copy)]
struct Bounds<'a> {
    start: &'a [u8],
    end: &'a [u8],
    reverse: bool,
}

impl Engine {
    fn open(dir: &Path, config: &ViewsConfig, mark: &Mark) -> Result<Engine, ViewsError> {
        let rows_dir = dir.join(ROWS_DIR);
        if !rows_dir.join(FJALL_MARKER).exists() {
            return Err(ViewsError::Missing(rows_dir.display().to_string()));
        }
        let database = open_database(&rows_dir, config)?;
        let options = keyspace_options(config);
        let existing = |name: &str| -> Result<Keyspace, ViewsError> {
            if !database.keyspace_exists(name) {
                let dir = rows_dir.display();
                return Err(ViewsError::Damaged(format!("{dir}: the map {name} is gone")));
            }
            database.keyspace(name, || options.clone()).map_err(ViewsError::from_fjall)
        };
        let mut plain = Space::ALL.map(|_| None);
        for space in [Space::History, Space::Heads, Space::Members] {
            plain[space as usize] = Some(existing(name_of(space))?);
        }
        for day in mark.days.numbers() {
            existing(&day_name(day))?;
        }
        // A day may be there without being marked: its ingestion or its removal was cut short. It is
        // read like the others; the first repeats itself, the second will.
        let mut dedup = Vec::new();
        for name in database.list_keyspace_names() {
            if let Some(day) = name.strip_prefix(DEDUP_PREFIX).and_then(|day| day.parse().ok()) {
                dedup.push((day, existing(&name)?));
            }
        }
        dedup.sort_by_key(|&(day, _)| std::cmp::Reverse(day));
        Ok(Engine { plain, dedup: RwLock::new(dedup), options, database })
    }

    fn plain(&self, space: Space) -> &Keyspace {
        self.plain[space as usize].as_ref().expect("every map but dedup is opened at start")
    }

    fn dedup_keyspaces(&self) -> Vec<(u32, Keyspace)> {
        self.dedup.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keyspaces(&self) -> Vec<(Space, Keyspace)> {
        let plain = [Space::History, Space::Heads, Space::Members].map(|space| (space, self.plain(space).clone()));
        let dedup = self.dedup_keyspaces().into_iter().map(|(_, keyspace)| (Space::Dedup, keyspace));
        plain.into_iter().chain(dedup).collect()
    }

    /// The map of dedup rows of `day`, created when this is its first row.
    fn day(&self, day: u32) -> Result<Keyspace, ViewsError> {
        let mut dedup = self.dedup.write().unwrap_or_else(PoisonError::into_inner);
        let place = match dedup.binary_search_by(|(other, _)| day.cmp(other)) {
            Ok(place) => return Ok(dedup[place].1.clone()),
            Err(place) => place,
        };
        let keyspace = create_keyspace(&self.database, &day_name(day), &self.options)?;
        dedup.insert(place, (day, keyspace.clone()));
        Ok(keyspace)
    }

    /// Drops the maps of days that are forgotten. One that cannot be dropped now is at the next start.
    fn drop_forgotten(&self, days: &Days) {
        let mut dedup = self.dedup.write().unwrap_or_else(PoisonError::into_inner);
        for (day, keyspace) in dedup.extract_if(.., |(day, _)| days.is_forgotten(*day)) {
            match self.database.delete_keyspace(keyspace) {
                Ok(()) => tracing::info!(day, "old dedup rows dropped"),
                Err(error) => tracing::warn!(%error, day, "old dedup rows not dropped"),
            }
        }
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Rows, ReadError> {
        let mut rows = Rows::default();
        if space == Space::Dedup {
            for (_, keyspace) in self.dedup_keyspaces() {
                if push_row(&mut rows, space, &keyspace, key)? {
                    break;
                }
            }
        } else {
            push_row(&mut rows, space, self.plain(space), key)?;
        }
        Ok(rows)
    }

    fn range(&self, space: Space, bounds: Bounds<'_>, taken: Taken, rows_max: u32) -> Result<Rows, ReadError> {
        if bounds.start >= bounds.end {
            return Ok(Rows::default());
        }
        let found = |item: Guard| item.into_inner().map_err(|error| read_error(space, &error));
        if space != Space::Dedup {
            return take(space, taken, items(self.plain(space), &bounds).map(found));
        }
        // Dedup rows lie in a map per day. The first `rows_max + 1` of each are enough for the first
        // `rows_max + 1` of all; of a key that is in several days, the newest day's row counts.
        let mut merged = BTreeMap::new();
        for (_, keyspace) in self.dedup_keyspaces() {
            for item in items(&keyspace, &bounds).take(rows_max as usize + 1) {
                let (key, stored) = found(item)?;
                merged.entry(key).or_insert(stored);
            }
        }
        let merged = merged.into_iter().map(Ok);
        if bounds.reverse { take(space, taken, merged.rev()) } else { take(space, taken, merged) }
    }

    /// Lets compaction catch up when many runs wait for it: each costs every read a look.
    fn wait_for_compaction(&self, config: &ViewsConfig) -> Result<(), ViewsError> {
        let started = Instant::now();
        let waiting = |(_, keyspace): &(Space, Keyspace)| keyspace.tree.l0_run_count() > config.runs_waiting_max;
        while self.keyspaces().iter().any(waiting) {
            self.must_be_healthy()?;
            if started.elapsed() > Duration::from_millis(config.wait_ms_max) {
                return Err(ViewsError::Behind);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// fjall says that its background thread failed only to those who write to its log. Nothing is in
    /// that log, so this asks and costs one system call.
    fn must_be_healthy(&self) -> Result<(), ViewsError> {
        self.database.persist(PersistMode::Buffer).map_err(ViewsError::from_fjall)
    }
}

/// Rows up to the limits, each checked.
fn take(
    space: Space,
    mut taken: Taken,
    rows: impl Iterator<Item = Result<fjall::KvPair, ReadError>>,
) -> Result<Rows, ReadError> {
    for row in rows {
        let (key, stored) = row?;
        if !taken.has_room() {
            break;
        }
        taken.push(&key, value_of(space, &key, &stored)?);
    }
    Ok(taken.into_rows())
}

fn items<'a>(keyspace: &Keyspace, bounds: &Bounds<'a>) -> Box<dyn Iterator<Item = Guard> + 'a> {
    let range = keyspace.range(bounds.start..bounds.end);
    if bounds.reverse { Box::new(range.rev()) } else { Box::new(range) }
}

fn push_row(rows: &mut Rows, space: Space, from: &Keyspace, key: &[u8]) -> Result<bool, ReadError> {
    let named = |error| match read_error(space, &error) {
        ReadError::Damaged(what) => ReadError::Damaged(format!("row {} of {what}", hex(key))),
        unavailable @ ReadError::Unavailable(_) => unavailable,
    };
    let Some(stored) = from.get(key).map_err(named)? else { return Ok(false) };
    rows.push(key, value_of(space, key, &stored)?);
    Ok(true)
}

/// When an ingestion rests.
struct Pace<'a> {
    rests: u32,
    urgent: &'a dyn Fn() -> bool,
}

impl Pace<'_> {
    /// After so many rows, about a millisecond of work.
    const ROWS: usize = 512;

    /// And never for longer, whatever the work took: the process may have been paused meanwhile, or the disk be
    /// slow, and what is urgent a moment later must not wait for that.
    const REST_MAX: Duration = Duration::from_millis(20);

    fn rest(&self, worked: Duration) {
        if !(self.urgent)() {
            thread::sleep(self.rest_after(worked));
        }
    }

    fn rest_after(&self, worked: Duration) -> Duration {
        (worked * self.rests).min(Self::REST_MAX)
    }
}

/// Appends sorted rows to a map as a run of its own; synced when this returns.
fn write_run<'a>(
    keyspace: &Keyspace,
    rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    pace: &Pace<'_>,
) -> Result<(), ViewsError> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let write = || -> fjall::Result<()> {
        let mut ingestion = keyspace.start_ingestion()?;
        let mut stored = Vec::new();
        let mut begun = Instant::now();
        for (nth, (key, value)) in rows.enumerate() {
            if nth % Pace::ROWS == Pace::ROWS - 1 {
                pace.rest(begun.elapsed());
                begun = Instant::now();
            }
            stored.clear();
            seal(key, value, &mut stored);
            ingestion.write(key, stored.as_slice())?;
        }
        ingestion.finish()
    };
    catch_unwind(AssertUnwindSafe(write))
        .map_err(|panic| ViewsError::Unavailable(panic_text(&*panic)))?
        .map_err(ViewsError::from_fjall)
}

fn create(dir: &Path, config: &ViewsConfig) -> Result<Mark, ViewsError> {
    let io_failed = |error: io::Error| ViewsError::from_io(&error);
    let rows_dir = dir.join(ROWS_DIR);
    // Without a mark and without a checkpoint these are the remains of a creation that was cut short.
    match fs::remove_dir_all(&rows_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_failed(error)),
        _ => fs::create_dir_all(dir).map_err(io_failed)?,
    }
    let database = open_database(&rows_dir, config)?;
    for space in [Space::History, Space::Heads, Space::Members] {
        create_keyspace(&database, name_of(space), &keyspace_options(config))?;
    }
    mark::sync_dir(dir).map_err(io_failed)?;
    let mark = Mark::default();
    mark.write(dir)?;
    Ok(mark)
}

fn open_database(rows_dir: &Path, config: &ViewsConfig) -> Result<Database, ViewsError> {
    let open = || {
        Database::builder(rows_dir)
            .cache_size(config.cache_bytes)
            .max_cached_files(Some(config.open_files_max))
            // With two, one of them does nothing but hand work to the other, without pausing.
            .worker_threads(1)
            .journal_compression(CompressionType::None)
            .open()
    };
    catch_unwind(AssertUnwindSafe(open)).map_err(|panic| ViewsError::Damaged(panic_text(&*panic)))?.map_err(|error| {
        match ViewsError::from_fjall(error) {
            ViewsError::Damaged(what) => ViewsError::Damaged(format!("{}: {what}", rows_dir.display())),
            other => other,
        }
    })
}

fn keyspace_options(config: &ViewsConfig) -> KeyspaceCreateOptions {
    let compaction = fjall::compaction::Leveled::default().with_table_target_size(config.table_bytes);
    let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
    KeyspaceCreateOptions::default()
        .compaction_strategy(Arc::new(compaction))
        .filter_policy(FilterPolicy::all(bloom))
        .max_memtable_size(1 << 20)
}

fn create_keyspace(database: &Database, name: &str, options: &KeyspaceCreateOptions) -> Result<Keyspace, ViewsError> {
    let keyspace = database.keyspace(name, || options.clone()).map_err(ViewsError::from_fjall)?;
    // fjall syncs what is in the map's directory, not the directory's own name.
    if let Some(parent) = keyspace.path().parent() {
        mark::sync_dir(parent).map_err(|error| ViewsError::from_io(&error))?;
    }
    Ok(keyspace)
}

/// Closes without waiting for ever: readers may still hold the engine, and fjall waits for its thread.
fn close(engine: Arc<Engine>, limit: Duration) -> Result<(), ViewsError> {
    let started = Instant::now();
    let stuck = || ViewsError::Unavailable("closing takes too long".to_owned());
    let mut shared = engine;
    let engine = loop {
        match Arc::try_unwrap(shared) {
            Ok(engine) => break engine,
            Err(still) if started.elapsed() < limit => shared = still,
            Err(_) => return Err(stuck()),
        }
        thread::sleep(Duration::from_millis(1));
    };
    let (closed, wait) = mpsc::channel();
    thread::Builder::new()
        .name("views-close".to_owned())
        .spawn(move || {
            drop(engine);
            // Nobody listens any more when the limit has passed.
            let _ = closed.send(());
        })
        .map_err(|error| ViewsError::from_io(&error))?;
    wait.recv_timeout(limit.saturating_sub(started.elapsed())).map_err(|_| stuck())
}

fn closed() -> ViewsError {
    ViewsError::Unavailable("they are closed after an error".to_owned())
}

fn day_name(day: u32) -> String {
    format!("{DEDUP_PREFIX}{day}")
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("fjall gave up: {}", text.unwrap_or("no reason given"))
}

fn read_error(space: Space, error: &fjall::Error) -> ReadError {
    match io_cause(error) {
        Some(cause) if cause.kind() != io::ErrorKind::NotFound && !is_cut_short(cause) => {
            ReadError::Unavailable(format!("{}: {cause}", name_of(space)))
        }
        _ => ReadError::Damaged(format!("{}: {error}", name_of(space))),
    }
}

fn io_cause(error: &fjall::Error) -> Option<&io::Error> {
    match error {
        fjall::Error::Io(cause) | fjall::Error::Storage(LsmError::Io(cause)) => Some(cause),
        _ => None,
    }
}

fn is_cut_short(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

impl ViewsError {
    /// The store itself is in doubt, not this call.
    fn is_of_the_device(&self) -> bool {
        matches!(self, ViewsError::Full(_) | ViewsError::Unavailable(_))
    }

    fn from_io(error: &io::Error) -> ViewsError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ViewsError::Full(error.to_string()),
            io::ErrorKind::NotFound => ViewsError::Damaged(error.to_string()),
            _ if is_cut_short(error) => ViewsError::Damaged(error.to_string()),
            _ => ViewsError::Unavailable(error.to_string()),
        }
    }

    fn from_fjall(error: fjall::Error) -> ViewsError {
        match io_cause(&error) {
            Some(cause) => ViewsError::from_io(cause),
            None => match error {
                fjall::Error::Locked => ViewsError::Locked,
                fjall::Error::Poisoned => ViewsError::Unavailable(error.to_string()),
                other => ViewsError::Damaged(other.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests;
