//! Limits: how often somebody may do something within a sliding window. Counted in this process; attempts in Redis, where there is
//! one, for all replicas together.
//!
//! Small limits remember each time and are exact. The general limit would need a thousand times a caller; it remembers
//! two counts instead, and takes the calls of the window before as spread evenly over it.
//!
//! The general limit is asked on every call, and never waits. Logins and registrations cost a hash anyway: their counts may
//! lie where it takes a wait to reach them, under keys that are the same on all replicas and tell nothing of an address.

mod shared;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    config::{self, LoginCounts, Rate},
    error::{Error, Result},
    metrics::{self, Counted},
    redis::Redis,
};

/// Up to this count each time is remembered.
const EXACT_UP_TO: u32 = 100;
/// How many callers are remembered at most in each table; beyond, those who were not seen for longest make room. At 64 to 900 bytes
/// each, this bounds the memory.
const MAX_KEYS: usize = 1 << 18;
const SHARDS: usize = 64;

/// Failed logins of a client, whatever the address.
const LOGIN_PER_CLIENT: u32 = 50;
/// Failed logins of an address a day, from all clients together that never logged in with it.
const LOGIN_BY_STRANGERS: Rate = Rate { count: 100, per: Duration::from_hours(24) };

pub struct Limiter {
    config: config::Limits,
    calls: Table,
    /// Logins and registrations, apart: however many callers there are, none of them pushes a failed login out.
    attempts: Table,
    /// Of calls. Keyed afresh in each process, so that nobody can choose keys that collide.
    hasher: RandomState,
    /// Of attempts. The same for all replicas, and known to nobody else.
    key: hmac::Key,
    /// Where attempts are counted for all replicas, while it is there.
    redis: Option<Redis>,
    metrics: metrics::Limits,
}

/// Whose calls are counted.
#[derive(Hash)]
enum Caller<'a> {
    User(i64),
    Client(IpAddr),
    Token(&'a str),
}

/// What attempts are counted. Clients are networks.
#[derive(Clone, Copy)]
enum Attempt<'a> {
    Login { address: &'a str, client: IpAddr },
    LoginByClient(IpAddr),
    LoginByStrangers { address: &'a str },
    ChangePassword { session: Uuid },
    Register(IpAddr),
}

impl Caller<'_> {
    /// As the metrics name it.
    fn limit(&self) -> &'static str {
        match self {
            Self::User(_) => "calls_of_user",
            Self::Client(_) => "calls_of_client",
            Self::Token(_) => "looks_at_token",
        }
    }
}

impl Attempt<'_> {
    /// As the metrics name it.
    fn limit(self) -> &'static str {
        match self {
            Self::Login { .. } => "login",
            Self::LoginByClient(_) => "login_by_client",
            Self::LoginByStrangers { .. } => "login_by_strangers",
            Self::ChangePassword { .. } => "change_password",
            Self::Register(_) => "register",
        }
    }
}

enum Window {
    Times(VecDeque<i64>),
    Counts { since: i64, before: u32, now: u32 },
}

/// A count taken before it is known whether it should be; given back, it never was.
#[derive(Debug, Default)]
#[must_use]
pub struct Reservation {
    taken: Vec<Taken>,
    /// The count of this address and client: a success clears it.
    address: Option<u64>,
}

/// Where one was counted.
#[derive(Debug)]
enum Taken {
    Here { key: u64, at: i64 },
    Shared(shared::Taken),
}

impl Limiter {
    /// `secret` keys the counts of attempts; replicas that share counts must share it.
    pub fn new(config: config::Limits, secret: &[u8], redis: Option<Redis>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let (calls, attempts) = (Table::default(), Table::default());
        Self { config, calls, attempts, hasher: RandomState::new(), key, redis, metrics: metrics::Limits::default() }
    }

    pub fn metrics(&self) -> &metrics::Limits {
        &self.metrics
    }

