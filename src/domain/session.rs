//! Sessions: one login each, held in SQL, ended for good. `docs/architecture.md` tells how they are refreshed.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use sea_orm::{
    ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select,
    UpdateMany,
    sea_query::{Expr, Query},
};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    app::App,
    config::{NeedsVerified, Privacy},
    db::Script,
    domain::{
        audit::{self, Event},
        caller::{Call, Caller},
        change::Transaction,
        known_client::{Holder, known_from_now_on, or_for_longer},
        user::EmailAddress,
    },
    entity::{
        session,
        user::{self, PasswordHash},
    },
    error::{AuthFailure, Chain, Error, Resource, Result},
    hash_pool::Place,
    model::{
        password::{Password, Verdict},
        permission::Permissions,
        role::Roles,
        token::{self, TokenPair, VerifiedToken},
    },
    trace,
};

/// How long the refresh token just replaced gives the same successor again: two tabs, a lost answer.
pub const REFRESH_GRACE: Duration = Duration::seconds(10);
/// How old a session may grow, however often it is refreshed.
pub const SESSION_MAX_AGE: Duration = Duration::days(30);

/// How many sessions a user may have; a further login ends the one that was not refreshed for longest.
pub const MAX_SESSIONS: u64 = 100;

/// From how many on a login looks whether there are too many. On PostgreSQL it doesn't see those of logins at the same time: should one user
/// have more of them than are left to [`MAX_SESSIONS`], there are too many until the next login.
const MANY_SESSIONS: u64 = 50;

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
        let place = self.hash_pool.place()?;
        let (attempt, holder) = self.reserve_login(&email, call.client).await?;
        let logged_in = self.login_within_limits(call, place, &email, holder, password).await;
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
        place: Place,
        email: &EmailAddress,
        mut holder: Option<Holder>,
        password: Password,
    ) -> Result<LoggedIn> {
        let (password, client, mut place) = (Arc::new(password), call.client, Some(place));
        // Again where another login replaced an old hash meanwhile: the same password is right for the new one too.
        for _ in 0..LOGIN_ATTEMPTS {
            let known = holder.take().map(|holder| holder.user);
            let stored = known.as_ref().map_or_else(|| self.decoy.clone(), |user| user.password.clone());
            // Given back with the hash: what follows is none of the threads' business.
            let taken = place.take().map_or_else(|| self.hash_pool.place(), Ok)?;
            let (verdict, upgraded) = self.check_password(taken, stored, Arc::clone(&password)).await?;
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
            let (app, call) = (Arc::clone(self), Arc::clone(&call));
            let begin = self.run_to_end(async move { app.begin_session(&call, &user, upgraded).await });
            if let Some(logged_in) = begin.await? {
                return Ok(logged_in);
            }
            holder = self.holder(email, client).await?;
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
        if let Some(generation) = token.generation
            && let Some((user, session)) = self.rotate_at_once(token.session_id, generation, now).await?
        {
            return self.keys.issue(&user, &session, now);
        }
        // Something is out of the ordinary, and what it is decides.
        if token.is_adopted {
            self.adopt_session(call, token).await?;
        }
        let mut session = self.standing_session(token.session_id, now).await?;
        let user = self.active_user(session.user_id).await?;
        if token.jti == self.keys.refresh_jti(session.id, session.generation) {
            let rotated = self.rotation(session.id, session.generation, now);
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
                tx.audit(Event::RefreshTokenReused, Some(&call), user_id)
            })
        });
        end.await?;
        tracing::warn!(user_id, session_id = %id, "a refresh token was reused; its session ended");
        Err(Error::Unauthenticated(AuthFailure::SessionEnded))
    }

    /// The session that a login begins. `None` if the account is no longer what the password was held against: it may have been
    /// deactivated, or its password changed, while the hash took its time.
    async fn begin_session(
        self: &Arc<Self>,
        call: &Arc<Call>,
        user: &user::Model,
        upgraded: Option<PasswordHash>,
    ) -> Result<Option<LoggedIn>> {
        let (now, mut script) = (self.clock.now(), Script::new(&self.db));
        let session = self.new_session(call, user.id, (new_session_id(now), 1), now);
        let is_theirs = |password: &PasswordHash| {
            let is_right = Expr::col(user::Column::Password).eq(password.clone());
            Expr::col(user::Column::Id).eq(user.id).and(Expr::col(user::Column::IsActive)).and(is_right)
        };
        let mut login = user::Entity::update_many()
            .col_expr(user::Column::LastLogin, Expr::value(now))
            .filter(is_theirs(&user.password));
        if let Some(hash) = &upgraded {
            login = login.col_expr(user::Column::Password, Expr::value(hash.clone()));
        }
        // As it is now: its roles may have changed while the hash took its time.
        script.update("login", user::Entity, login.into_query());
        let only = (script.written("login", user::Entity), is_theirs(upgraded.as_ref().unwrap_or(&user.password)));
        script.insert_if(&only, "session", &session.clone().into_active_model(), None)?;
        let client = known_from_now_on(user.id, call.client, now);
        script.insert_if(&only, "client", &client, Some(or_for_longer()))?;
        let event = audit::row(Event::LoggedIn, Some(call), Some(user.id), now)?;
        script.insert_if(&only, "event", &event, None)?;
        let many = sessions_beside(&session, now).offset(MANY_SESSIONS - 1).limit(1);
        script.select("one_of_many", session::Entity, many.into_query());

        let returned = Box::pin(self.db.run(script)).instrument(trace::of_part("commit")).await?;
        let Some(user) = returned.row::<user::Model>("login")? else { return Ok(None) };
        if returned.row::<session::Model>("one_of_many")?.is_some() {
            let (call, session) = (Arc::clone(call), session.clone());
            let end = self.transaction(|tx| {
                Box::pin(async move {
                    // One login after the other, so that each sees the sessions of those before.
                    tx.lock_user(session.user_id).await?;
                    tx.end_sessions_beside(&session, &call).await
                })
            });
            // The session has begun, whatever comes of that; the next login sees to it again.
            if let Err(error) = end.await {
                tracing::warn!(user_id = user.id, error = %Chain(&error), "a user has too many sessions, and none could be ended");
            }
        }
        let tokens = self.keys.issue(&user, &session, now)?;
        Ok(Some(LoggedIn { user, tokens }))
    }

    /// A session that begins now, with this id and generation.
    fn new_session(
        &self,
        call: &Call,
        user_id: i64,
        (id, generation): (Uuid, i64),
        now: DateTime<Utc>,
    ) -> session::Model {
        session::Model {
            id,
            user_id,
            generation,
            created_at: now,
            rotated_at: now,
            expires_at: self.keys.refresh_expires_at(now),
            ends_at: now + SESSION_MAX_AGE,
            revoked_at: None,
            ip: Some(call.client.to_string()),
            user_agent: call.user_agent(),
        }
    }

    /// The update that takes a session that stands from this generation to the next.
    fn rotation(&self, id: Uuid, generation: i64, now: DateTime<Utc>) -> UpdateMany<session::Entity> {
        session::Entity::update_many()
            .col_expr(session::Column::Generation, Expr::col(session::Column::Generation).add(1))
            .col_expr(session::Column::RotatedAt, Expr::value(now))
            .col_expr(session::Column::ExpiresAt, Expr::value(self.keys.refresh_expires_at(now)))
            .filter(session::Column::Id.eq(id))
            .filter(session::Column::Generation.eq(generation))
            .filter(session::Column::RevokedAt.is_null())
            .filter(session::Column::ExpiresAt.gt(now))
            .filter(session::Column::EndsAt.gt(now))
    }

    /// The session in its next generation, and its user; `None` if there is no session that stands in this one, or nobody active whose
    /// it is.
    async fn rotate_at_once(
        &self,
        id: Uuid,
        generation: i64,
        now: DateTime<Utc>,
    ) -> Result<Option<(user::Model, session::Model)>> {
        let mut script = Script::new(&self.db);
        let mut active = user::Entity::find().filter(user::Column::IsActive.into_expr()).into_query();
        active.and_where(user::Column::Id.into_expr().equals((session::Entity, session::Column::UserId)));
        let rotation = self.rotation(id, generation, now).filter(Expr::exists(active));
        script.update("session", session::Entity, rotation.into_query());
        let mut owner = Query::select();
        owner.column(session::Column::UserId).from(script.written("session", session::Entity));
        owner.and_where(Expr::col(session::Column::Id).eq(id));
        let owner = user::Entity::find().filter(user::Column::Id.in_subquery(owner));
        script.select("user", user::Entity, owner.into_query());
        let returned = Box::pin(self.db.run(script)).instrument(trace::of_part("commit")).await?;
        Ok(returned.row("user")?.zip(returned.row("session")?))
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
                tx.audit(Event::LoggedOut, Some(&call), caller.user_id)
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
    /// A new session of the user. Its client is known from then on.
    pub(super) fn insert_session(&mut self, call: &Call, user_id: i64, id: Uuid, generation: i64) -> session::Model {
        let session = self.app.new_session(call, user_id, (id, generation), self.now);
        self.put_or(&known_from_now_on(user_id, call.client, self.now), or_for_longer());
        self.put(&session.clone().into_active_model());
        session
    }

    /// Ends what the user has beyond [`MAX_SESSIONS`], those first that were not refreshed for longest, and `new` never: so many
    /// can be ended all at once in no time.
    pub(super) async fn end_sessions_beside(&mut self, new: &session::Model, call: &Call) -> Result<()> {
        let ended: Vec<Uuid> = sessions_beside(new, self.now)
            .select_only()
            .column(session::Column::Id)
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
        self.audit(Event::SessionsCrowdedOut(ended.len()), Some(call), new.user_id)?;
        self.revoke_sessions(ended);
        Ok(())
    }

    /// Ends a session: its tokens are worth nothing from the commit on, here at once and everywhere within a second.
    async fn end_session(&mut self, id: Uuid) -> Result<()> {
        session::Entity::update_many()
            .col_expr(session::Column::RevokedAt, Expr::value(self.now))
            .filter(session::Column::Id.eq(id))
            .filter(session::Column::RevokedAt.is_null())
            .exec(&self.db)
            .await?;
        self.revoke_sessions([id]);
        Ok(())
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
        self.revoke_sessions(ended.iter().map(|session| session.id));
        if self.app.keys.accept_simplejwt(self.now) {
            self.end_simplejwt(user_id).await?;
        }
        Ok(())
    }
}

/// The user's other sessions that stand, those refreshed last first.
fn sessions_beside(session: &session::Model, now: DateTime<Utc>) -> Select<session::Entity> {
    session::Entity::find()
        .filter(session::Column::UserId.eq(session.user_id))
        .filter(session::Column::RevokedAt.is_null())
        .filter(session::Column::ExpiresAt.gt(now))
        .filter(session::Column::Id.ne(session.id))
        .order_by_desc(session::Column::RotatedAt)
        .order_by_desc(session::Column::Id)
}

/// A random id that sorts by time, so that sessions lie in their index in the order in which they began.
pub(super) fn new_session_id(now: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &crate::random::bytes()).into_uuid()
}
