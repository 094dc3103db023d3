//! An account.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A stored password: the text of its hash. Debug doesn't show it, and so neither do the models.
#[derive(Clone, PartialEq, Eq, DeriveValueType)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

#[expect(clippy::struct_excessive_bools, reason = "the columns, as the Django service named them")]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// As typed, the domain in lower case.
    pub email: String,
    /// The address as it is compared: NFC and case-folded.
    #[sea_orm(unique)]
    pub email_key: String,
    pub password: PasswordHash,
    pub first_name: String,
    pub last_name: String,
    pub is_active: bool,
    pub is_staff: bool,
    pub is_superuser: bool,
    pub is_verified: bool,
    pub is_freelancer: bool,
    pub is_seller: bool,
    pub is_moderator: bool,
    /// Active, and the profile is public: what other users may find.
    pub listed: bool,
    /// E-mail address and names, folded for the search.
    pub search_text: String,
    /// The names alone, folded: what users search who may not see addresses.
    pub name_text: String,
    /// From 1, and higher with each change that others hear of: events carry it, so that the latest is known by it.
    pub version: i64,
    pub date_joined: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub last_login: Option<DateTime<Utc>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(has_one = "super::profile::Entity")]
    Profile,
}

impl Related<super::profile::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Profile.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
