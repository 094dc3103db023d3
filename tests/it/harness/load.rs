//! People who use the service from several sides at once, and who remember what they were told: what was acknowledged must
//! hold, whatever became of the service since. What was asked for without an answer may have been done, or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::{StreamExt, future::join_all, stream};
use serde_json::{Value, json};

use super::{
    Actor, Face, PASSWORD, Store,
    process::Installation,
    redis,
    smtp::{MailServer, Taken},
    stores::{Database, migrated_database},
};

const ADMIN: &str = "admin@example.com";
/// How many use the service at once.
const WORKERS: usize = 8;
/// How many are asked about at once.
const LOOKS: usize = 16;
/// Of each worker, how many others than those for whom something was done are looked at.
const OTHERS: usize = 5;

/// Chance that can be repeated (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn one_of<'a, T>(&mut self, all: &'a mut [T]) -> Option<&'a mut T> {
        let count = u64::try_from(all.len()).unwrap();
        (count > 0).then(|| &mut all[usize::try_from(self.below(count)).unwrap()])
    }
}

/// A program over this store, with cheap hashes and no limits, whose mail goes to `mails`; and a superuser in it.
pub async fn installation(store: Store, mails: &MailServer) -> (Database, Installation) {
    let database = migrated_database(store).await;
    let mut installation = Installation::with(&[
        ("DATABASE_URL", &database.url),
        ("DEBUG", "true"),
        ("LOG_LEVEL", "warn"),
        ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789"),
        ("JWT_EXPIRATION_DELTA", "86400"),
        ("ARGON2_MEMORY_KIB", "64"),
        ("ARGON2_ITERATIONS", "1"),
        ("SUPERUSER_PASSWORD", PASSWORD),
    ]);
    for limit in ["LOGIN", "REGISTER", "API", "VERIFICATION"] {
        installation.set(&format!("RATE_LIMIT_{limit}"), "off");
    }
    let place = if store == Store::Postgres { redis::place().await } else { Vec::new() };
    for (name, value) in mails.settings().into_iter().chain(place) {
        installation.set(&name, &value);
    }
    installation.run(&["createsuperuser", "--email", ADMIN]).await.expect(0);
    (database, installation)
}

/// What is known of a value that only one writes.
#[derive(Debug, Clone)]
pub struct Fact<T> {
    acknowledged: T,
    /// What was asked for since, without an answer.
    asked: Option<T>,
}

impl<T: PartialEq + Clone + Debug> Fact<T> {
    fn new(acknowledged: T) -> Self {
        Self { acknowledged, asked: None }
    }

    fn ask(&mut self, value: T) {
        self.asked = Some(value);
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.asked.take().expect("it was asked for");
    }

    /// From now on it is what was seen; or the loss, in words.
    fn settle(&mut self, seen: T, leniency: Leniency) -> Result<(), String> {
        let known = self.clone();
        self.asked = None;
        let may_be = known.asked.as_ref() == Some(&seen) && leniency == Leniency::UnansweredMayBeDone;
        if seen == known.acknowledged || may_be {
            self.acknowledged = seen;
            return Ok(());
        }
        Err(format!("{seen:?} is not what was said: {known:?}"))
    }
}

/// What calls without an answer may have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leniency {
    /// After a crash nobody knows.
    UnansweredMayBeDone,
    /// After an orderly end: whoever was heard, was answered.
    UnansweredIsNotDone,
}

/// A user, and what the user was told.
#[derive(Debug, Clone)]
pub struct Person {
    pub email: String,
    pub id: i64,
    pub token: String,
    bio: Fact<String>,
    is_seller: Fact<bool>,
    /// Codes that were asked for and acknowledged, that of the registration among them.
    codes: usize,
    /// Codes that were asked for.
    codes_asked: usize,
    /// Tokens of sessions that were ended.
    left: Vec<String>,
    /// One whose end was not answered.
    leaving: Option<String>,
    /// Nobody has looked since something was asked for.
    is_touched: bool,
}

