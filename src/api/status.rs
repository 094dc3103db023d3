//! What a client is told of an error: a gRPC status with `google.rpc` details, or an HTTP response.
//!
//! Every text here is a promise. The cause of a fault is not among them: it stays with the status as its source, and the
//! gate writes it to the log.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde::{Serialize, Serializer};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::error::{AuthFailure, Conflict, Denial, Dependency, Error, FieldErrors, Misdirection, Resource};

/// The domain of every `google.rpc.ErrorInfo`.
const DOMAIN: &str = "identity.v1";

/// How soon to try again when the service can't tell.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// An error as both faces tell it.
struct Told<'a> {
    code: Code,
    http: StatusCode,
    /// Stable, for programs.
    reason: &'static str,
    error: Cow<'static, str>,
    detail: Option<&'static str>,
    fields: Vec<(&'a str, &'a str)>,
    retry_after: Option<Duration>,
}

fn tell(error: &Error) -> Told<'_> {
    let told = |code, http, reason, error: &'static str| Told {
        code,
        http,
        reason,
        error: error.into(),
        detail: None,
        fields: Vec::new(),
        retry_after: None,
    };
    match error {
        Error::Invalid(fields) => invalid(fields),
        Error::EmailTaken => Told {
            fields: vec![("email", "A user with this email already exists.")],
            ..told(
                Code::AlreadyExists,
                StatusCode::BAD_REQUEST,
                "EMAIL_TAKEN",
                "A user with this email already exists.",
            )
        },
        Error::GroupNameTaken => Told {
            fields: vec![("name", "A group with this name already exists.")],
            ..told(
                Code::AlreadyExists,
                StatusCode::BAD_REQUEST,
                "GROUP_NAME_TAKEN",
                "A group with this name already exists.",
            )
        },
        Error::Misdirected(misdirection) => {
            let (code, reason, error, detail) = not_for_us(*misdirection);
            Told { detail: Some(detail), ..told(code, StatusCode::BAD_REQUEST, reason, error) }
        }
        Error::Unauthenticated(failure) => {
            let (reason, error, detail) = match failure {
                AuthFailure::NoToken => {
                    ("TOKEN_MISSING", "Authentication required", "Authentication credentials were not provided")
                }
                AuthFailure::BadToken => {
                    ("TOKEN_INVALID", "Invalid token", "The token is not valid here. Log in again")
                }
                AuthFailure::ExpiredToken => {
                    ("TOKEN_EXPIRED", "Invalid token", "The token is expired. Refresh it, or log in again")
                }
                AuthFailure::SessionEnded => ("SESSION_ENDED", "Invalid token", "The session has ended. Log in again"),
                AuthFailure::BadCredentials => {
                    ("INVALID_CREDENTIALS", "Invalid credentials", "No active account found with the given credentials")
                }
            };
            Told { detail: Some(detail), ..told(Code::Unauthenticated, StatusCode::UNAUTHORIZED, reason, error) }
        }
        Error::PermissionDenied(denial) => {
            let (reason, detail) = match denial {
                Denial::Role => ("PERMISSION_DENIED", None),
                Denial::EmailNotVerified => ("EMAIL_NOT_VERIFIED", Some("Verify your email address first")),
                Denial::ForeignPage => {
                    ("ORIGIN_NOT_ALLOWED", Some("With a cookie, the Origin must be one that may call the service"))
                }
            };
            let error = "You don't have permission to perform this action";
            Told { detail, ..told(Code::PermissionDenied, StatusCode::FORBIDDEN, reason, error) }
        }
        Error::NotFound(resource) => {
            let (reason, error) = missing(*resource);
            told(Code::NotFound, StatusCode::NOT_FOUND, reason, error)
        }
        Error::Conflict(conflict) => {
            let (reason, error, detail) = in_the_way(*conflict);
            Told { detail: Some(detail), ..told(Code::FailedPrecondition, StatusCode::CONFLICT, reason, error) }
        }
        Error::Throttled { retry_after } => Told {
            error: format!("Request throttled. Retry after {}", in_words(*retry_after)).into(),
            retry_after: Some(*retry_after),
            ..told(Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, "THROTTLED", "")
        },
        Error::Unavailable { what, .. } => {
            let (reason, detail) = match what {
                Dependency::Database => ("DATABASE_UNAVAILABLE", "The database is away. Try again soon"),
                Dependency::AvatarStore => ("AVATAR_STORE_UNAVAILABLE", "Avatars are out of reach. Try again soon"),
                Dependency::PasswordHashing => ("OVERLOADED", "Too many logins at once. Try again soon"),
                Dependency::Directory => ("OVERLOADED", "Too many searches at once. Try again soon"),
                Dependency::Pictures => ("OVERLOADED", "Too many pictures at once. Try again soon"),
                Dependency::Feed => ("DATABASE_UNAVAILABLE", "Sessions can't be checked now. Try again soon"),
                Dependency::Shutdown => ("SHUTTING_DOWN", "The service is restarting. Try again soon"),
            };
            Told {
                detail: Some(detail),
                retry_after: Some(RETRY_SOON),
                ..told(Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, reason, "Service unavailable")
            }
        }
        Error::DeadlineExceeded => {
            told(Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED", "The deadline passed")
        }
        Error::Internal(_) => Told {
            detail: Some("An unexpected error occurred"),
            ..told(Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "Internal server error")
        },
    }
}

