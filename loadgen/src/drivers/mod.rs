//! The protocols that simulated users speak, one file each, and the books that those share who send nothing twice.

mod books;
pub mod echo;
pub mod nats;
pub mod ringway;
pub mod xmpp;
