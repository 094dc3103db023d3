//! What the targets have in common: requests written as text, and one service that answers them.

mod request;
mod stage;

pub use request::{Given, Kind, Who, mutate};
pub use stage::{KEY, app, exchange, now};
