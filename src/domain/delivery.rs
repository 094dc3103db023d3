//! The delivery of what is in the outbox. A message is sent at least once: a replica claims it by a lease, so that no two send
//! it at the same time; one whose sender died is claimed again when the lease is over, and goes out a second time under the
//! same id.
//!
//! Mails and events go in lanes of their own, so that neither waits for the other's server. A lane has a few messages under
//! way at once; one that hangs holds up only itself. Where the server turns out to be away, the lane tries it with one
//! message at a time, each time another one, and goes on at full width as soon as one gets through.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Alias, Expr, LockBehavior, LockType, Query, SelectStatement},
};
use tokio::{
    task::{self, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    domain::{event::UserEvent, letter::Letter, outbox::PostedLetter},
    entity::outbox::{self, State},
    error::{Cause, Chain, DeliveryError, Result},
    notifier::Notice,
    random,
};

/// How often the outbox is looked into when nobody said that something is in it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How many messages of a lane are under way at once.
const WIDTH: usize = 8;
/// How long one attempt may take. What waits for a server goes out within 20 s of its return: an attempt that began before
/// it is over by then, and so is the wait for the next, which counts from the beginning of the last.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(18);
/// How often it is tried to write down how attempts went. Where that fails up to the end of the lease, a message goes out twice.
const SETTLE_EVERY: Duration = Duration::from_millis(500);
/// The least time between two looks. What comes together is claimed and settled together, so that messages don't crowd calls
/// out of the database.
const PACE: Duration = Duration::from_millis(50);
/// How long a message is its sender's. Longer than attempt and settling, by as much as clocks may differ.
const LEASE: TimeDelta = TimeDelta::seconds(40);
/// The longest wait between two attempts with a message.
const MAX_BACKOFF: TimeDelta = TimeDelta::seconds(15);
/// The longest wait while the server is away.
const MAX_PROBE_WAIT: TimeDelta = TimeDelta::seconds(5);
/// After so many attempts, an hour of them, what is in the way isn't passing; a mailbox that is full, for one.
const QUICK_ATTEMPTS: i32 = 240;
const SLOW_BACKOFF: TimeDelta = TimeDelta::minutes(5);
/// How long what is under way may take at the end of the service; less than the server waits for us.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of an error is kept.
const MAX_ERROR_CHARS: usize = 500;

/// What goes to one server, and waits with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Mail,
    Events,
}

impl Lane {
    /// Only what this release knows is claimed: what a newer one has written waits for a replica of that.
    fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Mail => &Letter::KINDS,
            Self::Events => &UserEvent::KINDS,
        }
    }

    /// How long a message is tried, from its posting on. A code is void after a day; news are worth catching up with.
    fn give_up_after(self) -> TimeDelta {
        match self {
            Self::Mail => TimeDelta::hours(24),
            Self::Events => TimeDelta::days(7),
        }
    }
}

/// What is known of a lane's server.
#[derive(Default)]
struct Server {
    /// It was away at so many probes in a row, and the next may come then.
    away: Option<(i32, Instant)>,
}

impl Server {
    /// How many more messages it may be tried with, when so many are under way.
    fn room(&self, under_way: usize) -> usize {
        match self.away {
            Some((_, until)) if Instant::now() < until => 0,
            Some(_) => 1_usize.saturating_sub(under_way),
            None => WIDTH.saturating_sub(under_way),
        }
    }

    fn next_look(&self) -> Instant {
        let now = Instant::now();
        self.away.map(|(_, until)| until).filter(|until| *until > now).unwrap_or(now + LOOK_EVERY)
    }

    fn learn(&mut self, lane: Lane, outcome: &Result<(), DeliveryError>) {
        match (outcome, self.away) {
            // What began together fails together: that is one probe.
            (Err(DeliveryError::ServerAway(_)), Some((_, until))) if Instant::now() < until => {}
            (Err(DeliveryError::ServerAway(why)), away) => {
                if away.is_none() {
                    tracing::warn!(?lane, error = %why, "messages wait: their server is away");
                }
                let probes = away.map_or(0, |(probes, _)| probes) + 1;
                let wait = backoff(probes).min(MAX_PROBE_WAIT).to_std().unwrap_or_default();
                self.away = Some((probes, Instant::now() + wait));
            }
            (_, Some(_)) => {
                tracing::info!(?lane, "the server of messages is back");
                self.away = None;
            }
            (_, None) => {}
        }
    }
}

