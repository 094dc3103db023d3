//! The directory: users filtered, searched and ordered, page by page.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, ExprTrait, FromQueryResult, Order,
    PartialModelTrait, QueryFilter, QueryOrder, QueryResult, QuerySelect, QueryTrait, Select, Statement, Value,
    sea_query::{CommonTableExpression, Expr, Query as Sql, SelectStatement, UnionType},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    app::App,
    domain::{
        caller::Caller,
        page::{PageSize, foreign_token},
        tally::Tally,
        user::{EmailAddress, fold},
    },
    entity::{
        user::{self, Column},
        user_group,
    },
    error::{Denial, Dependency, Error, Resource, Result},
    model::{role::Role, user::User},
    places::Place,
};

const SEARCH_MAX_CHARS: usize = 200;
const SEARCH_MAX_WORDS: usize = 8;
/// How far behind a page is that is worth a look from which end it is nearer.
const FAR: u64 = 1000;
/// How often a page is looked for from the end while users come and go.
const ATTEMPTS_FROM_END: usize = 3;
/// Those who hold a role are collected and then sorted, up to so many. Of more, some come early in any order: the database
/// chooses between that and walking through all users in order, until a page is full.
const COLLECTED_MAX: u64 = 10_000;
/// How long a list waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// What to list, and which part of it.
pub struct Query {
    pub filter: Filter,
    pub ordering: Ordering,
    pub position: Position,
    pub page_size: PageSize,
}

/// Whom to list: users for whom all of this holds.
#[derive(Debug, Default)]
pub struct Filter {
    pub search: Search,
    pub role: Option<Role>,
    pub is_verified: Option<bool>,
    /// Members of this group.
    pub group_id: Option<i64>,
}

/// Words that must all occur in a user's address or names.
#[derive(Debug, Default)]
pub struct Search(Vec<Word>);

#[derive(Debug)]
struct Word {
    /// As the stored texts are folded.
    folded: String,
    /// The key of the address that the word is, if it is a whole one.
    email_key: Option<String>,
}

impl Search {
    /// White space and commas separate the words. Without a word everybody is found.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        if raw.chars().any(char::is_control) {
            return Err("Control characters are not allowed.");
        }
        if raw.chars().count() > SEARCH_MAX_CHARS {
            return Err("Ensure this field has no more than 200 characters.");
        }
        let words = raw.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
        let words: Vec<_> = words
            .map(|word| Word {
                folded: fold(word),
                email_key: EmailAddress::parse(word).ok().map(|address| address.key().to_owned()),
            })
            .collect();
        if words.len() > SEARCH_MAX_WORDS {
            return Err("Ensure this field has no more than 8 words.");
        }
        Ok(Self(words))
    }
}

/// In which order to list: of any two users it puts one first.
#[derive(Debug)]
pub struct Ordering {
    /// By the first; where that is equal, by the second; and so on. The last is unique.
    terms: Vec<Term>,
    names_email: bool,
}

#[derive(Debug, Clone, Copy)]
struct Term {
    key: Key,
    descending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Id,
    Email,
    DateJoined,
    FirstName,
    LastName,
}

impl Ordering {
    /// A comma list of keys, each with a `-` before it if it descends. What is no key is passed over; of a key that
    /// comes twice the first counts.
    pub fn parse(raw: &str) -> Self {
        let mut terms: Vec<Term> = Vec::new();
        for name in raw.split(',').map(str::trim) {
            let (name, descending) = name.strip_prefix('-').map_or((name, false), |name| (name, true));
            let key = match name {
                "id" => Key::Id,
                "email" => Key::Email,
                "date_joined" => Key::DateJoined,
                "first_name" => Key::FirstName,
                "last_name" => Key::LastName,
                _ => continue,
            };
            if terms.iter().all(|term| term.key != key) {
                terms.push(Term { key, descending });
            }
        }
        let names_email = terms.iter().any(|term| term.key == Key::Email);
        match terms.iter().position(|term| matches!(term.key, Key::Id | Key::Email)) {
            Some(unique) => terms.truncate(unique + 1),
            // In the direction of the first, so that one index serves both directions.
            None => terms.push(Term { key: Key::Id, descending: terms.first().is_some_and(|term| term.descending) }),
        }
        Self { terms, names_email }
    }

    /// Where `user` stands in it.
    fn keys_of(&self, user: &User) -> Vec<KeyValue> {
        self.terms.iter().map(|term| term.key.of(user)).collect()
    }