    /// Counts a call by its user, or by its client where there is no user.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub fn count_call(&self, user_id: Option<i64>, client: IpAddr, now: DateTime<Utc>) -> Result<()> {
        match user_id {
            Some(id) => self.count(&Caller::User(id), now),
            None if self.is_exempt(client) => Ok(()),
            None => self.count(&Caller::Client(network(client)), now),
        }
    }

    /// Counts a look at a good token, by its `jti`.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub fn count_token(&self, jti: &str, now: DateTime<Utc>) -> Result<()> {
        self.count(&Caller::Token(jti), now)
    }

    fn count(&self, caller: &Caller<'_>, now: DateTime<Utc>) -> Result<()> {
        let Some(rate) = self.config.api else { return Ok(()) };
        let counted = self.calls.take(self.hasher.hash_one(caller), rate, now).map(drop);
        self.metrics.asked(caller.limit(), Counted::Here, counted.is_ok());
        counted
    }

    /// Counts a registration as if it had happened; one refused for a field's value is given back.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub async fn reserve_registration(&self, client: IpAddr, now: DateTime<Utc>) -> Result<Reservation> {
        let mut reservation = Reservation::default();
        if let Some(rate) = self.config.register.filter(|_| !self.is_exempt(client)) {
            self.reserve(&mut reservation, Attempt::Register(network(client)), rate, now).await?;
        }
        Ok(reservation)
    }

    /// Whether logins are counted at all.
    pub fn counts_logins(&self) -> bool {
        self.config.login.is_some()
    }

    /// Counts a login as if it had failed, before the hash: so that fifty at once are not all let through.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub async fn reserve_login(&self, email_key: &str, client: IpAddr, now: DateTime<Utc>) -> Result<Reservation> {
        let mut reservation = Reservation::default();
        let Some(rate) = self.config.login.filter(|_| !self.is_exempt(client)) else { return Ok(reservation) };
        let client = network(client);
        let login = Attempt::Login { address: email_key, client };
        reservation.address = Some(self.reserve(&mut reservation, login, rate, now).await?);
        let by_client = Rate { count: LOGIN_PER_CLIENT.max(rate.count), ..rate };
        if let Err(throttled) = self.reserve(&mut reservation, Attempt::LoginByClient(client), by_client, now).await {
            self.give_back(reservation).await;
            return Err(throttled);
        }
        Ok(reservation)
    }

    /// Counts it, too, as that of a client who never logged in with this address. Gateways are such clients as well: behind
    /// one there may be anybody.
    ///
    /// # Errors
    /// `Throttled` if it is one too many; `reservation` is given back then.
    pub async fn reserve_login_by_stranger(
        &self,
        mut reservation: Reservation,
        email_key: &str,
        now: DateTime<Utc>,
    ) -> Result<Reservation> {
        let Some(rate) = self.config.login else { return Ok(reservation) };
        // No stricter than for one client.
        let rate = Rate { count: LOGIN_BY_STRANGERS.count.max(rate.count), ..LOGIN_BY_STRANGERS };
        let attempt = Attempt::LoginByStrangers { address: email_key };
        match self.reserve(&mut reservation, attempt, rate, now).await {
            Ok(_) => Ok(reservation),
            Err(throttled) => {
                self.give_back(reservation).await;
                Err(throttled)
            }
        }
    }

    /// Counts a change of password as if the old one had been wrong: as a login, and against all others of this session,
    /// whatever their clients. Whoever stole a session may have many clients; the owner has another session.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub async fn reserve_password_change(
        &self,
        email_key: &str,
        session: Uuid,
        client: IpAddr,
        now: DateTime<Utc>,
    ) -> Result<Reservation> {
        let mut reservation = self.reserve_login(email_key, client, now).await?;
        let Some(rate) = self.config.login else { return Ok(reservation) };
        let change = Attempt::ChangePassword { session };
        if let Err(throttled) = self.reserve(&mut reservation, change, rate, now).await {
            self.give_back(reservation).await;
            return Err(throttled);
        }
        Ok(reservation)
    }

    /// The login did not fail after all: it doesn't count, and the failures before it are forgotten.
    pub async fn login_succeeded(&self, reservation: Reservation) {
        if self.config.login_counts == LoginCounts::Attempts {
            return;
        }
        if let Some(address) = reservation.address {
            self.attempts.shard(address).remove(&address);
            if let Some(redis) = &self.redis {
                shared::clear(redis, address).await;
            }
        }
        self.give_back(reservation).await;
    }

    /// Undoes a count.
    pub async fn give_back(&self, reservation: Reservation) {
        for taken in reservation.taken {
            let (key, at) = match (taken, &self.redis) {
                (Taken::Here { key, at }, _) => (key, at),
                (Taken::Shared(taken), Some(redis)) => {
                    shared::give_back(redis, taken).await;
                    continue;
                }
                (Taken::Shared(_), None) => continue,
            };
            match self.attempts.shard(key).get_mut(&key) {
                Some(Window::Times(times)) => {
                    if let Some(place) = times.iter().rposition(|time| *time == at) {
                        times.remove(place);
                    }
                }
                Some(Window::Counts { now, .. }) => *now = now.saturating_sub(1),
                None => {}
            }
        }
    }

    /// Counts one more, and tells under which key: for all replicas, or here where Redis doesn't answer.
    async fn reserve(
        &self,
        reservation: &mut Reservation,
        attempt: Attempt<'_>,
        rate: Rate,
        now: DateTime<Utc>,
    ) -> Result<u64> {
        let key = self.attempt_key(attempt);
        let shared = match &self.redis {
            Some(redis) => shared::take(redis, key, rate, now.timestamp_micros()).await,
            None => None,
        };
        let counted = if shared.is_some() { Counted::Shared } else { Counted::Here };
        let taken = match shared {
            Some(shared::Outcome::Taken(taken)) => Ok(Taken::Shared(taken)),
            Some(shared::Outcome::Full { retry_after }) => Err(Error::Throttled { retry_after }),
            None => self.attempts.take(key, rate, now).map(|at| Taken::Here { key, at }),
        };
        self.metrics.asked(attempt.limit(), counted, taken.is_ok());
        reservation.taken.push(taken?);
        Ok(key)
    }

    /// Whether the client is a gateway, behind which there may be anybody.
    pub fn is_exempt(&self, client: IpAddr) -> bool {
        self.config.exempt.iter().any(|network| network.contains(&client))
    }

    fn attempt_key(&self, attempt: Attempt<'_>) -> u64 {
        // No part holds the character between them: the one is made of digits and colons, the other has no control character.
        let text = match attempt {
            Attempt::Login { address, client } => format!("login\0{client}\0{address}"),
            Attempt::LoginByClient(client) => format!("login by client\0{client}"),
            Attempt::LoginByStrangers { address } => format!("login by strangers\0{address}"),
            Attempt::ChangePassword { session } => format!("change password\0{session}"),
            Attempt::Register(client) => format!("register\0{client}"),
        };
        let tag = hmac::sign(&self.key, text.as_bytes());
        tag.as_ref().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }
}

