//! What is asked of a server, the same of a raw probe, of Ringway and of a peer.

pub mod beats;
pub mod burst;
pub mod echo;
pub mod opening;
pub mod pairs;
pub mod relayed;

use crate::contest::Sample;
use crate::crowd::Spent;

impl Sample {
    /// Server's processor time per unit.
    pub fn of(spent: &Spent, units: u64) -> Self {
        let per_unit = |ns: u64| ns as f64 / units.max(1) as f64 / 1e3;
        let mut more = serde_json::Map::new();
        more.insert("client_us".to_owned(), per_unit(spent.client_ns).into());
        more.insert("units".to_owned(), units.into());
        more.insert("kernel_threads".to_owned(), spent.shares.kernel.into());
        let (us, per_second) = (per_unit(spent.server_ns), units as f64 / spent.seconds);
        Self { us, per_second, foreign: spent.shares.others, more }
    }
}
