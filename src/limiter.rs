//! Limits: how often somebody may do something within a sliding window. Counted in this process, and in Redis, where there is
//! one, for all replicas together.
//!
//! The general limit is asked on every call, and never waits: it is counted here, and settled with the other replicas some times a
//! second. Logins and registrations cost a hash anyway: their counts may lie where it takes a wait to reach them. Both have keys
//! that are the same on all replicas and tell nothing of an address or a user.

mod calls;
mod shared;
mod window;

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aws_lc_rs::hmac;
use calls::{Caller, Calls};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use shared::{Member, Outcome, Owed, Undo};
use uuid::Uuid;
use window::Table;

use crate::{
    config::{self, LoginCounts, Rate},
    error::{Error, Result},
    metrics::{self, Counted},
    redis::Redis,
};

/// Failed logins of a client, whatever the address.
const LOGIN_PER_CLIENT: u32 = 50;
/// Failed logins of an address a day, from all clients together that never logged in with it.
const LOGIN_BY_STRANGERS: Rate = Rate { count: 100, per: Duration::from_hours(24) };

pub struct Limiter {
    config: config::Limits,
    calls: Calls,
    /// Logins and registrations, apart: however many callers there are, none of them pushes a failed login out.
    attempts: Table,
    /// Of attempts, and of the hashes of callers. The same for all replicas, and known to nobody else.
    key: hmac::Key,
    /// Where attempts are counted for all replicas, while it is there.
    redis: Option<Redis>,
    owed: Owed,
    metrics: metrics::Limits,
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

/// A count taken before it is known whether it should be; given back, it never was.
#[derive(Debug, Default)]
#[must_use]
pub struct Reservation {
    taken: Vec<Taken>,
    /// The count of this address and client: a success clears it.
    address: Option<u64>,
}

/// One that was counted: here, and in Redis where there is one, though it may not have said so.
#[derive(Debug)]
struct Taken {
    key: u64,
    at: i64,
    shared: Option<shared::Member>,
}

impl Limiter {
    /// `secret` keys the counts; replicas that share counts must share it.
    pub fn new(config: config::Limits, secret: &[u8], redis: Option<Redis>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let calls = Calls::new(&key, redis.clone());
        Self {
            config,
            calls,
            attempts: Table::default(),
            key,
            redis,
            owed: Owed::default(),
            metrics: metrics::Limits::default(),
        }
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
        let counted = self.calls.take(caller, rate, now);
        self.metrics.asked(caller.limit(), Counted::Here, counted.is_ok());
        counted
    }

    /// Tells the other replicas how often those called who call often, hears it of them, and has undone in Redis what could not be when
    /// it was due. Without Redis there is nothing to do.
    pub async fn settle(&self, now: DateTime<Utc>) {
        if let Some(redis) = &self.redis {
            self.owed.pay(redis).await;
        }
        if let Some(rate) = self.config.api {
            self.calls.settle(rate, now).await;
        }
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
        let by_client = Rate { count: LOGIN_PER_CLIENT.max(rate.count), ..rate };
        // At once: what waits for Redis waits once.
        let mut of_client = Reservation::default();
        let (login, by_client) = tokio::join!(
            self.reserve(&mut reservation, login, rate, now),
            self.reserve(&mut of_client, Attempt::LoginByClient(client), by_client, now),
        );
        reservation.taken.append(&mut of_client.taken);
        match (login, by_client) {
            (Ok(address), Ok(_)) => Ok(Reservation { address: Some(address), ..reservation }),
            (Err(throttled), _) | (_, Err(throttled)) => {
                self.give_back(reservation).await;
                Err(throttled)
            }
        }
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
    pub async fn login_succeeded(&self, reservation: Reservation, now: DateTime<Utc>) {
        if self.config.login_counts == LoginCounts::Attempts {
            return;
        }
        let address = reservation.address;
        if let Some(address) = address {
            self.attempts.clear(address);
        }
        let forget = async {
            if let (Some(redis), Some(address)) = (&self.redis, address) {
                self.owed.undo(redis, address, Undo::Before(now.timestamp_micros())).await;
            }
        };
        tokio::join!(forget, self.give_back(reservation));
    }

    /// Undoes a count.
    pub async fn give_back(&self, reservation: Reservation) {
        let undone = reservation.taken.into_iter().map(async |Taken { key, at, shared }| {
            self.attempts.give_back(key, at);
            if let (Some(redis), Some(member)) = (&self.redis, shared) {
                self.owed.undo(redis, key, Undo::One(member)).await;
            }
        });
        join_all(undone).await;
    }

    /// Counts one more, and tells under which key. Redis decides for all replicas; where it doesn't answer, this one goes by what it
    /// counted itself, before as well.
    async fn reserve(
        &self,
        reservation: &mut Reservation,
        attempt: Attempt<'_>,
        rate: Rate,
        now: DateTime<Utc>,
    ) -> Result<u64> {
        let key = self.attempt_key(attempt);
        let (shared, member) = match &self.redis {
            Some(redis) => {
                let member = Member::new();
                (shared::take(redis, key, &member, rate, now.timestamp_micros()).await, Some(member))
            }
            None => (Outcome::Unknown, None),
        };
        let counted = if matches!(shared, Outcome::Unknown) { Counted::Here } else { Counted::Shared };
        let taken = match shared {
            Outcome::Taken => Ok(Taken { key, at: self.attempts.note(key, rate, now), shared: member }),
            Outcome::Full { retry_after } => Err(Error::Throttled { retry_after }),
            Outcome::Unknown => match (self.attempts.take(key, rate, now), member) {
                (Ok(at), member) => Ok(Taken { key, at, shared: member }),
                (Err(throttled), member) => {
                    // It was no attempt, whatever Redis makes of it.
                    if let Some(member) = member {
                        self.owed.push(key, Undo::One(member));
                    }
                    Err(throttled)
                }
            },
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
