//! What an operator does with a store that no server has open: check it, back it up, restore it.
//!
//! All three hold the directory's lock, so that they never look at a store that changes. They use the
//! server's own recovery and its own views to judge; only when those stop at the first damaged place does
//! `damage` walk on, to name every one.

mod damage;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::DiskError;
use crate::embedded::{DirectoryLock, StartError, check_views as must_fit};
use crate::glommio_disk::GlommioDisk;
use crate::planted::Planted;
use crate::recovery::{self, IDENTITY_FILE, OpenError, Scan};
use crate::seam::Slot;
use crate::segment::Identity;
use crate::views::{Views, ViewsConfig};

const JOURNAL: &str = "journal";
const VIEWS: &str = "views";
const LOCK: &str = "lock";
/// Of many damaged rows, so many are named.
const ROWS_NAMED_MAX: usize = 100;

/// Where something is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file of the journal.
    Journal {
        /// The file, below the data directory.
        file: String,
        /// First damaged byte, as far as that is known.
        offset: u64,
        /// Slots whose records are concerned, where the damage left that to be read.
        slots: Vec<Slot>,
    },
    /// In the views.
    View {
        /// The map and the row or file.
        row: String,
    },
    /// Between the two, or in the directory as a whole.
    Store,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Journal { file, offset, slots } => {
                write!(out, "{file} at byte {offset}: {}", self.what)?;
                if !slots.is_empty() {
                    let slots: Vec<String> = slots.iter().map(Slot::to_string).collect();
                    write!(out, " (slots {})", slots.join(", "))?;
                }
                Ok(())
            }
            Place::View { row } => write!(out, "views, {row}: {}", self.what),
            Place::Store => out.write_str(&self.what),
        }
    }
}

/// What a check saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments of the journal.
    pub segments: usize,
    /// Bytes of batches whose checksums match.
    pub journal_bytes: u64,
    /// Batches that a start would replay.
    pub replayed: usize,
    /// The journal's newest checkpoint.
    pub checkpoint: u64,
    /// The checkpoint that the views hold.
    pub views_checkpoint: u64,
    /// Rows of the views whose checksums match.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Nothing is wrong: a server would start on this store and answer from all of it.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, place: Place, what: impl Into<String>) {
        self.findings.push(Finding { place, what: what.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { segments, journal_bytes, replayed, checkpoint, views_checkpoint, rows, findings } = self;
        writeln!(out, "journal: {segments} segments, {journal_bytes} bytes of batches, checkpoint {checkpoint}")?;
        writeln!(out, "a start replays {replayed} batches")?;
        writeln!(out, "views: {rows} rows, checkpoint {views_checkpoint}")?;
        for finding in findings {
            writeln!(out, "DAMAGED {finding}")?;
        }
        match findings.len() {
            0 => write!(out, "sound"),
            1 => write!(out, "1 thing is wrong"),
            count => write!(out, "{count} things are wrong"),
        }
    }
}

