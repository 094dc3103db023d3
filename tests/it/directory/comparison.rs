//! A list against a filter written in plain Rust, over people and queries that chance makes up: the same on both stores.

use std::cmp::Ordering;

use identity::{
    domain::user::{EmailAddress, fold},
    entity::user::{self, Column, Model},
};
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use super::{add, ids, list, noon, person};
use crate::{
    harness::{Face, Service, Store},
    user::{set_flags, user_id},
};

const FIRST_NAMES: [&str; 24] = [
    "John",
    "john",
    "JOHN",
    "Johnny",
    "Иван",
    "иван",
    "ИВАН",
    "Straße",
    "STRASSE",
    "İstanbul",
    "istanbul",
    "Işık",
    "O'Brien",
    "a_b",
    "100%",
    "a\\b",
    "\"Q\"",
    "NEAR(x",
    "AND",
    "*",
    "日本語",
    "Ы",
    "E\u{301}lodie",
    "",
];
const LAST_NAMES: [&str; 12] =
    ["Doe", "doe", "Smith, Jr", "Жук", "ΣΊΣΥΦΟΣ", "Σίσυφος", "ﬁsher", "", "van  der Berg", "%_%", "--", "Ω"];
const MAILBOXES: [&str; 6] = ["john", "J.Doe", "иван", "a_b", "100%", "o'brien"];
const DOMAINS: [&str; 4] = ["example.com", "mail.ru", "пример.рф", "john.example.org"];
const KEYS: [&str; 6] = ["id", "email", "date_joined", "first_name", "last_name", "nonsense"];
const ROLES: [&str; 4] = ["freelancer", "seller", "moderator", "admin"];

/// The same numbers each time: `SplitMix64`.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

fn somebody(chance: &mut Chance, n: usize) -> Model {
    let email = format!("{}{n}@{}", chance.of(&MAILBOXES), chance.of(&DOMAINS));
    let joined = noon() + chrono::Duration::microseconds(i64::try_from(chance.below(12)).unwrap() * 100_000);
    Model {
        is_active: !chance.one_in(8),
        is_staff: chance.one_in(12),
        is_superuser: chance.one_in(15),
        is_verified: chance.one_in(2),
        is_freelancer: chance.one_in(3),
        is_seller: chance.one_in(3),
        is_moderator: chance.one_in(10),
        listed: !chance.one_in(4),
        date_joined: joined,
        ..person(&email, chance.of(&FIRST_NAMES), chance.of(&LAST_NAMES))
    }
}

/// Some letters of somebody's, or somebody's whole address, in some case.
fn word(chance: &mut Chance, people: &[Model]) -> String {
    let one = &people[chance.below(people.len())];
    let source = match chance.below(4) {
        0 => &one.email,
        1 => &one.last_name,
        _ => &one.first_name,
    };
    let chars: Vec<char> = source.chars().filter(|c| !c.is_whitespace() && *c != ',').collect();
    let whole = chars.is_empty() || chance.one_in(5);
    let from = if whole { 0 } else { chance.below(chars.len()) };
    let to = if whole { chars.len() } else { (from + 1 + chance.below(5)).min(chars.len()) };
    let word: String = chars[from..to].iter().collect();
    match chance.below(3) {
        0 => word.to_uppercase(),
        1 => word.to_lowercase(),
        _ => word,
    }
}

fn some_query(chance: &mut Chance, people: &[Model], by_email: bool) -> Value {
    let mut query = json!({});
    if chance.one_in(2) {
        let words: Vec<_> = (0..=chance.below(3)).map(|_| word(chance, people)).collect();
        let search = words.join(chance.of(&[" ", ",", " , ", "\u{3000}"]));
        query["search"] = json!(search);
    }
    if chance.one_in(3) {
        query["role"] = json!(chance.of(&ROLES));
    }
    if chance.one_in(3) {
        query["is_verified"] = json!(chance.one_in(2));
    }
    if !chance.one_in(4) {
        let terms: Vec<_> = (0..=chance.below(4))
            .map(|_| format!("{}{}", chance.of(&["", "-"]), chance.of(&KEYS)))
            .filter(|term| by_email || !term.ends_with("email"))
            .collect();
        query["ordering"] = json!(terms.join(","));
    }
    query["page_size"] = json!(4 + chance.below(60));
    query["page"] = json!(1 + chance.below(3));
    query
}

/// Somebody, with names and address folded.
struct Folded {
    user: Model,
    names: String,
    email: String,
}

impl Folded {
    fn new(user: Model) -> Self {
        let names = fold(&format!("{} {}", user.first_name, user.last_name));
        Self { names, email: fold(&user.email), user }
    }
}

