//! Users: the types of their fields, and who may see one.

use std::{collections::HashMap, sync::Arc};

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizerBorrowed;
use sea_orm::{ColumnTrait, DerivePartialModel, EntityTrait, QueryFilter};

use crate::{
    app::App,
    cache::Versioned,
    config::DirectoryEmails,
    domain::{caller::Caller, permission::granted},
    entity::{counter, profile, user},
    error::{Error, Result},
    model::user::{Account, Profile, User},
};

pub const EMAIL_MAX_CHARS: usize = 254;
pub const NAME_MAX_CHARS: usize = 150;
pub const BATCH_MAX_IDS: usize = 100;

/// Text folded so that two spellings of the same letters are equal, in every script: NFC, case-folded, NFC again.
pub fn fold(text: &str) -> String {
    let nfc = ComposingNormalizerBorrowed::new_nfc();
    nfc.normalize(&CaseMapper::new().fold_string(&nfc.normalize(text))).into_owned()
}

/// An e-mail address, as typed with its domain in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmailAddress {
    text: String,
    key: String,
}

impl EmailAddress {
    /// White space around the address doesn't count. An internationalised domain is taken in either spelling.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        const INVALID: &str = "Enter a valid email address.";
        const TOO_LONG: &str = "Ensure this field has no more than 254 characters.";
        let raw = ComposingNormalizerBorrowed::new_nfc().normalize(raw.trim());
        if raw.is_empty() {
            return Err("This field may not be blank.");
        }
        if raw.chars().count() > EMAIL_MAX_CHARS {
            return Err(TOO_LONG);
        }
        let (local, domain) = raw.rsplit_once('@').ok_or(INVALID)?;
        if !is_local_part(local) {
            return Err(INVALID);
        }
        let ascii = domain_to_ascii(domain).ok_or(INVALID)?;
        // Of all spellings of a domain one, for they are one mailbox: `пример.рф`, not `xn--e1afmkfd.xn--p1ai`.
        let (unicode, _) = idna::domain_to_unicode(&ascii);
        // As typed; but what IDNA maps away, such as a soft hyphen, is nothing to keep.
        let text = format!("{local}@{}", if domain.is_ascii() { domain.to_ascii_lowercase() } else { unicode.clone() });
        if lettre::Address::new(local, &ascii).is_err() {
            return Err(INVALID); // No mail could ever reach it.
        }
        let key = fold(&format!("{local}@{unicode}"));
        // Again: some letters become several on the way.
        if text.chars().count() > EMAIL_MAX_CHARS {
            return Err(TOO_LONG);
        }
        Ok(Self { text, key })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What all spellings of one address have in common: unique in the table.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// `j***@example.com`: for those who may not see the address.
    pub fn mask(address: &str) -> String {
        let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
        let first: String = local.chars().take(1).collect();
        format!("{first}***@{domain}")
    }
}

/// A dot-atom of RFC 5322 §3.2.3, letters of any script included (RFC 6531), but nothing that can't be seen. Quoted strings
/// are nobody's address.
fn is_local_part(local: &str) -> bool {
    let is_atom = |c: char| {
        c.is_alphanumeric()
            || "!#$%&'*+/=?^_`{|}~-".contains(c)
            || !(c.is_ascii() || c.is_control() || c.is_whitespace() || is_invisible(c))
    };
    !local.is_empty() && local.len() <= 64 && local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom))
}

/// Characters without a shape of their own: with them, two addresses that look the same differ.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A name of at least two labels, as IDNA expresses it in ASCII.
fn domain_to_ascii(domain: &str) -> Option<String> {
    let ascii = idna::domain_to_ascii_strict(domain).ok()?;
    let labels: Vec<_> = ascii.split('.').collect();
    let top_is_name = labels.last().is_some_and(|top| top.len() >= 2 && !top.bytes().all(|b| b.is_ascii_digit()));
    (ascii.len() <= 253 && labels.len() >= 2 && top_is_name).then_some(ascii)
}

/// A first or a last name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PersonName(String);

