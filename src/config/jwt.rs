//! How tokens are signed and how long they last.

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};

use super::{
    key, parse,
    read::{Reader, Setting},
    variables,
};

#[derive(Debug, Clone)]
pub struct Jwt {
    pub algorithm: Algorithm,
    pub access_lifetime: Duration,
    pub refresh_lifetime: Duration,
    pub accept_simplejwt_until: Option<DateTime<Utc>>,
}

/// The algorithm of a token's signature: an HMAC with this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    /// The least length of a key, in bytes: that of the hash (RFC 7518 §3.2).
    fn least_key_length(self) -> usize {
        match self {
            Self::Hs256 => 32,
            Self::Hs384 => 48,
            Self::Hs512 => 64,
        }
    }
}

pub(super) fn jwt(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Jwt {
    const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;
    let lifetime = |text: &str| parse::seconds(text, &(1..=TEN_YEARS));
    let algorithm = r.value(&variables::JWT_ALGORITHM, |text| match text.to_ascii_uppercase().as_str() {
        "HS256" => Ok(Algorithm::Hs256),
        "HS384" => Ok(Algorithm::Hs384),
        "HS512" => Ok(Algorithm::Hs512),
        "RS256" | "ES256" | "EDDSA" => Err("comes with a later release".into()),
        _ => Err("is unknown".into()),
    });
    let access_lifetime = r.value(&variables::JWT_EXPIRATION_DELTA, lifetime);
    let refresh_lifetime = r.value(&variables::JWT_REFRESH_EXPIRATION_DELTA, lifetime);
    if refresh_lifetime < access_lifetime {
        let (refresh, access) = (refresh_lifetime.as_secs(), access_lifetime.as_secs());
        r.mistake(
            &variables::JWT_REFRESH_EXPIRATION_DELTA,
            format!("\"{refresh}\" is less than JWT_EXPIRATION_DELTA, which is {access}"),
        );
    }
    let accept_simplejwt_until = r.optional(&variables::ACCEPT_SIMPLEJWT_UNTIL, parse::time);
    Jwt { algorithm, access_lifetime, refresh_lifetime, accept_simplejwt_until }
}

/// The signing key, if one is set. A weak one is a mistake with PostgreSQL, where others rely on it; on a developer's
/// machine it is a warning.
pub(super) fn signing_key(
    r: &mut Reader<impl Fn(&str) -> Option<String>>,
    algorithm: Algorithm,
    postgres: bool,
    debug: bool,
) -> Option<SecretString> {
    let secret = r.secret(&variables::JWT_SECRET_KEY);
    let least = algorithm.least_key_length();
    let flaw = match secret.as_ref().map(ExposeSecret::expose_secret) {
        Some(text) if key::is_documented_example(text) => {
            "it is an example from the documentation, known to all".into()
        }
        Some(text) if text.len() < least => {
            format!("it has {} bytes, fewer than the {least} that JWT_ALGORITHM needs", text.len())
        }
        None if postgres && debug => "it is not set: every replica makes a key of its own in its DATA_DIR".into(),
        None if postgres => "it is not set; with PostgreSQL it must be, unless DEBUG is true".into(),
        Some(_) | None => return secret,
    };
    if postgres && !debug {
        r.mistake(&variables::JWT_SECRET_KEY, flaw);
    } else {
        r.warn(format!("JWT_SECRET_KEY: {flaw}"));
    }
    secret
}

/// The key of codes, outbox and events, if a real one is set. An example from the documentation is nobody's secret: it
/// counts as unset, and the key is derived.
pub(super) fn secret_key(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Option<SecretString> {
    let secret = r.secret(&variables::SECRET_KEY)?;
    let text = secret.expose_secret();
    if key::is_documented_example(text) {
        r.warn(
            "SECRET_KEY: it is an example from the documentation, and ignored for a key derived from the signing key",
        );
        r.settings.retain(|setting| *setting.variable != variables::SECRET_KEY);
        let value = "(an example: ignored; derived from the signing key)".into();
        r.settings.push(Setting { variable: &variables::SECRET_KEY, value, is_set: true });
        return None;
    }
    if text.len() < key::MIN_BYTES {
        r.warn(format!("SECRET_KEY: it has {} bytes; {} or more are hard to guess", text.len(), key::MIN_BYTES));
    }
    Some(secret)
}
