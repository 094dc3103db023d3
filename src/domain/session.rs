//! Sessions: one login each, held in SQL, ended for good. `docs/architecture.md` tells how they are refreshed.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    app::App,
    config::{NeedsVerified, Privacy},
    domain::{
        audit::Event,
        caller::{Call, Caller},
        change::Transaction,
        known_client::remember_client,
        user::EmailAddress,
    },
    entity::{
        session,
        user::{self, PasswordHash},
    },
    error::{AuthFailure, Error, Resource, Result},
    model::{
        password::{Password, Verdict},
        permission::Permissions,
        role::Roles,
        token::{self, TokenPair, VerifiedToken},
    },
};

/// How long the refresh token just replaced gives the same successor again: two tabs, a lost answer.
pub const REFRESH_GRACE: Duration = Duration::seconds(10);
/// How old a session may grow, however often it is refreshed.
pub const SESSION_MAX_AGE: Duration = Duration::days(30);

/// How many sessions a user may have; a further login ends the one that was not refreshed for longest.
pub const MAX_SESSIONS: u64 = 100;

/// How often a login looks at the account, should its hash be replaced under its hands.
const LOGIN_ATTEMPTS: usize = 3;

/// A user who has just proved to be who he or she is.
pub struct LoggedIn {
    pub user: user::Model,
    pub tokens: TokenPair,
}

impl App {
    /// Begins a session for whoever knows the password.
    ///
    /// An unknown address costs and takes what a wrong password does, and counts as much.
    ///
    /// # Errors
    /// `NotFound` for an unknown address; `Unauthenticated` for a wrong password or an inactive account; `Throttled`;
    /// `Unavailable` if more passwords wait to be hashed than can be.
    pub async fn login(self: &Arc<Self>, call: Arc<Call>, email: EmailAddress, password: Password) -> Result<LoggedIn> {
        let attempt = self.reserve_login(&email, call.client).await?;
        let logged_in = self.login_within_limits(call, email, password).await;
        match &logged_in {
            Ok(_) => self.limiter.login_succeeded(attempt, self.clock.now()).await,
            // A failure: it counts.
            Err(Error::NotFound(_) | Error::Unauthenticated(_)) => drop(attempt),
            // Nobody's guess was wrong.
            Err(_) => self.limiter.give_back(attempt).await,
        }
        logged_in
    }

    async fn login_within_limits(
        self: &Arc<Self>,
        call: Arc<Call>,
        email: EmailAddress,
        password: Password,
    ) -> Result<LoggedIn> {
        let password = Arc::new(password);
        // Again where another login replaced an old hash meanwhile: the same password is right for the new one too.
        for _ in 0..LOGIN_ATTEMPTS {
            let known = user::Entity::find().filter(user::Column::EmailKey.eq(email.key()));
            let known = known.one(self.db.reader()).await?;
            let stored = known.as_ref().map_or_else(|| self.decoy.clone(), |user| user.password.clone());
            let (verdict, upgraded) = self.check_password(stored, Arc::clone(&password)).await?;
            let Some(user) = known else {
                return Err(match self.config.accounts.privacy {
                    Privacy::Documented => Error::NotFound(Resource::User),
                    Privacy::Strict => Error::Unauthenticated(AuthFailure::BadCredentials),
                });
            };
            if verdict == Verdict::Wrong || !user.is_active {
                return Err(Error::Unauthenticated(AuthFailure::BadCredentials));
            }
            self.require_verified(NeedsVerified::Login, user.is_verified)?;
            let call = Arc::clone(&call);
            let begin = self
                .change(move |tx| Box::pin(async move { tx.begin_session_after_login(&call, &user, upgraded).await }));
            if let Some(logged_in) = begin.await? {
                return Ok(logged_in);
            }
        }
        Err(Error::Unauthenticated(AuthFailure::BadCredentials))
    }

    /// Replaces a refresh token by its successor.
    ///
    /// One atomic update decides who replaces it. Whoever comes second with the same token, within the grace, gets the
    /// same successor; any later or older reuse is theft, and ends the session (RFC 9700 §4.14.2).
    ///
    /// # Errors
    /// `Unauthenticated` for a token that is bad, expired, reused, or of a session that ended.
    pub async fn refresh(self: &Arc<Self>, call: Arc<Call>, refresh_token: &str) -> Result<TokenPair> {
        let token = self.keys.verify(refresh_token, token::Kind::Refresh, self.clock.now())?;
        let app = Arc::clone(self);
        self.run_to_end(async move { app.refresh_session(&call, &token).await }).await
    }

