//! Tokens in cookies (`AUTH_COOKIES`), for pages that had better not keep any. (A script that gets into such a page can't read
//! them; but it can ask for new ones, which are in the answer as well, as the contract has it.) On REST and gRPC-Web alone; programs that speak gRPC keep their tokens themselves.
//!
//! A browser sends cookies with whatever any page asks of us, so a call with an unsafe method that is let in by a cookie must
//! say that it comes from a page of ours. The cookies are `SameSite=Strict`, which costs nothing here: links lead to pages, and
//! pages fetch from here. `__Host-` keeps other hosts of the site from setting them (RFC 6265bis §4.1.3.2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::Response;
use http::{Extensions, HeaderMap, HeaderValue, Method, header};
use tonic::Status;

use super::browser::Page;
use crate::{
    config,
    error::{AuthFailure, Denial, Error, Result},
};

/// The name of the cookie with the access token.
const ACCESS: &str = "__Host-access_token";
/// The name of the cookie with the refresh token.
const REFRESH: &str = "__Host-refresh_token";

/// Which of its cookies a call may be let in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The access token: nothing else was sent to be let in by.
    Access,
    /// The refresh token, where the message has none.
    Refresh,
    None,
}

/// What a call says of cookies.
#[derive(Clone)]
pub struct Cookies {
    used: Use,
    found: Found,
    page: Page,
    is_safe: bool,
    /// Somebody went by the cookie.
    was_used: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Found {
    None,
    One(String),
    /// Whoever can set cookies for the site, or for a part of it, could add one: none of them is to be trusted.
    Several,
}

/// What an answer means for the cookies. Handlers put it among its extensions.
#[derive(Clone)]
pub enum Tokens {
    Issued {
        access: String,
        refresh: String,
    },
    /// The session is over.
    Gone,
}

impl Cookies {
    pub fn of(method: &Method, headers: &HeaderMap, used: Use, page: Page) -> Self {
        let found = match used {
            Use::Access => find(headers, ACCESS),
            Use::Refresh => find(headers, REFRESH),
            Use::None => Found::None,
        };
        Self { used, found, page, is_safe: method.is_safe(), was_used: Arc::default() }
    }

    /// The token to go by; `None` where no cookie came.
    ///
    /// # Errors
    /// `PermissionDenied` if it is no page of ours that sends it; `Unauthenticated` if there are several.
    pub fn token(&self) -> Result<Option<&str>> {
        self.was_used.store(true, Ordering::Relaxed);
        let believed = self.is_safe || self.page == Page::Ours;
        match &self.found {
            Found::None => Ok(None),
            Found::One(_) | Found::Several if !believed => Err(Error::PermissionDenied(Denial::ForeignPage)),
            Found::One(token) => Ok(Some(token)),
            Found::Several => Err(Error::Unauthenticated(AuthFailure::BadToken)),
        }
    }

    /// Sets the cookies where the answer hands out tokens, and clears them where the session is over. A page that isn't ours
    /// changes nothing.
    pub fn settle(&self, response: &mut Response, lifetimes: &config::Jwt) {
        let change = response.extensions_mut().remove::<Tokens>();
        let cookies = match change {
            _ if self.page == Page::Foreign => return,
            Some(Tokens::Issued { access, refresh }) => [
                cookie(ACCESS, &access, lifetimes.access_lifetime),
                cookie(REFRESH, &refresh, lifetimes.refresh_lifetime),
            ],
            None if !self.are_over(response) => return,
            Some(Tokens::Gone) | None => [cookie(ACCESS, "", Duration::ZERO), cookie(REFRESH, "", Duration::ZERO)],
        };
        let headers = response.headers_mut();
        for cookie in cookies.into_iter().flatten() {
            headers.append(header::SET_COOKIE, cookie);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }

    /// The cookie was used, and will never be any good again.
    fn are_over(&self, response: &Response) -> bool {
        use std::error::Error as _;
        let status = response.extensions().get::<Status>();
        let error = status.and_then(Status::source).and_then(|source| source.downcast_ref::<Error>());
        match (error, &self.found) {
            (_, Found::None) => false,
            // The message had a token of its own.
            _ if !self.was_used.load(Ordering::Relaxed) => false,
            (Some(Error::Unauthenticated(AuthFailure::SessionEnded)), _) => true,
            // An access token that ran out is refreshed; for a refresh token there is nothing.
            (Some(Error::Unauthenticated(_)), _) => self.used == Use::Refresh,
            _ => false,
        }
    }
}

/// The refresh token that a call brought as a cookie, for a message without one.
///
/// # Errors
/// As [`Cookies::token`].
pub fn refresh_token(extensions: &Extensions) -> Result<Option<String>> {
    let token = extensions.get::<Cookies>().map(Cookies::token).transpose()?;
    Ok(token.flatten().map(str::to_owned))
}

/// To the letter: what a kinder reader takes for the same name may have been set without the promises of its prefix.
fn find(headers: &HeaderMap, name: &str) -> Found {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    let mut values = values.map(|value| String::from_utf8_lossy(value).into_owned());
    match (values.next(), values.next()) {
        (None, _) => Found::None,
        (Some(value), None) => Found::One(value),
        (Some(_), Some(_)) => Found::Several,
    }
}

/// Without `Domain`, over TLS alone, and for no script to read.
fn cookie(name: &str, value: &str, lifetime: Duration) -> Option<HeaderValue> {
    let seconds = lifetime.as_secs();
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Strict");
    // A token is made of characters that a header may have.
    let mut cookie = HeaderValue::try_from(text).ok()?;
    cookie.set_sensitive(true);
    Some(cookie)
}
