//! What browsers are told with each answer, and whose page a call comes from.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use crate::config::Config;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// An answer is data: nothing in it is run, loaded or shown in a frame, should a browser open it.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// The page in a browser that makes a call, as the browser tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Of an origin of ours, or of `CORS_ALLOWED_ORIGINS`.
    Ours,
    Foreign,
    /// The call doesn't say: no browser makes one with an unsafe method so.
    Untold,
}

/// What the configuration says of browsers.
pub struct Browsers {
    hsts: Option<HeaderValue>,
    /// Those of `CORS_ALLOWED_ORIGINS`, and that of `PUBLIC_URL`.
    origins: Vec<String>,
}

impl Browsers {
    pub fn new(config: &Config) -> Self {
        let hsts = config.http.hsts.and_then(|hsts| {
            let subdomains = if hsts.include_subdomains { "; includeSubDomains" } else { "" };
            HeaderValue::try_from(format!("max-age={}{subdomains}", hsts.max_age.as_secs())).ok()
        });
        let public = config.server.public_url.as_deref().and_then(|url| Url::parse(url).ok());
        let mut origins = config.http.cors_allowed_origins.clone();
        origins.extend(public.map(|url| url.origin().ascii_serialization()));
        Self { hsts, origins }
    }

    /// Adds to an answer what browsers are to know. A policy that the answer brings itself stays. HSTS counts over TLS
    /// alone (RFC 6797 §7.2).
    pub fn tell(&self, headers: &mut HeaderMap, is_secure: bool) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(POLICY);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let (true, Some(hsts)) = (is_secure, &self.hsts) {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }

    /// The page that makes the call with these headers, which names `host`.
    pub fn page(&self, headers: &HeaderMap, host: Option<&HeaderValue>, is_secure: bool) -> Page {
        if headers.get_all(SEC_FETCH_SITE).iter().any(|site| site == "cross-site") {
            return Page::Foreign;
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let origin = match (origins.next(), origins.next()) {
            (None, _) => return Page::Untold,
            (Some(origin), None) => origin.to_str().unwrap_or_default(),
            (Some(_), Some(_)) => return Page::Foreign,
        };
        // A proxy may speak TLS without our knowing. But what came over TLS comes from no page that didn't.
        let of_host = match origin.split_once("://") {
            Some(("https", name)) => Some(name),
            Some(("http", name)) if !is_secure => Some(name),
            _ => None,
        };
        let is_host =
            of_host.zip(host).is_some_and(|(name, host)| host.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
        if is_host || self.origins.iter().any(|ours| ours == origin) { Page::Ours } else { Page::Foreign }
    }
}