/// Callers by their keys, in parts that are locked one by one.
struct Table(Box<[Mutex<HashMap<u64, Window>>]>);

impl Default for Table {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Table {
    /// Counts one, and tells at which time, so that it can be given back.
    fn take(&self, key: u64, rate: Rate, now: DateTime<Utc>) -> Result<i64> {
        let (now, length) = (now.timestamp_micros(), i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX));
        let mut shard = self.shard(key);
        if shard.len() >= MAX_KEYS / SHARDS && !shard.contains_key(&key) {
            make_room(&mut shard);
        }
        let window = shard.entry(key).or_insert_with(|| Window::new(rate, now));
        match window.take(rate.count, length, now) {
            None => Ok(now),
            Some(wait) => {
                Err(Error::Throttled { retry_after: Duration::from_micros(u64::try_from(wait).unwrap_or_default()) })
            }
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Window>> {
        let [low, ..] = key.to_le_bytes();
        self.0[usize::from(low) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn new(rate: Rate, now: i64) -> Self {
        if rate.count <= EXACT_UP_TO {
            Self::Times(VecDeque::new())
        } else {
            Self::Counts { since: now, before: 0, now: 0 }
        }
    }

    /// Counts one at `now`, or tells how many microseconds to wait until one may.
    fn take(&mut self, count: u32, length: i64, now: i64) -> Option<i64> {
        match self {
            Self::Times(times) => {
                while times.front().is_some_and(|time| *time <= now - length) {
                    times.pop_front();
                }
                if times.len() < count as usize {
                    times.push_back(now);
                    return None;
                }
                Some(times.front().map_or(length, |oldest| oldest + length - now))
            }
            Self::Counts { since, before, now: counted } => {
                let windows = (now - *since) / length;
                if windows > 0 {
                    *before = if windows == 1 { *counted } else { 0 };
                    *counted = 0;
                    *since += windows * length;
                }
                // Less one: as among times, what is exactly one window old has left.
                let left = length - (now - *since) - 1;
                let (before, room) = (i64::from(*before), i64::from(count) - i64::from(*counted));
                if before * left / length < room {
                    *counted += 1;
                    return None;
                }
                // The calls of the window before leave evenly: until enough of them have, or the window is over.
                Some(if room > 0 { left - (room * length - 1) / before } else { left + 1 })
            }
        }
    }

    fn last_seen(&self) -> i64 {
        match self {
            Self::Times(times) => times.back().copied().unwrap_or_default(),
            Self::Counts { since, .. } => *since,
        }
    }
}

/// Forgets the quarter that was not seen for longest.
fn make_room(shard: &mut HashMap<u64, Window>) {
    let mut seen: Vec<_> = shard.values().map(Window::last_seen).collect();
    let quarter = seen.len() / 4;
    let (_, edge, _) = seen.select_nth_unstable(quarter);
    let edge = *edge;
    shard.retain(|_, window| window.last_seen() > edge);
}

/// One client: an address, or with IPv6 the /64 that one subscriber has.
pub fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}
