//! News of users for other services.

use chrono::{DateTime, Utc};

use crate::{app::App, db::Tx, entity::user, error::Result};

/// What happened to a user.
pub(super) enum News {
    Registered,
    Verified,
    Updated { changed: Vec<&'static str> },
    RolesChanged,
    Deleted,
}

impl App {
    pub(super) async fn announce(&self, _tx: &Tx, _news: News, _user: &user::Model, _now: DateTime<Utc>) -> Result<()> {
        Ok(())
    }
}
