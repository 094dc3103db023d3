//! Who calls.

use std::net::SocketAddr;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use crate::{
    Outcome,
    data::{self, PASSWORD},
    rest::{Request, RestCaller},
};

/// A user who is logged in.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: i64,
    pub access: String,
    pub refresh: String,
}

/// The request that logs this user in.
pub fn login(email: &str) -> Vec<u8> {
    let body = format!(r#"{{"email":"{email}","password":"{PASSWORD}"}}"#);
    Request::json("POST", "/api/auth/login/", None, &body).bytes()
}

/// The first users after the superuser.
pub async fn log_in(address: SocketAddr, count: usize) -> Outcome<Vec<Person>> {
    let emails: Vec<String> = (1..=count as u64).map(data::email).collect();
    stream::iter(emails).map(|email| one(address, email)).buffered(8).try_collect().await
}

pub async fn log_in_admin(address: SocketAddr) -> Outcome<Person> {
    one(address, data::ADMIN.to_owned()).await
}

async fn one(address: SocketAddr, email: String) -> Outcome<Person> {
    let mut caller = RestCaller::same(address, login(&email)).await?;
    let status = caller.exchange().await?;
    let answer: Value = serde_json::from_slice(caller.last().1)?;
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    match (answer["user"]["id"].as_i64(), text("access_token"), text("refresh_token")) {
        (Some(id), Some(access), Some(refresh)) => Ok(Person { id, access, refresh }),
        _ => Err(format!("the login of {email}: {status} {answer}").into()),
    }
}

/// A text field of an answer in JSON, found without reading the rest.
pub fn text_field<'a>(body: &'a [u8], name: &str) -> Option<&'a str> {
    let body = std::str::from_utf8(body).ok()?;
    let rest = body.split_once(&format!("\"{name}\":\""))?.1;
    Some(rest.split_once('"')?.0)
}
