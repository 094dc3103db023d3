//! Windows that all replicas share, in Redis: a sorted set of times for each key. One script looks and counts in one step.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fred::interfaces::{LuaInterface, SortedSetsInterface};

use super::Rate;
use crate::{random, redis::Redis};

/// Counts one at a time within a window, and answers 0; or the microseconds to wait until one may.
const TAKE: &str = "
local now, length, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - length)
if redis.call('ZCARD', KEYS[1]) < count then
  redis.call('ZADD', KEYS[1], now, ARGV[4])
  redis.call('PEXPIRE', KEYS[1], math.ceil(length / 1000))
  return 0
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return math.max(1, tonumber(oldest[2]) + length - now)
";

/// Forgets what was counted up to a time.
const CLEAR: &str = "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])";
/// How many that are to be undone wait for Redis at most.
const MAX_OWED: usize = 10_000;

/// One that was counted, as it is called in its set.
#[derive(Debug)]
pub(super) struct Member(String);

impl Member {
    pub fn new() -> Self {
        Self(hex::encode(random::bytes::<8>()))
    }
}

/// What came of it.
pub(super) enum Outcome {
    Taken,
    Full {
        retry_after: Duration,
    },
    /// Redis doesn't say. It may be counted all the same, and be so later.
    Unknown,
}

/// Counts one.
pub(super) async fn take(redis: &Redis, key: u64, Member(member): &Member, rate: Rate, now: i64) -> Outcome {
    let length = i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX);
    let arguments = vec![now.to_string(), length.to_string(), rate.count.to_string(), member.clone()];
    let name = name(redis, key);
    let wait: Option<i64> = redis.ask(async |client| client.eval(TAKE, name, arguments).await).await;
    match wait.map(u64::try_from) {
        None => Outcome::Unknown,
        Some(Ok(0)) => Outcome::Taken,
        Some(wait) => Outcome::Full { retry_after: Duration::from_micros(wait.unwrap_or_default()) },
    }
}

/// What is to be taken off the counts of a key.
#[derive(Debug)]
pub(super) enum Undo {
    One(Member),
    /// All up to this time, in microseconds.
    Before(i64),
}

/// What is to be undone once Redis answers: else what it did not say in time would count against whoever did nothing wrong.
#[derive(Default)]
pub(super) struct Owed(Mutex<VecDeque<(u64, Undo)>>);

impl Owed {
    /// Undoes it now, or later where Redis doesn't answer.
    pub async fn undo(&self, redis: &Redis, key: u64, undo: Undo) {
        if !is_undone(redis, key, &undo).await {
            self.push(key, undo);
        }
    }

    /// To be undone later: Redis has just failed to answer.
    pub fn push(&self, key: u64, undo: Undo) {
        let mut owed = self.lock();
        if owed.len() >= MAX_OWED {
            owed.pop_front();
        }
        owed.push_back((key, undo));
    }

    /// Undoes what is owed, until Redis doesn't answer.
    pub async fn pay(&self, redis: &Redis) {
        loop {
            let Some((key, undo)) = self.lock().pop_front() else { return };
            if !is_undone(redis, key, &undo).await {
                self.push(key, undo); // Behind the others: should this one be at fault, they don't wait for it.
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Undo)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn is_undone(redis: &Redis, key: u64, undo: &Undo) -> bool {
    let name = name(redis, key);
    let undone = match undo {
        Undo::One(Member(member)) => redis.ask(async |client| client.zrem::<(), _, _>(name, member).await).await,
        Undo::Before(at) => {
            redis.ask(async |client| client.eval::<(), _, _, _>(CLEAR, name, at.to_string()).await).await
        }
    };
    undone.is_some()
}

fn name(redis: &Redis, key: u64) -> String {
    redis.key(&format!("limit:{key:016x}"))
}