    /// The same, in SQL's terms.
    fn values_of(&self, keys: Vec<KeyValue>) -> Result<Vec<Value>> {
        let values = self.terms.iter().zip(keys).map(|(term, value)| value.into_sql(term.key));
        values.collect::<Option<_>>().ok_or_else(foreign_token)
    }

    /// All that come after these values of the keys: in parts, each of which the database finds as one stretch of an
    /// index, if there is one of this order.
    fn after(&self, values: &[Value], backend: DbBackend) -> Vec<Condition> {
        let column = |term: &Term| Expr::col(term.key.column());
        // Those that are equal up to key `n`, and beyond by that.
        let beyond = |n: usize| {
            let (term, value) = (&self.terms[n], values[n].clone());
            let equal = self.terms[..n].iter().zip(values).map(|(term, value)| column(term).eq(value.clone()));
            let beyond = if term.descending { column(term).lt(value) } else { column(term).gt(value) };
            equal.fold(Condition::all(), Condition::add).add(beyond)
        };
        let beyond = (0..self.terms.len()).map(beyond);
        // SQLite looks only at the first key of a comparison of rows when the second is its rowid, the id.
        if backend == DbBackend::Sqlite {
            return beyond.collect();
        }
        let (first, value) = (self.terms[0], values[0].clone());
        let all = if self.terms.iter().all(|term| term.descending == first.descending) {
            let row = Expr::tuple(self.terms.iter().map(column));
            let last = Expr::tuple(values.iter().cloned().map(Expr::value));
            Condition::all().add(if first.descending { row.lt(last) } else { row.gt(last) })
        } else {
            let bound = if first.descending { column(&first).lte(value) } else { column(&first).gte(value) };
            Condition::all().add(bound).add(beyond.fold(Condition::any(), Condition::add))
        };
        vec![all]
    }
}

impl Key {
    fn column(self) -> Column {
        match self {
            Self::Id => Column::Id,
            Self::Email => Column::EmailKey,
            Self::DateJoined => Column::DateJoined,
            Self::FirstName => Column::FirstName,
            Self::LastName => Column::LastName,
        }
    }

    /// Where a user stands in the order by this key.
    fn of(self, user: &User) -> KeyValue {
        match self {
            Self::Id => KeyValue::Number(user.id),
            Self::Email => KeyValue::Text(user.email_key.clone()),
            Self::DateJoined => KeyValue::Number(user.date_joined.timestamp_micros()),
            Self::FirstName => KeyValue::Text(user.first_name.clone()),
            Self::LastName => KeyValue::Text(user.last_name.clone()),
        }
    }
}

impl Term {
    fn turned_round(self) -> Self {
        Self { descending: !self.descending, ..self }
    }

    fn order(self) -> Order {
        if self.descending { Order::Desc } else { Order::Asc }
    }
}

/// The value of a key, as a page token holds it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum KeyValue {
    /// An id, or microseconds since the Unix epoch.
    Number(i64),
    Text(String),
}

impl KeyValue {
    /// As the column of `key` takes it.
    fn into_sql(self, key: Key) -> Option<Value> {
        match (key, self) {
            (Key::Id, Self::Number(id)) => Some(id.into()),
            (Key::DateJoined, Self::Number(micros)) => chrono::DateTime::from_timestamp_micros(micros).map(Into::into),
            (Key::Email | Key::FirstName | Key::LastName, Self::Text(text)) => Some(text.into()),
            _ => None,
        }
    }
}

/// Where a page begins.
#[derive(Debug)]
pub enum Position {
    /// By its number, from 1.
    Page(NonZeroU64),
    /// Behind the page that came with this token.
    After(String),
}

impl Position {
    /// The page of this number, if there can be one.
    pub fn page(number: i64) -> Option<Self> {
        NonZeroU64::new(u64::try_from(number).ok()?).map(Self::Page)
    }
}

/// A part of the directory.
pub struct Page {
    /// Those whose address the caller may not see have its mask.
    pub users: Vec<User>,
    /// How many users there are on all pages.
    pub count: u64,
    /// The page's number; `None` if it was asked for by a token.
    pub number: Option<NonZeroU64>,
    /// Where the next page begins; `None` at the end.
    pub next_page_token: Option<String>,
}

/// What a caller may see of the directory.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Private and inactive users too.
    pub everyone: bool,
    /// Addresses in full; so they may be searched, and ordered by.
    pub emails: bool,
}

