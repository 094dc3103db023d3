//! The trail that the audit leaves, read: all of it by admins, one's own by everyone.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select,
    sea_query::{Query as Sql, SelectStatement, UnionType},
};

use crate::{
    app::App,
    domain::{
        audit::{Detail, Event},
        caller::{Call, Caller},
        page::{PageSize, foreign_token},
    },
    entity::audit_event::{self, Column},
    error::Result,
};

/// What to list: events for which all of this holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// What happened to this user.
    pub user_id: Option<i64>,
    /// What this user did.
    pub actor_id: Option<i64>,
    pub kinds: Option<Kinds>,
    /// Then or later.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
}

/// A kind of event, or all of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kinds(Vec<&'static str>);

impl Kinds {
    /// `session.began`, or all that `session` has.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let is_meant = |name: &&str| *name == raw || name.split_once('.').is_some_and(|(family, _)| family == raw);
        let kinds: Vec<_> = Event::names().filter(is_meant).collect();
        if kinds.is_empty() { Err("There is no such kind of event.") } else { Ok(Self(kinds)) }
    }
}

/// Which part of a list.
#[derive(Debug, Clone)]
pub struct Part {
    pub page_size: PageSize,
    /// Where the page before ended.
    pub page_token: Option<String>,
}

/// Some events, the newest first.
pub struct Page<T> {
    pub events: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next_page_token: Option<String>,
}

/// Something that happened, as admins see it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its `detail` is below.
    pub row: audit_event::Model,
    pub detail: Detail,
}

/// Something that happened to an account, as its owner sees it.
#[derive(Debug, Clone)]
pub struct Activity {
    pub occurred_at: DateTime<Utc>,
    pub kind: String,
    pub by: By,
    /// Where it was done from, unless it was an administrator: that address is the administrator's own.
    pub ip: Option<String>,
    pub user_agent: Option<String>,
    pub detail: Detail,
}

/// Who did something to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Oneself,
    Administrator,
    /// At the command line.
    Operator,
    /// Without proof of who it was: with a refresh token that had been used before, for one.
    Unknown,
}

/// Where an event stands among all.
pub type Place = (DateTime<Utc>, i64);

impl App {
    /// A page of the audit. Whoever begins to read leaves an event too; the pages after the first belong to the same reading.
    ///
    /// # Errors
    /// `PermissionDenied`; `Invalid` for a token that did not come with this very list; `Unavailable` if the database is away.
    pub async fn list_audit_events(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        filter: Filter,
        part: Part,
    ) -> Result<Page<Recorded>> {
        let caller_id = caller.user_id;
        if part.page_token.is_none() {
            self.note_reading(call, caller, filter.user_id).await?;
        }
        self.page_of_trail(caller_id, &filter, &part).await
    }

    /// A page of what happened to the user's account: for oneself and admins.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; else as [`App::list_audit_events`].
    pub async fn list_activity(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        user_id: i64,
        part: Part,
    ) -> Result<Page<Activity>> {
        self.account_for_oneself_or_admin(&caller, user_id).await?;
        let caller_id = caller.user_id;
        if caller_id != user_id && part.page_token.is_none() {
            self.note_reading(call, caller, Some(user_id)).await?;
        }
        let Page { events, next_page_token } = self.page_of_trail(caller_id, &Filter::of_user(user_id), &part).await?;
        Ok(Page { events: events.into_iter().map(|event| event.seen_by(user_id)).collect(), next_page_token })
    }

