//! Accounts: made by an admin, changed, deleted; and their passwords. Contract §6.

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, Iterable, ModelTrait, QueryFilter, QuerySelect, TryGetable,
    sea_query::Expr,
};

use crate::{
    app::App,
    config::{NeedsVerified, SelfServiceRole},
    db::Tx,
    domain::{
        audit::Event,
        authority::Subject,
        caller::{Call, Caller},
        event::News,
        letter::Letter,
        password::{self, Password, Verdict},
        registration::{NewAccount, Standing, insert_user, or_email_taken},
        role::Roles,
        user::{EmailAddress, PersonName, VisibleUser, greeting_name, search_texts},
    },
    entity::{
        profile,
        user::{self, Column, PasswordHash},
    },
    error::{AuthFailure, Denial, Error, FieldErrors, Result},
    revocations::Revocation,
};

/// How often a change of password looks at the account, should its hash be replaced under its hands.
const PASSWORD_ATTEMPTS: usize = 3;

/// What to change of a user; `None` stays as it is.
#[derive(Debug, Default)]
pub struct UserChange {
    pub email: Option<EmailAddress>,
    pub first_name: Option<PersonName>,
    pub last_name: Option<PersonName>,
    pub is_active: Option<bool>,
    pub is_verified: Option<bool>,
    pub is_freelancer: Option<bool>,
    pub is_seller: Option<bool>,
    pub is_moderator: Option<bool>,
    pub is_staff: Option<bool>,
    pub is_superuser: Option<bool>,
}

impl UserChange {
    /// The user as it would be, before what follows from it.
    fn applied_to(self, user: &user::Model) -> user::Model {
        let mut after = user.clone();
        if let Some(email) = self.email {
            // Another spelling of the same address is no other mailbox.
            after.is_verified &= after.email_key == email.key();
            email.key().clone_into(&mut after.email_key);
            email.as_str().clone_into(&mut after.email);
        }
        let texts = [(&mut after.first_name, self.first_name), (&mut after.last_name, self.last_name)];
        for (column, name) in texts {
            if let Some(name) = name {
                name.as_str().clone_into(column);
            }
        }
        let flags = [
            (&mut after.is_active, self.is_active),
            (&mut after.is_verified, self.is_verified),
            (&mut after.is_freelancer, self.is_freelancer),
            (&mut after.is_seller, self.is_seller),
            (&mut after.is_moderator, self.is_moderator),
            (&mut after.is_staff, self.is_staff),
            (&mut after.is_superuser, self.is_superuser),
        ];
        for (column, flag) in flags {
            *column = flag.unwrap_or(*column);
        }
        after
    }
}

