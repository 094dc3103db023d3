//! The rules, one file a subject: `impl App` blocks for what callers ask, `impl Transaction` for what happens within a change.
//! Nothing here knows gRPC, or how REST binds; of HTTP only header values, which a call carries as they came.

pub mod account;
mod adoption;
pub mod audit;
mod authority;
pub mod avatar;
pub mod caller;
mod change;
mod credentials;
mod delivery;
pub mod directory;
mod erasure;
mod event;
pub mod export;
mod figures;
pub mod group;

pub mod housekeeping;
pub mod import;
mod known_client;
pub mod letter;
pub mod outbox;
pub mod page;
pub mod permission;
pub mod profile;
pub mod registration;
pub mod session;
mod tally;
pub mod trail;
pub mod user;
pub mod user_permission;
pub mod user_role;
pub mod verification;
