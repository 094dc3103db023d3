//! Places that many share fairly: whoever asks for many at once waits for itself, and not others for it.
//!
//! Without it, what bounds a scarce thing (connections, memory, cores) is itself scarce, and one user may take all of it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many places for all, of which each user has a few at most. Clones share them. Users go by their id, or by whatever else
/// tells them from each other.
#[derive(Clone)]
pub struct Places<U: Key = i64> {
    common: Arc<Semaphore>,
    each: usize,
    users: Users<U>,
}

/// What a user is known by.
pub trait Key: Copy + Eq + Hash {}
impl<T: Copy + Eq + Hash> Key for T {}

/// Those who have a place or wait for one.
type Users<U> = Arc<Mutex<HashMap<U, User>>>;

struct User {
    places: Arc<Semaphore>,
    /// Calls that have a place or wait for one: with the last of them the user is forgotten.
    calls: usize,
}

/// A place. It is free again once this is dropped.
pub struct Place<U: Key = i64> {
    // In this order: the next of the others comes before the next of the same user.
    _common: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
    _call: Option<Call<U>>,
}

/// Counts among the calls of its user.
struct Call<U: Key> {
    users: Users<U>,
    user: U,
}

impl<U: Key> Places<U> {
    /// `common` places, of which one user may have `each` (both at least one).
    pub fn new(common: usize, each: usize) -> Self {
        Self { common: Arc::new(Semaphore::new(common.max(1))), each: each.max(1), users: Arc::default() }
    }

    /// A place, once one of the user's own and then one of all is free: each in the order in which they were asked for.
    ///
    /// It waits for as long as that takes: the bound is the caller's, who drops this and waits no more.
    pub async fn enter(&self, user: U) -> Place<U> {
        let (call, own) = self.begin(user);
        // Neither is ever closed, so there is always one.
        let own = own.acquire_owned().await.ok();
        Place { _common: self.common().await, _own: own, _call: Some(call) }
    }

    /// As [`enter`](Self::enter), for somebody who may have any number of the places.
    pub async fn enter_uncounted(&self) -> Place<U> {
        Place { _common: self.common().await, _own: None, _call: None }
    }

    async fn common(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.common).acquire_owned().await.ok()
    }

    /// How many users have a place or wait for one.
    pub fn users(&self) -> usize {
        lock(&self.users).len()
    }

    fn begin(&self, user: U) -> (Call<U>, Arc<Semaphore>) {
        let mut users = lock(&self.users);
        let known = users.entry(user).or_insert_with(|| User { places: Arc::new(Semaphore::new(self.each)), calls: 0 });
        known.calls += 1;
        (Call { users: Arc::clone(&self.users), user }, Arc::clone(&known.places))
    }
}

impl<U: Key> Drop for Call<U> {
    fn drop(&mut self) {
        let mut users = lock(&self.users);
        if let Some(user) = users.get_mut(&self.user) {
            user.calls -= 1;
            if user.calls == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// Nothing that panics runs under this lock, so that a poisoned one is as good as any.
fn lock<U>(users: &Mutex<HashMap<U, User>>) -> MutexGuard<'_, HashMap<U, User>> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
}