impl App {
    /// A page of the directory, as `caller` may see it.
    ///
    /// # Errors
    /// `PermissionDenied` for the members of a group, if the caller is no admin; `Invalid` for an order that would tell
    /// what the caller may not see, and for a token that did not come with this very list; `NotFound` for a page behind
    /// the last; `Unavailable`, too, if the caller has two other lists under way, or others have, for too long.
    pub async fn list_users(self: &Arc<Self>, caller: Caller, query: Query) -> Result<Page> {
        let place = self.turn_to_search(caller.user_id).await?;
        let app = Arc::clone(self);
        // In a task of its own: a database works on when nobody waits any more, and the place is taken for as long.
        let listed = async move {
            let _place = place;
            if let Some(replica) = app.db.replica().await {
                match app.page_of_users(&replica, &caller, &query).await {
                    // It went, or it was busy taking in what the primary did.
                    Err(error @ (Error::Unavailable { .. } | Error::Internal(_))) => app.db.leave_replica_alone(&error),
                    answer => return answer,
                }
            }
            app.page_of_users(app.db.reader(), &caller, &query).await
        };
        tokio::spawn(listed.in_current_span()).await.map_err(|_| Error::internal("a list of users panicked"))?
    }

    /// A place among those who ask much of the database.
    ///
    /// # Errors
    /// `Unavailable` if the user has two already, or others have them all, for too long.
    pub(super) async fn turn_to_search(&self, user_id: i64) -> Result<Place> {
        let asked_at = Instant::now();
        let place = tokio::time::timeout(TURN_TIMEOUT, self.searches.enter(user_id)).await;
        let place =
            place.map_err(|late| Error::Unavailable { what: Dependency::Directory, cause: Some(late.into()) })?;
        // Who waited for others to find out needs not wait as long again.
        if self.db.reader().has_failed_since(asked_at) {
            return Err(Error::Unavailable { what: Dependency::Database, cause: None });
        }
        Ok(place)
    }

    async fn page_of_users(&self, db: &impl ConnectionTrait, caller: &Caller, query: &Query) -> Result<Page> {
        let view = View { everyone: caller.sees_everyone(), emails: self.sees_emails(caller) };
        let Query { filter, ordering, position, page_size } = query;
        let size = page_size.get();
        if filter.group_id.is_some() && !caller.roles.is_admin() {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        if ordering.names_email && !view.emails {
            return Err(Error::invalid("ordering", "You may not order by email."));
        }
        // A release that spells this otherwise refuses the tokens of the one before, and their callers start anew.
        let list = format!("list of users {view:?} {filter:?} {ordering:?}");
        let (start, number) = match position {
            Position::Page(number) => (Start::At((number.get() - 1).saturating_mul(size)), Some(*number)),
            Position::After(token) => (Start::After(ordering.values_of(self.open_page_token(&list, token)?)?), None),
        };

        let (rows, count) = find(db, filter, view, ordering, start, size + 1).await?;
        if rows.is_empty() && number.is_some_and(|number| number > NonZeroU64::MIN) {
            return Err(Error::NotFound(Resource::Page));
        }
        let count = match count {
            Some(count) => count,
            // Where the first page is empty, they all are.
            None if number.is_some() => 0,
            None => count_users(db, filter, view).await?,
        };
        let users = rows.iter().map(|row| User::from_query_result(row, ""));
        let mut users: Vec<_> = users.collect::<Result<_, _>>()?;

        let has_next = users.len() as u64 > size;
        users.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        let last = users.last().filter(|_| has_next);
        let next_page_token = last.map(|user| self.page_token(&list, &ordering.keys_of(user))).transpose()?;
        if !view.emails {
            for user in users.iter_mut().filter(|user| user.id != caller.user_id) {
                user.email = EmailAddress::mask(&user.email);
            }
        }
        Ok(Page { users, count, number, next_page_token })
    }
}

/// The rows of a page, and how many users there are on all pages, if the database was asked for that on the way.
async fn find(
    db: &impl ConnectionTrait,
    filter: &Filter,
    view: View,
    ordering: &Ordering,
    start: Start,
    limit: u64,
) -> Result<(Vec<QueryResult>, Option<u64>)> {
    let backend = db.get_database_backend();
    let select = async |start: Start, limit: u64, is_collected: bool| {
        let page = filter.select_page(view, ordering, start, limit, is_collected, backend);
        let rows = db.query_all_raw(page.build(backend)).await?;
        let count = rows.first().map(|row| row.try_get::<Option<i64>>("", "count")).transpose()?.flatten();
        Ok::<_, Error>((rows, count.map(|count| u64::try_from(count).unwrap_or_default())))
    };
    if filter.is_search() {
        return select(start, limit, true).await;
    }
    let is_far = matches!(start, Start::At(offset) if offset >= FAR);
    if !filter.is_by_holding() && !is_far {
        return select(start, limit, false).await;
    }
    let mut counted = count_users(db, filter, view).await?;
    let is_collected = filter.is_by_holding() && counted <= COLLECTED_MAX;
    if let Start::At(offset) = start {
        if counted <= offset {
            return Ok((Vec::new(), Some(counted)));
        }
        // The page is looked for from the end it is nearer to.
        let is_counted_with_page = filter.tally(view).is_some() && !is_collected;
        let attempts = if is_counted_with_page { ATTEMPTS_FROM_END } else { 0 };
        for _ in 0..attempts {
            let end = Ord::min(offset.saturating_add(limit), counted);
            let behind = counted - end;
            if end <= offset || behind >= offset {
                break;
            }
            let (rows, count) = select(Start::BeforeLast(behind), end - offset, false).await?;
            // In between somebody came or went: then it is another part.
            if count == Some(counted) {
                return Ok((rows, count));
            }
            counted = count.unwrap_or_default();
        }
    }
    let (rows, count) = select(start, limit, is_collected).await?;
    Ok((rows, count.or(Some(counted))))
}

/// How many users there are to list.
async fn count_users(db: &impl ConnectionTrait, filter: &Filter, view: View) -> Result<u64> {
    let counted = db.query_one_raw(filter.select_count(view, db.get_database_backend())).await?;
    Ok(counted.map(|row| row.try_get::<i64>("", "count")).transpose()?.unwrap_or_default().unsigned_abs())
}

/// Where a page begins, in SQL's terms.
pub enum Start {
    /// After so many users.
    At(u64),
    /// Before so many users, which are the last.
    BeforeLast(u64),
    /// After whoever has these values of the ordering's keys.
    After(Vec<Value>),
}

impl Filter {
    fn is_search(&self) -> bool {
        !self.search.0.is_empty()
    }

