//! What the rules speak of that knows nothing of the service: users as they are shown, roles, permissions, passwords, tokens.

pub mod password;
pub mod permission;
pub mod role;
pub mod token;
pub mod user;
