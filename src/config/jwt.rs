//! How tokens are signed and how long they last.

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};

use super::{
    key, parse,
    read::{Reader, Setting},
    variables::{self, Variable},
};
use crate::jws::{Algorithm, Key};

#[derive(Debug, Clone)]
pub struct Jwt {
    pub algorithm: Algorithm,
    pub access_lifetime: Duration,
    pub refresh_lifetime: Duration,
    pub accept_simplejwt_until: Option<DateTime<Utc>>,
}

pub(super) fn jwt(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Jwt {
    const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;
    let lifetime = |text: &str| parse::seconds(text, &(1..=TEN_YEARS));
    let algorithm = r.value(&variables::JWT_ALGORITHM, algorithm);
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

fn algorithm(text: &str) -> Result<Algorithm, parse::Wrong> {
    Algorithm::from_name(text).ok_or_else(|| "is unknown".into())
}

/// The keys that are set. Whether one must be is said here too: with PostgreSQL others rely on it.
#[derive(Debug, Clone)]
pub(super) struct SigningKeys {
    pub signing: Option<SecretString>,
    /// Those that verify beside it.
    pub others: Vec<Key>,
}

/// A weak key is a mistake with PostgreSQL, where others rely on it; on a developer's machine it is a warning.
pub(super) fn signing_keys(
    r: &mut Reader<impl Fn(&str) -> Option<String>>,
    algorithm: Algorithm,
    postgres: bool,
    debug: bool,
) -> SigningKeys {
    let must_be_strong = postgres && !debug;
    let signing = r.secret(&variables::JWT_SECRET_KEY);
    let mut ids = Vec::new();
    match &signing {
        Some(text) => {
            if let Some(key) = checked(r, &variables::JWT_SECRET_KEY, algorithm, text, must_be_strong) {
                if !key.can_sign() {
                    r.mistake(&variables::JWT_SECRET_KEY, "it is a public key, which can't sign");
                }
                ids.push(key.id().to_owned());
            }
        }
        None if must_be_strong => {
            r.mistake(&variables::JWT_SECRET_KEY, "it is not set; with PostgreSQL it must be, unless DEBUG is true");
        }
        None if postgres => {
            r.warn("JWT_SECRET_KEY: it is not set: every replica makes a key of its own in its DATA_DIR");
        }
        None => {}
    }
    let mut others = Vec::new();
    for (variable, named) in [
        (&variables::JWT_NEXT_KEY, &variables::JWT_NEXT_ALGORITHM),
        (&variables::JWT_PREVIOUS_KEY, &variables::JWT_PREVIOUS_ALGORITHM),
    ] {
        let algorithm = r.optional(named, self::algorithm).unwrap_or(algorithm);
        let Some(text) = r.secret(variable) else { continue };
        let Some(key) = checked(r, variable, algorithm, &text, must_be_strong) else { continue };
        if ids.iter().any(|id| id == key.id()) {
            r.mistake(variable, "it is the same key as another in force");
        }
        ids.push(key.id().to_owned());
        others.push(key);
    }
    SigningKeys { signing, others }
}

fn checked(
    r: &mut Reader<impl Fn(&str) -> Option<String>>,
    variable: &'static Variable,
    algorithm: Algorithm,
    text: &SecretString,
    must_be_strong: bool,
) -> Option<Key> {
    let text = text.expose_secret();
    let weakness = match algorithm.least_secret() {
        Some(_) if key::is_documented_example(text) => {
            Some("it is an example from the documentation, known to all".to_owned())
        }
        Some(least) if text.len() < least => {
            Some(format!("it has {} bytes, fewer than the {least} that {} needs", text.len(), algorithm.name()))
        }
        _ => None,
    };
    match weakness {
        Some(weakness) if must_be_strong => r.mistake(variable, weakness),
        Some(weakness) => r.warn(format!("{}: {weakness}", variable.name)),
        None => {}
    }
    match Key::read(algorithm, text) {
        Ok(key) => Some(key),
        Err(flaw) => {
            r.mistake(variable, format!("it {flaw} ({})", algorithm.name()));
            None
        }
    }
}

/// The key of codes, outbox and events, if a real one is set. An example from the documentation is nobody's secret: it
/// counts as unset, and the key is derived.
pub(super) fn secret_key(r: &mut Reader<impl Fn(&str) -> Option<String>>, keys_rotate: bool) -> Option<SecretString> {
    let secret = real_secret_key(r);
    if secret.is_none() && keys_rotate {
        r.mistake(
            &variables::SECRET_KEY,
            "it is not set: derived from the signing key it would change with it (identity keys secret-key prints it)",
        );
    }
    secret
}

fn real_secret_key(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Option<SecretString> {
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
