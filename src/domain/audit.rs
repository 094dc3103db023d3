//! The audit trail: who did what to whom, from where and when, written in the transaction of the change itself.

use sea_orm::{ActiveModelTrait, ActiveValue::Set};

use crate::{app::App, db::Tx, domain::caller::Call, entity::audit_event, error::Result};

/// What is worth remembering. The names are stored, so they don't change.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    Registered,
    LoggedIn,
    LoggedOut,
    EmailVerified,
    /// By an operator, on the command line.
    SuperuserMade,
    /// A refresh token came back after its successor was in use: the session was ended.
    RefreshTokenReused,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Registered => "user.registered",
            Self::LoggedIn => "session.began",
            Self::LoggedOut => "session.ended",
            Self::EmailVerified => "user.email_verified",
            Self::SuperuserMade => "user.superuser_made",
            Self::RefreshTokenReused => "session.refresh_token_reused",
        }
    }

    /// The call came without a token, but it was the user's own: he or she knew the password, or had the mail.
    fn proves_the_user(self) -> bool {
        matches!(self, Self::Registered | Self::LoggedIn | Self::EmailVerified)
    }
}

impl App {
    /// Notes, within `tx`, what the call did to the user; without a call, what the operator did.
    pub(super) async fn audit(&self, tx: &Tx, event: Event, call: Option<&Call>, user_id: i64) -> Result<()> {
        let caller = call.and_then(|call| call.caller.as_ref());
        audit_event::ActiveModel {
            kind: Set(event.name().to_owned()),
            actor_id: Set(caller.map(|caller| caller.user_id).or(event.proves_the_user().then_some(user_id))),
            user_id: Set(Some(user_id)),
            ip: Set(call.map(|call| call.client.to_string())),
            user_agent: Set(call.and_then(Call::user_agent)),
            request_id: Set(call.map(|call| call.request_id.to_string())),
            detail: Set("{}".to_owned()),
            created_at: Set(self.clock.now()),
            ..Default::default()
        }
        .insert(tx)
        .await?;
        Ok(())
    }
}
