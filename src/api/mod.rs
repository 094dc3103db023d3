//! The edge: one file a proto service, each rpc as *parse → call → reply*; and what every call passes on its way there.

mod audit;
mod auth;
mod body;
pub mod browser;
mod cookies;
mod cors;
mod docs;
mod export;
pub mod gate;
pub mod health;
mod hosts;
mod jwks;
mod media;
mod metrics;
mod patch;
mod profile;
pub mod rest;
mod role;
pub mod router;
pub mod status;
mod streams;
mod user;

pub use docs::OPENAPI;

use std::sync::Arc;

use chrono::{DateTime, Datelike, Utc};

use rest::NOT_A_TIME;

use crate::{
    app::App,
    domain::{
        caller::{Call, Caller},
        registration::{NewAccount, Person},
        user::{EmailAddress, PersonName},
    },
    error::{AuthFailure, Error, FieldErrors, Result},
    model::password::Password,
};

/// What holds for each rpc, from its proto.
#[allow(clippy::unreadable_literal, clippy::duration_suboptimal_units, reason = "generated")]
pub mod policies {
    include!(concat!(env!("OUT_DIR"), "/policies.rs"));
}

/// The REST routes, from their annotations.
pub mod routes {
    include!(concat!(env!("OUT_DIR"), "/rest.rs"));
}

/// The implementation of every service of the contract.
pub struct Api {
    app: Arc<App>,
}

/// Who calls, and the request in the domain's types: all of it, or an error that names every bad field.
///
/// `rules` turns each field into its type and notes what is wrong; where REST could not even read a field, that is
/// noted already.
fn parse<M, T>(
    request: tonic::Request<M>,
    rules: impl FnOnce(M, &mut FieldErrors) -> Option<T>,
) -> Result<(Arc<Call>, T)> {
    let (_, mut extensions, message) = request.into_parts();
    // Fail closed: what did not come through the gate has no caller.
    let call = extensions.remove::<Arc<Call>>().ok_or(Error::Unauthenticated(AuthFailure::NoToken))?;
    let mut errors = extensions.remove::<FieldErrors>().unwrap_or_default();
    let parsed = rules(message, &mut errors);
    errors.finish()?;
    Ok((call, parsed.ok_or_else(|| Error::internal("a field was refused without a reason"))?))
}

/// As [`parse`], for an rpc that asks for a user.
fn parse_as_user<M, T>(
    request: tonic::Request<M>,
    rules: impl FnOnce(M, &mut FieldErrors) -> Option<T>,
) -> Result<(Arc<Call>, Caller, T)> {
    let (call, parsed) = parse(request, rules)?;
    let caller = call.caller.clone().ok_or(Error::Unauthenticated(AuthFailure::NoToken))?;
    Ok((call, caller, parsed))
}

/// Whose account it will be, from the fields that registration and admins have in common.
fn new_account(
    email: Option<String>,
    password: Option<String>,
    [first_name, last_name]: [Option<String>; 2],
    errors: &mut FieldErrors,
) -> Option<NewAccount> {
    let email = errors.required("email", email);
    let email = email.and_then(|raw| errors.check("email", EmailAddress::parse(&raw)));
    let first_name = errors.check("first_name", PersonName::parse(&first_name.unwrap_or_default()));
    let last_name = errors.check("last_name", PersonName::parse(&last_name.unwrap_or_default()));
    let personal = [
        email.as_ref().map(EmailAddress::as_str),
        first_name.as_ref().map(PersonName::as_str),
        last_name.as_ref().map(PersonName::as_str),
    ];
    let personal: Vec<_> = personal.into_iter().flatten().collect();
    let password = errors.required("password", password);
    let password = password.and_then(|raw| errors.check("password", Password::parse_new(&raw, &personal)));
    let person = Person { email: email?, first_name: first_name?, last_name: last_name? };
    Some(NewAccount { person, password: password? })
}

fn owned(names: Vec<&'static str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}

/// The time that came in `field`, if one did. It lies in the years that a `google.protobuf.Timestamp` may have.
fn time(field: &'static str, given: Option<prost_types::Timestamp>, errors: &mut FieldErrors) -> Option<DateTime<Utc>> {
    let given = given?;
    let time = u32::try_from(given.nanos).ok().and_then(|nanos| DateTime::from_timestamp(given.seconds, nanos));
    errors.check(field, time.filter(|time| (1..=9999).contains(&time.year())).ok_or(NOT_A_TIME))
}