impl PersonName {
    /// White space around the name doesn't count.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let name = raw.trim();
        if name.chars().any(char::is_control) {
            return Err("Control characters are not allowed.");
        }
        if name.chars().count() > NAME_MAX_CHARS {
            return Err("Ensure this field has no more than 150 characters.");
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a search looks through: the folded address and names, and the folded names alone, for those who may not search addresses.
pub fn search_texts(email_key: &str, first_name: &str, last_name: &str) -> (String, String) {
    let names = fold(&format!("{first_name} {last_name}")).trim().to_owned();
    (format!("{email_key} {names}"), names)
}

/// First and last name; `""` for who gave neither.
pub fn full_name(user: &user::Model) -> String {
    format!("{} {}", user.first_name, user.last_name).trim().to_owned()
}

/// What one is called among friends: the first name. `""` for who gave none.
pub fn short_name(user: &user::Model) -> &str {
    &user.first_name
}

/// How a mail may greet the user. `None` where the address is not verified: whoever registered a stranger's address would
/// choose the words that are mailed there.
pub(super) fn greeting_name(user: &user::Model) -> Option<String> {
    let names = [short_name(user).to_owned(), full_name(user)];
    names.into_iter().find(|name| user.is_verified && !name.is_empty())
}

/// Ids to look up at once.
#[derive(Debug, Clone)]
pub struct BatchIds(Vec<i64>);

impl BatchIds {
    /// The ids to look up, in their order.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(ids: Vec<i64>) -> Result<Self, &'static str> {
        if ids.len() > BATCH_MAX_IDS { Err("Ensure this field has no more than 100 elements.") } else { Ok(Self(ids)) }
    }
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "user::Entity")]
struct Shown {
    #[sea_orm(nested)]
    user: User,
    #[sea_orm(nested)]
    profile: Profile,
}

impl App {
    /// All that is shown of the user with this id, from the cache where it is not outdated; `None` where there is none.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub(super) async fn account(&self, id: i64) -> Result<Option<Arc<Account>>> {
        let now = self.clock.now();
        self.accounts.get(id, &self.feed, now, || self.read_account(id)).await
    }

    /// The same, from the database. The versions are read before or with what they stand for: it may be newer than they say, and
    /// never older.
    async fn read_account(&self, id: i64) -> Result<Option<Versioned<Account>>> {
        let db = self.db.reader();
        let read_at = self.clock.now();
        let groups = counter::Entity::find_by_id(counter::GROUPS).one(db).await?;
        let groups = groups.ok_or_else(|| Error::internal("the counter of groups is not there"))?;
        let shown = user::Entity::find_by_id(id).inner_join(profile::Entity).into_partial_model::<Shown>();
        let Some(Shown { user, profile }) = shown.one(db).await? else { return Ok(None) };
        let granted = granted(db, id).await?;
        let version = user.version;
        let value = Account { user, profile, granted };
        Ok(Some(Versioned { version, groups_version: groups.value, read_at, value }))
    }

    /// The user with this id as `caller` may see it; `None` where there is none, or none that the caller may see.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn get_user(&self, caller: &Caller, id: i64) -> Result<Option<User>> {
        let found = self.account(id).await?;
        Ok(found.filter(|found| caller.may_see(&found.user)).map(|found| self.shown_to(caller, found.user.clone())))
    }

    /// The users with these ids, in their order and each once; those that are not there, or that `caller` may not see, are left
    /// out.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn batch_get_users(&self, caller: &Caller, ids: &BatchIds) -> Result<Vec<User>> {
        let found = user::Entity::find().filter(user::Column::Id.is_in(ids.0.iter().copied()));
        let found = found.into_partial_model::<User>().all(self.db.reader()).await?;
        let mut found: HashMap<i64, User> = found.into_iter().map(|user| (user.id, user)).collect();
        let in_order = ids.0.iter().filter_map(|id| found.remove(id));
        let visible = in_order.filter(|user| caller.may_see(user));
        Ok(visible.map(|user| self.shown_to(caller, user)).collect())
    }

    /// Whether `caller` may see the addresses of others.
    pub fn sees_emails(&self, caller: &Caller) -> bool {
        caller.sees_everyone() || self.config.accounts.directory_emails == DirectoryEmails::Full
    }

    /// The user with the address masked where `caller` may not see it.
    pub(super) fn shown_to(&self, caller: &Caller, mut user: User) -> User {
        if caller.user_id != user.id && !self.sees_emails(caller) {
            user.email = EmailAddress::mask(&user.email);
        }
        user
    }
}