    /// An index tells who holds what is asked for.
    fn is_by_holding(&self) -> bool {
        self.role.is_some() || self.group_id.is_some()
    }

    /// Counts whom the filter lets through, as `count`.
    pub fn select_count(&self, view: View, backend: DbBackend) -> Statement {
        if let Some(tally) = self.tally(view) {
            return backend.build(&Sql::select().expr_as(tally.count(), "count").take());
        }
        let count = user::Entity::find().select_only().expr_as(Column::Id.count(), "count");
        count.filter(self.condition(view, backend)).build(backend)
    }

    /// What the flags of whom the filter lets through are; `None` if that doesn't say it all.
    fn tally(&self, view: View) -> Option<Tally> {
        let is_by_flags = !self.is_search() && self.group_id.is_none();
        is_by_flags.then_some(Tally { listed_only: !view.everyone, is_verified: self.is_verified, role: self.role })
    }

    /// Selects at most `limit` of those whom the filter lets through.
    ///
    /// Their ids come first: an index can give them without a look at the rows of the pages before. If the filter's own
    /// index serves better than one of the order, all that it lets through are collected, and then sorted: so even if
    /// the database takes few for many, it doesn't walk through everybody to find them. `count` says how many there are on
    /// all pages; it is null where that is yet to be counted.
    pub fn select_page(
        &self,
        view: View,
        ordering: &Ordering,
        start: Start,
        limit: u64,
        is_collected: bool,
        backend: DbBackend,
    ) -> Select<user::Entity> {
        let keys = ordering.terms.iter().map(|term| term.key).filter(|key| *key != Key::Id).map(Key::column);
        let columns: Vec<_> = [Column::Id].into_iter().chain(keys).collect();
        let mut all = Sql::select();
        all.columns(columns.clone()).from(user::Entity).cond_where(self.condition(view, backend));
        let mut page = User::select_cols(user::Entity::find().select_only());
        if is_collected {
            let collected = Sql::select().columns(columns).from("found").take();
            let found = std::mem::replace(&mut all, collected);
            let found = CommonTableExpression::new().table_name("found").query(found).materialized(true).to_owned();
            QuerySelect::query(&mut page).with_cte(found);
            page = page.expr_as(Expr::cust("(SELECT count(*) FROM found)"), "count");
        } else {
            let tally = self.tally(view).map_or(Expr::cust("CAST(NULL AS bigint)"), Tally::count);
            page = page.expr_as(tally, "count");
        }

        let is_backwards = matches!(start, Start::BeforeLast(_));
        let mut part = match start {
            // SQL counts to 2^63 - 1.
            Start::At(skip) | Start::BeforeLast(skip) => all.offset(Ord::min(skip, i64::MAX.unsigned_abs())).take(),
            Start::After(values) => {
                let parts = ordering.after(&values, backend).into_iter();
                let parts = parts.map(|after| all.clone().cond_where(after).take());
                parts.reduce(|mut one, other| one.union(UnionType::All, other).take()).unwrap_or_default()
            }
        };
        for term in &ordering.terms {
            part.order_by(term.key.column(), if is_backwards { term.turned_round() } else { *term }.order());
            page = page.order_by(term.key.column(), term.order());
        }
        let ids = Sql::select().column(Column::Id).from_subquery(part.limit(limit).take(), "part").take();
        page.filter(Column::Id.in_subquery(ids))
    }