    async fn refresh_session(self: &Arc<Self>, call: &Arc<Call>, token: &VerifiedToken) -> Result<TokenPair> {
        let now = self.clock.now();
        if token.is_adopted {
            self.adopt_session(call, token).await?;
        }
        let mut session = self.standing_session(token.session_id, now).await?;
        let user = self.active_user(session.user_id).await?;
        if token.jti == self.keys.refresh_jti(session.id, session.generation) {
            let rotated = session::Entity::update_many()
                .col_expr(session::Column::Generation, Expr::col(session::Column::Generation).add(1))
                .col_expr(session::Column::RotatedAt, Expr::value(now))
                .col_expr(session::Column::ExpiresAt, Expr::value(self.keys.refresh_expires_at(now)))
                .filter(session::Column::Id.eq(session.id))
                .filter(session::Column::Generation.eq(session.generation))
                .filter(session::Column::RevokedAt.is_null());
            let rotated = self.transaction(|tx| Box::pin(async { Ok(rotated.exec(&tx.db).await?) })).await?;
            if rotated.rows_affected == 1 {
                session.generation += 1;
                session.rotated_at = now;
                return self.keys.issue(&user, &session, now);
            }
            // Another call was first: the token is now the one just replaced, or the session is over.
            session = self.standing_session(token.session_id, now).await?;
        }
        let just_replaced = token.jti == self.keys.refresh_jti(session.id, session.generation - 1);
        if just_replaced && now - session.rotated_at <= REFRESH_GRACE {
            return self.keys.issue(&user, &session, now);
        }
        let (id, user_id, call) = (session.id, session.user_id, Arc::clone(call));
        let end = self.transaction(|tx| {
            Box::pin(async move {
                tx.end_session(id).await?;
                tx.audit(Event::RefreshTokenReused, Some(&call), user_id).await
            })
        });
        end.await?;
        tracing::warn!(user_id, session_id = %id, "a refresh token was reused; its session ended");
        Err(Error::Unauthenticated(AuthFailure::SessionEnded))
    }

    /// The user with this id, who bears a token that was good.
    ///
    /// # Errors
    /// `Unauthenticated` if the account is gone or inactive.
    pub(super) async fn active_user(&self, id: i64) -> Result<user::Model> {
        let user = user::Entity::find_by_id(id).one(self.db.reader()).await?;
        user.filter(|user| user.is_active).ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))
    }

    /// The session, if it is neither revoked nor over its time.
    async fn standing_session(&self, id: Uuid, now: DateTime<Utc>) -> Result<session::Model> {
        let session = session::Entity::find_by_id(id).one(self.db.reader()).await?;
        session
            .filter(|s| s.revoked_at.is_none() && s.expires_at > now && s.ends_at > now)
            .ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))
    }

    /// Ends the caller's session: its tokens are worth nothing from then on, here at once and everywhere within a second.
    ///
    /// # Errors
    /// `Unavailable` if the database is away: the session stands then.
    pub async fn logout(self: &Arc<Self>, call: Arc<Call>, caller: Caller) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                if caller.session_id == tx.app.keys.simplejwt_session(caller.user_id) {
                    tx.end_simplejwt(caller.user_id).await?;
                } else {
                    tx.end_session(caller.session_id).await?;
                }
                tx.audit(Event::LoggedOut, Some(&call), caller.user_id).await
            })
        })
        .await
    }

    /// Whom a token stands for, if it is worth anything now.
    ///
    /// # Errors
    /// `Unauthenticated` if it is worth nothing; `Throttled`; `Unavailable` if that can't be known now.
    pub async fn verify_token(&self, call: &Call, token: &str) -> Result<(VerifiedToken, Permissions)> {
        let now = self.clock.now();
        let mut verified = match self.keys.verify_either(token, now) {
            Ok(verified) => {
                self.limiter.count_token(&verified.jti, now)?;
                verified
            }
            // Made up, or over: whoever sends it can send another, so the client is counted.
            Err(error) => {
                self.limiter.count_call(None, call.client, now)?;
                return Err(error);
            }
        };
        match verified.kind {
            token::Kind::Access => {
                let caller = self.caller_of(&verified).await?;
                verified.roles = caller.roles;
                verified.is_verified = caller.is_verified;
            }
            token::Kind::Refresh => {
                if !verified.is_adopted || !self.is_yet_to_be_adopted(&verified).await? {
                    let session = self.standing_session(verified.session_id, now).await?;
                    if verified.jti != self.keys.refresh_jti(session.id, session.generation) {
                        return Err(Error::Unauthenticated(AuthFailure::SessionEnded));
                    }
                }
                let user = self.active_user(verified.user_id).await?;
                verified.roles = Roles::of(&user);
                verified.is_verified = user.is_verified;
            }
        }
        let granted = self.account(verified.user_id).await?.map(|account| account.granted.clone());
        let permissions = Permissions::of_roles(verified.roles, granted.unwrap_or_default());
        Ok((verified, permissions))
    }
}

