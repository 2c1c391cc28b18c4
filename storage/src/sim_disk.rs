//! A disk in memory that forgets: what was not synced may be lost or torn when the machine fails.
//!
//! Deterministic: everything random comes from the seed. It is stricter than Linux: names are durable
//! only after [`Disk::sync_directory`], and each unsynced sector lives or dies on its own.

use std::collections::{BTreeMap, HashMap};

use crate::disk::{BLOCK_BYTES, Disk, DiskError};

/// What a device writes in one piece.
const SECTOR_BYTES: usize = 512;

/// A small generator (splitmix64): enough for faults, and the same everywhere.
#[derive(Debug, Clone)]
pub struct SimRng(u64);

impl SimRng {
    /// From a seed; nearby seeds give unrelated numbers.
    pub fn new(seed: u64) -> SimRng {
        SimRng(seed ^ 0x5bf0_3635_dcf1_2b9d)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Faults that a test or the simulator switches on.
#[derive(Debug, Clone, Default)]
pub struct SimFaults {
    /// Room on the device; `None` is endless.
    pub capacity_bytes: Option<u64>,
    /// The next write fails after an unknown part of it was done.
    pub fail_next_write: Option<DiskError>,
    /// The next sync fails, and what it should have synced is lost or not, sector by sector.
    pub fail_next_sync: bool,
    /// After this many more operations the machine fails: every later one is an error until
    /// [`SimDisk::power_cut`] or [`SimDisk::kill`].
    pub dies_after: Option<u64>,
}

/// Handle of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimFile(u64);

#[derive(Debug, Default, Clone)]
struct Inode {
    length: u64,
    /// Bytes up to the highest write; zeros follow up to the length.
    content: Vec<u8>,
    /// Sectors before each unsynced write to them, oldest first.
    undo: Vec<(u32, [u8; SECTOR_BYTES])>,
    /// Length when last synced.
    synced_length: u64,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
}

/// See the module.
#[derive(Debug)]
pub struct SimDisk {
    rng: SimRng,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since the last sync of the directory; a power cut keeps a prefix (the file
    /// system's own journal is ordered).
    name_changes: Vec<Vec<NameChange>>,
    dead: bool,
    operations: u64,
    syncs: u64,
    /// May be changed at any time.
    pub faults: SimFaults,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            rng: SimRng::new(seed),
            inodes: HashMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            dead: false,
            operations: 0,
            syncs: 0,
            faults: SimFaults::default(),
        }
    }

    /// The process died: everything it wrote is still in the caches and can be read, but is not durable.
    pub fn kill(&mut self) {
        self.dead = false;
        self.faults.dies_after = None;
    }

    /// The machine lost power: unsynced sectors, lengths and names are lost or kept at random.
    pub fn power_cut(&mut self) {
        self.kill();
        let keep = if self.name_changes.is_empty() { 0 } else { self.rng.below(self.name_changes.len() as u64 + 1) };
        let changes = std::mem::take(&mut self.name_changes);
        self.names = std::mem::take(&mut self.durable_names);
        for change in changes.into_iter().take(keep as usize).flatten() {
            apply(&mut self.names, change);
        }
        self.durable_names = self.names.clone();
        let mut numbers: Vec<u64> = self.inodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let inode = self.inodes.get_mut(&number).expect("its number was just listed");
            tear(inode, &mut self.rng);
        }
        self.forget_unnamed();
    }

    /// Operations so far; with [`SimFaults::dies_after`] a test visits every point of a run.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Flips one bit of what a file holds, as a bad cell would. False if there is no such byte.
    pub fn flip_bit(&mut self, name: &str, byte: u64, bit: u8) -> bool {
        let Some(inode) = self.names.get(name).and_then(|number| self.inodes.get_mut(number)) else {
            return false;
        };
        let Some(cell) = inode.content.get_mut(byte as usize) else {
            return false;
        };
        *cell ^= 1 << (bit % 8);
        true
    }

    /// Length of a file by name.
    pub fn file_length(&self, name: &str) -> Option<u64> {
        self.names.get(name).map(|number| self.inodes[number].length)
    }

