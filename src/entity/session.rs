//! One login, and what keeps it alive.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sessions")]
pub struct Model {
    /// The `sid` of the tokens.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub user_id: i64,
    /// Rises with each refresh; the refresh token of this generation is the good one.
    pub generation: i64,
    pub created_at: DateTime<Utc>,
    /// When this generation began.
    pub rotated_at: DateTime<Utc>,
    /// When the refresh token of this generation runs out.
    pub expires_at: DateTime<Utc>,
    /// The absolute end: no refresh reaches beyond.
    pub ends_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
