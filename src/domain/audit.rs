//! The audit trail: who did what to whom, from where and when, written in the transaction of the change itself.

use std::collections::BTreeMap;

use sea_orm::{ActiveModelTrait, ActiveValue::Set};
use serde_json::{Value, json};

use crate::{
    domain::{caller::Call, change::Transaction},
    entity::audit_event,
    error::Result,
};

/// What is worth remembering. The names are stored, so they don't change.
#[derive(Debug, Clone)]
pub enum Event {
    Registered,
    LoggedIn,
    /// A refresh token of the Django service began a session here.
    SessionAdopted,
    LoggedOut,
    EmailVerified,
    /// By an operator, on the command line.
    SuperuserMade,
    /// A refresh token came back after its successor was in use: the session was ended.
    RefreshTokenReused,
    /// A login ended so many sessions of the user, which had too many.
    SessionsCrowdedOut(usize),
    /// By an admin, without being logged in.
    UserCreated,
    /// What changed, and the new values of flags; of other fields the name alone.
    UserUpdated(BTreeMap<&'static str, Option<bool>>),
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
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Registered => "user.registered",
            Self::LoggedIn => "session.began",
            Self::SessionAdopted => "session.adopted",
            Self::LoggedOut => "session.ended",
            Self::EmailVerified => "user.email_verified",
            Self::SuperuserMade => "user.superuser_made",
            Self::RefreshTokenReused => "session.refresh_token_reused",
            Self::SessionsCrowdedOut(_) => "session.crowded_out",
            Self::UserCreated => "user.created",
            Self::UserUpdated(_) => "user.updated",
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
        }
    }

    /// What else there is to say. No address and no name of a person: the row outlives them.
    fn detail(&self) -> Value {
        match self {
            Self::Registered
            | Self::LoggedIn
            | Self::SessionAdopted
            | Self::LoggedOut
            | Self::EmailVerified
            | Self::SuperuserMade
            | Self::RefreshTokenReused
            | Self::UserCreated
            | Self::UserDeleted
            | Self::PasswordChanged => json!({}),
            Self::SessionsCrowdedOut(count) => json!({ "sessions": count }),
            Self::UserUpdated(changed) => json!({ "changed": changed }),
            Self::PermissionGranted(permission) | Self::PermissionRevoked(permission) => {
                json!({ "permission": permission })
            }
            Self::GroupCreated(group)
            | Self::GroupRenamed(group)
            | Self::GroupDeleted(group)
            | Self::GroupMemberAdded(group)
            | Self::GroupMemberRemoved(group) => json!({ "group": group }),
            Self::GroupPermissionAdded { group, permission } | Self::GroupPermissionRemoved { group, permission } => {
                json!({ "group": group, "permission": permission })
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
    pub async fn audit(&self, event: Event, call: Option<&Call>, user_id: i64) -> Result<()> {
        self.write_audit(&event, call, Some(user_id)).await
    }

    /// Notes what the call did that concerns no single user.
    pub async fn audit_at_large(&self, event: Event, call: &Call) -> Result<()> {
        self.write_audit(&event, Some(call), None).await
    }

    async fn write_audit(&self, event: &Event, call: Option<&Call>, user_id: Option<i64>) -> Result<()> {
        let caller = call.and_then(|call| call.caller.as_ref());
        audit_event::ActiveModel {
            kind: Set(event.name().to_owned()),
            actor_id: Set(caller.map(|caller| caller.user_id).or(user_id.filter(|_| event.proves_the_user()))),
            user_id: Set(user_id),
            ip: Set(call.map(|call| call.client.to_string())),
            user_agent: Set(call.and_then(Call::user_agent)),
            request_id: Set(call.map(|call| call.request_id.to_string())),
            detail: Set(event.detail().to_string()),
            created_at: Set(self.now),
            ..Default::default()
        }
        .insert(&self.db)
        .await?;
        Ok(())
    }
}
