//! How a run is shown: as a table at its end.

mod table;
