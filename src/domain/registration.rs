//! Registration: an account, its profile, its first session and the mail with its code, in one transaction.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, ColumnTrait, DbErr, EntityTrait, QueryFilter, QuerySelect, SqlErr};

use crate::{
    app::App,
    domain::{
        audit::Event,
        caller::Call,
        change::Transaction,
        event::UserEvent,
        profile::DEFAULT_TIMEZONE,
        session::{LoggedIn, new_session_id},
        user::{self as rules, EmailAddress, PersonName},
    },
    entity::{
        profile,
        user::{self, PasswordHash},
    },
    error::{Error, Result},
    hash_pool::Place,
    model::password::Password,
};

/// An account to be.
pub struct NewAccount {
    pub person: Person,
    pub password: Password,
}

/// Whose account it is.
pub struct Person {
    pub email: EmailAddress,
    pub first_name: PersonName,
    pub last_name: PersonName,
}

/// What sets a user apart from the first day on.
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "the columns, as the Django service named them"
)]
#[derive(Debug, Clone, Copy)]
pub struct AccountFlags {
    pub is_active: bool,
    pub is_verified: bool,
    pub is_freelancer: bool,
    pub is_seller: bool,
    pub is_moderator: bool,
    /// `None`: nobody asked for it to be this or that.
    pub is_staff: Option<bool>,
    pub is_superuser: Option<bool>,
}

impl AccountFlags {
    /// Whether they say of the account that it is an admin's, or that it is none: a superuser's word either way.
    pub(super) fn name_an_admin(self) -> bool {
        self.is_staff.is_some() || self.is_superuser.is_some()
    }
}

impl Default for AccountFlags {
    /// Whoever registers.
    fn default() -> Self {
        Self {
            is_active: true,
            is_verified: false,
            is_freelancer: false,
            is_seller: false,
            is_moderator: false,
            is_staff: None,
            is_superuser: None,
        }
    }
}

impl App {
    /// Makes an account and logs it in.
    ///
    /// # Errors
    /// `EmailTaken`; `Throttled`; `Unavailable` if more passwords wait to be hashed than can be.
    pub async fn register(self: &Arc<Self>, call: Arc<Call>, new: NewAccount) -> Result<LoggedIn> {
        let place = self.hash_pool.place()?;
        let reservation = self.limiter.reserve_registration(call.client, self.clock.now()).await?;
        let registered = self.register_within_limits(call, place, new).await;
        if matches!(registered, Err(Error::EmailTaken | Error::Unavailable { .. })) {
            self.limiter.give_back(reservation).await;
        }
        registered
    }

    async fn register_within_limits(
        self: &Arc<Self>,
        call: Arc<Call>,
        place: Place,
        new: NewAccount,
    ) -> Result<LoggedIn> {
        // Spares the hash. The index decides, below.
        if self.email_is_taken(&new.person.email).await? {
            return Err(Error::EmailTaken);
        }
        let hash = self.hash_password(place, new.password).await?;
        self.change(move |tx| {
            Box::pin(async move {
                let user = tx.insert_user(&new.person, hash, AccountFlags::default()).await?;
                let session = tx.insert_session(&call, user.id, new_session_id(tx.now), 1);
                tx.post_first_code(&user, false)?;
                tx.announce(&UserEvent::Registered, &user)?;
                tx.audit(Event::Registered, Some(&call), user.id)?;
                let tokens = tx.app.keys.issue(&user, &session, tx.now)?;
                Ok(LoggedIn { user, tokens })
            })
        })
        .await
    }

    /// Makes a superuser, verified, without logging it in.
    ///
    /// # Errors
    /// `EmailTaken`.
    pub async fn create_superuser(self: &Arc<Self>, email: EmailAddress, password: Password) -> Result<user::Model> {
        if self.email_is_taken(&email).await? {
            return Err(Error::EmailTaken);
        }
        let hash = self.hash_password(self.hash_pool.place()?, password).await?;
        let flags = AccountFlags {
            is_staff: Some(true),
            is_superuser: Some(true),
            is_verified: true,
            ..AccountFlags::default()
        };
        let person = Person { email, first_name: PersonName::default(), last_name: PersonName::default() };
        self.change(move |tx| {
            Box::pin(async move {
                let user = tx.insert_user(&person, hash, flags).await?;
                tx.announce(&UserEvent::Registered, &user)?;
                tx.audit(Event::SuperuserMade, None, user.id)?;
                Ok(user)
            })
        })
        .await
    }

    pub(super) async fn email_is_taken(&self, email: &EmailAddress) -> Result<bool> {
        let holder: Option<i64> = user::Entity::find()
            .select_only()
            .column(user::Column::Id)
            .filter(user::Column::EmailKey.eq(email.key()))
            .into_tuple()
            .one(self.db.reader())
            .await?;
        Ok(holder.is_some())
    }
}

impl Transaction {
    /// A user, and the profile that belongs to it.
    pub async fn insert_user(
        &mut self,
        person: &Person,
        password: PasswordHash,
        flags: AccountFlags,
    ) -> Result<user::Model> {
        let user = new_row(person, password, flags, self.now).insert(&self.db).await.map_err(or_email_taken)?;
        let profile = profile::ActiveModel {
            user_id: Set(user.id),
            avatar: Set(None),
            bio: Set(String::new()),
            is_public: Set(true),
            timezone: Set(DEFAULT_TIMEZONE.to_owned()),
            streak_visibility: Set(true),
            ..Default::default()
        };
        self.put(&profile);
        Ok(user)
    }
}

/// The row of a user who joins now, and whose profile begins public.
pub(super) fn new_row(
    person: &Person,
    password: PasswordHash,
    flags: AccountFlags,
    now: DateTime<Utc>,
) -> user::ActiveModel {
    let Person { email, first_name, last_name } = person;
    let (search_text, name_text) = rules::search_texts(email.key(), first_name.as_str(), last_name.as_str());
    user::ActiveModel {
        email: Set(email.as_str().to_owned()),
        email_key: Set(email.key().to_owned()),
        password: Set(password),
        first_name: Set(first_name.as_str().to_owned()),
        last_name: Set(last_name.as_str().to_owned()),
        is_active: Set(flags.is_active),
        is_staff: Set(flags.is_staff.unwrap_or_default()),
        is_superuser: Set(flags.is_superuser.unwrap_or_default()),
        is_verified: Set(flags.is_verified),
        is_freelancer: Set(flags.is_freelancer),
        is_seller: Set(flags.is_seller),
        is_moderator: Set(flags.is_moderator),
        listed: Set(flags.is_active),
        search_text: Set(search_text),
        name_text: Set(name_text),
        version: Set(1),
        date_joined: Set(now),
        updated_at: Set(now),
        last_login: Set(None),
        ..Default::default()
    }
}

/// Of the unique columns of a user only the address can be taken: the ids are the store's own.
pub(super) fn or_email_taken(error: DbErr) -> Error {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Error::EmailTaken,
        _ => error.into(),
    }
}
