//! Accounts: made by an admin, changed, deleted. What the rules of all changes share is in `authority.rs`.

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, Iterable, ModelTrait, QueryFilter, QuerySelect};

use crate::{
    app::App,
    config::{NeedsVerified, SelfServiceRole},
    domain::{
        audit::Event,
        authority::{Authority, Subject},
        caller::{Call, Caller},
        change::Transaction,
        event::UserEvent,
        letter::Letter,
        registration::{AccountFlags, NewAccount, or_email_taken},
        user::{EmailAddress, PersonName, greeting_name, search_texts},
    },
    entity::{
        profile,
        user::{self, Column},
    },
    error::{Denial, Error, Result},
    model::{role::Roles, user::User},
};

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

/// A field of a user that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserField {
    Email,
    FirstName,
    LastName,
    IsActive,
    IsVerified,
    IsFreelancer,
    IsSeller,
    IsModerator,
    IsStaff,
    IsSuperuser,
}

impl UserField {
    /// All of them, as requests name them.
    pub const NAMES: [(&str, Self); 10] = [
        ("email", Self::Email),
        ("first_name", Self::FirstName),
        ("last_name", Self::LastName),
        ("is_active", Self::IsActive),
        ("is_verified", Self::IsVerified),
        ("is_freelancer", Self::IsFreelancer),
        ("is_seller", Self::IsSeller),
        ("is_moderator", Self::IsModerator),
        ("is_staff", Self::IsStaff),
        ("is_superuser", Self::IsSuperuser),
    ];
}

impl UserChange {
    /// The fields that it changes.
    pub fn fields(&self) -> impl Iterator<Item = UserField> {
        // Every field, so that a new one is thought of here.
        let Self {
            email,
            first_name,
            last_name,
            is_active,
            is_verified,
            is_freelancer,
            is_seller,
            is_moderator,
            is_staff,
            is_superuser,
        } = self;
        let set = [
            email.is_some(),
            first_name.is_some(),
            last_name.is_some(),
            is_active.is_some(),
            is_verified.is_some(),
            is_freelancer.is_some(),
            is_seller.is_some(),
            is_moderator.is_some(),
            is_staff.is_some(),
            is_superuser.is_some(),
        ];
        UserField::NAMES.into_iter().zip(set).filter(|(_, is_set)| *is_set).map(|((_, field), _)| field)
    }

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
        flags: AccountFlags,
    ) -> Result<User> {
        let place = self.hash_pool.place()?;
        // Spare the hash. What decides is looked at again below.
        let known = user::Entity::find_by_id(caller.user_id).one(self.db.reader()).await?;
        if flags.name_an_admin() && !known.is_some_and(|user| user.is_superuser) {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        if self.email_is_taken(&new.person.email).await? {
            return Err(Error::EmailTaken);
        }
        let hash = self.hash_password(place, new.password).await?;
        self.change(move |tx| {
            Box::pin(async move {
                let authority = tx.authority(&caller).await?;
                authority.require_admin()?;
                if flags.name_an_admin() {
                    authority.require_superuser()?;
                }
                let user = tx.insert_user(&new.person, hash, flags).await?;
                tx.audit(Event::UserCreated, Some(&call), user.id)?;
                tx.announce(&UserEvent::Registered, &user)?;
                Ok(user.into())
            })
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
    ) -> Result<User> {
        Ok(self.change_user(call, caller, id, |_| Ok(change)).await?.into())
    }

    /// Changes a user as `plan` says, which sees the row as it is.
    pub(super) async fn change_user(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        plan: impl FnOnce(&user::Model) -> Result<UserChange> + Send + 'static,
    ) -> Result<user::Model> {
        self.change(move |tx| {
            Box::pin(async move {
                let subject = tx.lock_subject(&caller, id).await?;
                let change = plan(&subject.user)?;
                tx.app.require_allowed(&subject, &change)?;
                let wanted = change.applied_to(&subject.user);
                if wanted == subject.user {
                    return Ok(wanted);
                }
                if !(wanted.is_active && wanted.is_superuser) {
                    subject.require_dispensable()?;
                }
                let (after, differing) = tx.write_user(&subject.user, wanted).await?;
                tx.tell_of_change(&call, &subject.user, &after, &differing).await?;
                Ok(after)
            })
        })
        .await
    }

    /// Nothing, or the refusal of what the caller may not set.
    fn require_allowed(&self, subject: &Subject, change: &UserChange) -> Result<()> {
        let Subject { user, authority, .. } = subject;
        for field in change.fields() {
            self.require_may_set_field(*authority, field)?;
        }
        if change.email.is_some() || change.is_active.is_some() {
            subject.require_not_a_peer()?;
        }
        // To keep what one has, or to give it up, takes no verified address.
        let takes_a_role = (change.is_freelancer == Some(true) && !user.is_freelancer)
            || (change.is_seller == Some(true) && !user.is_seller);
        if takes_a_role && !authority.is_admin {
            self.require_verified(NeedsVerified::SelfServiceRoles, user.is_verified)?;
        }
        Ok(())
    }

    fn require_may_set_field(&self, authority: Authority, field: UserField) -> Result<()> {
        let self_service = |role| {
            if self.config.accounts.self_service_roles.contains(&role) { Ok(()) } else { authority.require_admin() }
        };
        match field {
            UserField::FirstName | UserField::LastName => Ok(()),
            UserField::IsFreelancer => self_service(SelfServiceRole::Freelancer),
            UserField::IsSeller => self_service(SelfServiceRole::Seller),
            UserField::Email | UserField::IsActive | UserField::IsVerified | UserField::IsModerator => {
                authority.require_admin()
            }
            UserField::IsStaff | UserField::IsSuperuser => authority.require_superuser(),
        }
    }

    /// Nothing, or the refusal if the caller may not set one of these fields of the user, whatever the value: for a request
    /// whose values can't be read.
    ///
    /// # Errors
    /// `PermissionDenied`; `Unauthenticated` if the caller's account is gone or inactive.
    pub async fn require_may_set(&self, caller: &Caller, id: i64, fields: &[UserField]) -> Result<()> {
        let authority = Authority::of(&self.active_user(caller.user_id).await?);
        if caller.user_id != id {
            authority.require_admin()?;
        }
        fields.iter().try_for_each(|field| self.require_may_set_field(authority, *field))
    }

    /// Deletes a user with all that hangs on it: oneself, or for admins another.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; `Conflict` for the last superuser.
    pub async fn delete_user(self: &Arc<Self>, call: Arc<Call>, caller: Caller, id: i64) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                let subject = tx.lock_subject(&caller, id).await?;
                subject.require_not_a_peer()?;
                subject.require_dispensable()?;
                tx.audit(Event::UserDeleted, Some(&call), id)?;
                tx.announce(&UserEvent::Deleted, &subject.user)?;
                tx.forget_messages(id).await?;
                tx.forget_avatar_of(id).await?;
                tx.erase_traces(id).await?;
                // Profile, sessions, known clients, codes, groups, permissions and avatar hang on the row, and go with it.
                user::Entity::delete_by_id(id).exec(&tx.db).await?;
                tx.user_deleted(id);
                Ok(())
            })
        })
        .await
    }
}