impl App {
    /// Makes an account without logging it in: for admins.
    ///
    /// # Errors
    /// `PermissionDenied` where it would be staff or a superuser, and the caller is no superuser; `EmailTaken`;
    /// `Unavailable` if more passwords wait to be hashed than can be.
    pub async fn create_user(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        new: NewAccount,
        standing: Standing,
    ) -> Result<VisibleUser> {
        // Spare the hash. What decides is looked at again below.
        let known = user::Entity::find_by_id(caller.user_id).one(self.db.reader()).await?;
        if (standing.is_staff || standing.is_superuser) && !known.is_some_and(|user| user.is_superuser) {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        if self.email_is_taken(&new.person.email).await? {
            return Err(Error::EmailTaken);
        }
        let hash = self.hash_password(new.password).await?;
        let app = Arc::clone(self);
        self.change(async move {
            let now = app.clock.now();
            let tx = app.db.begin().await?;
            let authority = app.authority(&tx, &caller).await?;
            authority.require_admin()?;
            if standing.is_staff || standing.is_superuser {
                authority.require_superuser()?;
            }
            let user = insert_user(&tx, &new.person, hash, standing, now).await?;
            app.audit(&tx, Event::UserCreated, Some(&call), user.id).await?;
            app.announce(&tx, News::Registered, &user, now).await?;
            tx.commit().await?;
            app.outbox_has_mail();
            Ok(VisibleUser { email: user.email.clone(), user })
        })
        .await
    }

    /// Changes a user: oneself in names and the roles of self-service, others for admins.
    ///
    /// # Errors
    /// `PermissionDenied` if the caller may not change all that it means to; `NotFound`; `EmailTaken`; `Conflict` if the
    /// last superuser would be gone.
    pub async fn update_user(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        change: UserChange,
    ) -> Result<VisibleUser> {
        let user = self.change_user(call, caller, id, |_| Ok(change)).await?;
        Ok(VisibleUser { email: user.email.clone(), user })
    }

    /// Changes a user as `plan` says, which sees the row as it is.
    pub(super) async fn change_user(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        plan: impl FnOnce(&user::Model) -> Result<UserChange> + Send + 'static,
    ) -> Result<user::Model> {
        let app = Arc::clone(self);
        self.change(async move {
            let now = app.clock.now();
            let tx = app.db.begin().await?;
            let subject = app.lock_subject(&tx, &caller, id).await?;
            let before = &subject.user;
            let change = plan(before)?;
            app.require_allowed(&subject, &change)?;
            let mut after = change.applied_to(before);
            if after == *before {
                return Ok(after);
            }
            if !(after.is_active && after.is_superuser) {
                subject.require_dispensable()?;
            }
            (after.search_text, after.name_text) = search_texts(&after.email_key, &after.first_name, &after.last_name);
            after.listed = after.is_active && profile_of(&tx, id, profile::Column::IsPublic).await?.unwrap_or_default();
            after.version += 1;
            after.updated_at = now;

            // Only the columns that differ: the triggers and indexes of the others rest.
            let mut row = user::ActiveModel::from(before.clone());
            let differing: Vec<Column> = Column::iter().filter(|c| before.get(*c) != after.get(*c)).collect();
            for column in &differing {
                row.set(*column, after.get(*column));
            }
            let after = row.update(&tx).await.map_err(or_email_taken)?;

            let mut revocations =
                vec![Revocation::of_user(id, now, app.keys.last_access_expiry(now)).write(&tx).await?];
            if before.is_active && !after.is_active {
                revocations.extend(app.end_sessions(&tx, id, None, now).await?);
            }
            if before.email_key != after.email_key {
                let letter = Letter::EmailChanged { to: before.email.clone(), name: greeting_name(before) };
                app.post(&tx, &letter, id, now).await?;
                if !after.is_verified && after.is_active {
                    app.post_code(&tx, &after, false, now).await?;
                }
            }
            let changed = changes(&differing, &after);
            let is_other_role = Roles::of(before) != Roles::of(&after);
            for news in news(before, &after, changed.keys().copied()) {
                app.announce(&tx, news, &after, now).await?;
            }
            app.audit(&tx, Event::UserUpdated(changed), Some(&call), id).await?;
            tx.commit().await?;
            app.revocations.apply_all(&revocations);
            app.outbox_has_mail();
            if is_other_role {
                let (was, is) = (Roles::of(before).role_display(), Roles::of(&after).role_display());
                tracing::info!(user_id = id, by = caller.user_id, was, is, "roles changed");
            }
            Ok(after)
        })
        .await
    }

    /// Nothing, or the refusal of what the caller may not set.
    fn require_allowed(&self, subject: &Subject, change: &UserChange) -> Result<()> {
        // Every field, so that a new one is thought of here.
        let UserChange {
            first_name: _,
            last_name: _,
            email,
            is_active,
            is_verified,
            is_freelancer,
            is_seller,
            is_moderator,
            is_staff,
            is_superuser,
        } = change;
        let Subject { user, authority, .. } = subject;
        if is_staff.is_some() || is_superuser.is_some() {
            authority.require_superuser()?;
        }
        if authority.is_admin {
            return Ok(());
        }
        let is_for_admins = email.is_some() || [is_active, is_verified, is_moderator].into_iter().any(Option::is_some);
        if is_for_admins {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        let of_self_service = [
            (SelfServiceRole::Freelancer, is_freelancer, user.is_freelancer),
            (SelfServiceRole::Seller, is_seller, user.is_seller),
        ];
        for (role, wanted, held) in of_self_service {
            let Some(wanted) = *wanted else { continue };
            if !self.config.accounts.self_service_roles.contains(&role) {
                return Err(Error::PermissionDenied(Denial::Role));
            }
            // To keep what one has, or to give it up, takes no verified address.
            if wanted && !held {
                self.require_verified(NeedsVerified::SelfServiceRoles, user.is_verified)?;
            }
        }
        Ok(())
    }

    /// Deletes a user with all that hangs on it: oneself, or for admins another.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; `Conflict` for the last superuser.
    pub async fn delete_user(self: &Arc<Self>, call: Arc<Call>, caller: Caller, id: i64) -> Result<()> {
        let app = Arc::clone(self);
        self.change(async move {
            let now = app.clock.now();
            let tx = app.db.begin().await?;
            let subject = app.lock_subject(&tx, &caller, id).await?;
            subject.require_dispensable()?;
            app.audit(&tx, Event::UserDeleted, Some(&call), id).await?;
            app.announce(&tx, News::Deleted, &subject.user, now).await?;
            app.forget_letters(&tx, id).await?;
            let avatar = profile_of(&tx, id, profile::Column::Avatar).await?.flatten();
            // Profile, sessions, codes, groups, permissions and avatar hang on the row, and go with it.
            user::Entity::delete_by_id(id).exec(&tx).await?;
            let gone = Revocation::of_user(id, now, app.keys.last_access_expiry(now)).write(&tx).await?;
            tx.commit().await?;
            app.revocations.apply(gone);
            app.outbox_has_mail();
            app.forget_avatar(avatar).await;
            Ok(())
        })
        .await
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
        let gone = || Error::Unauthenticated(AuthFailure::SessionEnded);
        let user = user::Entity::find_by_id(caller.user_id).one(self.db.reader()).await?.ok_or_else(gone)?;
        let mut errors = FieldErrors::default();
        errors.check("new_password", new.is_impersonal(&[&user.email, &user.first_name, &user.last_name]));
        errors.finish()?;

        let attempt = self.limiter.reserve_login(&user.email_key, call.client, self.clock.now()).await?;
        let changed = self.change_password_within_limits(call, &caller, Arc::new(old), Arc::new(new)).await;
        match &changed {
            Ok(true) => self.limiter.login_succeeded(attempt).await,
            Ok(false) => drop(attempt), // It counts.
            Err(_) => self.limiter.give_back(attempt).await,
        }
        if changed? {
            return Ok(());
        }
        errors = FieldErrors::default();
        errors.wrong("old_password", "Your old password was entered incorrectly. Please enter it again.");
        Err(Error::Invalid(errors))
    }

    /// Whether the old password was right, and so the new one holds.
    async fn change_password_within_limits(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: &Caller,
        old: Arc<Password>,
        new: Arc<Password>,
    ) -> Result<bool> {
        // Again where a login replaced an old hash meanwhile: the same password is right for the new one too.
        for _ in 0..PASSWORD_ATTEMPTS {
            let user = user::Entity::find_by_id(caller.user_id).one(self.db.reader()).await?;
            let user = user.filter(|user| user.is_active).ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))?;
            let (stored, params) = (user.password.clone(), self.argon2);
            let (old, new) = (Arc::clone(&old), Arc::clone(&new));
            let hash = self.hash_pool.run(move |scratch| match password::verify(&stored.0, &old, params, scratch)? {
                Verdict::Wrong => Ok(None),
                Verdict::Right { .. } => password::hash(&new, params, scratch).map(PasswordHash).map(Some),
            });
            let Some(hash) = hash.await?? else { return Ok(false) };
            let (app, call, kept) = (Arc::clone(self), Arc::clone(&call), caller.session_id);
            if self.change(async move { app.replace_password(&call, user, hash, kept).await }).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the stored password was still the one that the old one was held against.
    async fn replace_password(
        &self,
        call: &Call,
        user: user::Model,
        hash: PasswordHash,
        kept: uuid::Uuid,
    ) -> Result<bool> {
        let now = self.clock.now();
        let tx = self.db.begin().await?;
        let replaced = user::Entity::update_many()
            .col_expr(Column::Password, Expr::value(hash))
            .filter(Column::Id.eq(user.id))
            .filter(Column::IsActive.eq(true))
            .filter(Column::Password.eq(user.password.clone()))
            .exec(&tx)
            .await?;
        if replaced.rows_affected == 0 {
            return Ok(false);
        }
        let ended = self.end_sessions(&tx, user.id, Some(kept), now).await?;
        self.audit(&tx, Event::PasswordChanged, Some(call), user.id).await?;
        let letter = Letter::PasswordChanged { to: user.email.clone(), name: greeting_name(&user) };
        self.post(&tx, &letter, user.id, now).await?;
        tx.commit().await?;
        self.revocations.apply_all(&ended);
        self.outbox_has_mail();
        Ok(true)
    }
}

/// One column of the user's profile.
async fn profile_of<T: TryGetable>(tx: &Tx, user_id: i64, column: profile::Column) -> Result<Option<T>> {
    let profile = profile::Entity::find().select_only().column(column);
    Ok(profile.filter(profile::Column::UserId.eq(user_id)).into_tuple().one(tx).await?)
}

/// What to tell others of a change: each thing once, by the name that it has of its own where it has one.
fn news(before: &user::Model, after: &user::Model, changed: impl Iterator<Item = &'static str>) -> Vec<News> {
    const ROLE_FLAGS: [&str; 5] = ["is_freelancer", "is_seller", "is_moderator", "is_staff", "is_superuser"];
    let is_other_role = Roles::of(before) != Roles::of(after);
    let is_newly_verified = after.is_verified && !before.is_verified;
    let is_told =
        |name: &str| (is_other_role && ROLE_FLAGS.contains(&name)) || (is_newly_verified && name == "is_verified");
    let others: Vec<_> = changed.filter(|name| !is_told(name)).collect();
    let all = [
        is_other_role.then_some(News::RolesChanged),
        is_newly_verified.then_some(News::Verified),
        (!others.is_empty()).then_some(News::Updated { changed: others }),
    ];
    all.into_iter().flatten().collect()
}

/// What changed of what callers see, by name, with the new value of a flag.
fn changes(differing: &[Column], after: &user::Model) -> BTreeMap<&'static str, Option<bool>> {
    let seen = |column: &Column| match column {
        Column::Email => Some(("email", None)),
        Column::FirstName => Some(("first_name", None)),
        Column::LastName => Some(("last_name", None)),
        Column::IsActive => Some(("is_active", Some(after.is_active))),
        Column::IsVerified => Some(("is_verified", Some(after.is_verified))),
        Column::IsFreelancer => Some(("is_freelancer", Some(after.is_freelancer))),
        Column::IsSeller => Some(("is_seller", Some(after.is_seller))),
        Column::IsModerator => Some(("is_moderator", Some(after.is_moderator))),
        Column::IsStaff => Some(("is_staff", Some(after.is_staff))),
        Column::IsSuperuser => Some(("is_superuser", Some(after.is_superuser))),
        Column::Id
        | Column::EmailKey
        | Column::Password
        | Column::Listed
        | Column::SearchText
        | Column::NameText
        | Column::Version
        | Column::DateJoined
        | Column::UpdatedAt
        | Column::LastLogin => None,
    };
    differing.iter().filter_map(seen).collect()
}
