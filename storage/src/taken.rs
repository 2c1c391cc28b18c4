//! The limits of a range read, the same for every backend.

use crate::seam::Rows;

/// Rows of a range on their way out.
#[derive(Debug)]
pub(crate) struct Taken {
    rows_max: u32,
    bytes_max: u32,
    value_bytes: u64,
    rows: Rows,
}

impl Taken {
    pub(crate) fn new(rows_max: u32, bytes_max: u32) -> Taken {
        Taken { rows_max, bytes_max, value_bytes: 0, rows: Rows::default() }
    }

    /// Whether a row that was found may be pushed. Once it may not, the answer says that there are more.
    pub(crate) fn has_room(&mut self) -> bool {
        let rows = self.rows.index.len();
        // The row that reaches the bytes is the last one; so one is always given.
        let full = rows > 0 && self.value_bytes >= u64::from(self.bytes_max);
        self.rows.more = full || rows >= self.rows_max as usize;
        !self.rows.more
    }

    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.value_bytes += value.len() as u64;
        self.rows.push(key, value);
    }

    pub(crate) fn into_rows(self) -> Rows {
        self.rows
    }
}