impl Transaction {
    /// `None` if the account is no longer what the password was held against: it may have been deactivated, or its
    /// password changed, while the hash took its time.
    async fn begin_session_after_login(
        &mut self,
        call: &Call,
        user: &user::Model,
        upgraded: Option<PasswordHash>,
    ) -> Result<Option<LoggedIn>> {
        let mut login = user::Entity::update_many()
            .col_expr(user::Column::LastLogin, Expr::value(self.now))
            .filter(user::Column::Id.eq(user.id))
            .filter(user::Column::IsActive.eq(true))
            .filter(user::Column::Password.eq(user.password.clone()));
        if let Some(hash) = upgraded {
            login = login.col_expr(user::Column::Password, Expr::value(hash));
        }
        // As it is now: its roles may have changed while the hash took its time.
        let Some(user) = login.exec_with_returning(&self.db).await?.pop() else { return Ok(None) };
        let session = self.begin_session(call, user.id).await?;
        self.audit(Event::LoggedIn, Some(call), user.id).await?;
        let tokens = self.app.keys.issue(&user, &session, self.now)?;
        Ok(Some(LoggedIn { user, tokens }))
    }

    /// A new session of the user. Its client is known from then on.
    pub async fn begin_session(&mut self, call: &Call, user_id: i64) -> Result<session::Model> {
        self.insert_session(call, user_id, new_session_id(self.now), 1).await
    }

    pub(super) async fn insert_session(
        &mut self,
        call: &Call,
        user_id: i64,
        id: Uuid,
        generation: i64,
    ) -> Result<session::Model> {
        let now = self.now;
        let new = session::ActiveModel {
            id: Set(id),
            user_id: Set(user_id),
            generation: Set(generation),
            created_at: Set(now),
            rotated_at: Set(now),
            expires_at: Set(self.app.keys.refresh_expires_at(now)),
            ends_at: Set(now + SESSION_MAX_AGE),
            revoked_at: Set(None),
            ip: Set(Some(call.client.to_string())),
            user_agent: Set(call.user_agent()),
        };
        remember_client(&self.db, user_id, call.client, now).await?;
        let session = new.insert(&self.db).await?;
        self.end_sessions_beside(&session, call).await?;
        Ok(session)
    }

    /// Ends what the user has beyond [`MAX_SESSIONS`], those first that were not refreshed for longest, and `new` never: so many
    /// can be ended all at once in no time.
    async fn end_sessions_beside(&mut self, new: &session::Model, call: &Call) -> Result<()> {
        let ended: Vec<Uuid> = session::Entity::find()
            .select_only()
            .column(session::Column::Id)
            .filter(session::Column::UserId.eq(new.user_id))
            .filter(session::Column::RevokedAt.is_null())
            .filter(session::Column::ExpiresAt.gt(self.now))
            .filter(session::Column::Id.ne(new.id))
            .order_by_desc(session::Column::RotatedAt)
            .order_by_desc(session::Column::Id)
            .offset(MAX_SESSIONS - 1)
            .limit(MAX_SESSIONS)
            .into_tuple()
            .all(&self.db)
            .await?;
        if ended.is_empty() {
            return Ok(());
        }
        session::Entity::update_many()
            .col_expr(session::Column::RevokedAt, Expr::value(self.now))
            .filter(session::Column::Id.is_in(ended.iter().copied()))
            .exec(&self.db)
            .await?;
        self.audit(Event::SessionsCrowdedOut(ended.len()), Some(call), new.user_id).await?;
        self.revoke_sessions(ended).await
    }

    /// Ends a session: its tokens are worth nothing from the commit on, here at once and everywhere within a second.
    async fn end_session(&mut self, id: Uuid) -> Result<()> {
        session::Entity::update_many()
            .col_expr(session::Column::RevokedAt, Expr::value(self.now))
            .filter(session::Column::Id.eq(id))
            .filter(session::Column::RevokedAt.is_null())
            .exec(&self.db)
            .await?;
        self.revoke_sessions([id]).await
    }

    /// Ends the user's sessions, all but `kept`.
    pub async fn end_sessions(&mut self, user_id: i64, kept: Option<Uuid>) -> Result<()> {
        let mut end = session::Entity::update_many()
            .col_expr(session::Column::RevokedAt, Expr::value(self.now))
            .filter(session::Column::UserId.eq(user_id))
            .filter(session::Column::RevokedAt.is_null())
            .filter(session::Column::ExpiresAt.gt(self.now));
        if let Some(kept) = kept {
            end = end.filter(session::Column::Id.ne(kept));
        }
        let ended = end.exec_with_returning(&self.db).await?;
        self.revoke_sessions(ended.iter().map(|session| session.id)).await?;
        if self.app.keys.accept_simplejwt(self.now) {
            self.end_simplejwt(user_id).await?;
        }
        Ok(())
    }
}

/// A random id that sorts by time, so that sessions lie in their index in the order in which they began.
fn new_session_id(now: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &crate::random::bytes()).into_uuid()
}
