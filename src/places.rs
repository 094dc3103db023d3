//! Places that many share fairly: whoever asks for many at once waits for itself, and not others for it.
//!
//! Without it, what bounds a scarce thing (connections, memory, cores) is itself scarce, and one user may take all of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many places for all, of which each user has a few at most. Clones share them.
#[derive(Clone)]
pub struct Places {
    common: Arc<Semaphore>,
    each: usize,
    users: Users,
}

/// Those who have a place or wait for one.
type Users = Arc<Mutex<HashMap<i64, User>>>;

struct User {
    places: Arc<Semaphore>,
    /// Calls that have a place or wait for one: with the last of them the user is forgotten.
    calls: usize,
}

/// A place. It is free again once this is dropped.
pub struct Place {
    // In this order: the next of the others comes before the next of the same user.
    _common: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
    _call: Call,
}

/// Counts among the calls of its user.
struct Call {
    users: Users,
    user_id: i64,
}

impl Places {
    /// `common` places, of which one user may have `each` (both at least one).
    pub fn new(common: usize, each: usize) -> Self {
        Self { common: Arc::new(Semaphore::new(common.max(1))), each: each.max(1), users: Arc::default() }
    }

    /// A place, once one of the user's own and then one of all is free: each in the order in which they were asked for.
    ///
    /// It waits for as long as that takes: the bound is the caller's, who drops this and waits no more.
    pub async fn enter(&self, user_id: i64) -> Place {
        let (call, own) = self.begin(user_id);
        // Neither is ever closed, so there is always one.
        let own = own.acquire_owned().await.ok();
        let common = Arc::clone(&self.common).acquire_owned().await.ok();
        Place { _common: common, _own: own, _call: call }
    }

    /// How many users have a place or wait for one.
    pub fn users(&self) -> usize {
        lock(&self.users).len()
    }

    fn begin(&self, user_id: i64) -> (Call, Arc<Semaphore>) {
        let mut users = lock(&self.users);
        let user =
            users.entry(user_id).or_insert_with(|| User { places: Arc::new(Semaphore::new(self.each)), calls: 0 });
        user.calls += 1;
        (Call { users: Arc::clone(&self.users), user_id }, Arc::clone(&user.places))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut users = lock(&self.users);
        if let Some(user) = users.get_mut(&self.user_id) {
            user.calls -= 1;
            if user.calls == 0 {
                users.remove(&self.user_id);
            }
        }
    }
}

/// Nothing that panics runs under this lock, so that a poisoned one is as good as any.
fn lock(users: &Mutex<HashMap<i64, User>>) -> MutexGuard<'_, HashMap<i64, User>> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
}
