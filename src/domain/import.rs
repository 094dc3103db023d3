//! The bulk import: users from lines of JSON, held to the rules of registration, and written a thousand at a time.
//!
//! A file is read twice: to check all of it, and to write it. So a mistake in its last line changes nothing, and of a file of
//! any size only one batch is in memory, with a digest of each address: some fifty bytes.

use std::{
    collections::HashMap,
    fmt,
    io::{self, BufRead, Read, Seek},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set,
    ConnectionTrait, DbBackend, EntityTrait, QueryTrait,
    sea_query::{OnConflict, Query},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{
    app::App,
    domain::{
        audit::Event,
        change::Transaction,
        profile::{Bio, Timezone},
        registration::{AccountFlags, Person, new_row},
        user::{EmailAddress, PersonName},
    },
    entity::{
        profile,
        user::{self, Column, PasswordHash},
    },
    error::{Error, FieldErrors, Result},
    model::password,
};

/// How many users go in one transaction.
const BATCH: usize = 1000;
/// How many go in one statement, but for their rows of the audit: more gain nothing, and a slow statement is a line of the log.
const ROWS: usize = 100;
/// How long SQLite's one writer is left to others after each transaction.
const LET_OTHERS_WRITE: Duration = Duration::from_millis(50);
/// No line needs as much, even if each of its characters is escaped.
const LINE_MAX_BYTES: u64 = 64 * 1024;
/// How many complaints are kept to be shown.
const COMPLAINTS_MAX: usize = 100;
/// Matches no password, as in the Django service.
const UNUSABLE: &str = "!";

/// A file of users whose every line was found right.
pub struct UserFile<R> {
    source: R,
    users: u64,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the file can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// What is wrong with it: in so many lines, and the first complaints of all.
    #[error("nothing was imported, for {}:\n  {}", in_lines(*.lines), complaints.join("\n  "))]
    Wrong { lines: u64, complaints: Vec<String> },
}

fn in_lines(lines: u64) -> String {
    if lines == 1 { "1 line is wrong".into() } else { format!("{lines} lines are wrong") }
}

impl<R: BufRead + Seek> UserFile<R> {
    /// Reads all of it and checks each line. `now`: nobody joined after it.
    ///
    /// # Errors
    /// What is wrong with which lines, the first hundred complaints of all.
    pub fn check(mut source: R, now: DateTime<Utc>) -> Result<Self, FileError> {
        let (mut users, mut wrong, mut complaints) = (0, 0, Vec::new());
        // A digest in place of the address: all take the same place, and a little of it.
        let mut first_seen: HashMap<[u8; 16], u64> = HashMap::new();
        for line in (Lines { source: &mut source, number: 0 }) {
            let (number, line) = line?;
            let found = line.and_then(|line| Newcomer::parse(&line, now)).and_then(|newcomer| {
                let digest = digest::digest(&digest::SHA256, newcomer.person.email.key().as_bytes());
                let mut key = [0; 16];
                key.copy_from_slice(&digest.as_ref()[..16]);
                let first = *first_seen.entry(key).or_insert(number);
                if first == number { Ok(()) } else { Err(vec![format!("email: The address is that of line {first}.")]) }
            });
            match found {
                Ok(()) => users += 1,
                Err(reasons) => {
                    wrong += 1;
                    let room = COMPLAINTS_MAX - complaints.len();
                    complaints.extend(reasons.into_iter().take(room).map(|reason| format!("line {number}: {reason}")));
                }
            }
        }
        if wrong > 0 { Err(FileError::Wrong { lines: wrong, complaints }) } else { Ok(Self { source, users }) }
    }
}

impl<R> UserFile<R> {
    /// How many users it holds.
    pub fn users(&self) -> u64 {
        self.users
    }
}

/// The lines of a file that aren't blank, by their number from 1; of each its text, or what is wrong with it.
struct Lines<R> {
    source: R,
    number: u64,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<(u64, Result<String, Vec<String>>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.number += 1;
            match self.line().transpose()? {
                Ok(Ok(line)) if line.trim().is_empty() => {}
                line => return Some(line.map(|line| (self.number, line))),
            }
        }
    }
}

