//! Events: what other services hear of users. `docs/events.md` is their side of it.

use chrono::SecondsFormat;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    domain::{change::Transaction, outbox::new_message_id},
    entity::user,
    error::Result,
    model::role::Roles,
};

/// The version of the shape below. Keys may be added under the same one.
const VERSION: u32 = 1;

/// What happened to a user.
#[derive(Debug)]
pub(super) enum UserEvent {
    Registered,
    Verified,
    /// The keys of the user that changed.
    Updated {
        changed: Vec<&'static str>,
    },
    RolesChanged,
    Deleted,
}

impl UserEvent {
    /// What the rows of events are called in the outbox: the types of the events.
    pub(super) const KINDS: [&str; 5] =
        ["user.registered", "user.verified", "user.updated", "user.roles_changed", "user.deleted"];

    fn kind(&self) -> &'static str {
        match self {
            Self::Registered => "user.registered",
            Self::Verified => "user.verified",
            Self::Updated { .. } => "user.updated",
            Self::RolesChanged => "user.roles_changed",
            Self::Deleted => "user.deleted",
        }
    }
}

#[derive(Serialize)]
struct Event<'a> {
    id: Uuid,
    version: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    occurred_at: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    user: UserNow<'a>,
    /// Higher with each change of the user: what is lower than the last one seen is older.
    user_version: i64,
    changed: &'a [&'static str],
}

#[derive(Serialize)]
struct UserNow<'a> {
    id: i64,
    email: &'a str,
    first_name: &'a str,
    last_name: &'a str,
    is_active: bool,
    is_verified: bool,
    roles: Vec<&'static str>,
}

impl Transaction {
    /// Puts an event into the outbox, where there is somebody to hear of it. `user` is as it is after the change; of one that
    /// was deleted, as it was before.
    pub fn announce(&mut self, news: &UserEvent, user: &user::Model) -> Result<()> {
        if self.app.notifier.is_none() {
            return Ok(());
        }
        let (changed, user_version) = match news {
            UserEvent::Updated { changed } => (changed.as_slice(), user.version),
            // The end is newer than all that was.
            UserEvent::Deleted => ([].as_slice(), user.version + 1),
            UserEvent::Registered | UserEvent::Verified | UserEvent::RolesChanged => ([].as_slice(), user.version),
        };
        let user_now = UserNow {
            id: user.id,
            email: &user.email,
            first_name: &user.first_name,
            last_name: &user.last_name,
            is_active: user.is_active,
            is_verified: user.is_verified,
            roles: Roles::of(user).display(),
        };
        let id = new_message_id();
        let payload = Event {
            id,
            version: VERSION,
            kind: news.kind(),
            occurred_at: self.now.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            data: Data { user: user_now, user_version, changed },
        };
        self.put_into_outbox(news.kind(), id, &payload, user.id)
    }
}
