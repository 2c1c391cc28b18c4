//! Values as the views store them: each with a checksum over its key and itself.
//!
//! ```text
//! value | crc32 of key and value, u32 little-endian
//! ```

use crate::seam::{ReadError, Space};
use crate::views::runs::hex;

const CRC_BYTES: usize = 4;

/// What the map is called, in files, in tables and in errors.
pub(crate) fn name_of(space: Space) -> &'static str {
    match space {
        Space::History => "history",
        Space::Dedup => "dedup",
        Space::Heads => "heads",
        Space::Members => "members",
    }
}

/// Appends to `stored` what is stored for `value` under `key`.
pub(crate) fn seal(key: &[u8], value: &[u8], stored: &mut Vec<u8>) {
    stored.extend_from_slice(value);
    stored.extend_from_slice(&checksum(key, value).to_le_bytes());
}

/// The value inside what is stored under `key`, if its checksum says that it is that.
pub(crate) fn value_of<'a>(space: Space, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], ReadError> {
    stored
        .split_last_chunk::<CRC_BYTES>()
        .filter(|(value, crc)| checksum(key, value) == u32::from_le_bytes(**crc))
        .map(|(value, _)| value)
        .ok_or_else(|| ReadError::Damaged(format!("row {} of {}", hex(key), name_of(space))))
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}
