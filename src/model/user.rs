//! A user as others are shown it: without the hash, and without what is folded for the search.

use chrono::{DateTime, Utc};
use sea_orm::DerivePartialModel;
use serde::{Deserialize, Serialize};

use super::{
    permission::{Permission, Permissions},
    role::Roles,
};
use crate::entity::{profile, user};

/// What the cache itself takes for each value it keeps, roughly.
const OVERHEAD: usize = 300;

/// The columns of a user that are shown, or decide on what is.
#[expect(clippy::struct_excessive_bools, reason = "the columns, as the Django service named them")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DerivePartialModel)]
#[sea_orm(entity = "user::Entity")]
pub struct User {
    pub id: i64,
    pub email: String,
    pub(crate) email_key: String,
    pub first_name: String,
    pub last_name: String,
    pub is_active: bool,
    pub is_verified: bool,
    pub is_freelancer: bool,
    pub is_seller: bool,
    pub is_moderator: bool,
    pub is_staff: bool,
    pub is_superuser: bool,
    /// Active, and the profile is public: what other users may find.
    pub listed: bool,
    pub version: i64,
    pub date_joined: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl User {
    pub fn roles(&self) -> Roles {
        Roles::from_flags([self.is_freelancer, self.is_seller, self.is_moderator, self.is_staff || self.is_superuser])
    }
}

impl From<user::Model> for User {
    fn from(row: user::Model) -> Self {
        Self {
            id: row.id,
            email: row.email,
            email_key: row.email_key,
            first_name: row.first_name,
            last_name: row.last_name,
            is_active: row.is_active,
            is_verified: row.is_verified,
            is_freelancer: row.is_freelancer,
            is_seller: row.is_seller,
            is_moderator: row.is_moderator,
            is_staff: row.is_staff,
            is_superuser: row.is_superuser,
            listed: row.listed,
            version: row.version,
            date_joined: row.date_joined,
            updated_at: row.updated_at,
        }
    }
}

/// What a user tells of oneself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DerivePartialModel)]
#[sea_orm(entity = "profile::Entity")]
pub struct Profile {
    pub id: i64,
    /// The name of the file.
    pub avatar: Option<String>,
    pub bio: String,
    pub is_public: bool,
    /// An IANA name.
    pub timezone: String,
    pub streak_visibility: bool,
}

impl From<profile::Model> for Profile {
    fn from(row: profile::Model) -> Self {
        let profile::Model { id, user_id: _, avatar, bio, is_public, timezone, streak_visibility } = row;
        Self { id, avatar, bio, is_public, timezone, streak_visibility }
    }
}

/// All that is shown of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub user: User,
    pub profile: Profile,
    /// What groups and direct grants allow.
    pub granted: Vec<Permission>,
}

impl Account {
    /// What the user may do.
    pub fn permissions(&self) -> Permissions {
        Permissions::of(&self.user, self.granted.clone())
    }

    /// How many bytes it takes in memory, roughly.
    pub fn size(&self) -> usize {
        let Self { user, profile, granted } = self;
        let texts = [&user.email, &user.email_key, &user.first_name, &user.last_name, &profile.bio, &profile.timezone];
        let of_texts: usize = texts.iter().map(|text| text.len()).sum();
        let of_granted: usize = granted.iter().map(|one| size_of_val(one) + one.app.len() + one.codename.len()).sum();
        size_of_val(self) + of_texts + profile.avatar.as_ref().map_or(0, String::len) + of_granted + OVERHEAD
    }
}