impl Person {
    /// As the answer to a registration or a login tells. `codes` were acknowledged.
    fn new(email: String, answer: &Value, codes: usize) -> Self {
        let token = answer["access_token"].as_str().unwrap().to_owned();
        let id = super::actor::claims(&token)["user_id"].as_str().unwrap().parse().unwrap();
        Self {
            email,
            id,
            token,
            bio: Fact::new(String::new()),
            is_seller: Fact::new(false),
            codes,
            codes_asked: 1,
            left: Vec::new(),
            leaving: None,
            is_touched: true,
        }
    }

    /// Holds what the service says now against what it said; returns the losses.
    async fn look(&mut self, anyone: &Actor, leniency: Leniency) -> Vec<String> {
        let mut losses = Vec::new();
        let profile = anyone.with_token(&self.token).call(face_of(self.id), GET_PROFILE, json!({})).await;
        if profile.status == 200 {
            let bio = profile.answer["bio"].as_str().unwrap().to_owned();
            let is_seller = profile.answer["roles"].as_array().unwrap().contains(&json!("Seller"));
            losses.extend(self.bio.settle(bio, leniency).err());
            losses.extend(self.is_seller.settle(is_seller, leniency).err());
        } else {
            losses.push(format!("no profile: {profile:?}"));
        }
        if let Some(token) = self.leaving.take() {
            match anyone.with_token(&token).call(Face::Grpc, GET_PROFILE, json!({})).await.status {
                401 if leniency == Leniency::UnansweredMayBeDone => self.left.push(token),
                200 => {}
                other => losses.push(format!("an unanswered logout: {other}")),
            }
        }
        for token in &self.left {
            let status = anyone.with_token(token).call(Face::Rest, GET_PROFILE, json!({})).await.status;
            if status != 401 {
                losses.push(format!("a session that was ended: {status}"));
            }
        }
        self.is_touched = false;
        losses.into_iter().map(|loss| format!("{}: {loss}", self.email)).collect()
    }
}

const GET_PROFILE: &str = "ProfileService.GetMyProfile";

fn face_of(n: i64) -> Face {
    if n % 2 == 0 { Face::Rest } else { Face::Grpc }
}

/// The answer to a call; `None` if there was none, or that it can't be done now.
async fn ask(actor: &Actor, face: Face, rpc: &str, fields: Value) -> Option<Value> {
    let outcome = actor.try_call(face, rpc, fields).await?;
    if outcome.status >= 500 {
        return None;
    }
    assert!(outcome.status < 300, "{rpc} of somebody who may: {outcome:?}");
    Some(outcome.answer)
}

/// One of those who use the service, each with people of its own.
struct Worker {
    name: String,
    dice: Dice,
    people: Vec<Person>,
    /// Addresses whose registration was not answered.
    registering: Vec<String>,
    /// What was acknowledged, by kind.
    acknowledged: BTreeMap<&'static str, usize>,
    admin: String,
    count: usize,
}

impl Worker {
    /// Does one thing or another, and remembers the answer. False if there was none.
    async fn act(&mut self, anyone: &Actor) -> bool {
        let face = if self.dice.below(2) == 0 { Face::Rest } else { Face::Grpc };
        let kind = match self.dice.below(20) {
            0..3 => self.register(anyone, face).await,
            3..12 => self.write_profile(anyone, face).await,
            12..15 => self.log_out(anyone, face).await,
            15..18 => self.change_role(anyone, face).await,
            _ => self.ask_for_a_code(anyone, face).await,
        };
        let Some(kind) = kind else { return false };
        *self.acknowledged.entry(kind).or_default() += 1;
        true
    }

