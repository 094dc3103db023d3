//! From the text of a variable to its value. An error says what is wrong with the text, without quoting it.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use lettre::message::Mailbox;
use tracing_subscriber::filter::Targets;
use url::Url;

use super::Rate;

/// What is wrong, to follow the value in a sentence.
#[derive(Debug)]
pub(super) struct Wrong(pub Cow<'static, str>);

impl From<&'static str> for Wrong {
    fn from(wrong: &'static str) -> Self {
        Self(wrong.into())
    }
}

impl From<String> for Wrong {
    fn from(wrong: String) -> Self {
        Self(wrong.into())
    }
}

type Result<T> = std::result::Result<T, Wrong>;

/// Any text.
#[expect(clippy::unnecessary_wraps, reason = "a parser among parsers")]
pub(super) fn text(text: &str) -> Result<String> {
    Ok(text.into())
}

/// As people write booleans for Django.
pub(super) fn boolean(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither".into()),
    }
}

/// The value that goes by the name `text`, in any case.
pub(super) fn one_of<T: Copy>(names: &[(&str, T)], text: &str) -> Result<T> {
    names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value).ok_or("is unknown".into())
}

/// A comma list of names, each once, in the order of `names`; `none` is the empty list.
pub(super) fn some_of<T: Copy + PartialEq>(names: &[(&str, T)], text: &str) -> Result<Vec<T>> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let chosen = list(text, |item| one_of(names, item))?;
    Ok(names.iter().map(|(_, value)| *value).filter(|value| chosen.contains(value)).collect())
}

/// A comma list. White space around its items, and empty ones, don't count.
pub(super) fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| parse(item).map_err(|Wrong(wrong)| format!("has the item {item:?}, which {wrong}").into()))
        .collect()
}

pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(text: &str, range: &RangeInclusive<T>) -> Result<T> {
    let number: T = text.parse().map_err(|_| not_a_number(text, range))?;
    if range.contains(&number) { Ok(number) } else { Err(out_of(range)) }
}

/// A number too great for its type is a number nonetheless.
fn not_a_number<T: fmt::Display>(text: &str, range: &RangeInclusive<T>) -> Wrong {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        out_of(range)
    } else {
        "is not a whole number".into()
    }
}

fn out_of<T: fmt::Display>(range: &RangeInclusive<T>) -> Wrong {
    format!("is not within {} to {}", range.start(), range.end()).into()
}

pub(super) fn seconds(text: &str, range: &RangeInclusive<u64>) -> Result<Duration> {
    number(text, range).map(Duration::from_secs)
}

pub(super) fn port(text: &str) -> Result<u16> {
    if text.starts_with("tcp://") {
        // Kubernetes does this for services called `redis` and `postgres`.
        return Err("is a service link of Kubernetes (enableServiceLinks: false switches them off)".into());
    }
    number(text, &(1..=u16::MAX))
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| "is not an IP address with a port".into())
}

/// A host name or an IP address, without a port.
pub(super) fn host(text: &str) -> Result<String> {
    let is_name = |text: &str| {
        text.len() <= 253 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if text.parse::<IpAddr>().is_ok() || is_name(text) { Ok(text.into()) } else { Err("is not a host".into()) }
}

/// A host, or the folder of a Unix socket.
pub(super) fn database_host(text: &str) -> Result<String> {
    if text.starts_with('/') { Ok(text.into()) } else { host(text) }
}

/// Networks; a single address is a network of its own.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>> {
    list(text, |item| {
        let address = item.parse::<IpAddr>().map(IpNet::from);
        address
            .or_else(|_| item.parse::<IpNet>())
            .map(|net| net.trunc())
            .map_err(|_| "is neither an address nor a network".into())
    })
}

/// Networks, or none for `off`.
pub(super) fn networks_or_off(text: &str) -> Result<Vec<IpNet>> {
    if text.eq_ignore_ascii_case("off") { Ok(Vec::new()) } else { networks(text) }
}

/// A part of the whole.
pub(super) fn ratio(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Ok(_) => Err("is not within 0 to 1".into()),
        Err(_) => Err("is not a number".into()),
    }
}

