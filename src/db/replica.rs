//! A replica of PostgreSQL that serves lists. It follows the primary at some distance, and nobody may miss what was
//! committed before they asked: so it is read only once it is as far as the primary was then.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::{Instant, sleep, timeout};

use super::pool::{Pool, Tx};
use crate::{
    error::{Chain, Error, Result},
    metrics,
};

/// How long it may take to catch up, connecting included. In one network it is some milliseconds behind.
const CATCHES_UP_WITHIN: Duration = Duration::from_millis(100);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(3);
/// How long it isn't asked after it did not catch up, or did not answer.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(1);

/// Up to where the log is kept safe. No commit is acknowledged, nor seen by others, before that; unless commits don't wait for
/// the disk: then only where the log is written counts. (`synchronous_commit`, <https://www.postgresql.org/docs/16/wal-async-commit.html>)
const POSITION: &str = "SELECT (CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn() \
                        ELSE pg_current_wal_flush_lsn() END)::text AS position";
/// Of a server that is no replica, or none any more, nothing is known: what it has may be another story.
const IS_THERE: &str = "SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= CAST($1 AS pg_lsn) AS is_there";

pub(super) struct Replica {
    pool: Pool,
    begun: Instant,
    /// Milliseconds from `begun` until which it is left alone.
    left_alone_until_ms: AtomicU64,
    is_read: AtomicBool,
}

impl Replica {
    pub fn new(pool: Pool) -> Self {
        Self { pool, begun: Instant::now(), left_alone_until_ms: AtomicU64::new(0), is_read: AtomicBool::new(true) }
    }

    /// A transaction on it, if it has all that the primary had when this was called.
    pub async fn caught_up_with(&self, primary: &Pool) -> Option<Tx> {
        if self.now_ms() < self.left_alone_until_ms.load(Ordering::Relaxed) {
            return None;
        }
        // If the primary doesn't say, that is not the replica's fault.
        let position = position(primary).await.ok()?;
        match timeout(CATCHES_UP_WITHIN, self.wait_for(&position)).await {
            Ok(Ok(tx)) => {
                if !self.is_read.swap(true, Ordering::Relaxed) {
                    tracing::info!("lists are read from the replica again");
                }
                Some(tx)
            }
            Ok(Err(error)) => {
                self.leave_alone(&error);
                None
            }
            Err(_) => {
                self.leave_alone(&Error::internal("it is behind, or silent"));
                None
            }
        }
    }

    /// Doesn't ask it for a while.
    pub fn leave_alone(&self, why: &Error) {
        if self.is_read.swap(false, Ordering::Relaxed) {
            tracing::warn!(error = %Chain(why), "lists are read from the primary, as the replica can't be used");
        }
        let until = self.now_ms() + u64::try_from(LEFT_ALONE_FOR.as_millis()).unwrap_or_default();
        self.left_alone_until_ms.store(until, Ordering::Relaxed);
    }

    /// The position and what follows on one connection: behind one address there may be several replicas.
    async fn wait_for(&self, position: &str) -> Result<Tx> {
        let tx = self.pool.begin().await?;
        loop {
            let ask = Statement::from_sql_and_values(DbBackend::Postgres, IS_THERE, [position.into()]);
            let answer = tx.query_one_raw(ask).await?;
            if answer.is_some_and(|row| row.try_get("", "is_there") == Ok(Some(true))) {
                return Ok(tx);
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// How many connections to it there are.
    pub fn figures(&self) -> metrics::Pool {
        self.pool.figures("replica")
    }

    pub async fn close(&self) -> Result<(), sea_orm::DbErr> {
        self.pool.close().await
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn position(primary: &Pool) -> Result<String> {
    let row = primary.query_one_raw(Statement::from_string(DbBackend::Postgres, POSITION)).await?;
    let position = row.map(|row| row.try_get("", "position")).transpose()?;
    position.ok_or_else(|| Error::internal("the primary has no position"))
}
