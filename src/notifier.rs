//! The service that hears of events, and how one is sent to it: signed, by POST. `docs/events.md` is its side of it.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use secrecy::{ExposeSecret, SecretString};
use tracing::Instrument;
use url::Url;
use uuid::Uuid;

use crate::{
    error::{Cause, Chain, DeliveryError},
    trace,
};

/// How long the service may take to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to be reached and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An event, ready to go.
pub struct Notice {
    /// The same at each attempt, so that a second copy can be recognised.
    pub id: Uuid,
    pub kind: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// The service at `NOTIFICATION_SERVICE_URL`.
pub struct Notifier {
    client: HttpClient,
    url: String,
    key: hmac::Key,
}

enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Notifier {
    /// # Errors
    /// If the URL says https, and the system has no certificates to trust.
    pub fn new(url: &Url, key: &SecretString) -> Result<Self, Cause> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.enforce_http(false);
        // A connection of its own for each event: none goes stale between two, and no answer's body has to be read.
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(0);
        let client = if url.scheme() == "https" {
            let tls = HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(|error| format!("NOTIFICATION_SERVICE_URL: no certificates to trust: {error}"))?;
            HttpClient::Tls(client.build(tls.https_only().enable_http1().wrap_connector(connector)))
        } else {
            HttpClient::Plain(client.build(connector))
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
        Ok(Self { client, url: url.as_str().to_owned(), key })
    }

    /// Has the service take the event. A redirect is not followed: it would lead the event, and its signature, to somebody whom
    /// nobody named.
    ///
    /// # Errors
    /// If it did not take it, or its answer was lost.
    pub async fn send(&self, notice: Notice, now: DateTime<Utc>) -> Result<(), DeliveryError> {
        let span = trace::of_delivery(&notice.kind);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("identity/", env!("CARGO_PKG_VERSION")))
            .header("x-identity-event", &notice.kind)
            .header("x-identity-event-id", notice.id.to_string())
            .header("x-identity-signature", self.signature(now.timestamp(), &notice.body))
            .body(Full::new(notice.body.into()))
            .map_err(|error| DeliveryError::ServerAway(format!("NOTIFICATION_SERVICE_URL: {error}")))?;
        if let Some(traceparent) = trace::traceparent(&span) {
            request.headers_mut().insert(trace::TRACEPARENT, traceparent);
        }
        let answer = match &self.client {
            HttpClient::Plain(client) => client.request(request),
            HttpClient::Tls(client) => client.request(request),
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).instrument(span).await;
        match answer {
            Ok(Ok(response)) => judge(&response),
            Ok(Err(error)) => Err(DeliveryError::ServerAway(Chain(&error).to_string())),
            Err(_) => Err(DeliveryError::ServerAway(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    /// `t=<unix seconds>,v1=<HMAC-SHA256 of "<t>.<body>", in hexadecimal digits>`.
    fn signature(&self, unix_secs: i64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(format!("{unix_secs}.").as_bytes());
        context.update(body);
        format!("t={unix_secs},v1={}", hex::encode(context.sign()))
    }
}

/// What a status means for the event. Who answers by a redirect, by "who are you?" or "not here" would do so to any event: the
/// settings are wrong on one of the two sides, and events wait until they are right.
fn judge<B>(response: &Response<B>) -> Result<(), DeliveryError> {
    let status = response.status();
    let said = format!("HTTP {}", status.as_u16());
    match status {
        _ if status.is_success() => Ok(()),
        StatusCode::GONE => Err(DeliveryError::Permanent(said)),
        _ if status.is_redirection() => Err(DeliveryError::ServerAway(said)),
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::MISDIRECTED_REQUEST
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(DeliveryError::ServerAway(said)),
        _ => Err(DeliveryError::Transient(said)),
    }
}