    async fn note_reading(self: &Arc<Self>, call: Arc<Call>, caller: Caller, user_id: Option<i64>) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                tx.authority(&caller).await?.require_admin()?;
                tx.audit_reading(&call, user_id)
            })
        })
        .await
    }

    async fn page_of_trail(&self, caller_id: i64, filter: &Filter, part: &Part) -> Result<Page<Recorded>> {
        // Nobody goes on with what another began to read, since only the beginning is recorded.
        // A release that spells this otherwise refuses the tokens of the one before, and their callers start anew.
        let list = format!("audit for {caller_id} {filter:?}");
        let after = match &part.page_token {
            None => None,
            Some(token) => {
                let (micros, id): (i64, i64) = self.open_page_token(&list, token)?;
                Some((DateTime::from_timestamp_micros(micros).ok_or_else(foreign_token)?, id))
            }
        };
        let size = usize::try_from(part.page_size.get()).unwrap_or(usize::MAX);
        let mut events = self.newest_of_trail(filter, after, part.page_size.get() + 1).await?;
        let has_next = events.len() > size;
        events.truncate(size);
        let end = events.last().filter(|_| has_next).map(|last| (last.row.created_at.timestamp_micros(), last.row.id));
        let next_page_token = end.map(|end| self.page_token(&list, &end)).transpose()?;
        Ok(Page { events, next_page_token })
    }

    /// The newest `limit` of those behind `after`.
    pub(super) async fn newest_of_trail(
        &self,
        filter: &Filter,
        after: Option<Place>,
        limit: u64,
    ) -> Result<Vec<Recorded>> {
        let rows = filter.select(after, limit).all(self.db.reader()).await?;
        Ok(rows.into_iter().map(Recorded::from).collect())
    }
}

impl From<audit_event::Model> for Recorded {
    /// What a newer release has to say is passed over.
    fn from(row: audit_event::Model) -> Self {
        let detail = serde_json::from_str(&row.detail).unwrap_or_default();
        Self { row, detail }
    }
}

impl Recorded {
    /// As the user sees it whom it is about.
    pub(super) fn seen_by(self, user_id: i64) -> Activity {
        let Self { row, detail } = self;
        let by = match row.actor_id {
            Some(actor_id) if actor_id == user_id => By::Oneself,
            Some(_) => By::Administrator,
            None if Event::by_operator().any(|event| row.kind == event.name()) => By::Operator,
            None => By::Unknown,
        };
        let from = if by == By::Administrator { (None, None) } else { (row.ip, row.user_agent) };
        Activity { occurred_at: row.created_at, kind: row.kind, by, ip: from.0, user_agent: from.1, detail }
    }
}

impl Filter {
    pub(super) fn of_user(user_id: i64) -> Self {
        Self { user_id: Some(user_id), ..Self::default() }
    }

    /// Selects the newest `limit` of what the filter lets through, of that behind `after`.
    ///
    /// Their ids come first: an index gives them in their order. Of several kinds each has a stretch of its own there, so they are
    /// found one by one; unless a user is named as well, whose events are few among all.
    pub fn select(&self, after: Option<Place>, limit: u64) -> Select<audit_event::Entity> {
        let condition = self.condition(after);
        let part = |condition: Condition| {
            let part = audit_event::Entity::find().select_only().columns([Column::Id, Column::CreatedAt]);
            let part = part.filter(condition).order_by_desc(Column::CreatedAt).order_by_desc(Column::Id).limit(limit);
            Sql::select().column(Column::Id).from_subquery(part.into_query(), "part").take()
        };
        let ids: SelectStatement = match &self.kinds {
            None => part(condition),
            Some(Kinds(kinds)) if self.user_id.is_some() || self.actor_id.is_some() => {
                part(condition.add(Column::Kind.is_in(kinds.iter().copied())))
            }
            Some(Kinds(kinds)) => {
                let parts = kinds.iter().map(|kind| part(condition.clone().add(Column::Kind.eq(*kind))));
                parts.reduce(|mut one, other| one.union(UnionType::All, other).take()).unwrap_or_default()
            }
        };
        audit_event::Entity::find()
            .filter(Column::Id.in_subquery(ids))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Id)
            .limit(limit)
    }

    fn condition(&self, after: Option<Place>) -> Condition {
        let behind = |(at, id): Place| {
            // The first part for the index; few events are of the same microsecond.
            Column::CreatedAt.lte(at).and(Column::CreatedAt.lt(at).or(Column::Id.lt(id)))
        };
        Condition::all()
            .add_option(self.user_id.map(|id| Column::UserId.eq(id)))
            .add_option(self.actor_id.map(|id| Column::ActorId.eq(id)))
            .add_option(self.since.map(|since| Column::CreatedAt.gte(since)))
            .add_option(self.until.map(|until| Column::CreatedAt.lt(until)))
            .add_option(after.map(behind))
    }
}