/// Why something was not done. Nothing was changed, except where it says so.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// There is nothing to work on.
    #[error("there is no store in {0}")]
    NoStore(String),
    /// A server runs on it, or it can not be read.
    #[error(transparent)]
    Directory(#[from] StartError),
    /// The place to write to holds something.
    #[error("{0} is not empty; nothing was written. Give a directory that is empty or does not exist")]
    NotEmpty(String),
    /// A backup inside what is backed up.
    #[error("{0} lies inside the store; give a directory outside of it")]
    Inside(String),
    /// Copying failed; what was copied has been removed again.
    #[error("{path}: {error}")]
    Copy {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The store is damaged, so a copy of it would be.
    #[error("the store in {directory} is damaged, nothing was left in the target:\n{report}")]
    Damaged {
        /// The directory that was checked.
        directory: String,
        /// What is wrong.
        report: Report,
    },
    /// The identity of a restored store could not be written.
    #[error(transparent)]
    Identity(#[from] OpenError),
    /// The system does not give what is needed.
    #[error("{0}")]
    System(String),
}

/// Reads everything that is in the store and says what is wrong with it.
pub fn check(dir: &Path) -> Result<Report, MaintenanceError> {
    let _lock = lock_existing(dir)?;
    check_locked(dir)
}

/// Copies a store that no server runs on, and checks the copy. The copy is a data directory like any
/// other, but should be used by way of [`restore`].
pub fn backup(dir: &Path, target: &Path) -> Result<Report, MaintenanceError> {
    let _lock = lock_existing(dir)?;
    if is_inside(target, dir) {
        return Err(MaintenanceError::Inside(target.display().to_string()));
    }
    let identity = read_identity(dir)?;
    copy_store(dir, target, identity)
}

/// Makes a store of a backup, under a new generation, so that clients notice that history may have shrunk.
pub fn restore(source: &Path, dir: &Path) -> Result<Report, MaintenanceError> {
    if !holds_store(source) {
        return Err(MaintenanceError::NoStore(source.display().to_string()));
    }
    // A server's own directory is no backup. Where not even a lock file can be written, no server runs.
    let _lock = match DirectoryLock::take(source) {
        Err(StartError::Directory { .. }) => None,
        taken => Some(taken?),
    };
    if is_inside(dir, source) {
        return Err(MaintenanceError::Inside(dir.display().to_string()));
    }
    let generation = getrandom::u64().map_err(|error| MaintenanceError::System(format!("no randomness: {error}")))?;
    let identity = Identity { generation: generation.max(1), ..read_identity(source)? };
    copy_store(source, dir, identity)
}

fn lock_existing(dir: &Path) -> Result<DirectoryLock, MaintenanceError> {
    if !holds_store(dir) {
        return Err(MaintenanceError::NoStore(dir.display().to_string()));
    }
    Ok(DirectoryLock::take(dir)?)
}

fn holds_store(dir: &Path) -> bool {
    dir.join(JOURNAL).is_dir() || dir.join(VIEWS).is_dir()
}

fn check_locked(dir: &Path) -> Result<Report, MaintenanceError> {
    let mut report = Report::default();
    let scan = scan_journal(dir)?;
    match &scan {
        Ok(Some(scan)) => {
            (report.segments, report.journal_bytes) = scan.size();
            report.replayed = scan.batches().len();
            report.checkpoint = scan.checkpoint().number;
        }
        Ok(None) => {}
        Err(error) => {
            damage::name_all(&dir.join(JOURNAL), &mut report);
            if report.is_sound() {
                report.add(damage::place_of(error), error.to_string());
            }
        }
    }
    check_views(dir, &scan, &mut report);
    Ok(report)
}

/// What recovery says, on a thread of its own: the disk's executor wants one.
fn scan_journal(dir: &Path) -> Result<Result<Option<Scan>, OpenError>, MaintenanceError> {
    let journal = dir.join(JOURNAL);
    if !journal.is_dir() {
        return Ok(Ok(None));
    }
    on_disk(&journal, |disk| recovery::scan(disk, Planted::NONE))
}

fn on_disk<T: Send + 'static>(
    journal: &Path,
    work: impl FnOnce(&mut GlommioDisk) -> T + Send + 'static,
) -> Result<T, MaintenanceError> {
    let system = |error: DiskError| MaintenanceError::System(error.to_string());
    let journal = journal.to_owned();
    let thread = std::thread::spawn(move || Ok(work(&mut GlommioDisk::new(&journal).map_err(system)?)));
    thread.join().map_err(|_| MaintenanceError::System("reading the journal failed an assertion".to_owned()))?
}

/// `scan` is what recovery says of the journal; damaged, it is nothing to hold the views against.
fn check_views(dir: &Path, scan: &Result<Option<Scan>, OpenError>, report: &mut Report) {
    let path = dir.join(VIEWS);
    if report.checkpoint == 0 && !path.join("MARK").exists() {
        // Never begun, or begun and cut short: a server would make them.
        return;
    }
    let config = ViewsConfig { expect_existing: true, ..ViewsConfig::default() };
    let views = match Views::open(&path, config) {
        Ok(views) => views,
        Err(error) => return report.add(Place::View { row: path.display().to_string() }, error.to_string()),
    };
    report.views_checkpoint = views.checkpoint().0;
    if let Ok(scan) = scan
        && let Err(error) = must_fit(scan.as_ref(), views.checkpoint())
    {
        report.add(Place::Store, error.to_string());
    }
    let mut not_named = 0_u64;
    let mut found = Vec::new();
    let verified = views.verify(&mut |space, row| {
        if found.len() < ROWS_NAMED_MAX {
            found.push(Place::View { row: format!("{space:?}, {row}") });
        } else {
            not_named += 1;
        }
    });
    for place in found {
        report.add(place, "checksum does not match or block can not be read");
    }
    if not_named > 0 {
        report.add(Place::View { row: format!("{not_named} more rows") }, "damaged as well");
    }
    match verified {
        Ok(rows) => report.rows = rows,
        Err(error) => report.add(Place::View { row: path.display().to_string() }, error.to_string()),
    }
}

fn read_identity(dir: &Path) -> Result<Identity, MaintenanceError> {
    match scan_journal(dir)? {
        Ok(Some(scan)) => Ok(scan.identity()),
        Ok(None) => Err(MaintenanceError::NoStore(dir.display().to_string())),
        Err(_) => Err(MaintenanceError::Damaged { directory: dir.display().to_string(), report: check_locked(dir)? }),
    }
}

/// Copies everything, gives the copy its identity last, and checks it. Without an identity a server
/// refuses to start, so a copy that was cut short is never taken for a store.
fn copy_store(from: &Path, to: &Path, identity: Identity) -> Result<Report, MaintenanceError> {
    let created = !to.exists();
    must_be_empty(to)?;
    fs::create_dir_all(to).map_err(|error| copy_failed(to, error))?;
    let _lock = DirectoryLock::take(to)?;
    let copied = copy_and_check(from, to, identity);
    if copied.is_err() {
        remove_copy(to, created);
    }
    copied
}

fn copy_and_check(from: &Path, to: &Path, identity: Identity) -> Result<Report, MaintenanceError> {
    let is_top_lock = |path: &Path| path == from.join(LOCK);
    let is_identity = |path: &Path| path == from.join(JOURNAL).join(IDENTITY_FILE);
    copy_tree(from, to, &|path| !is_top_lock(path) && !is_identity(path) && !is_leftover(path))?;
    on_disk(&to.join(JOURNAL), move |disk| recovery::write_identity(disk, identity))??;
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync(parent)?;
    }
    let report = check_locked(to)?;
    if report.is_sound() {
        return Ok(report);
    }
    Err(MaintenanceError::Damaged { directory: from.display().to_string(), report })
}

