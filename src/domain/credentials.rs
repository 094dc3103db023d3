//! A user's password: hashed and checked off the runtime's threads, replaced by its owner.

use std::sync::Arc;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, sea_query::Expr};
use uuid::Uuid;

use crate::{
    app::App,
    domain::{
        audit::Event,
        caller::{Call, Caller},
        change::Transaction,
        letter::Letter,
        user::greeting_name,
    },
    entity::user::{self, Column, PasswordHash},
    error::{Error, FieldErrors, Result},
    hash_pool::Place,
    model::password::{self, Password, Verdict},
};

/// How often a change of password looks at the account, should its hash be replaced under its hands.
const ATTEMPTS: usize = 3;

impl App {
    /// The hash to store for a password.
    pub(super) async fn hash_password(&self, place: Place, password: Password) -> Result<PasswordHash> {
        let params = self.argon2;
        place.run(move |scratch| password::hash(&password, params, scratch).map(PasswordHash)).await?
    }

    /// Whether the password is the one that is stored, and the hash to store instead where that one is outdated.
    pub(super) async fn check_password(
        &self,
        place: Place,
        stored: PasswordHash,
        password: Arc<Password>,
    ) -> Result<(Verdict, Option<PasswordHash>)> {
        let params = self.argon2;
        place
            .run(move |scratch| {
                let verdict = password::verify(&stored.0, &password, params, scratch)?;
                let upgraded = match verdict {
                    Verdict::Right { outdated: true } => Some(password::hash(&password, params, scratch)?),
                    _ => None,
                };
                Ok((verdict, upgraded.map(PasswordHash)))
            })
            .await?
    }

    /// Replaces the caller's password, and ends all other sessions.
    ///
    /// A wrong old password counts as a failed login does: a stolen session is no place to guess it.
    ///
    /// # Errors
    /// `Invalid` for a wrong old password, or a new one that is too much like the person; `Throttled`; `Unavailable` if more
    /// passwords wait to be hashed than can be.
    pub async fn change_password(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        old: Password,
        new: Password,
    ) -> Result<()> {
        let place = self.hash_pool.place()?;
        let user = self.active_user(caller.user_id).await?;
        let mut errors = FieldErrors::default();
        errors.check("new_password", new.is_impersonal(&[&user.email, &user.first_name, &user.last_name]));
        errors.finish()?;

        let (session, now) = (caller.session_id, self.clock.now());
        let attempt = self.limiter.reserve_password_change(&user.email_key, session, call.client, now).await?;
        let changed = self.change_password_within_limits(call, &caller, place, Arc::new(old), Arc::new(new)).await;
        match &changed {
            Ok(true) => self.limiter.login_succeeded(attempt, self.clock.now()).await,
            Ok(false) => drop(attempt), // It counts.
            Err(_) => self.limiter.give_back(attempt).await,
        }
        if changed? {
            return Ok(());
        }
        Err(Error::invalid("old_password", "Your old password was entered incorrectly. Please enter it again."))
    }

    /// Whether the old password was right, and so the new one holds.
    async fn change_password_within_limits(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: &Caller,
        place: Place,
        old: Arc<Password>,
        new: Arc<Password>,
    ) -> Result<bool> {
        let mut place = Some(place);
        // Again where a login replaced an old hash meanwhile: the same password is right for the new one too.
        for _ in 0..ATTEMPTS {
            let taken = place.take().map_or_else(|| self.hash_pool.place(), Ok)?;
            let user = self.active_user(caller.user_id).await?;
            let (stored, params) = (user.password.clone(), self.argon2);
            let (old, new) = (Arc::clone(&old), Arc::clone(&new));
            let hash = taken.run(move |scratch| match password::verify(&stored.0, &old, params, scratch)? {
                Verdict::Wrong => Ok(None),
                Verdict::Right { .. } => password::hash(&new, params, scratch).map(PasswordHash).map(Some),
            });
            let Some(hash) = hash.await?? else { return Ok(false) };
            let (call, kept) = (Arc::clone(&call), caller.session_id);
            let replace =
                self.change(move |tx| Box::pin(async move { tx.replace_password(&call, &user, hash, kept).await }));
            if replace.await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Transaction {
    /// Whether the stored password was still the one that the old one was held against.
    async fn replace_password(
        &mut self,
        call: &Call,
        user: &user::Model,
        hash: PasswordHash,
        kept: Uuid,
    ) -> Result<bool> {
        let replaced = user::Entity::update_many()
            .col_expr(Column::Password, Expr::value(hash))
            .filter(Column::Id.eq(user.id))
            .filter(Column::IsActive.eq(true))
            .filter(Column::Password.eq(user.password.clone()))
            .exec(&self.db)
            .await?;
        if replaced.rows_affected == 0 {
            return Ok(false);
        }
        self.end_sessions(user.id, Some(kept)).await?;
        self.audit(Event::PasswordChanged, Some(call), user.id)?;
        // An address that nobody verified may be a stranger's, who would get a mail at each change.
        if user.is_verified {
            let letter = Letter::PasswordChanged { to: user.email.clone(), name: greeting_name(user) };
            self.post(&letter, user.id)?;
        }
        Ok(true)
    }
}
