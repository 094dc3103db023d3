//! Which host a call names, whether it is one of ours (`ALLOWED_HOSTS`), and the way to it over HTTPS
//! (`SECURE_SSL_REDIRECT`). `X-Forwarded-Host` is never looked at: whoever sends it could steer our links.

use axum::{extract::Request, response::Response};
use http::{HeaderValue, StatusCode, Version, header};

use crate::{
    config::{AllowedHosts, Config},
    error::{Error, Misdirection, Result},
};

/// The host, with its port if it has one, that the call names: HTTP/2's `:authority`, or `Host`. `None` where HTTP/1.0
/// names none.
///
/// `of_anyone` is for probes, which ask by address: it need not be one of ours then.
///
/// # Errors
/// `Misdirected` if several are named, different ones, none (RFC 9112 §3.2, RFC 9113 §8.3.1), what is no host, or one
/// that isn't ours.
pub fn named(request: &Request, config: &Config, of_anyone: bool) -> Result<Option<HeaderValue>> {
    let unclear = Error::Misdirected(Misdirection::UnclearHost);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, None) = (hosts.next(), hosts.next()) else { return Err(unclear) };
    let named = match (request.uri().authority(), host) {
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => None,
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).ok(),
        (None, host) => host.cloned(),
    };
    let ours = if of_anyone { &AllowedHosts::Any } else { &config.http.allowed_hosts };
    match named.as_ref().map(HeaderValue::to_str) {
        Some(Ok(name)) if ours.allows(name) => Ok(named),
        Some(Ok(name)) if AllowedHosts::Any.allows(name) => Err(Error::Misdirected(Misdirection::ForeignHost)),
        None if host.is_none() && request.version() < Version::HTTP_11 => match ours {
            AllowedHosts::Any => Ok(None),
            AllowedHosts::Only(_) => Err(Error::Misdirected(Misdirection::ForeignHost)),
        },
        _ => Err(unclear),
    }
}

/// Sends the caller to the same place over HTTPS: at `PUBLIC_URL` where that is one of HTTPS, else at the host that was
/// named. `None` where there is no such place.
///
/// Django sends everybody there by 301. But most clients make a GET of a POST that is answered so, and lose its body; 308 keeps both.
pub fn redirect(request: &Request, config: &Config) -> Option<Response> {
    let place = request.uri().path_and_query().map_or("/", |place| place.as_str());
    let base = match &config.server.public_url {
        Some(url) if url.starts_with("https://") => url.clone(),
        _ => format!("https://{}", named(request, config, false).ok()??.to_str().ok()?),
    };
    let location = HeaderValue::try_from(format!("{base}{place}")).ok().filter(|_| place.starts_with('/'))?;
    let mut response = Response::default();
    *response.status_mut() =
        if request.method().is_safe() { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