    /// What holds for those whom the filter lets through, as far as the view goes.
    fn condition(&self, view: View, backend: DbBackend) -> Condition {
        // Said in the statement: a plan made for any value could not use the index of those who hold a role.
        let is = |column: Column, value: bool| Expr::col(column).eq(Expr::cust(if value { "true" } else { "false" }));
        let role = self.role.map(|role| match role {
            Role::Freelancer => is(Column::IsFreelancer, true),
            Role::Seller => is(Column::IsSeller, true),
            Role::Moderator => is(Column::IsModerator, true),
            Role::Admin => is(Column::IsStaff, true).or(is(Column::IsSuperuser, true)),
        });
        Condition::all()
            .add_option((!view.everyone).then(|| is(Column::Listed, true)))
            .add_option(role)
            .add_option(self.is_verified.map(|value| is(Column::IsVerified, value)))
            .add_option(self.group_id.map(|id| Column::Id.in_subquery(members(id))))
            .add(self.search.condition(view, backend))
    }
}

impl Search {
    /// Who may not see addresses finds one only by all of it.
    fn condition(&self, view: View, backend: DbBackend) -> Condition {
        let text = if view.emails { Column::SearchText } else { Column::NameText };
        let mut all = Condition::all();
        // SQLite intersects what several words find better within its index than outside of it.
        let mut phrases = Vec::new();
        for Word { folded, email_key } in &self.0 {
            let occurs = match backend {
                _ if !has_trigrams(folded, backend) => occurs_by_scan(text, folded, backend),
                DbBackend::Sqlite if email_key.is_none() || view.emails => {
                    phrases.push(quoted(folded));
                    continue;
                }
                DbBackend::Sqlite => found_in_index(text, &quoted(folded)),
                _ => text.like(anywhere(folded)),
            };
            all = match email_key {
                Some(key) if !view.emails => all.add(occurs.or(Column::EmailKey.eq(key))),
                _ => all.add(occurs),
            };
        }
        if !phrases.is_empty() {
            all = all.add(found_in_index(text, &phrases.join(" AND ")));
        }
        all
    }
}

/// The ids of a group's members.
fn members(group_id: i64) -> SelectStatement {
    let members = user_group::Entity::find().select_only().column(user_group::Column::UserId);
    members.filter(user_group::Column::GroupId.eq(group_id)).into_query()
}

/// Whether an index of trigrams can find the text. PostgreSQL's takes only letters and digits for them.
fn has_trigrams(text: &str, backend: DbBackend) -> bool {
    match backend {
        DbBackend::Sqlite => text.chars().nth(2).is_some(),
        _ => text.split(|c: char| !c.is_alphanumeric()).any(|run| run.chars().nth(2).is_some()),
    }
}

/// In words that no index is asked about: PostgreSQL's would be read as a whole, and the table after it.
fn occurs_by_scan(text: Column, part: &str, backend: DbBackend) -> Expr {
    let call = if backend == DbBackend::Sqlite { "instr(?, ?) > 0" } else { "strpos($1, $2) > 0" };
    Expr::cust_with_exprs(call, [Expr::col(text), Expr::value(part)])
}

/// Whom SQLite's index of trigrams finds (<https://sqlite.org/fts5.html#the_trigram_tokenizer>).
fn found_in_index(text: Column, phrases: &str) -> Expr {
    use sea_orm::IdenStatic;
    let query = format!("{} : ({phrases})", text.as_str());
    let mut found = Sql::select();
    found.column("rowid").from("users_search").and_where(Expr::cust_with_values("users_search MATCH ?", [query]));
    Column::Id.in_subquery(found)
}

/// A text as FTS5 takes it literally.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A pattern of LIKE that finds the text anywhere.
fn anywhere(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