/// `count/time`, or `None` for `off`. The time is at most 30 days: counters live that long.
pub(super) fn rate(text: &str) -> Result<Option<Rate>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let malformed = || Wrong::from("is not a rate");
    let (count, time) = text.split_once('/').ok_or_else(malformed)?;
    let count = number(count.trim(), &(1..=1_000_000)).map_err(|Wrong(wrong)| format!("has a count that {wrong}"))?;
    match span(time.trim()).ok_or_else(malformed)? {
        secs if (1..=30 * DAY).contains(&secs) => Ok(Some(Rate { count, per: Duration::from_secs(secs) })),
        _ => Err("has a time that is not within 1s to 30d".into()),
    }
}

/// How long something is kept, or `None` for `off`.
pub(super) fn retention(text: &str) -> Result<Option<Duration>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    match span(text).ok_or("is not a time")? {
        secs if (DAY..=36_500 * DAY).contains(&secs) => Ok(Some(Duration::from_secs(secs))),
        _ => Err("is not within 1d to 36500d".into()),
    }
}

/// The seconds of `15m` and the like; `None` if it is nothing of the kind, the greatest number if it is too great.
fn span(text: &str) -> Option<u64> {
    let unit = match text.chars().next_back()? {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => DAY,
        _ => return None,
    };
    let count: u64 = text[..text.len() - 1].parse().ok()?;
    Some(count.saturating_mul(unit))
}

const DAY: u64 = 24 * 60 * 60;

pub(super) fn time(text: &str) -> Result<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).map(|time| time.to_utc()).map_err(|_| "is not such a time".into())
}

/// An http or https URL without user, password, query or fragment.
pub(super) fn http_url(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("is not an http URL".into());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("has a user, a password, a query or a fragment, which it may not".into());
    }
    Ok(url)
}

/// An origin as browsers send it (RFC 6454 §6.2): the comparison is by letter.
pub(super) fn origin(text: &str) -> Result<String> {
    if text.contains('*') {
        return Err("is a pattern: each origin is to be named".into());
    }
    let origin = http_url(text)?.origin().ascii_serialization();
    if origin == text { Ok(origin) } else { Err(format!("is not an origin to the letter: {origin:?} would be").into()) }
}

/// A URL of one of the kinds of Redis. Its further parts are for the client library to read.
pub(super) fn redis_url(text: &str) -> Result<String> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    let known = ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];
    if !known.contains(&url.scheme()) {
        return Err("has an unknown scheme".into());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".into());
    }
    let database = url.path().trim_start_matches('/');
    if !database.is_empty() && database.parse::<u16>().is_err() {
        return Err("has a path that is not the number of a database".into());
    }
    Ok(text.into())
}

/// What the names of keys begin with. No braces: a cluster goes by what stands in them.
pub(super) fn redis_prefix(text: &str) -> Result<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.len() > 64 {
        return Err("is too long".into());
    }
    if text.bytes().all(fits) { Ok(text.into()) } else { Err("has characters that may not be in it".into()) }
}

/// An address, bare or as `Name <address>`, that mail can be sent from. It becomes a header, so it is one line.
pub(super) fn sender(text: &str) -> Result<String> {
    match text.parse::<Mailbox>() {
        Ok(_) if !text.contains(char::is_control) => Ok(text.into()),
        _ => Err("is not an address".into()),
    }
}

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Directives of `tracing`'s `Targets`. Its parser takes a lone unknown word for a module's name and logs all of that
/// module at TRACE, so that `LOG_LEVEL=WARNING` would do the opposite of what was meant: here it is `warn`.
pub(super) fn log_level(text: &str) -> Result<String> {
    let directives = list(text, |directive| {
        let lower = directive.to_ascii_lowercase();
        match lower.as_str() {
            "warning" => Ok("warn".into()),
            "critical" | "fatal" => Ok("error".into()),
            level if LEVELS.contains(&level) => Ok(lower),
            _ if directive.contains('=') && !directive.contains(['[', '{']) => Ok(directive.to_owned()),
            _ => Err("is not a level".into()),
        }
    })?
    .join(",");
    directives.parse::<Targets>().map(|_| directives).map_err(|_| "is not a list of levels".into())
}