impl Transaction {
    /// Makes the user's row what is `wanted`, and all that follows from it. The answer is the row, and what differs in it.
    async fn write_user(&self, before: &user::Model, mut wanted: user::Model) -> Result<(user::Model, Vec<Column>)> {
        (wanted.search_text, wanted.name_text) = search_texts(&wanted.email_key, &wanted.first_name, &wanted.last_name);
        wanted.listed = wanted.is_active && self.is_profile_public(wanted.id).await?;
        wanted.version += 1;
        wanted.updated_at = self.now;
        // Only the columns that differ: the triggers and indexes of the others rest.
        let mut row = user::ActiveModel::from(before.clone());
        let differing: Vec<Column> = Column::iter().filter(|c| before.get(*c) != wanted.get(*c)).collect();
        for column in &differing {
            row.set(*column, wanted.get(*column));
        }
        let after = row.update(&self.db).await.map_err(or_email_taken)?;
        Ok((after, differing))
    }

    async fn is_profile_public(&self, user_id: i64) -> Result<bool> {
        let public = profile::Entity::find().select_only().column(profile::Column::IsPublic);
        let public = public.filter(profile::Column::UserId.eq(user_id)).into_tuple().one(&self.db).await?;
        Ok(public.unwrap_or_default())
    }

    /// Tells everybody of a change who must know: those who hold tokens, the owner by mail, other services, the audit.
    async fn tell_of_change(
        &mut self,
        call: &Call,
        before: &user::Model,
        after: &user::Model,
        differing: &[Column],
    ) -> Result<()> {
        self.user_changed(after);
        if before.is_active && !after.is_active {
            self.end_sessions(after.id, None).await?;
        }
        if before.email_key != after.email_key || (after.is_verified && !before.is_verified) {
            self.void_codes(after.id).await?;
        }
        if before.email_key != after.email_key {
            // One that nobody verified may be a stranger's.
            if before.is_verified {
                let letter = Letter::EmailChanged { to: before.email.clone(), name: greeting_name(before) };
                self.post(&letter, after.id)?;
            }
            if !after.is_verified && after.is_active {
                self.post_code(after, false).await?;
            }
        }
        let changed = changes(differing, after);
        for news in news(before, after, changed.keys().copied()) {
            self.announce(&news, after)?;
        }
        self.audit(Event::UserUpdated(changed), Some(call), after.id)
    }
}

/// What to tell others of a change: each thing once, by the name that it has of its own where it has one.
fn news(before: &user::Model, after: &user::Model, changed: impl Iterator<Item = &'static str>) -> Vec<UserEvent> {
    const ROLE_FLAGS: [&str; 5] = ["is_freelancer", "is_seller", "is_moderator", "is_staff", "is_superuser"];
    let is_other_role = Roles::of(before) != Roles::of(after);
    let is_newly_verified = after.is_verified && !before.is_verified;
    let is_told =
        |name: &str| (is_other_role && ROLE_FLAGS.contains(&name)) || (is_newly_verified && name == "is_verified");
    let others: Vec<_> = changed.filter(|name| !is_told(name)).collect();
    let all = [
        is_other_role.then_some(UserEvent::RolesChanged),
        is_newly_verified.then_some(UserEvent::Verified),
        (!others.is_empty()).then_some(UserEvent::Updated { changed: others }),
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
