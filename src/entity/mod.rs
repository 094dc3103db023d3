//! The rows of the tables, one entity a file. The tables themselves are made in `migrations/`.
//!
//! Times are in UTC and whole microseconds (what both stores keep), and always set by us: no column has a default.
//! Nothing here is serialised: what a client sees is put together at the edge, field by field.

pub mod audit_event;
pub mod avatar;
pub mod counter;
pub mod erasure;
pub mod group;
pub mod group_permission;
pub mod known_client;
pub mod outbox;
pub mod permission;
pub mod profile;
pub mod revocation;
pub mod session;
pub mod user;
pub mod user_group;
pub mod user_permission;
pub mod verification_code;
