//! The real disk. Alone in its process, because it counts the process's descriptors.

use storage::disk::{Disk, DiskError};
use storage::glommio_disk::GlommioDisk;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count()
}

#[test]
fn files_are_written_read_renamed_cut_and_closed_without_leaks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut disk = GlommioDisk::new(directory.path()).expect("io_uring");
    let content: Vec<u8> = (0..3 << 20).map(|byte: u32| (byte / 4096) as u8).collect();
    // The ring's worker threads and queues are opened by the first round.
    let mut before = 0;
    for round in 0..50 {
        let file = disk.create("a.new", 4 << 20).expect("create");
        disk.write_at(&file, 4096, &content).expect("write");
        disk.sync(&file).expect("sync");
        disk.rename("a.new", "a").expect("rename");
        disk.sync_directory().expect("sync directory");
        disk.close(file);
        let file = disk.open("a").expect("open");
        assert_eq!(disk.length(&file), Ok(4 << 20));
        let mut read = vec![0; content.len()];
        disk.read_at(&file, 4096, &mut read).expect("read");
        assert!(read == content);
        disk.truncate(&file, 8192).expect("truncate");
        assert_eq!(disk.length(&file), Ok(8192));
        assert!(matches!(disk.read_at(&file, 8192, &mut read), Err(DiskError::Io(_))));
        disk.close(file);
        if round == 0 {
            before = open_descriptors();
        }
    }
    assert_eq!(disk.list(), Ok(vec!["a".to_string()]));
    disk.remove("a").expect("remove");
    assert_eq!(disk.open("a").map(|_| ()), Err(DiskError::NotFound));
    assert!(open_descriptors() <= before + 1, "{} descriptors, {before} before", open_descriptors());
}
