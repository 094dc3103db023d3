//! A message to be sent: written with the change that it tells of, sent outside any transaction.

use chrono::{DateTime, Utc};
use sea_orm::{
    entity::prelude::*,
    sea_query::{Expr, ExprTrait, IntoColumnRef},
};

#[derive(Copy, Clone, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "i16", db_type = "SmallInteger")]
pub enum State {
    Pending = 0,
    Sent = 1,
    /// Given up: refused for good, or tried for too long.
    Abandoned = 2,
}

impl State {
    /// Whether a message is in this state, in the words of the partial indexes: a plan for any state could use none of them.
    pub fn is_of(self, message: impl IntoColumnRef) -> Expr {
        let number = match self {
            Self::Pending => "0",
            Self::Sent => "1",
            Self::Abandoned => "2",
        };
        Expr::col(message).eq(Expr::cust(number))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "outbox")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// What the message is; `payload` is written and read by it.
    pub kind: String,
    /// The Message-ID of the mail, or the id of the event: the same at each attempt.
    #[sea_orm(unique)]
    pub dedup_id: Uuid,
    pub payload: String,
    pub user_id: Option<i64>,
    pub attempts: i32,
    /// Of a message that was sent or given up: when that was.
    pub next_attempt_at: DateTime<Utc>,
    /// Until then the message is some replica's to send.
    pub leased_until: Option<DateTime<Utc>>,
    pub state: State,
    pub last_error: Option<String>,
    /// When it was posted, or by an operator put in anew.
    pub created_at: DateTime<Utc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
