//! The feed of what changed, see `feed.rs`. The table has its name from access tokens that stop being good before they run out.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

#[derive(Copy, Clone, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "i16", db_type = "SmallInteger")]
pub enum Kind {
    /// The session of `session_id` ended.
    Session = 1,
    /// The user of `user_id` was deactivated, deleted, or given other roles: to be looked up.
    UserChanged = 2,
    /// Something else that is shown of the user of `user_id` changed.
    AccountChanged = 3,
    /// What groups bring their members changed.
    GroupsChanged = 4,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "revocations")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub kind: Kind,
    pub session_id: Option<Uuid>,
    pub user_id: Option<i64>,
    /// Of the user, or of all groups.
    pub version: Option<i64>,
    pub created_at: DateTime<Utc>,
    /// No access token or cached value that the row concerns lives longer.
    pub expires_at: DateTime<Utc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
