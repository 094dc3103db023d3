//! Windows that all replicas share, in Redis: a sorted set of times for each key. One script looks and counts in one step.

use std::time::Duration;

use fred::interfaces::{KeysInterface, LuaInterface, SortedSetsInterface};

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

/// One that was counted, as it is called in its set.
#[derive(Debug)]
pub(super) struct Member(String);

/// What came of it.
pub(super) enum Outcome {
    Taken(Member),
    Full { retry_after: Duration },
}

/// Counts one; `None` if Redis doesn't say.
pub(super) async fn take(redis: &Redis, key: u64, rate: Rate, now: i64) -> Option<Outcome> {
    let length = i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX);
    let member = hex::encode(random::bytes::<8>());
    let arguments = vec![now.to_string(), length.to_string(), rate.count.to_string(), member.clone()];
    let name = name(redis, key);
    let wait: i64 = redis.ask(async |client| client.eval(TAKE, name, arguments).await).await?;
    Some(match u64::try_from(wait) {
        Ok(0) => Outcome::Taken(Member(member)),
        wait => Outcome::Full { retry_after: Duration::from_micros(wait.unwrap_or_default()) },
    })
}

/// Undoes a count. Where Redis is away, the count runs out with its window.
pub(super) async fn give_back(redis: &Redis, key: u64, Member(member): Member) {
    let name = name(redis, key);
    redis.ask(async |client| client.zrem::<(), _, _>(name, member).await).await;
}

/// Forgets all that was counted under the key.
pub(super) async fn clear(redis: &Redis, key: u64) {
    let name = name(redis, key);
    redis.ask(async |client| client.del::<(), _>(name).await).await;
}

fn name(redis: &Redis, key: u64) -> String {
    redis.key(&format!("limit:{key:016x}"))
}
