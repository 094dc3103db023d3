//! The whole service, through its public faces. One binary, so that it links once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may fail loudly, and say what it skips"
)]

mod account;
mod adoption;
mod architecture;
mod avatar;
mod avatar_store;
mod bad_input;
mod cache;
mod cli;
mod compose;
mod config;
mod conformance;
mod db;
mod directory;
mod endurance;
mod events;
mod examples;
mod faults;
mod gate;
mod generator;
mod grpc;
mod grpc_web;
mod guide;
mod harness;
mod housekeeping;
mod import;
mod keys;
mod letter;
mod limits;
mod malformed;
mod metrics;
mod migration_rules;
mod migrations;
mod openapi;
mod operations;
mod outages;
mod outbox;
mod password;
mod password_change;
mod places;
mod plans;
mod postgres_tls;
mod probes;
mod profile;
mod redis;
mod redis_kinds;
mod registration;
mod replica;
mod rest;
mod rest_parity;
mod revocations;
mod role;
mod schemathesis;
mod script;
mod security;
mod security_accounts;
mod security_audit;
mod security_authorization;
mod security_browser;
mod security_codes;
mod security_connections;
mod security_grpc;
mod security_http;
mod security_input;
mod security_integrity;
mod security_limits;
mod security_passwords;
mod security_paths;
mod security_privacy;
mod security_properties;
mod security_secrets;
mod security_sessions;
mod security_supply;
mod security_tls;
mod security_tokens;
mod security_uploads;
mod session;
mod shutdown;
mod strangers;
mod superuser;
mod token;
mod traces;
mod user;
mod verification;
