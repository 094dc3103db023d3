//! Which Redis, if any.

use std::time::Duration;

use secrecy::SecretString;

use super::{parse, read::Reader, variables};

/// How to reach Redis.
#[derive(Debug, Clone)]
pub struct Redis {
    pub url: SecretString,
    /// What the names of all keys there begin with.
    pub prefix: String,
    /// How long an answer may take.
    pub timeout: Duration,
}

pub(super) fn redis(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Option<Redis> {
    let url = r.optional(&variables::REDIS_URL, parse::redis_url);
    let host = r.optional(&variables::REDIS_HOST, parse::host);
    let port = r.value(&variables::REDIS_PORT, parse::port);
    let prefix = r.value(&variables::REDIS_PREFIX, parse::redis_prefix);
    let timeout = Duration::from_millis(r.number(&variables::REDIS_TIMEOUT_MS, 1..=1000));
    if url.is_none() && host.is_none() {
        if r.is_set(&variables::REDIS_PORT) {
            r.warn("REDIS_HOST is not set: nothing comes of REDIS_PORT");
        }
        if let Some(idle) = r.set_among(&[&variables::REDIS_PREFIX, &variables::REDIS_TIMEOUT_MS]) {
            r.warn(format!("neither REDIS_URL nor REDIS_HOST is set: nothing comes of {idle}"));
        }
    }
    let url = url.or_else(|| match host? {
        host if host.contains(':') => Some(format!("redis://[{host}]:{port}")),
        host => Some(format!("redis://{host}:{port}")),
    })?;
    Some(Redis { url: url.into(), prefix, timeout })
}