impl<R: BufRead> Lines<R> {
    fn line(&mut self) -> io::Result<Option<Result<String, Vec<String>>>> {
        let mut line = Vec::new();
        if self.source.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == LINE_MAX_BYTES && !line.ends_with(b"\n") {
            self.source.skip_until(b'\n')?;
            return Ok(Some(Err(vec![format!("It has more than {LINE_MAX_BYTES} bytes.")])));
        }
        Ok(Some(String::from_utf8(line).map_err(|_| vec!["It is not text in UTF-8.".into()])))
    }
}

/// A user as a line tells it.
struct Newcomer {
    person: Person,
    password: PasswordHash,
    flags: AccountFlags,
    /// `None`: the import itself is when.
    date_joined: Option<DateTime<Utc>>,
    bio: Bio,
    is_public: bool,
    timezone: Timezone,
    streak_visibility: bool,
}

/// A line, of which nothing is passed over.
struct Object {
    members: Map<String, Value>,
    has_twins: bool,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object { members: Map::new(), has_twins: false };
                while let Some((name, value)) = map.next_entry()? {
                    object.has_twins |= object.members.insert(name, value).is_some();
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

impl Newcomer {
    fn parse(line: &str, now: DateTime<Utc>) -> Result<Self, Vec<String>> {
        let Ok(Object { members: object, has_twins }) = serde_json::from_str(line) else {
            return Err(vec!["It is not an object of JSON.".into()]);
        };
        if has_twins {
            return Err(vec!["A field comes twice.".into()]);
        }
        let mut fields = Fields { object, errors: FieldErrors::default() };
        let usual = AccountFlags::default();
        let email = fields.text("email", EmailAddress::parse);
        let email = fields.errors.required("email", email);
        let first_name = fields.text("first_name", PersonName::parse).unwrap_or_default();
        let last_name = fields.text("last_name", PersonName::parse).unwrap_or_default();
        let password = PasswordHash(fields.text("password_hash", parse_hash).unwrap_or_else(|| UNUSABLE.into()));
        let flags = AccountFlags {
            is_active: fields.flag("is_active").unwrap_or(usual.is_active),
            is_verified: fields.flag("is_verified").unwrap_or(usual.is_verified),
            is_freelancer: fields.flag("is_freelancer").unwrap_or(usual.is_freelancer),
            is_seller: fields.flag("is_seller").unwrap_or(usual.is_seller),
            is_moderator: fields.flag("is_moderator").unwrap_or(usual.is_moderator),
            is_staff: fields.flag("is_staff"),
            is_superuser: fields.flag("is_superuser"),
        };
        let date_joined = fields.text("date_joined", |text| parse_past(text, now));
        let bio = fields.text("bio", Bio::parse).unwrap_or_default();
        let is_public = fields.flag("is_public").unwrap_or(true);
        let timezone = fields.text("timezone", Timezone::parse).unwrap_or_default();
        let streak_visibility = fields.flag("streak_visibility").unwrap_or(true);
        let reasons = fields.finish();
        let Some(email) = email.filter(|_| reasons.is_empty()) else { return Err(reasons) };
        let person = Person { email, first_name, last_name };
        Ok(Self { person, password, flags, date_joined, bio, is_public, timezone, streak_visibility })
    }
}

/// The fields of a line. Each is taken out once; what is left over nobody knows.
struct Fields {
    object: Map<String, Value>,
    errors: FieldErrors,
}

impl Fields {
    /// What is made of a text; null counts as absent.
    fn text<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let value = match self.object.remove(name)? {
            Value::Null => return None,
            Value::String(text) => parse(&text),
            _ => Err("Not a valid string."),
        };
        self.errors.check(name, value)
    }

    fn flag(&mut self, name: &'static str) -> Option<bool> {
        let value = match self.object.remove(name)? {
            Value::Null => return None,
            Value::Bool(value) => Ok(value),
            _ => Err("Must be a valid boolean."),
        };
        self.errors.check(name, value)
    }

    /// What is wrong, a sentence each.
    fn finish(mut self) -> Vec<String> {
        for (name, _) in self.object {
            // Not passed over as in a request: of a million users a field would be lost by a slip of the pen.
            self.errors.wrong(name.escape_debug().take(40).collect::<String>(), "There is no such field.");
        }
        self.errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }
}

fn parse_hash(text: &str) -> Result<String, &'static str> {
    if text.starts_with(UNUSABLE) {
        return Ok(UNUSABLE.into());
    }
    password::is_verifiable(text).then(|| text.to_owned()).ok_or("No password can be checked against this hash.")
}

