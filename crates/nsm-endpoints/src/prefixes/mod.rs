//! A server of prefixes: `pool` decides who gets which, `server` answers streams and remembers in a file.
//!
//! No two clients ever hold overlapping prefixes. What protects that, from the strongest on:
//!
//! * A prefix is lent to one stream. When that ends, it waits for [`Times::grace`] for its holder, who must name it.
//! * After that it is the last to be lent: first come those that nobody has ever had, then those that lie idle longest.
//! * A loan is in the file before its holder hears of it, and after a restart each waits for its holder as if its stream
//!   had just ended. Where no file is found, nothing but wishes is granted for [`Times::settling`]: clients that live
//!   come back at once and name what they have.
//!
//! The limit: clients that share one identity cannot be told apart. One that was away for longer than the grace time and
//! then names a prefix which its twin has been lent since may get it, if the server starts again in that moment.

mod pool;
mod server;

pub use pool::{MAX_LOANS, Outcome, Pool, StreamId, Times};
pub use server::{HANDOVER, PrefixServer};
