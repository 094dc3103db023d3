//! What the rules speak of that knows nothing of the service: roles, passwords, tokens.

pub mod password;
pub mod role;
pub mod token;
