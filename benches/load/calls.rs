//! The calls that are measured: warm reads, changes of one row, and what takes a hash.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use argon2::{Argon2, Block};
use futures_util::future::join_all;
use identity::pb;
use tokio::task::spawn_blocking;

use crate::{
    Outcome,
    ceiling::{GET_MY_PROFILE, GET_USER, VERIFY_TOKEN},
    data::{self, PASSWORD},
    grpc::{self, GrpcCaller},
    measure::{Caller, nanos},
    people::{self, Person, text_field},
    rest::{Next, Request, RestCaller},
    run::{Run, Side},
    stores::{Stores, Updater},
};

/// What logins and registrations are measured beside.
pub const HASH: &str = "raw argon2";

/// What is answered from memory, and what asks the stores whether they are there.
pub async fn reads(run: &mut Run<'_>) -> Outcome<()> {
    let person = people::log_in(run.service.address, 1).await?.remove(0);
    let token = Some(person.access.as_str());
    run.rest("GET /api/profile/me/", Request::get("/api/profile/me/", &person.access)).await?;
    let path = format!("/api/users/{}/", person.id);
    run.rest("GET /api/users/{id}/", Request::get(&path, &person.access)).await?;
    let body = format!(r#"{{"token":"{}"}}"#, person.access);
    run.rest("POST /api/auth/verify/", Request::json("POST", "/api/auth/verify/", None, &body)).await?;
    run.rest("GET /api/health/", Request { token: None, ..Request::get("/api/health/", "") }).await?;
    run.grpc::<_, pb::Profile>(GET_MY_PROFILE, token, pb::GetMyProfileRequest {}, true).await?;
    run.grpc::<_, pb::User>(GET_USER, token, pb::GetUserRequest { id: person.id }, false).await?;
    let verify = pb::VerifyTokenRequest { token: Some(person.access.clone()) };
    run.grpc::<_, pb::VerifyTokenResponse>(VERIFY_TOKEN, None, verify, false).await
}

/// What is one transaction, beside a bare UPDATE of one row, committed.
pub async fn changes(run: &mut Run<'_>, stores: &Stores) -> Outcome<()> {
    let most = run.plan.at.iter().copied().max().unwrap_or(1);
    let rows = Updater::all(stores, run.store, most).await?;
    for at in run.plan.at.clone() {
        let (address, rows) = (run.service.address, &rows[..at]);
        let people = people::log_in(address, at).await?;
        let patches = people.iter().map(|person| RestCaller::following(address, patch(person.access.clone()), 200));
        beside_update(run, rows, "PATCH /api/profile/me/", all(patches).await?).await?;
        let channels = grpc::connections(address, at).await?;
        let updates = people.iter().zip(channels.iter().cycle()).map(|(person, channel)| {
            let (path, mut n) = ("/identity.v1.ProfileService/UpdateMyProfile", 0);
            GrpcCaller::<_, pb::Profile>::new(channel.clone(), path, Some(&person.access), move |_| {
                n += 1;
                pb::UpdateMyProfileRequest { bio: Some(format!("Number {n}.")), ..Default::default() }
            })
        });
        beside_update(run, rows, "UpdateMyProfile", updates.collect::<Outcome<_>>()?).await?;
        let refreshes = people.into_iter().map(|person| RestCaller::following(address, refresh(person), 200));
        beside_update(run, rows, "POST /api/auth/refresh/", all(refreshes).await?).await?;
        let people = people::log_in(address, at).await?;
        let refreshes = people.into_iter().zip(channels.iter().cycle()).map(|(person, channel)| {
            let path = "/identity.v1.AuthService/RefreshToken";
            GrpcCaller::new(channel.clone(), path, None, move |last: Option<&pb::RefreshTokenResponse>| {
                let token = last.map_or_else(|| person.refresh.clone(), |last| last.refresh_token.clone());
                pb::RefreshTokenRequest { refresh_token: Some(token) }
            })
        });
        beside_update(run, rows, "RefreshToken", refreshes.collect::<Outcome<_>>()?).await?;
    }
    Ok(())
}

async fn beside_update<C: Caller>(run: &mut Run<'_>, rows: &[Updater], call: &str, callers: Vec<C>) -> Outcome<()> {
    let ours = Side { callers, pid: Some(run.service.pid()) };
    run.compare(call, "bare UPDATE", ours, Side { callers: rows.to_vec(), pid: None }).await?;
    Ok(())
}

async fn all(callers: impl Iterator<Item = impl Future<Output = Outcome<RestCaller>>>) -> Outcome<Vec<RestCaller>> {
    join_all(callers).await.into_iter().collect()
}

/// Another `bio` each time.
fn patch(token: String) -> Next {
    let mut n = 0;
    Box::new(move |_| {
        n += 1;
        let body = format!(r#"{{"bio":"Number {n}."}}"#);
        Request::json("PATCH", "/api/profile/me/", Some(&token), &body).bytes()
    })
}

/// With the refresh token of the last answer each time.
fn refresh(person: Person) -> Next {
    Box::new(move |last| {
        let token = text_field(last, "refresh_token").unwrap_or(&person.refresh);
        let body = format!(r#"{{"refresh_token":"{token}"}}"#);
        Request::json("POST", "/api/auth/refresh/", None, &body).bytes()
    })
}

/// What takes a hash, beside nothing but hashes, on as many threads of the same low priority.
pub async fn hashes(run: &mut Run<'_>, users: u64) -> Outcome<()> {
    let address = run.service.address;
    let made = Arc::new(AtomicU64::new(0));
    for at in run.plan.at.clone() {
        let logins = (0..at as u64).map(|n| RestCaller::following(address, logins(n, at as u64, users), 200));
        beside_hash(run, "POST /api/auth/login/", all(logins).await?).await?;
        let made = &made;
        let registrations = (0..at).map(|_| RestCaller::following(address, registrations(made), 201));
        beside_hash(run, "POST /api/auth/register/", all(registrations).await?).await?;
    }
    let at = *run.plan.at.get(1).unwrap_or(&1);
    let channels = grpc::connections(address, at).await?;
    let logins = (0..at as u64).zip(channels.iter().cycle()).map(|(first, channel)| {
        let mut n = first;
        GrpcCaller::<_, pb::LoginResponse>::new(channel.clone(), "/identity.v1.AuthService/Login", None, move |_| {
            n = (n + at as u64) % (users - 1);
            pb::LoginRequest { email: Some(data::email(n + 1)), password: Some(PASSWORD.to_owned()) }
        })
    });
    beside_hash(run, "Login", logins.collect::<Outcome<_>>()?).await
}

async fn beside_hash<C: Caller>(run: &mut Run<'_>, call: &str, callers: Vec<C>) -> Outcome<()> {
    let threads = std::thread::available_parallelism()?.get().min(callers.len());
    let bare = (0..threads).map(|_| Hasher::new()).collect::<Outcome<_>>()?;
    let ours = Side { callers, pid: Some(run.service.pid()) };
    // The hashing is done by this very process, which has little else to do meanwhile.
    let pid = Some(std::process::id());
    run.compare(call, HASH, ours, Side { callers: bare, pid }).await?;
    Ok(())
}

/// One user after the other, of those that are this caller's among so many.
fn logins(first: u64, step: u64, users: u64) -> Next {
    let mut n = first;
    Box::new(move |_| {
        n = (n + step) % (users - 1);
        people::login(&data::email(n + 1))
    })
}

/// Another address each time.
fn registrations(made: &Arc<AtomicU64>) -> Next {
    let made = Arc::clone(made);
    Box::new(move |_| {
        let n = made.fetch_add(1, Ordering::Relaxed);
        let body = format!(r#"{{"email":"new-{n}@example.org","password":"{PASSWORD}","first_name":"New"}}"#);
        Request::json("POST", "/api/auth/register/", None, &body).bytes()
    })
}

/// Hashes, in memory of its own that it keeps, as the threads of the service do.
struct Hasher {
    argon2: Argon2<'static>,
    blocks: Vec<Block>,
}

impl Hasher {
    fn new() -> Outcome<Self> {
        let argon2 = data::hasher()?;
        let blocks = vec![Block::new(); argon2.params().block_count()];
        Ok(Self { argon2, blocks })
    }

    fn hash(&mut self) -> Outcome<()> {
        let mut out = [0; 32];
        self.argon2.hash_password_into_with_memory(PASSWORD.as_bytes(), &[7; 16], &mut out, &mut self.blocks)?;
        Ok(())
    }
}

impl Caller for Hasher {
    async fn call(&mut self) -> Outcome<()> {
        self.hash()
    }

    /// On a thread of its own, which goes on without asking anybody.
    async fn call_until(mut self, end: Instant) -> Outcome<(Self, Vec<u32>)> {
        let hashing = spawn_blocking(move || {
            lower_priority();
            let mut latencies = Vec::new();
            let mut now = Instant::now();
            while now < end {
                self.hash()?;
                latencies.push(nanos(now.elapsed()));
                now = Instant::now();
            }
            Ok((self, latencies))
        });
        hashing.await?
    }
}

/// That of the service's hashing threads.
fn lower_priority() {
    // Where the system refuses, it refuses the service as well.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
}