fn missing(resource: Resource) -> (&'static str, &'static str) {
    match resource {
        Resource::User => ("USER_NOT_FOUND", "User not found"),
        Resource::Profile => ("PROFILE_NOT_FOUND", "Profile not found"),
        Resource::Avatar => ("AVATAR_NOT_FOUND", "Avatar not found"),
        Resource::Role => ("ROLE_NOT_FOUND", "Role not found"),
        Resource::Permission => ("PERMISSION_NOT_FOUND", "Permission not found"),
        Resource::Group => ("GROUP_NOT_FOUND", "Group not found"),
        Resource::Membership => ("MEMBERSHIP_NOT_FOUND", "The user is not in the group"),
        Resource::Page => ("PAGE_NOT_FOUND", "Invalid page"),
    }
}

fn not_for_us(misdirection: Misdirection) -> (Code, &'static str, &'static str, &'static str) {
    match misdirection {
        Misdirection::UnclearHost => {
            (Code::InvalidArgument, "HOST_UNCLEAR", "Malformed request", "Name one host, and the same everywhere")
        }
        Misdirection::ForeignHost => {
            (Code::InvalidArgument, "HOST_NOT_ALLOWED", "Unknown host", "The service doesn't go by this name")
        }
        Misdirection::Insecure => {
            (Code::FailedPrecondition, "TLS_REQUIRED", "Insecure connection", "Call the service over TLS")
        }
    }
}

fn in_the_way(conflict: Conflict) -> (&'static str, &'static str, &'static str) {
    match conflict {
        Conflict::LastSuperuser => {
            ("LAST_SUPERUSER", "The last superuser has to stay", "Make another active user a superuser first")
        }
        Conflict::TooManyGroups => ("TOO_MANY_GROUPS", "There are as many groups as there may be", "Delete one first"),
        Conflict::TooManyPermissions => (
            "TOO_MANY_PERMISSIONS",
            "There are as many permissions as there may be",
            "Take one away first, or put them into a group of their own",
        ),
    }
}

fn invalid(fields: &FieldErrors) -> Told<'_> {
    let missing = fields.any_missing();
    Told {
        code: Code::InvalidArgument,
        http: if missing { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST },
        reason: if missing { "REQUIRED" } else { "INVALID" },
        error: "Invalid request".into(),
        detail: None,
        fields: fields.iter().map(|e| (&*e.field, &*e.message)).collect(),
        retry_after: None,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let told = tell(&error);
        let mut details = ErrorDetails::with_error_info(told.reason, DOMAIN, HashMap::new());
        if !told.fields.is_empty() {
            details.set_bad_request(
                told.fields
                    .iter()
                    .map(|(field, text)| FieldViolation {
                        reason: if *text == crate::error::REQUIRED { "REQUIRED".into() } else { "INVALID".into() },
                        ..FieldViolation::new(*field, *text)
                    })
                    .collect::<Vec<_>>(),
            );
        }
        if let Some(delay) = told.retry_after {
            details.set_retry_info(Some(delay));
        }
        let message = match (&told.detail, told.fields.as_slice()) {
            (_, [_, ..]) => {
                told.fields.iter().map(|(field, text)| format!("{field}: {text}")).collect::<Vec<_>>().join(" ")
            }
            (Some(detail), _) => format!("{}: {detail}", told.error),
            (None, _) => told.error.into_owned(),
        };
        let mut status = Status::with_error_details(told.code, message, details);
        status.set_source(Arc::new(error));
        status
    }
}

/// The HTTP response of a failed call.
pub fn to_http(status: &Status) -> Response {
    use std::error::Error as _;
    let foreign;
    let error = if let Some(error) = status.source().and_then(|source| source.downcast_ref::<Error>()) {
        error
    } else {
        // Not one of ours, so a bug: what it says goes to the log.
        foreign = Error::internal(status.to_string());
        &foreign
    };
    let told = tell(error);
    let mut response = match told.fields.as_slice() {
        [] => plain(told.http, &told.error, told.detail),
        fields => json_response(told.http, &ByField(fields)),
    };
    if let Some(delay) = told.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(delay).max(1)));
    }
    if told.http == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.extensions_mut().insert(status.clone());
    response
}

