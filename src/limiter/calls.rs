//! The general limit: counted here, so that a call costs no wait, and settled with the other replicas in batches through Redis.
//!
//! Only who calls often is worth it. What others counted of one is known a moment late, and then taken off what is left here.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use fred::interfaces::LuaInterface;
use futures_util::future::join_all;
use siphasher::sip::SipHasher13;

use super::{Rate, window::Table};
use crate::{error::Result, random, redis::Redis};

/// Who took this part of what is allowed, here and now, is told of to the others.
const OFTEN: u32 = 50;
/// How many callers are settled at most in a window: some megabytes.
const MAX_TALLIES: usize = 1 << 17;
/// How many callers are settled at once.
const AT_ONCE: usize = 256;

/// Says what this replica counted in this window, and answers with what all others did, in it and in the one before. To say it
/// twice, or after Redis forgot it, changes nothing.
const SETTLE: &str = "
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local function of_others(key)
  local sum, counts = 0, redis.call('HGETALL', key)
  for i = 1, #counts, 2 do
    if counts[i] ~= ARGV[1] then sum = sum + tonumber(counts[i + 1]) end
  end
  return sum
end
return {of_others(KEYS[1]), of_others(KEYS[2])}
";

/// Whose calls are counted.
#[derive(Hash)]
pub(super) enum Caller<'a> {
    User(i64),
    Client(IpAddr),
    Token(&'a str),
}

impl Caller<'_> {
    /// As the metrics name it.
    pub fn limit(&self) -> &'static str {
        match self {
            Self::User(_) => "calls_of_user",
            Self::Client(_) => "calls_of_client",
            Self::Token(_) => "looks_at_token",
        }
    }
}

pub(super) struct Calls {
    table: Table,
    /// Keyed by a secret that all replicas have: nobody else can choose callers whose keys collide.
    hasher: SipHasher13,
    redis: Option<Redis>,
    /// What this replica is called among those who count.
    me: String,
    /// Of those who call often.
    tallies: Mutex<Tallies>,
}

#[derive(Default)]
struct Tallies {
    by_key: HashMap<u64, Tally>,
    /// Those who called since they were settled.
    due: Vec<u64>,
}

/// A caller's calls in the windows that begin at the same time on all replicas.
#[derive(Default)]
struct Tally {
    /// Which window it is, counted from the beginning of time.
    window: i64,
    mine: u32,
    others: u32,
    others_before: u32,
    is_due: bool,
}

impl Tally {
    fn roll_to(&mut self, window: i64) {
        // Never back: of two calls at the edge the earlier may come later.
        if window > self.window {
            let others_before = if window == self.window + 1 { self.others } else { 0 };
            *self = Self { window, others_before, is_due: self.is_due, ..Self::default() };
        }
    }
}

/// The window at this time, and how many microseconds of it are left.
fn window_at(now: DateTime<Utc>, length: i64) -> (i64, i64) {
    let now = now.timestamp_micros();
    (now.div_euclid(length), length - now.rem_euclid(length))
}

fn length_of(rate: Rate) -> i64 {
    i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX).max(1)
}

impl Calls {
    pub fn new(key: &hmac::Key, redis: Option<Redis>) -> Self {
        let tag = hmac::sign(key, b"calls");
        let half = |at: usize| tag.as_ref().iter().skip(at).take(8).fold(0, |half, byte| half << 8 | u64::from(*byte));
        let hasher = SipHasher13::new_with_keys(half(0), half(8));
        let me = hex::encode(random::bytes::<8>());
        Self { table: Table::default(), hasher, redis, me, tallies: Mutex::default() }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub fn take(&self, caller: &Caller<'_>, rate: Rate, now: DateTime<Utc>) -> Result<()> {
        let mut hasher = self.hasher;
        caller.hash(&mut hasher);
        let key = hasher.finish();
        if self.redis.is_none() {
            return self.table.take(key, rate, now).map(drop);
        }
        let often = (rate.count / OFTEN).max(1);
        let others = |taken| if taken < often { 0 } else { self.taken_by_others(key, rate, now) };
        let (_, taken) = self.table.take_beside(key, rate, now, others)?;
        if taken >= often {
            self.count_often(key, rate, now, taken);
        }
        Ok(())
    }

    fn taken_by_others(&self, key: u64, rate: Rate, now: DateTime<Utc>) -> u32 {
        let length = length_of(rate);
        let (window, left) = window_at(now, length);
        let mut tallies = self.lock();
        let Some(tally) = tallies.by_key.get_mut(&key) else { return 0 };
        tally.roll_to(window);
        // Those of the window before leave evenly.
        let before = i64::from(tally.others_before) * (left - 1) / length;
        tally.others.saturating_add(u32::try_from(before).unwrap_or(u32::MAX))
    }

    fn count_often(&self, key: u64, rate: Rate, now: DateTime<Utc>, taken: u32) {
        let (window, _) = window_at(now, length_of(rate));
        let mut tallies = self.lock();
        let Tallies { by_key, due } = &mut *tallies;
        let is_full = by_key.len() >= MAX_TALLIES;
        match by_key.get_mut(&key) {
            Some(tally) => {
                tally.roll_to(window);
                tally.mine += 1;
                if !tally.is_due {
                    tally.is_due = true;
                    due.push(key);
                }
            }
            // With those that were too few to be counted so far. Beyond so many callers each replica counts by itself.
            None if is_full => {}
            None => {
                by_key.insert(key, Tally { window, mine: taken, is_due: true, ..Tally::default() });
                due.push(key);
            }
        }
    }

    /// Tells the others what is counted here, and hears what they counted. Where Redis doesn't answer, it stays to be told.
    pub async fn settle(&self, rate: Rate, now: DateTime<Utc>) {
        let Some(redis) = &self.redis else { return };
        let (window, _) = window_at(now, length_of(rate));
        let due = {
            let mut tallies = self.lock();
            // Whoever did not call for two windows counts for nothing any more.
            tallies.by_key.retain(|_, tally| tally.window >= window - 1);
            std::mem::take(&mut tallies.due)
        };
        for some in due.chunks(AT_ONCE) {
            join_all(some.iter().map(|key| self.settle_one(redis, *key, rate, window))).await;
        }
    }

    async fn settle_one(&self, redis: &Redis, key: u64, rate: Rate, window: i64) {
        let mine = {
            let mut tallies = self.lock();
            let Tallies { by_key, due } = &mut *tallies;
            let Some(tally) = by_key.get_mut(&key) else { return };
            tally.roll_to(window);
            if tally.window != window {
                // A call of the next window came first: it is due with that one.
                due.push(key);
                return;
            }
            tally.is_due = false;
            tally.mine
        };
        // One slot of a cluster for both.
        let name = |window: i64| redis.key(&format!("calls:{{{key:016x}}}:{window}"));
        let keys = vec![name(window), name(window - 1)];
        let life = 2 * rate.per.as_millis();
        let arguments = vec![self.me.clone(), mine.to_string(), life.to_string()];
        let counted: Option<(u32, u32)> = redis.ask(async |client| client.eval(SETTLE, keys, arguments).await).await;
        let mut tallies = self.lock();
        let Tallies { by_key, due } = &mut *tallies;
        let Some(tally) = by_key.get_mut(&key).filter(|tally| tally.window == window) else { return };
        if let Some((others, others_before)) = counted {
            (tally.others, tally.others_before) = (others, others_before);
        } else if !tally.is_due {
            tally.is_due = true;
            due.push(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