/// Files of the journal that count for nothing.
fn is_leftover(path: &Path) -> bool {
    let in_journal = path.parent().is_some_and(|parent| parent.ends_with(JOURNAL));
    in_journal && path.extension().is_some_and(|extension| extension == "new" || extension == "spare")
}

/// Copies a directory with all it holds; what was copied is synced when this returns.
fn copy_tree(from: &Path, to: &Path, wanted: &impl Fn(&Path) -> bool) -> Result<(), MaintenanceError> {
    let entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(|error| copy_failed(from, error))? {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if !wanted(&source) {
            continue;
        }
        let kind = fs::metadata(&source).map_err(|error| copy_failed(&source, error))?;
        if kind.is_dir() {
            fs::create_dir(&target).map_err(|error| copy_failed(&target, error))?;
            fs::set_permissions(&target, kind.permissions()).map_err(|error| copy_failed(&target, error))?;
            copy_tree(&source, &target, wanted)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(|error| copy_failed(&source, error))?;
            sync(&target)?;
        }
    }
    sync(to)
}

fn sync(path: &Path) -> Result<(), MaintenanceError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| copy_failed(path, error))
}

fn copy_failed(path: &Path, error: io::Error) -> MaintenanceError {
    MaintenanceError::Copy { path: path.display().to_string(), error }
}

/// A lock file or what a file system puts into its root is no content.
fn must_be_empty(dir: &Path) -> Result<(), MaintenanceError> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(copy_failed(dir, error)),
    };
    let holds_content = entries
        .any(|entry| entry.is_ok_and(|entry| !["lost+found", LOCK].iter().any(|&name| entry.file_name() == name)));
    if holds_content {
        return Err(MaintenanceError::NotEmpty(dir.display().to_string()));
    }
    Ok(())
}

/// Takes a failed copy away. What can not be removed has no identity or is named by the error before.
fn remove_copy(dir: &Path, whole: bool) {
    // The identity first: what is left then is no store, whatever happens.
    let _ = fs::remove_file(dir.join(JOURNAL).join(IDENTITY_FILE));
    if whole {
        let _ = fs::remove_dir_all(dir);
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if entry.file_name() != "lost+found" {
            let _ = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

fn is_inside(inner: &Path, outer: &Path) -> bool {
    let real = |path: &Path| -> Option<PathBuf> {
        // The target may not exist yet; its nearest ancestor that does tells where it will be.
        let absolute = std::path::absolute(path).ok()?;
        absolute.ancestors().find_map(|ancestor| {
            let rest = absolute.strip_prefix(ancestor).ok()?;
            Some(ancestor.canonicalize().ok()?.join(rest))
        })
    };
    match (real(inner), real(outer)) {
        (Some(inner), Some(outer)) => inner.starts_with(outer),
        _ => false,
    }
}