/// `{"error": …}`, with a detail where there is one.
pub fn plain(http: StatusCode, error: &str, detail: Option<&str>) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
    }
    json_response(http, &Body { error, detail })
}

fn json_response(http: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // Strings under string keys: there is nothing in it that can't be JSON.
    (http, headers, Body::from(serde_json::to_vec(body).unwrap_or_default())).into_response()
}

/// `{"email": ["…", "…"]}`: each field once, in the order found, with all that is wrong with it.
struct ByField<'a>(&'a [(&'a str, &'a str)]);

impl Serialize for ByField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let first = |at: &usize| !self.0[..*at].iter().any(|(field, _)| *field == self.0[*at].0);
        serializer.collect_map((0..self.0.len()).filter(first).map(|at| {
            let field = self.0[at].0;
            (field, self.0.iter().filter(|(f, _)| *f == field).map(|(_, text)| *text).collect::<Vec<_>>())
        }))
    }
}

/// A gRPC answer that tonic wrote itself, in words of ours: no library's text reaches a client, and a request that can't be
/// decoded is the caller's fault.
pub fn own_words(response: Response) -> Response {
    use std::error::Error as _;
    let Some(status) = response.extensions().get::<Status>() else { return response };
    if status.source().is_some_and(<dyn std::error::Error>::is::<Error>) {
        return response;
    }
    match status.code() {
        Code::Ok => response,
        // The rpc is there, or the gate would not have let the call through: it is its compression that is not.
        Code::Unimplemented => {
            let mut refusal =
                edge_status(Code::Unimplemented, "UNKNOWN_ENCODING", "Send the message uncompressed").into_http();
            refusal.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
            refusal
        }
        code if code == Code::OutOfRange || ran_over(status) => {
            edge_status(Code::OutOfRange, "TOO_LARGE", "The request message is too large").into_http()
        }
        _ => {
            tracing::debug!(%status, "a message can't be decoded");
            edge_status(Code::InvalidArgument, "MALFORMED", "The request message can't be decoded").into_http()
        }
    }
}

/// As [`own_words`], for health and reflection, which know services that there are not, and say so in words of theirs.
pub fn own_words_of_others(response: Response) -> Response {
    match response.extensions().get::<Status>().map(Status::code) {
        Some(Code::NotFound) => {
            edge_status(Code::NotFound, "SERVICE_NOT_FOUND", "There is no such service").into_http()
        }
        // What goes wrong in a stream is told at its end.
        None => response.map(|body| Body::new(body.map_frame(own_last_words))),
        Some(_) => own_words(response),
    }
}

/// The end of a stream, in words of ours if it is an error.
fn own_last_words(frame: Frame<Bytes>) -> Frame<Bytes> {
    let trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(frame) => return frame,
    };
    let code = Status::from_header_map(&trailers).map_or(Code::Ok, |status| status.code());
    let (reason, text) = match code {
        Code::Ok => return Frame::trailers(trailers),
        Code::NotFound => ("NAME_NOT_FOUND", "There is nothing of this name"),
        Code::InvalidArgument => ("MALFORMED", "The request message can't be decoded"),
        _ => ("REFUSED", "The request can't be answered"),
    };
    let mut own = HeaderMap::new();
    // Texts of ours are what a header may have.
    drop(edge_status(code, reason, text).add_header(&mut own));
    Frame::trailers(own)
}

/// The request was longer than its rpc allows.
fn ran_over(status: &Status) -> bool {
    use std::error::Error as _;
    let mut next = status.source();
    while let Some(error) = next {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The answer to a gRPC call of an rpc that there is not.
pub fn unknown_rpc() -> Response {
    edge_status(Code::Unimplemented, "UNKNOWN_RPC", "There is no such rpc").into_http()
}

/// A status that has no HTTP counterpart: gRPC itself is what went wrong.
fn edge_status(code: Code, reason: &str, text: &str) -> Status {
    Status::with_error_details(code, text, ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new()))
}

/// The service is to blame, or the machine: something for the operator.
pub fn is_fault(code: Code) -> bool {
    match code {
        Code::Unknown | Code::Internal | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

/// The name of a code, as gRPC's specification spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// `5 minutes`: whole units, rounded up, so that nobody is sent back too early.
fn in_words(delay: Duration) -> String {
    let secs = whole_seconds(delay);
    let (n, unit) = match secs {
        0..=1 => (1, "second"),
        2..60 => (secs, "second"),
        60..3600 => (secs.div_ceil(60), "minute"),
        3600..86_400 => (secs.div_ceil(3600), "hour"),
        _ => (secs.div_ceil(86_400), "day"),
    };
    if n == 1 { format!("1 {unit}") } else { format!("{n} {unit}s") }
}

/// Rounded up.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}
