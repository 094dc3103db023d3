//! Sliding windows in this process.
//!
//! Small limits remember each time and are exact. The general limit would need a thousand times a caller; it remembers
//! two counts instead, and takes the calls of the window before as spread evenly over it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::Rate;
use crate::error::{Error, Result};

/// Up to this count each time is remembered.
const EXACT_UP_TO: u32 = 100;
/// How many callers are remembered at most in each table; beyond, those who were not seen for longest make room. At 64 to 900 bytes
/// each, this bounds the memory.
const MAX_KEYS: usize = 1 << 18;
const SHARDS: usize = 64;

enum Window {
    Times(VecDeque<i64>),
    Counts { since: i64, before: u32, now: u32 },
}

/// Callers by their keys, in parts that are locked one by one.
pub(super) struct Table(Box<[Mutex<HashMap<u64, Window>>]>);

impl Default for Table {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Table {
    /// Counts one, and tells at which time, so that it can be given back.
    pub fn take(&self, key: u64, rate: Rate, now: DateTime<Utc>) -> Result<i64> {
        self.take_beside(key, rate, now, |_| 0).map(|(at, _)| at)
    }

    /// The same, where others took so many already as `others` says of who took so many here. Tells, too, how many are taken here
    /// now.
    pub fn take_beside(
        &self,
        key: u64,
        rate: Rate,
        now: DateTime<Utc>,
        others: impl FnOnce(u32) -> u32,
    ) -> Result<(i64, u32)> {
        let (now, length) = (now.timestamp_micros(), i64::try_from(rate.per.as_micros()).unwrap_or(i64::MAX));
        let mut shard = self.shard(key);
        if shard.len() >= MAX_KEYS / SHARDS && !shard.contains_key(&key) {
            make_room(&mut shard);
        }
        let window = shard.entry(key).or_insert_with(|| Window::new(rate, now));
        let count = rate.count.saturating_sub(others(window.taken()));
        match window.take(count, length, now) {
            None => Ok((now, window.taken())),
            Some(wait) => {
                Err(Error::Throttled { retry_after: Duration::from_micros(u64::try_from(wait).unwrap_or_default()) })
            }
        }
    }

    /// Counts one that was let through elsewhere, where one counts for all, and tells at which time.
    pub fn note(&self, key: u64, rate: Rate, now: DateTime<Utc>) -> i64 {
        // More than are allowed need not be remembered.
        self.take(key, rate, now).unwrap_or_else(|_| now.timestamp_micros())
    }

    /// Undoes a count.
    pub fn give_back(&self, key: u64, at: i64) {
        match self.shard(key).get_mut(&key) {
            Some(Window::Times(times)) => {
                if let Some(place) = times.iter().rposition(|time| *time == at) {
                    times.remove(place);
                }
            }
            Some(Window::Counts { now, .. }) => *now = now.saturating_sub(1),
            None => {}
        }
    }

    /// Forgets all that was counted under the key.
    pub fn clear(&self, key: u64) {
        self.shard(key).remove(&key);
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

    /// How many were taken of late.
    fn taken(&self) -> u32 {
        match self {
            Self::Times(times) => u32::try_from(times.len()).unwrap_or(u32::MAX),
            Self::Counts { now, .. } => *now,
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