/// Whom the query is about, in its order.
fn expected(people: &[Folded], query: &Value, sees_everyone: bool) -> Vec<i64> {
    let search = query["search"].as_str().unwrap_or_default();
    let words: Vec<_> = search.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty()).collect();
    let words: Vec<_> = words.iter().map(|word| (fold(word), EmailAddress::parse(word).ok())).collect();
    let has = |one: &Folded, (word, address): &(String, Option<EmailAddress>)| {
        let is_address = address.as_ref().is_some_and(|address| address.key() == one.email);
        one.names.contains(word) || if sees_everyone { one.email.contains(word) } else { is_address }
    };
    let holds = |user: &Model, role: &str| match role {
        "freelancer" => user.is_freelancer,
        "seller" => user.is_seller,
        "moderator" => user.is_moderator,
        _ => user.is_staff || user.is_superuser,
    };
    let mut found: Vec<_> = people
        .iter()
        .filter(|one| sees_everyone || one.user.listed)
        .filter(|one| query["role"].as_str().is_none_or(|role| holds(&one.user, role)))
        .filter(|one| query["is_verified"].as_bool().is_none_or(|is| one.user.is_verified == is))
        .filter(|one| words.iter().all(|word| has(one, word)))
        .collect();
    let ordering = query["ordering"].as_str().unwrap_or_default();
    let mut terms: Vec<_> =
        ordering.split(',').filter(|term| KEYS[..5].contains(&term.trim_start_matches('-'))).collect();
    let last = if terms.first().is_some_and(|term| term.starts_with('-')) { "-id" } else { "id" };
    terms.push(last);
    found.sort_by(|a, b| {
        let by = |term: &&str| {
            let order = match term.trim_start_matches('-') {
                "email" => a.email.cmp(&b.email),
                "date_joined" => a.user.date_joined.cmp(&b.user.date_joined),
                "first_name" => a.user.first_name.cmp(&b.user.first_name),
                "last_name" => a.user.last_name.cmp(&b.user.last_name),
                _ => a.user.id.cmp(&b.user.id),
            };
            if term.starts_with('-') { order.reverse() } else { order }
        };
        terms.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    });
    found.into_iter().map(|one| one.user.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_what_a_plain_filter_gives() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
        let [user, moderator] = [service.user("plain@example.com").await, service.user("boss@example.com").await];
        set_flags(&service, user_id(&moderator), &[(Column::IsModerator, true)]).await;
        let mut chance = Chance(20_261_123);
        add(&service, (0..200).map(|n| somebody(&mut chance, n)).collect()).await;
        let people = user::Entity::find().all(service.app.db.reader()).await.unwrap();
        let folded: Vec<_> = people.iter().cloned().map(Folded::new).collect();
        let mut found = 0;
        for round in 0..200 {
            let sees_everyone = chance.one_in(2);
            let query = some_query(&mut chance, &people, sees_everyone);
            let all = expected(&folded, &query, sees_everyone);
            let [page, size] = ["page", "page_size"].map(|key| usize::try_from(query[key].as_u64().unwrap()).unwrap());
            let viewer = if sees_everyone { &moderator } else { &user };
            let face = if round % 2 == 0 { Face::Grpc } else { Face::Rest };
            let answer = list(viewer, face, query.clone()).await;
            let shown: Vec<_> = all.iter().copied().skip((page - 1) * size).take(size).collect();
            if page > 1 && shown.is_empty() {
                assert_eq!(answer.status, 404, "{store:?}: {query}");
                continue;
            }
            let answer = answer.expect(200);
            assert_eq!((ids(&answer), &answer["count"]), (shown, &json!(all.len())), "{store:?}: {query}");
            assert_eq!(answer["next"].is_string(), all.len() > page * size, "{store:?}: {query}");
            found += all.len();

            // On from here by tokens, page by page.
            let (mut rest, mut token) = (all.iter().skip(page * size), answer["next_page_token"].clone());
            let follows = chance.one_in(3);
            while follows && token.as_str().is_some_and(|token| !token.is_empty()) {
                let mut query = query.clone();
                query["page_token"] = token;
                let answer = list(viewer, face, query.clone()).await.expect(200);
                let shown: Vec<_> = rest.by_ref().take(size).copied().collect();
                assert_eq!((ids(&answer), &answer["count"]), (shown, &json!(all.len())), "{store:?}: {query}");
                token = answer["next_page_token"].clone();
            }
            assert!(face == Face::Rest || !follows || rest.next().is_none(), "{store:?}: {query}");
        }
        assert!(found > 5_000, "most queries find nobody: {found}");
        service.stop().await;
    }
}
