//! The rules, one file a subject, as `impl App` blocks. Nothing here knows gRPC or HTTP.

mod audit;
pub mod avatar;
pub mod caller;
pub mod outbox;
pub mod password;
pub mod profile;
pub mod registration;
pub mod role;
pub mod session;
pub mod token;
pub mod user;
pub mod verification;