    /// Bytes that all files reserve.
    pub fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.length).sum()
    }

    fn operation(&mut self) -> Result<(), DiskError> {
        self.operations += 1;
        match self.faults.dies_after {
            Some(0) => {
                self.faults.dies_after = None;
                self.dead = true;
            }
            Some(left) => self.faults.dies_after = Some(left - 1),
            None => {}
        }
        if self.dead { Err(DiskError::Io("the machine is dead".into())) } else { Ok(()) }
    }

    fn inode(&mut self, file: SimFile) -> Result<&mut Inode, DiskError> {
        self.inodes.get_mut(&file.0).ok_or(DiskError::NotFound)
    }

    fn change_names(&mut self, changes: Vec<NameChange>) {
        for change in &changes {
            apply(&mut self.names, change.clone());
        }
        self.name_changes.push(changes);
    }

    fn forget_unnamed(&mut self) {
        let pending = self.name_changes.iter().flatten().filter_map(|change| match change {
            NameChange::Link(_, number) => Some(*number),
            NameChange::Unlink(_) => None,
        });
        let mut kept: Vec<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        kept.extend(pending);
        self.inodes.retain(|number, _| kept.contains(number));
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&mut self, name: &str, bytes: u64) -> Result<SimFile, DiskError> {
        self.operation()?;
        let used = self.used_bytes();
        if self.faults.capacity_bytes.is_some_and(|capacity| used + bytes > capacity) {
            return Err(DiskError::Full);
        }
        let number = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(number, Inode { length: bytes, ..Inode::default() });
        self.change_names(vec![NameChange::Link(name.into(), number)]);
        Ok(SimFile(number))
    }

    fn open(&mut self, name: &str) -> Result<SimFile, DiskError> {
        self.operation()?;
        self.names.get(name).map(|&number| SimFile(number)).ok_or(DiskError::NotFound)
    }

    fn close(&mut self, _file: SimFile) {}

    fn length(&mut self, file: &SimFile) -> Result<u64, DiskError> {
        self.operation()?;
        Ok(self.inode(*file)?.length)
    }

    fn truncate(&mut self, file: &SimFile, bytes: u64) -> Result<(), DiskError> {
        self.operation()?;
        let inode = self.inode(*file)?;
        if (bytes as usize) < inode.content.len() {
            let first = bytes as usize / SECTOR_BYTES;
            let last = inode.content.len().div_ceil(SECTOR_BYTES);
            (first..last).for_each(|sector| remember(inode, sector));
            inode.content.truncate(bytes as usize);
        }
        inode.length = bytes;
        Ok(())
    }

    fn write_at(&mut self, file: &SimFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        assert!(
            offset.is_multiple_of(BLOCK_BYTES as u64) && bytes.len().is_multiple_of(BLOCK_BYTES),
            "direct I/O is aligned"
        );
        let was_dead = self.dead;
        let outcome = self.operation().and_then(|()| self.faults.fail_next_write.take().map_or(Ok(()), Err));
        // A failed write did all, nothing or a part; so did the one in which the machine died.
        let sectors = bytes.len() / SECTOR_BYTES;
        let done = match &outcome {
            Ok(()) => sectors,
            Err(_) if was_dead => 0,
            Err(_) => match self.rng.below(4) {
                0 => sectors,
                1 => 0,
                _ => self.rng.below(sectors as u64 + 1) as usize,
            },
        };
        let inode = self.inode(*file)?;
        let start = offset as usize;
        let end = start + done * SECTOR_BYTES;
        if inode.content.len() < end {
            inode.content.resize(end, 0);
        }
        inode.length = inode.length.max(end as u64);
        (start / SECTOR_BYTES..end / SECTOR_BYTES).for_each(|sector| remember(inode, sector));
        inode.content[start..end].copy_from_slice(&bytes[..end - start]);
        outcome
    }

    fn read_at(&mut self, file: &SimFile, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.operation()?;
        let inode = self.inode(*file)?;
        if offset + into.len() as u64 > inode.length {
            return Err(DiskError::Io("read beyond the end".into()));
        }
        let start = (offset as usize).min(inode.content.len());
        let end = (offset as usize + into.len()).min(inode.content.len());
        into[..end - start].copy_from_slice(&inode.content[start..end]);
        into[end - start..].fill(0);
        Ok(())
    }

    fn sync(&mut self, file: &SimFile) -> Result<(), DiskError> {
        self.operation()?;
        self.syncs += 1;
        if std::mem::take(&mut self.faults.fail_next_sync) {
            let mut rng = self.rng.clone();
            tear(self.inode(*file)?, &mut rng);
            self.rng = rng;
            return Err(DiskError::Io("input/output error".into()));
        }
        let inode = self.inode(*file)?;
        inode.undo.clear();
        inode.synced_length = inode.length;
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.operation()?;
        self.name_changes.clear();
        self.durable_names = self.names.clone();
        self.forget_unnamed();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.operation()?;
        let number = *self.names.get(from).ok_or(DiskError::NotFound)?;
        self.change_names(vec![NameChange::Unlink(from.into()), NameChange::Link(to.into(), number)]);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.operation()?;
        if !self.names.contains_key(name) {
            return Err(DiskError::NotFound);
        }
        self.change_names(vec![NameChange::Unlink(name.into())]);
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<String>, DiskError> {
        self.operation()?;
        Ok(self.names.keys().cloned().collect())
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Link(name, number) => names.insert(name, number),
        NameChange::Unlink(name) => names.remove(&name),
    };
}

/// Keeps a sector as it is before it changes.
fn remember(inode: &mut Inode, sector: usize) {
    let mut before = [0; SECTOR_BYTES];
    let start = (sector * SECTOR_BYTES).min(inode.content.len());
    let end = (start + SECTOR_BYTES).min(inode.content.len());
    before[..end - start].copy_from_slice(&inode.content[start..end]);
    inode.undo.push((sector as u32, before));
}

/// Each unsynced sector becomes one of the contents that it had since the last sync.
fn tear(inode: &mut Inode, rng: &mut SimRng) {
    let undo = std::mem::take(&mut inode.undo);
    // Whole writes survive or vanish more often than they tear, and both ends must be tried.
    let mode = rng.below(4);
    let mut versions: BTreeMap<u32, Vec<[u8; SECTOR_BYTES]>> = BTreeMap::new();
    for (sector, before) in undo {
        versions.entry(sector).or_default().push(before);
    }
    for (sector, befores) in versions {
        let keep = match mode {
            0 => true,
            1 => false,
            _ => rng.one_in(2),
        };
        if keep {
            continue;
        }
        let chosen = if mode == 1 { 0 } else { rng.below(befores.len() as u64) as usize };
        let start = sector as usize * SECTOR_BYTES;
        if inode.content.len() < start + SECTOR_BYTES {
            inode.content.resize(start + SECTOR_BYTES, 0);
        }
        inode.content[start..start + SECTOR_BYTES].copy_from_slice(&befores[chosen]);
    }
    if inode.length < inode.synced_length && rng.one_in(2) {
        inode.length = inode.synced_length;
    }
    inode.content.truncate(inode.length as usize);
    inode.synced_length = inode.length;
}