/// A time before `now`, in whole microseconds: what both stores keep.
fn parse_past(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, &'static str> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| "Not a valid time. Write it as 2026-11-23T10:00:00Z.")?;
    DateTime::from_timestamp_micros(time.timestamp_micros())
        .filter(|time| (DateTime::UNIX_EPOCH..=now).contains(time))
        .ok_or("Not a time between 1970 and now.")
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    pub made: u64,
    /// They had an account already, which stays as it is.
    pub skipped: u64,
}

impl App {
    /// Makes the users of a file that have no account yet, and tells `progress` of each batch that is committed. Nobody is
    /// mailed, and no event is sent.
    ///
    /// # Errors
    /// `Unavailable` if the database is away; what was committed stays, and is skipped the next time.
    pub async fn import<R: BufRead + Seek>(
        self: &Arc<Self>,
        mut file: UserFile<R>,
        mut progress: impl FnMut(Imported),
    ) -> Result<Imported> {
        file.source.rewind().map_err(Error::internal)?;
        let now = self.clock.now();
        let mut lines = Lines { source: file.source, number: 0 };
        let mut so_far = Imported::default();
        let is_sqlite = self.db.reader().get_database_backend() == DbBackend::Sqlite;
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            for line in lines.by_ref().take(BATCH) {
                let (number, line) = line.map_err(Error::internal)?;
                let newcomer = line.and_then(|line| Newcomer::parse(&line, now));
                batch.push(newcomer.map_err(|_| Error::internal(format!("line {number} changed while it was read")))?);
            }
            if batch.is_empty() {
                self.fold_user_counts().await?;
                return Ok(so_far);
            }
            let read = batch.len() as u64;
            let made = self
                .change(move |tx| {
                    Box::pin(async move {
                        let mut made = 0;
                        for newcomers in batch.chunks(ROWS) {
                            made += tx.insert_newcomers(newcomers).await?;
                        }
                        Ok(made)
                    })
                })
                .await?;
            so_far.made += made;
            so_far.skipped += read - made;
            progress(so_far);
            if is_sqlite {
                // Who waits there for the one writer doesn't queue, but looks again from time to time.
                tokio::time::sleep(LET_OTHERS_WRITE).await;
            }
        }
    }
}

impl Transaction {
    /// Those whose address is free, each with a profile and a line in the audit; how many they are.
    async fn insert_newcomers(&mut self, newcomers: &[Newcomer]) -> Result<u64> {
        let rows = newcomers.iter().map(|new| {
            let row = new_row(&new.person, new.password.clone(), new.flags, self.now);
            user::ActiveModel {
                listed: Set(new.flags.is_active && new.is_public),
                date_joined: Set(new.date_joined.unwrap_or(self.now)),
                ..row
            }
        });
        let taken = OnConflict::column(Column::EmailKey).do_nothing().to_owned();
        let mut insert = user::Entity::insert_many(rows).on_conflict(taken).into_query();
        insert.returning(Query::returning().columns([Column::Id, Column::EmailKey]));
        let made = self.db.query_all_raw(self.db.get_database_backend().build(&insert)).await?;
        if made.is_empty() {
            return Ok(0);
        }

        let by_address: HashMap<_, _> = newcomers.iter().map(|new| (new.person.email.key(), new)).collect();
        let (mut ids, mut profiles) = (Vec::new(), Vec::new());
        for row in made {
            let (id, address): (i64, String) = (row.try_get("", "id")?, row.try_get("", "email_key")?);
            let new = by_address.get(address.as_str());
            let new = new.ok_or_else(|| Error::internal("an address that nobody asked for was inserted"))?;
            ids.push(id);
            profiles.push(profile::ActiveModel {
                user_id: Set(id),
                avatar: Set(None),
                bio: Set(new.bio.as_str().to_owned()),
                is_public: Set(new.is_public),
                timezone: Set(new.timezone.name().to_owned()),
                streak_visibility: Set(new.streak_visibility),
                ..Default::default()
            });
        }
        profile::Entity::insert_many(profiles).exec_without_returning(&self.db).await?;
        self.audit_each(&Event::UserImported, &ids)?;
        Ok(ids.len() as u64)
    }
}
