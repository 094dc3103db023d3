//! The one error of the service. It knows no transport: `api::status` gives it its two faces.
//!
//! The texts of a variant's `Display` are for the log. What a client reads is chosen in `api::status`.

use std::{borrow::Cow, fmt, time::Duration};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whatever lies under an error: for the log, never for a client.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One or more fields are missing or wrong. All of them are listed.
    #[error("invalid input: {0:?}")]
    Invalid(FieldErrors),
    /// The e-mail address belongs to an account already.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// Another group has the name.
    #[error("the group's name is taken")]
    GroupNameTaken,
    /// The call is not for us, or did not come as calls must.
    #[error("misdirected: {0:?}")]
    Misdirected(Misdirection),
    #[error("unauthenticated: {0:?}")]
    Unauthenticated(AuthFailure),
    #[error("permission denied: {0:?}")]
    PermissionDenied(Denial),
    #[error("{0:?} not found")]
    NotFound(Resource),
    /// The state of things forbids it; the same call may succeed after another.
    #[error("the state forbids it: {0:?}")]
    Conflict(Conflict),
    /// More calls than the limit allows; the next is welcome after `retry_after`.
    #[error("throttled for {retry_after:?}")]
    Throttled { retry_after: Duration },
    /// Overloaded, or a store is away: the same call may succeed later.
    #[error("{what:?} unavailable")]
    Unavailable {
        what: Dependency,
        #[source]
        cause: Option<Cause>,
    },
    #[error("the deadline passed")]
    DeadlineExceeded,
    #[error("internal error")]
    Internal(#[source] Cause),
}

/// Why a call is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdirection {
    /// It names no host, several, or what is none.
    UnclearHost,
    /// It names a host that is not among `ALLOWED_HOSTS`.
    ForeignHost,
    /// It came in the clear.
    Insecure,
}

/// Why a caller could not be told apart from anyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// No `authorization` came with the call, or more than one.
    NoToken,
    /// The token is malformed, signed by another key, or of another type.
    BadToken,
    /// The token was good once.
    ExpiredToken,
    /// The session of the token is over: by a logout, a changed password, reuse of a refresh token, or its age; or the account
    /// was deactivated or deleted.
    SessionEnded,
    /// Wrong password, or the account is inactive.
    BadCredentials,
}

/// Why a known caller may not do this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The caller lacks the role.
    Role,
    /// The caller may do it once the e-mail address is verified.
    EmailNotVerified,
    /// The caller's browser may have been made to ask by a page that isn't ours.
    ForeignPage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    User,
    Profile,
    Avatar,
    /// A role of that name; or the user doesn't hold it.
    Role,
    /// The permission is not granted there.
    Permission,
    Group,
    /// The user is not in the group.
    Membership,
    /// Of a list.
    Page,
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Without this user nobody could make superusers any more.
    LastSuperuser,
    TooManyGroups,
    /// Of a group, or granted to a user directly.
    TooManyPermissions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    Database,
    /// The folder or bucket with the avatars.
    AvatarStore,
    /// The queue of passwords to hash is full.
    PasswordHashing,
    /// The user has as many searches under way as may be, or all users together have.
    Directory,
    /// The client has as many pictures on their way as may be, or all clients together have.
    Pictures,
    /// The feed of changes could not be read for too long to trust it.
    Feed,
    /// The process is shutting down.
    Shutdown,
}

/// Why a message of the outbox was not delivered. The texts are for an operator: nothing of the message is in them.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The server can't be reached, or serves nobody: the message is not to blame, and no other would fare better.
    #[error("{0}")]
    ServerAway(String),
    /// Not this message, for now.
    #[error("{0}")]
    Transient(String),
    /// Not this message, ever.
    #[error("{0}")]
    Permanent(String),
}

/// What is wrong with a request, field by field, in the order found.
#[derive(Debug, Clone, Default)]
pub struct FieldErrors(Vec<FieldError>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub field: Cow<'static, str>,
    pub message: Cow<'static, str>,
    /// The field was absent though required; this outranks a wrong value.
    pub missing: bool,
}

/// What is said of a field that is missing.
pub const REQUIRED: &str = "This field is required.";

impl FieldErrors {
    pub fn wrong(&mut self, field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) {
        self.0.push(FieldError { field: field.into(), message: message.into(), missing: false });
    }

    pub fn missing(&mut self, field: impl Into<Cow<'static, str>>) {
        self.0.push(FieldError { field: field.into(), message: REQUIRED.into(), missing: true });
    }

    /// `value`, or `None` after noting that `field` is missing; what was found wrong with it before stands.
    pub fn required<T>(&mut self, field: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(field) {
            self.missing(field);
        }
        value
    }

    /// `value`, or `None` after noting what is wrong with `field`.
    pub fn check<T>(&mut self, field: &'static str, value: Result<T, impl Into<Messages>>) -> Option<T> {
        value
            .map_err(|messages| {
                for message in messages.into().0 {
                    self.wrong(field, message);
                }
            })
            .ok()
    }

    /// Something was found wrong with `field`.
    pub fn has(&self, field: &str) -> bool {
        self.0.iter().any(|e| e.field == field)
    }

    /// Forgets what was found wrong with `field`, and says whether anything was.
    pub fn forget(&mut self, field: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|e| e.field != field);
        self.0.len() < before
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn any_missing(&self) -> bool {
        self.0.iter().any(|e| e.missing)
    }

    pub fn iter(&self) -> impl Iterator<Item = &FieldError> {
        self.0.iter()
    }

    /// Nothing if no field is bad, else the error that lists them all.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn finish(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::Invalid(self)) }
    }
}

/// What is wrong with one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Messages(pub Vec<Cow<'static, str>>);

impl From<&'static str> for Messages {
    fn from(message: &'static str) -> Self {
        Self(vec![message.into()])
    }
}

impl From<Vec<Cow<'static, str>>> for Messages {
    fn from(messages: Vec<Cow<'static, str>>) -> Self {
        Self(messages)
    }
}

impl Error {
    /// One field is wrong.
    pub fn invalid(field: &'static str, message: &'static str) -> Self {
        let mut errors = FieldErrors::default();
        errors.wrong(field, message);
        Self::Invalid(errors)
    }

    /// A bug or a broken invariant; `cause` goes to the log.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }
}

/// A store that does not answer is `Unavailable`; anything else it says is a bug of ours.
impl From<sea_orm::DbErr> for Error {
    fn from(error: sea_orm::DbErr) -> Self {
        use sea_orm::{DbErr, RuntimeErr};
        let away = match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
            DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e)) => store_is_away(e),
            _ => false,
        };
        if away {
            Self::Unavailable { what: Dependency::Database, cause: Some(error.into()) }
        } else {
            Self::Internal(error.into())
        }
    }
}

fn store_is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| match code.len() {
            // An SQLSTATE. Class 57: operator intervention (shutdown, crash, statement timeout); 53: out of resources;
            // 08: connection. Then a wait for a lock that took too long, a deadlock, a transaction left idle.
            5 => ["57", "53", "08", "55P03", "40P01", "25P03"].iter().any(|start| code.starts_with(start)),
            // SQLite's extended code, the kind in its low byte: busy, locked, read-only, I/O, full disk, can't open.
            _ => code.parse::<i32>().is_ok_and(|code| [5, 6, 8, 10, 13, 14].contains(&(code & 0xff))),
        }),
        _ => false,
    }
}

/// An error and all that lies under it, on one line: for the log.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}
