//! What the database knows of the whole installation, for the metrics: asked for every few seconds, however often somebody
//! reads them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QuerySelect, sea_query::Expr};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    domain::{event::UserEvent, letter::Letter},
    entity::{outbox, session},
    error::{Chain, Result},
};

const EVERY: Duration = Duration::from_secs(15);
/// To count the sessions is to walk through them: that is done every so many times only.
const SESSIONS_EVERY: u32 = 8;
/// What a newer release put into the outbox.
const OTHER: &str = "other";

impl App {
    /// Keeps the figures up to date, until `stop`.
    pub async fn follow_figures(self: Arc<Self>, stop: CancellationToken) {
        for round in 0_u32.. {
            let counts_sessions = round.is_multiple_of(SESSIONS_EVERY);
            if stop.run_until_cancelled(self.count_figures(counts_sessions)).await.is_none() {
                return;
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Asks once. What can't be known has no figure from then on.
    pub async fn count_figures(&self, counts_sessions: bool) {
        if let Err(error) = self.count_messages().await {
            tracing::debug!(error = %Chain(&error), "the messages can't be counted");
            self.metrics.figures.forget_messages();
        }
        if counts_sessions {
            let count = self.count_sessions().await;
            if let Err(error) = &count {
                tracing::debug!(error = %Chain(error), "the sessions can't be counted");
            }
            self.metrics.figures.set_sessions(count.ok().and_then(|count| i64::try_from(count).ok()));
        }
    }

    async fn count_messages(&self) -> Result<()> {
        let now = self.clock.now();
        // Literals, as in the conditions of the partial indexes: a plan for any state could use none of them.
        let waiting: Vec<(String, i64, Option<DateTime<Utc>>)> = outbox::Entity::find()
            .select_only()
            .column(outbox::Column::Kind)
            .column_as(outbox::Column::Id.count(), "count")
            .column_as(outbox::Column::CreatedAt.min(), "oldest")
            .filter(Expr::cust("state = 0"))
            .group_by(outbox::Column::Kind)
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let given_up: Vec<(String, i64)> = outbox::Entity::find()
            .select_only()
            .column(outbox::Column::Kind)
            .column_as(outbox::Column::Id.count(), "count")
            .filter(Expr::cust("state = 2"))
            .group_by(outbox::Column::Kind)
            .into_tuple()
            .all(self.db.reader())
            .await?;

        let mut of_kinds: HashMap<&'static str, (i64, Duration, i64)> = HashMap::new();
        for (kind, count, oldest) in waiting {
            let age = oldest.and_then(|oldest| (now - oldest).to_std().ok()).unwrap_or_default();
            let figures = of_kinds.entry(known(&kind)).or_default();
            *figures = (figures.0 + count, figures.1.max(age), figures.2);
        }
        for (kind, count) in given_up {
            of_kinds.entry(known(&kind)).or_default().2 += count;
        }
        for kind in Letter::KINDS.into_iter().chain(UserEvent::KINDS).chain([OTHER]) {
            let (waiting, oldest, given_up) = of_kinds.get(kind).copied().unwrap_or_default();
            self.metrics.figures.set_messages(kind, waiting, oldest, given_up);
        }
        Ok(())
    }

    async fn count_sessions(&self) -> Result<u64> {
        let standing = session::Entity::find()
            .filter(session::Column::RevokedAt.is_null())
            .filter(session::Column::ExpiresAt.gt(self.clock.now()));
        Ok(standing.count(self.db.reader()).await?)
    }
}

/// The kind as this release knows it.
fn known(kind: &str) -> &'static str {
    Letter::KINDS.into_iter().chain(UserEvent::KINDS).find(|known| *known == kind).unwrap_or(OTHER)
}
