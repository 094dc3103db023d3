//! What the service asks of HTTP: hosts, origins, TLS.

use std::time::Duration;

use super::{hosts::AllowedHosts, parse, read::Reader, variables};

#[derive(Debug, Clone)]
pub struct Http {
    pub allowed_hosts: AllowedHosts,
    /// Exactly as browsers send them.
    pub cors_allowed_origins: Vec<String>,
    pub ssl_redirect: bool,
    pub hsts: Option<Hsts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hsts {
    pub max_age: Duration,
    pub include_subdomains: bool,
}

pub(super) fn http(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Http {
    let allowed_hosts = r.optional(&variables::ALLOWED_HOSTS, AllowedHosts::parse).unwrap_or(AllowedHosts::Any);
    let origins = r.optional(&variables::CORS_ALLOWED_ORIGINS, |text| parse::list(text, parse::origin));
    let ssl_redirect = r.value(&variables::SECURE_SSL_REDIRECT, parse::boolean);
    let max_age = r.value(&variables::SECURE_HSTS_SECONDS, |text| parse::seconds(text, &(0..=u64::from(u32::MAX))));
    let include_subdomains = r.value(&variables::SECURE_HSTS_INCLUDE_SUBDOMAINS, parse::boolean);
    let hsts = (!max_age.is_zero()).then_some(Hsts { max_age, include_subdomains });
    Http { allowed_hosts, cors_allowed_origins: origins.unwrap_or_default(), ssl_redirect, hsts }
}