/// An attempt that is over.
struct Attempt {
    row: outbox::Model,
    outcome: Result<(), DeliveryError>,
    /// The outcome tells something about the server.
    met_the_server: bool,
}

/// How an attempt went, and whether that tells something about the server.
type Seen = (Result<(), DeliveryError>, bool);

/// The attempts of a lane, each a task of its own: none waits for another, nor for the database.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<Seen>,
    rows: HashMap<task::Id, outbox::Model>,
}

impl UnderWay {
    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn begin(&mut self, app: Arc<App>, lane: Lane, row: outbox::Model) {
        let begun = self.tasks.spawn({
            let row = row.clone();
            async move { app.deliver(lane, &row).await }
        });
        self.rows.insert(begun.id(), row);
    }

    /// The next attempt that is over; `None` if there is none under way.
    async fn next(&mut self) -> Option<Attempt> {
        let joined = self.tasks.join_next_with_id().await?;
        self.attempt(joined)
    }

    fn next_if_over(&mut self) -> Option<Attempt> {
        let joined = self.tasks.try_join_next_with_id()?;
        self.attempt(joined)
    }

    fn attempt(&mut self, joined: Result<(task::Id, Seen), task::JoinError>) -> Option<Attempt> {
        let (id, (outcome, met_the_server)) = joined.unwrap_or_else(|error| {
            (error.id(), (Err(DeliveryError::Transient("the attempt panicked; the log says where".into())), false))
        });
        Some(Attempt { row: self.rows.remove(&id)?, outcome, met_the_server })
    }
}

impl App {
    /// Delivers what is in the outbox, until `stop`.
    pub async fn deliver_outbox(self: Arc<Self>, stop: CancellationToken) {
        let events = async {
            if self.notifier.is_some() {
                self.run_lane(Lane::Events, &stop).await;
            }
        };
        tokio::join!(self.run_lane(Lane::Mail, &stop), events);
    }

