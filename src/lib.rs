//! A user and identity service: one contract, served as gRPC and as REST.
//!
//! The contract is `proto/identity/v1`. `build.rs` makes of it the gRPC services, the REST routes, a policy for each rpc,
//! and the OpenAPI document. A call takes at most five steps:
//!
//! 1. [`server`] accepts it, and `api::router` finds its handler;
//! 2. [`api::gate`] gives it an id and a deadline, finds out who calls, counts it, and lets it in or not;
//! 3. a REST call is bound to its message by [`api::rest`]; a gRPC call is one already;
//! 4. `api/{auth,user,profile,role}.rs`, one file a proto service: *parse → call → reply*;
//! 5. [`domain`], one file a subject: the rules, as `impl App` blocks, over the tables in [`entity`].
//!
//! Imports run one way: main → cli → server, [`telemetry`] → api → domain → app → stores ([`entity`], [`db`], [`feed`], [`cache`],
//! [`redis`], [`limiter`], [`hash_pool`], [`mail`], [`avatar_store`], [`notifier`], [`places`], [`seal`]) and [`model`] →
//! [`config`], [`clock`], [`jws`], [`metrics`], [`trace`], [`random`], [`error`].
//! `docs/architecture.md` says why, and `tests/it/architecture.rs` holds them to it.

pub mod api;
pub mod app;
pub mod avatar_store;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod domain;
pub mod entity;
pub mod error;
pub mod feed;
pub mod hash_pool;
pub mod jws;
pub mod limiter;
pub mod mail;
pub mod metrics;
pub mod model;
pub mod notifier;
pub mod places;
pub mod random;
pub mod redis;
pub mod seal;
pub mod server;
pub mod telemetry;
pub mod trace;

/// The messages and services of the contract.
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, rustdoc::all, reason = "generated")]
pub mod pb {
    tonic::include_proto!("identity.v1");
    include!(concat!(env!("OUT_DIR"), "/debug.rs"));

    /// The descriptors of the contract, as reflection serves them.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