    async fn register(&mut self, anyone: &Actor, face: Face) -> Option<&'static str> {
        self.count += 1;
        let email = format!("{}-{}@example.com", self.name, self.count);
        self.registering.push(email.clone());
        let answer = ask(anyone, face, "AuthService.Register", json!({ "email": email, "password": PASSWORD })).await?;
        self.registering.pop();
        self.people.push(Person::new(email, &answer, 1));
        Some("registrations")
    }

    async fn write_profile(&mut self, anyone: &Actor, face: Face) -> Option<&'static str> {
        self.count += 1;
        let Some(person) = self.dice.one_of(&mut self.people) else { return self.register(anyone, face).await };
        person.is_touched = true;
        let bio = format!("{} of {}", self.count, person.email);
        person.bio.ask(bio.clone());
        ask(&anyone.with_token(&person.token), face, "ProfileService.UpdateMyProfile", json!({ "bio": bio })).await?;
        person.bio.acknowledge();
        Some("profile writes")
    }

    async fn log_out(&mut self, anyone: &Actor, face: Face) -> Option<&'static str> {
        let Some(person) = self.dice.one_of(&mut self.people) else { return self.register(anyone, face).await };
        person.is_touched = true;
        let login = json!({ "email": person.email, "password": PASSWORD });
        let answer = ask(anyone, face, "AuthService.Login", login).await?;
        let token = answer["access_token"].as_str().unwrap();
        person.leaving = Some(token.to_owned());
        ask(&anyone.with_token(token), face, "AuthService.Logout", json!({})).await?;
        person.left.extend(person.leaving.take());
        Some("logouts")
    }

    async fn change_role(&mut self, anyone: &Actor, face: Face) -> Option<&'static str> {
        let Some(person) = self.dice.one_of(&mut self.people) else { return self.register(anyone, face).await };
        person.is_touched = true;
        let (admin, fields) = (anyone.with_token(&self.admin), json!({ "id": person.id, "role": "seller" }));
        let is_seller = !person.is_seller.acknowledged;
        person.is_seller.ask(is_seller);
        let rpc = if is_seller { "RoleService.AddUserRole" } else { "RoleService.RemoveUserRole" };
        ask(&admin, face, rpc, fields).await?;
        person.is_seller.acknowledge();
        Some("role changes")
    }

    async fn ask_for_a_code(&mut self, anyone: &Actor, face: Face) -> Option<&'static str> {
        let few = self.people.iter_mut().filter(|person| person.codes_asked < 5).collect::<Vec<_>>();
        let Some(person) = few.into_iter().next_back() else { return self.register(anyone, face).await };
        person.codes_asked += 1;
        ask(&anyone.with_token(&person.token), face, "AuthService.SendVerification", json!({})).await?;
        person.codes += 1;
        Some("codes asked for")
    }

    /// Whether those whose registration was not answered are users, and what can be known of the others.
    async fn look(&mut self, anyone: &Actor, leniency: Leniency, whom: Whom) -> Vec<String> {
        let mut losses = Vec::new();
        for email in std::mem::take(&mut self.registering) {
            let login = json!({ "email": email, "password": PASSWORD });
            let login = anyone.call(Face::Rest, "AuthService.Login", login).await;
            match login.status {
                200 if leniency == Leniency::UnansweredMayBeDone => {
                    self.people.push(Person::new(email, &login.answer, 1));
                }
                404 => {}
                _ => losses.push(format!("{email}: an unanswered registration: {login:?}")),
            }
        }
        if whom == Whom::TheTouched {
            for _ in 0..OTHERS {
                if let Some(person) = self.dice.one_of(&mut self.people) {
                    person.is_touched = true;
                }
            }
        }
        let people = self.people.iter_mut().filter(|person| whom == Whom::All || person.is_touched);
        let looks = stream::iter(people).map(|person| person.look(anyone, leniency));
        let found: Vec<_> = looks.buffer_unordered(LOOKS).collect().await;
        losses.extend(found.into_iter().flatten());
        losses
    }
}

/// Who is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    All,
    /// Those for whom something was asked since the last look, and a few others.
    TheTouched,
}

/// All who use the service.
pub struct Crowd {
    workers: Vec<Worker>,
    /// What was acknowledged and does not hold, in words.
    pub losses: Vec<String>,
}