    async fn run_lane(self: &Arc<Self>, lane: Lane, stop: &CancellationToken) {
        let mut posted = self.posted.subscribe();
        let mut server = Server::default();
        let mut under_way = UnderWay::default();
        let mut over = Vec::new();
        let take = |server: &mut Server, over: &mut Vec<Attempt>, attempt: Attempt| {
            if attempt.met_the_server {
                server.learn(lane, &attempt.outcome);
            }
            over.push(attempt);
        };
        let mut failing = false;
        while !stop.is_cancelled() {
            posted.mark_unchanged();
            match self.settle_and_claim(lane, &mut over, server.room(under_way.len())).await {
                Ok(claimed) => {
                    failing = false;
                    for row in claimed {
                        under_way.begin(Arc::clone(self), lane, row);
                    }
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(?lane, error = %Chain(&error), "the outbox can't be read or written");
                }
                Err(_) => {}
            }
            let next_look = if over.is_empty() { server.next_look() } else { Instant::now() + SETTLE_EVERY };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(attempt) = under_way.next() => take(&mut server, &mut over, attempt),
                Ok(()) = posted.changed() => {}
                () = tokio::time::sleep_until(next_look) => continue,
            }
            tokio::time::sleep(PACE).await;
            while let Some(attempt) = under_way.next_if_over() {
                take(&mut server, &mut over, attempt);
            }
        }
        self.wind_up(lane, under_way, over).await;
    }

    /// What is under way may still arrive. What doesn't is given back, so that whoever comes next need not wait for our leases.
    async fn wind_up(&self, lane: Lane, mut under_way: UnderWay, mut over: Vec<Attempt>) {
        let arrived = async {
            while let Some(attempt) = under_way.next().await {
                over.push(attempt);
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, arrived).await.is_err() {
            // Ended before they are given back: nobody sends what another has claimed.
            under_way.tasks.abort_all();
        }
        let wound_up = async {
            self.settle(lane, &over).await?;
            self.give_back(under_way.rows.values()).await
        };
        if let Err(error) = wound_up.await {
            tracing::warn!(?lane, error = %Chain(&error), "what was under way goes out again when its lease is over");
        }
    }

    /// Writes down what is `over`, and empties it; then claims up to `room` messages.
    async fn settle_and_claim(&self, lane: Lane, over: &mut Vec<Attempt>, room: usize) -> Result<Vec<outbox::Model>> {
        self.settle(lane, over).await?;
        over.clear();
        if room == 0 { Ok(Vec::new()) } else { self.claim(lane, room).await }
    }

    /// Up to `count` messages that are due, the longest due first; ours until their leases end.
    async fn claim(&self, lane: Lane, count: usize) -> Result<Vec<outbox::Model>> {
        let now = self.clock.now();
        let is_free =
            Condition::any().add(outbox::Column::LeasedUntil.is_null()).add(outbox::Column::LeasedUntil.lte(now));
        let due = outbox::Entity::find()
            .select_only()
            .column(outbox::Column::Id)
            .filter(State::Pending.is_of((outbox::Entity, outbox::Column::State)))
            .filter(outbox::Column::NextAttemptAt.lte(now))
            .filter(outbox::Column::Kind.is_in(lane.kinds().iter().copied()))
            .filter(is_free)
            .filter(Expr::exists(older_of_the_same_user(lane, now)).not())
            .order_by_asc(outbox::Column::NextAttemptAt)
            .limit(u64::try_from(count).unwrap_or(1));
        // Most looks find nothing, and need no write to know it.
        if due.clone().into_tuple::<i64>().one(self.db.reader()).await?.is_none() {
            return Ok(Vec::new());
        }
        let tx = self.db.begin().await?;
        // Past those that another replica is claiming at this moment.
        let due = due.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        let due: Vec<i64> = due.into_tuple().all(&tx).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let claimed = outbox::Entity::update_many()
            .col_expr(outbox::Column::LeasedUntil, Expr::value(now + LEASE))
            .col_expr(outbox::Column::Attempts, Expr::col(outbox::Column::Attempts).add(1))
            .filter(outbox::Column::Id.is_in(due))
            .exec_with_returning(&tx)
            .await?;
        tx.commit().await?;
        Ok(claimed)
    }

    async fn deliver(&self, lane: Lane, row: &outbox::Model) -> Seen {
        match tokio::time::timeout(ATTEMPT_TIMEOUT, self.attempt(lane, row)).await {
            Ok(Ok(outcome)) => (outcome, true),
            // Slow at each of its steps, rather than silent: it was there.
            Err(_) => (Err(DeliveryError::Transient(format!("not done within {} s", ATTEMPT_TIMEOUT.as_secs()))), true),
            // Sealed with another key, or not whole. Another replica may have the right key, or this one tomorrow. Not in
            // the words of the cause, which could quote the payload.
            Ok(Err(_)) => {
                (Err(DeliveryError::Transient("the payload can't be read: was SECRET_KEY another?".into())), false)
            }
        }
    }

    /// # Errors
    /// If the payload can't be opened, or isn't what the kind says.
    async fn attempt(&self, lane: Lane, row: &outbox::Model) -> Result<Result<(), DeliveryError>, Cause> {
        let payload = self.seal.open(row.dedup_id.as_bytes(), &row.payload)?;
        match lane {
            Lane::Mail => {
                let posted: PostedLetter<Letter> = serde_json::from_slice(&payload)?;
                let written_at =
                    posted.written_at_us.and_then(DateTime::from_timestamp_micros).unwrap_or(row.created_at);
                Ok(self.mailer.send(&posted.letter.mail(row.dedup_id, written_at)).await)
            }
            Lane::Events => {
                let notifier = self.notifier.as_ref().ok_or("there is nobody to notify")?;
                let notice = Notice { id: row.dedup_id, kind: row.kind.clone(), body: payload };
                Ok(notifier.send(notice, self.clock.now()).await)
            }
        }
    }

    /// Writes down how attempts went, where the messages are still ours.
    async fn settle(&self, lane: Lane, over: &[Attempt]) -> Result<()> {
        if over.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let tx = self.db.begin().await?;
        for Attempt { row, outcome, .. } in over {
            let (state, next_attempt_at) = what_next(lane, row, outcome, now);
            let error = outcome.as_ref().err().map(ToString::to_string);
            let error =
                error.map(|error| error.chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARS).collect::<String>());
            let mut update = outbox::Entity::update_many()
                .col_expr(outbox::Column::State, Expr::value(state))
                .col_expr(outbox::Column::NextAttemptAt, Expr::value(next_attempt_at))
                .col_expr(outbox::Column::LeasedUntil, Expr::value(Option::<DateTime<Utc>>::None))
                .col_expr(outbox::Column::LastError, Expr::value(error.clone()));
            if state == State::Sent {
                update = update.col_expr(outbox::Column::Payload, Expr::value(""));
            }
            let settled = update
                .filter(outbox::Column::Id.eq(row.id))
                .filter(outbox::Column::LeasedUntil.eq(row.leased_until))
                .exec(&tx)
                .await?;
            let (outbox_id, kind, attempts) = (row.id, &row.kind, row.attempts);
            if settled.rows_affected == 0 {
                tracing::warn!(outbox_id, kind, attempts, "a message outlived its lease: it may go out twice");
            }
            if state == State::Abandoned {
                tracing::error!(error, outbox_id, kind, attempts, "a message is given up");
            } else if error.is_some() {
                tracing::debug!(error, outbox_id, kind, attempts, "a message was not sent");
            }
        }
        Ok(tx.commit().await?)
    }

    /// Ends leases of ours.
    async fn give_back(&self, rows: impl ExactSizeIterator<Item = &outbox::Model>) -> Result<()> {
        if rows.len() == 0 {
            return Ok(());
        }
        let tx = self.db.begin().await?;
        for row in rows {
            outbox::Entity::update_many()
                .col_expr(outbox::Column::LeasedUntil, Expr::value(Option::<DateTime<Utc>>::None))
                .filter(outbox::Column::Id.eq(row.id))
                .filter(outbox::Column::LeasedUntil.eq(row.leased_until))
                .exec(&tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

/// Whatever of the same user is due in the same lane, and was posted earlier: so the messages of a user go out one by one, in
/// order. One that failed is not due for a while, and lets the others pass.
fn older_of_the_same_user(lane: Lane, now: DateTime<Utc>) -> SelectStatement {
    let older = |column: outbox::Column| Expr::col((Alias::new("older"), column));
    Query::select()
        .expr(Expr::val(1))
        .from_as(outbox::Entity, Alias::new("older"))
        .and_where(older(outbox::Column::UserId).equals((outbox::Entity, outbox::Column::UserId)))
        .and_where(older(outbox::Column::Id).lt(Expr::col((outbox::Entity, outbox::Column::Id))))
        .and_where(State::Pending.is_of((Alias::new("older"), outbox::Column::State)))
        .and_where(older(outbox::Column::NextAttemptAt).lte(now))
        .and_where(older(outbox::Column::Kind).is_in(lane.kinds().iter().copied()))
        .to_owned()
}

/// What becomes of a message after an attempt, and when.
fn what_next(
    lane: Lane,
    row: &outbox::Model,
    outcome: &Result<(), DeliveryError>,
    now: DateTime<Utc>,
) -> (State, DateTime<Utc>) {
    let began_at = row.leased_until.map_or(now, |until| until - LEASE);
    let wait = backoff(row.attempts);
    match outcome {
        Ok(()) => (State::Sent, now),
        Err(DeliveryError::Permanent(_)) => (State::Abandoned, now),
        Err(_) if now - row.created_at > lane.give_up_after() => (State::Abandoned, now),
        Err(DeliveryError::ServerAway(_)) => (State::Pending, now + wait.min(MAX_PROBE_WAIT)),
        Err(DeliveryError::Transient(_)) => (State::Pending, Ord::max(began_at + wait, now + TimeDelta::seconds(1))),
    }
}

/// Doubles from a second to [`MAX_BACKOFF`]; a third of it is chance, so that what failed together doesn't return together.
fn backoff(attempts: i32) -> TimeDelta {
    let longest = if attempts > QUICK_ATTEMPTS {
        SLOW_BACKOFF
    } else {
        let exponent = u32::try_from(attempts.clamp(1, 10) - 1).unwrap_or_default();
        (TimeDelta::seconds(1) * 2_i32.pow(exponent)).min(MAX_BACKOFF)
    };
    let [chance] = random::bytes();
    longest - longest / 3 * i32::from(chance) / 255
}
