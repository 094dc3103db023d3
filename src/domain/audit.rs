//! The audit trail: who did what to whom, from where and when, written in the transaction of the change itself.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{ActiveValue::Set, EnumIter, Iterable};
use serde::{Deserialize, Serialize};

use crate::{
    domain::{caller::Call, change::Transaction},
    entity::audit_event,
    error::{Error, Result},
};

/// What is worth remembering. The names are stored, so they don't change.
#[derive(Debug, Clone, EnumIter)]
pub(super) enum Event {
    Registered,
    LoggedIn,
    /// A refresh token of the Django service began a session here.
    SessionAdopted,
    LoggedOut,
    EmailVerified,
    /// By an operator, on the command line.
    SuperuserMade,
    /// By an operator, with many others.
    UserImported,
    /// A refresh token came back after its successor was in use: the session was ended.
    RefreshTokenReused,
    /// A login ended so many sessions of the user, which had too many.
    SessionsCrowdedOut(usize),
    /// By an admin, without being logged in.
    UserCreated,
    /// What changed, and the new values of flags; of other fields the name alone.
    UserUpdated(BTreeMap<&'static str, Option<bool>>),
    /// All that is kept of the user was given out.
    UserExported,
    UserDeleted,
    PasswordChanged,
    PermissionGranted(String),
    PermissionRevoked(String),
    GroupCreated(String),
    GroupRenamed(String),
    GroupDeleted(String),
    GroupPermissionAdded {
        group: String,
        permission: String,
    },
    GroupPermissionRemoved {
        group: String,
        permission: String,
    },
    GroupMemberAdded(String),
    GroupMemberRemoved(String),
    /// An admin began to read the audit: of a user, or of all.
    AuditRead,
}

/// What else there is to say of an event. No address and no name of a person: it outlives them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// What changed of a user, and the new values of flags; of other fields the name alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, Option<bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<usize>,
}

impl Event {
    /// The names of all events.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::iter().map(|event| event.name())
    }

    /// Those that come of a command of the operator: nobody is logged in there.
    pub(super) fn by_operator() -> impl Iterator<Item = Self> {
        [Self::SuperuserMade, Self::UserImported].into_iter()
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Registered => "user.registered",
            Self::LoggedIn => "session.began",
            Self::SessionAdopted => "session.adopted",
            Self::LoggedOut => "session.ended",
            Self::EmailVerified => "user.email_verified",
            Self::SuperuserMade => "user.superuser_made",
            Self::UserImported => "user.imported",
            Self::RefreshTokenReused => "session.refresh_token_reused",
            Self::SessionsCrowdedOut(_) => "session.crowded_out",
            Self::UserCreated => "user.created",
            Self::UserUpdated(_) => "user.updated",
            Self::UserExported => "user.exported",
            Self::UserDeleted => "user.deleted",
            Self::PasswordChanged => "user.password_changed",
            Self::PermissionGranted(_) => "user.permission_granted",
            Self::PermissionRevoked(_) => "user.permission_revoked",
            Self::GroupCreated(_) => "group.created",
            Self::GroupRenamed(_) => "group.renamed",
            Self::GroupDeleted(_) => "group.deleted",
            Self::GroupPermissionAdded { .. } => "group.permission_added",
            Self::GroupPermissionRemoved { .. } => "group.permission_removed",
            Self::GroupMemberAdded(_) => "group.member_added",
            Self::GroupMemberRemoved(_) => "group.member_removed",
            Self::AuditRead => "audit.read",
        }
    }

    fn detail(self) -> Detail {
        let none = Detail::default();
        match self {
            Self::Registered
            | Self::LoggedIn
            | Self::SessionAdopted
            | Self::LoggedOut
            | Self::EmailVerified
            | Self::SuperuserMade
            | Self::UserImported
            | Self::RefreshTokenReused
            | Self::UserCreated
            | Self::UserExported
            | Self::UserDeleted
            | Self::PasswordChanged
            | Self::AuditRead => none,
            Self::SessionsCrowdedOut(count) => Detail { sessions: Some(count), ..none },
            Self::UserUpdated(changed) => {
                let changed = changed.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
                Detail { changed, ..none }
            }
            Self::PermissionGranted(permission) | Self::PermissionRevoked(permission) => {
                Detail { permission: Some(permission), ..none }
            }
            Self::GroupCreated(group)
            | Self::GroupRenamed(group)
            | Self::GroupDeleted(group)
            | Self::GroupMemberAdded(group)
            | Self::GroupMemberRemoved(group) => Detail { group: Some(group), ..none },
            Self::GroupPermissionAdded { group, permission } | Self::GroupPermissionRemoved { group, permission } => {
                Detail { group: Some(group), permission: Some(permission), ..none }
            }
        }
    }

    /// The call came without a token, but it was the user's own: he or she knew the password, or had the mail.
    fn proves_the_user(&self) -> bool {
        matches!(
            self,
            Self::Registered
                | Self::LoggedIn
                | Self::SessionAdopted
                | Self::SessionsCrowdedOut(_)
                | Self::EmailVerified
        )
    }
}

impl Transaction {
    /// Notes what the call did to the user; without a call, what the operator did.
    pub fn audit(&mut self, event: Event, call: Option<&Call>, user_id: i64) -> Result<()> {
        self.write_audit(event, call, Some(user_id))
    }

    /// Notes what the operator did to each of these users.
    pub fn audit_each(&mut self, event: &Event, user_ids: &[i64]) -> Result<()> {
        let rows =
            user_ids.iter().map(|id| row(event.clone(), None, Some(*id), self.now)).collect::<Result<Vec<_>>>()?;
        for row in &rows {
            self.put(row);
        }
        Ok(())
    }

    /// Notes what the call did that concerns no single user.
    pub fn audit_at_large(&mut self, event: Event, call: &Call) -> Result<()> {
        self.write_audit(event, Some(call), None)
    }

    /// Notes that the caller began to read the audit: of this user, or of all.
    pub fn audit_reading(&mut self, call: &Call, user_id: Option<i64>) -> Result<()> {
        self.write_audit(Event::AuditRead, Some(call), user_id)
    }

    fn write_audit(&mut self, event: Event, call: Option<&Call>, user_id: Option<i64>) -> Result<()> {
        let row = row(event, call, user_id, self.now)?;
        self.put(&row);
        Ok(())
    }
}

/// What is written down of an event.
pub(super) fn row(
    event: Event,
    call: Option<&Call>,
    user_id: Option<i64>,
    now: DateTime<Utc>,
) -> Result<audit_event::ActiveModel> {
    let caller = call.and_then(|call| call.caller.as_ref());
    Ok(audit_event::ActiveModel {
        kind: Set(event.name().to_owned()),
        actor_id: Set(caller.map(|caller| caller.user_id).or(user_id.filter(|_| event.proves_the_user()))),
        user_id: Set(user_id),
        ip: Set(call.map(|call| call.client.to_string())),
        user_agent: Set(call.and_then(Call::user_agent)),
        request_id: Set(call.map(|call| call.request_id.to_string())),
        detail: Set(serde_json::to_string(&event.detail()).map_err(Error::internal)?),
        created_at: Set(now),
        ..Default::default()
    })
}