impl Crowd {
    pub async fn new(address: SocketAddr, seed: u64) -> Self {
        let login = json!({ "email": ADMIN, "password": PASSWORD });
        let admin = Actor::new(address).call(Face::Rest, "AuthService.Login", login).await.expect(200);
        let admin = admin["access_token"].as_str().unwrap();
        let workers = (0..WORKERS).map(|n| Worker {
            name: format!("w{n}"),
            dice: Dice::new(seed ^ (u64::try_from(n).unwrap() << 32)),
            people: Vec::new(),
            registering: Vec::new(),
            acknowledged: BTreeMap::new(),
            admin: admin.to_owned(),
            count: 0,
        });
        Self { workers: workers.collect(), losses: Vec::new() }
    }

    /// Uses the service at this address until `is_over`, and for as long as it answers. Returns how many calls were refused
    /// before that.
    pub async fn work(&mut self, address: SocketAddr, is_over: &AtomicBool) -> usize {
        let each = self.workers.iter_mut().map(async |worker| {
            let (anyone, mut refused) = (Actor::new(address), 0);
            loop {
                let was_answered = worker.act(&anyone).await;
                if is_over.load(Ordering::SeqCst) {
                    if !was_answered {
                        return refused;
                    }
                } else if !was_answered {
                    refused += 1;
                }
            }
        });
        join_all(each).await.into_iter().sum()
    }

    /// Holds what the service at this address says against what was acknowledged.
    pub async fn look(&mut self, address: SocketAddr, leniency: Leniency, whom: Whom) {
        let anyone = Actor::new(address);
        let each = self.workers.iter_mut().map(|worker| worker.look(&anyone, leniency, whom));
        self.losses.extend(join_all(each).await.into_iter().flatten());
    }

    /// Whether everybody can log in.
    pub async fn log_in(&mut self, address: SocketAddr) {
        let anyone = Actor::new(address);
        let all: Vec<_> = self.people().map(|person| person.email.clone()).collect();
        let logins = stream::iter(all).map(async |email| {
            let login = json!({ "email": email, "password": PASSWORD });
            let login = anyone.call(Face::Grpc, "AuthService.Login", login).await;
            (login.status != 200).then(|| format!("{email}: no login: {login:?}"))
        });
        let found: Vec<_> = logins.buffer_unordered(LOOKS).collect().await;
        self.losses.extend(found.into_iter().flatten());
    }

    pub fn people(&self) -> impl Iterator<Item = &Person> {
        self.workers.iter().flat_map(|worker| &worker.people)
    }

    /// What was acknowledged, by kind.
    pub fn acknowledged(&self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::new();
        for (kind, count) in self.workers.iter().flat_map(|worker| &worker.acknowledged) {
            *all.entry(*kind).or_default() += count;
        }
        all
    }

    /// The mails that were acknowledged and did not come.
    pub fn missing_mails(&self, taken: &[Taken]) -> Vec<String> {
        let came = by_recipient(taken);
        let missing = self.people().filter_map(|person| {
            let count = came.get(person.email.as_str()).map_or(0, BTreeMap::len);
            (count < person.codes).then(|| format!("{}: {count} of {} mails", person.email, person.codes))
        });
        missing.collect()
    }

    /// A mail that came twice is the same mail, and none came that nobody asked for.
    pub fn look_through(&mut self, taken: &[Taken]) {
        let came = by_recipient(taken);
        let mut wrong = Vec::new();
        for person in self.people() {
            let mails = came.get(person.email.as_str());
            let count = mails.map_or(0, BTreeMap::len);
            if count > person.codes_asked {
                wrong.push(format!("{}: {count} mails, {} asked for", person.email, person.codes_asked));
            }
            if mails.is_some_and(|mails| mails.values().any(|texts| texts.len() > 1)) {
                wrong.push(format!("{}: copies of a mail differ", person.email));
            }
        }
        self.losses.extend(wrong);
    }
}

/// Whatever came to each address, by Message-ID.
fn by_recipient(taken: &[Taken]) -> BTreeMap<&str, BTreeMap<&str, BTreeSet<String>>> {
    let mut all: BTreeMap<_, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
    for mail in taken {
        let lines = mail.text.lines().filter(|line| !line.starts_with("Date: ") && !line.contains("boundary"));
        let text = lines.filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
        all.entry(mail.to.as_str()).or_default().entry(mail.message_id()).or_default().insert(text);
    }
    all
}
