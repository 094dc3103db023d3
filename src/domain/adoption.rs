//! Tokens that the Django service made, up to `ACCEPT_SIMPLEJWT_UNTIL`: they name no session, since it had none.
//!
//! An access token counts as one of a session that all of its user share, and which has no row until it is ended. A refresh token
//! begins, when it is used, a session of its own, whose id follows from it: so it is used once, like any other.

use std::sync::Arc;

use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect, sea_query::OnConflict};

use crate::{
    app::App,
    domain::{audit::Event, caller::Call, change::Transaction},
    entity::{session, user},
    error::{AuthFailure, Error, Result},
    model::token::VerifiedToken,
};

impl App {
    /// Begins the session that a refresh token of the Django service stands for, unless it began already: from then on the token
    /// is one of that session, and reused like any other.
    pub(super) async fn adopt_session(self: &Arc<Self>, call: &Arc<Call>, token: &VerifiedToken) -> Result<()> {
        let (id, user_id, call) = (token.session_id, token.user_id, Arc::clone(call));
        if session::Entity::find_by_id(id).one(self.db.reader()).await?.is_some() {
            return Ok(());
        }
        let adopt = self.transaction(|tx| {
            Box::pin(async move {
                let ended = Error::Unauthenticated(AuthFailure::SessionEnded);
                let is_active = tx.lock_user(user_id).await?.is_some_and(|user| user.is_active);
                if !is_active || tx.simplejwt_ended(user_id).await? {
                    return Err(ended);
                }
                // Another call may have been first.
                if session::Entity::find_by_id(id).one(&tx.db).await?.is_none() {
                    let session = tx.insert_session(&call, user_id, id, 0);
                    tx.end_sessions_beside(&session, &call).await?;
                    tx.audit(Event::SessionAdopted, Some(&call), user_id)?;
                }
                Ok(())
            })
        });
        adopt.await
    }

    /// The token would begin a session if it was used.
    pub(super) async fn is_yet_to_be_adopted(&self, token: &VerifiedToken) -> Result<bool> {
        let ids = [token.session_id, self.keys.simplejwt_session(token.user_id)];
        let known = session::Entity::find().filter(session::Column::Id.is_in(ids)).one(self.db.reader()).await?;
        Ok(known.is_none())
    }
}

impl Transaction {
    /// Ends what the Django service issued to the user: no token of that says of which login it is, so all are over. A session
    /// already revoked stands for them.
    pub(super) async fn end_simplejwt(&mut self, user_id: i64) -> Result<()> {
        if self.lock_user(user_id).await?.is_none() {
            return Err(Error::Unauthenticated(AuthFailure::SessionEnded));
        }
        let (id, now) = (self.app.keys.simplejwt_session(user_id), self.now);
        let outlives_all = self.app.keys.refresh_expires_at(now);
        let over = session::ActiveModel {
            id: Set(id),
            user_id: Set(user_id),
            generation: Set(0),
            created_at: Set(now),
            rotated_at: Set(now),
            expires_at: Set(outlives_all),
            ends_at: Set(outlives_all),
            revoked_at: Set(Some(now)),
            ip: Set(None),
            user_agent: Set(None),
        };
        let again = OnConflict::column(session::Column::Id)
            .update_columns([session::Column::ExpiresAt, session::Column::EndsAt, session::Column::RevokedAt])
            .to_owned();
        session::Entity::insert(over).on_conflict(again).exec_without_returning(&self.db).await?;
        self.revoke_sessions([id]);
        Ok(())
    }

    /// Whether what the Django service issued to the user is over.
    async fn simplejwt_ended(&self, user_id: i64) -> Result<bool> {
        let over = session::Entity::find_by_id(self.app.keys.simplejwt_session(user_id)).one(&self.db).await?;
        Ok(over.is_some())
    }

    /// Whoever adopts a token and whoever ends them all go one after the other.
    pub(super) async fn lock_user(&self, id: i64) -> Result<Option<user::Model>> {
        Ok(user::Entity::find_by_id(id).lock_exclusive().one(&self.db).await?)
    }
}
