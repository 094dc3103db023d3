//! The rules, one file a subject, as `impl App` blocks. Nothing here knows gRPC or HTTP.

pub mod account;
mod audit;
mod authority;
pub mod avatar;
pub mod caller;
pub mod directory;
mod event;
pub mod group;
pub mod housekeeping;
mod known_client;
pub mod letter;
pub mod outbox;
pub mod password;
pub mod permission;
pub mod profile;
pub mod registration;
pub mod role;
pub mod session;
pub mod token;
pub mod user;
pub mod verification;
