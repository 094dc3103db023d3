//! What is kept of users, in the process and in Redis: quick, shared, and never older than what was told of changes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use fred::interfaces::{ClientLike, KeysInterface};
use futures_util::future::join_all;
use identity::{
    cache::{Cache, LIFETIME, Versioned},
    config,
    error::{Dependency, Error},
    feed::{Entry, Feed},
    redis::Redis,
    seal::Seal,
};
use reqwest::Method;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    harness::{
        Actor, Face, Service, Store, actor::route, everywhere, on_each_store, redis::PrivateRedis, wait_until,
        within_a_second,
    },
    rest_parity::rpcs,
    user::user_id,
};

/// Runs SQL that no replica is told of.
async fn behind_its_back(service: &Service, sql: &str) {
    let tx = service.app.db.begin().await.unwrap();
    tx.execute_unprepared(sql).await.unwrap();
    tx.commit().await.unwrap();
}

async fn my_name(actor: &Actor, face: Face) -> Value {
    let me = json!({ "id": user_id(actor) });
    actor.call(face, "UserService.GetUser", me).await.expect(200)["first_name"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_a_moment_ago_is_shown_without_a_question_to_the_database_for_an_hour() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        assert_eq!(my_name(&user, face).await, "Jane");
        behind_its_back(service, "UPDATE users SET first_name = 'Ada'").await;
        service.clock.advance(LIFETIME - chrono::Duration::seconds(1));
        let user = service.login("user@example.com").await;
        assert_eq!(my_name(&user, face).await, "Jane");
        service.clock.advance(chrono::Duration::seconds(1));
        assert_eq!(my_name(&user, face).await, "Ada");
    })
    .await;
}

/// Everything that is shown of a user without a search.
const VIEWS: [(&str, &str); 5] = [
    ("UserService.GetUser", "id"),
    ("ProfileService.GetProfile", "user_id"),
    ("RoleService.GetUserRoles", "id"),
    ("RoleService.GetUserPermissions", "id"),
    ("AuthService.VerifyToken", "token"),
];

async fn views(viewer: &Actor, face: Face, of: &Actor) -> Vec<(u16, Value)> {
    let mut seen = Vec::new();
    for (rpc, field) in VIEWS {
        let asked = if field == "token" { json!(of.access_token) } else { json!(user_id(of)) };
        let outcome = viewer.call(face, rpc, json!({ field: asked })).await;
        seen.push((outcome.status, outcome.answer));
    }
    seen
}

/// What changes nothing of what is shown of somebody who is there already.
const SHOW_NOTHING: [&str; 11] = [
    "AuthService.Register",
    "AuthService.Login",
    "AuthService.RefreshToken",
    "AuthService.Logout",
    "AuthService.SendVerification",
    "AuthService.VerifyToken",
    "AuthService.ChangePassword",
    "UserService.CreateUser",
    "UserService.BatchGetUsers",
    "RoleService.CreateGroup",
    "RoleService.CheckPermission",
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_a_user_is_seen_here_at_once_and_elsewhere_within_a_second() {
    everywhere(async |service, face| {
        let there = service.replica().await;
        let admin = service.admin("admin@example.com").await;
        let (admin_there, user) = (admin.at(there.address), service.user("user@example.com").await);
        let id = user_id(&user);
        let group =
            admin.call(face, "RoleService.CreateGroup", json!({ "name": "shop" })).await.expect(201)["id"].clone();
        let code = service.code_mailed_to("user@example.com", 1).await;
        let (in_group, of_user) =
            (json!({ "id": group, "permission": "shop.buy" }), json!({ "id": id, "permission": "x.y" }));
        let member = json!({ "id": group, "user_id": id });
        let changes = [
            (&user, "AuthService.VerifyEmail", json!({ "email": "user@example.com", "code": code })),
            (&user, "UserService.UpdateUser", json!({ "id": id, "first_name": "Ada" })),
            (&user, "ProfileService.UpdateMyProfile", json!({ "bio": "Counts." })),
            (&user, "ProfileService.UpdateMyProfile", json!({ "is_public": false })),
            (&admin, "RoleService.AddUserRole", json!({ "id": id, "role": "moderator" })),
            (&admin, "RoleService.RemoveUserRole", json!({ "id": id, "role": "moderator" })),
            (&admin, "RoleService.GrantPermission", of_user.clone()),
            (&admin, "RoleService.AddGroupMember", member.clone()),
            (&admin, "RoleService.AddGroupPermission", in_group.clone()),
            (&admin, "RoleService.UpdateGroup", json!({ "id": group, "name": "market" })),
            (&admin, "RoleService.RemoveGroupPermission", in_group.clone()),
            (&admin, "RoleService.AddGroupPermission", in_group),
            (&admin, "RoleService.RemoveGroupMember", member.clone()),
            (&admin, "RoleService.AddGroupMember", member),
            (&admin, "RoleService.DeleteGroup", json!({ "id": group })),
            (&admin, "RoleService.RevokePermission", of_user),
            (&admin, "UserService.UpdateUser", json!({ "id": id, "is_active": false })),
            (&admin, "UserService.DeleteUser", json!({ "id": id })),
        ];
        for rpc in rpcs().iter().filter(|rpc| route(rpc).is_none_or(|(verb, ..)| verb != Method::GET)) {
            let is_here = changes.iter().any(|(_, name, _)| *name == rpc);
            assert!(is_here != SHOW_NOTHING.contains(&rpc.as_str()), "{rpc}: what does it change?");
        }
        for (who, rpc, fields) in changes {
            // The admin looks often, and may do so a thousand times a minute.
            service.clock.advance(chrono::Duration::minutes(2));
            let before = views(&admin, face, &user).await;
            assert_eq!(views(&admin_there, face, &user).await, before, "before {rpc}");
            let outcome = who.call(face, rpc, fields).await;
            assert!((200..300).contains(&outcome.status), "{rpc}: {outcome:?}");
            let after = views(&admin, face, &user).await;
            assert_ne!(after, before, "{rpc} changes nothing that is shown");
            wait_until(Duration::from_secs(1), rpc, async || views(&admin_there, face, &user).await == after).await;
            // Who begins only now, and has nothing in memory, sees the same.
            let newcomer = service.replica().await;
            assert_eq!(views(&admin.at(newcomer.address), face, &user).await, after, "{rpc}, to a newcomer");
            newcomer.stop().await;
        }
        there.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_read_another_finds_in_redis_where_nobody_can_read_it_or_put_another_in_its_place() {
    for store in Store::all() {
        let Some(redis) = PrivateRedis::start().await else { return };
        let url = redis.url();
        let service = Service::start_with(store, &[("REDIS_URL", url.as_str())]).await;
        // What was read before is kept in the process alone.
        wait_until(Duration::from_secs(2), "Redis is there", async || service.app.redis.as_ref().unwrap().ping().await)
            .await;
        let client = fred::clients::Client::new(fred::types::config::Config::from_url(&url).unwrap(), None, None, None);
        client.init().await.unwrap();
        let [ada, eve] = [service.user("ada@example.com").await, service.user("eve@example.com").await];
        let names = [&ada, &eve].map(|user| format!("identity:account:{}", user_id(user)));
        wait_until(Duration::from_secs(2), "both are kept", async || {
            for user in [&ada, &eve] {
                my_name(user, Face::Rest).await;
            }
            client.exists::<u8, _>(names.to_vec()).await.unwrap() == 2
        })
        .await;
        let kept: Vec<String> = client.mget(names.to_vec()).await.unwrap();
        for value in &kept {
            assert!(!value.contains("example") && !value.contains("ada"), "{value}");
        }
        behind_its_back(&service, "UPDATE users SET first_name = 'Ann'").await;
        let replica = service.replica().await;
        wait_until(Duration::from_secs(2), "Redis is there", async || replica.app.redis.as_ref().unwrap().ping().await)
            .await;
        assert_eq!(my_name(&ada.at(replica.address), Face::Grpc).await, "Jane", "{store:?}: not from Redis");
        // Ada's value as Eve's.
        client.set::<(), _, _>(&names[1], &kept[0], None, None, false).await.unwrap();
        let seen = eve.at(replica.address).call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(seen["user"]["email"], "eve@example.com", "{store:?}");
        assert_eq!(seen["user"]["first_name"], "Ann", "{store:?}: from the database");
        // Whoever is gone is gone there too.
        eve.call(Face::Rest, "UserService.DeleteUser", json!({ "id": user_id(&eve) })).await.expect(204);
        within_a_second(async || client.get::<String, _>(&names[1]).await.unwrap().ends_with(':')).await;
        replica.stop().await;
        service.stop().await;
    }
}

/// A table with one row, which can be read while it is being changed: each reader stops before and after it looks.
struct Row {
    version: Mutex<Option<i64>>,
    /// What readers wait for, and where they are.
    before: Semaphore,
    after: Semaphore,
    place: AtomicUsize,
    reads: AtomicUsize,
}

const BEFORE: usize = 1;
const AFTER: usize = 2;

impl Row {
    fn new() -> Self {
        Self {
            version: Mutex::new(Some(1)),
            before: Semaphore::new(0),
            after: Semaphore::new(0),
            place: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        }
    }

    async fn read(&self, read_at: DateTime<Utc>) -> Result<Option<Versioned<i64>>, Error> {
        self.place.store(BEFORE, Ordering::SeqCst);
        self.before.acquire().await.unwrap().forget();
        self.reads.fetch_add(1, Ordering::SeqCst);
        let version = *self.version.lock().unwrap();
        self.place.store(AFTER, Ordering::SeqCst);
        self.after.acquire().await.unwrap().forget();
        Ok(version.map(|version| Versioned { version, groups_version: 0, read_at, value: version }))
    }
}

fn cache(redis: Option<&Redis>) -> Cache<i64> {
    Cache::new(redis.cloned(), Seal::new(&[7; 32]).unwrap(), |_| 8)
}

/// Every order in which the steps of several can follow each other, of `counts[i]` steps each.
fn interleavings(counts: &[usize]) -> Vec<Vec<usize>> {
    if counts.iter().all(|count| *count == 0) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (who, _) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let mut left = counts.to_vec();
        left[who] -= 1;
        all.extend(interleavings(&left).into_iter().map(|rest| [vec![who], rest].concat()));
    }
    all
}

/// What becomes of the row.
#[derive(Debug, Clone, Copy)]
enum Change {
    Update,
    Delete,
    /// And whoever made it tells nobody: the others learn of it from the feed.
    UpdateAndDie,
}

/// Two replicas read while a third changes: first each looks into its memory and Redis, then reads the row, then keeps it; the change is
/// committed, told to one, told to the other, and told to Redis.
async fn run(steps: &[usize], change: Change, id: i64, feeds: &[Feed; 2], redis: &Redis) {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let new = if matches!(change, Change::Delete) { None } else { Some(2) };
    let entry = match change {
        Change::Delete => Entry::of_deleted_user(id, now, now + LIFETIME),
        Change::Update | Change::UpdateAndDie => Entry::of_account(id, 2, now, now + LIFETIME),
    };
    let rows = [Row::new(), Row::new()];
    let replicas = [cache(Some(redis)), cache(Some(redis))];
    let told = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let get = |n: usize| {
        let (row, replica, feed) = (&rows[n], &replicas[n], &feeds[n]);
        async move { replica.get(id, feed, now, || row.read(now)).await.unwrap().map(|found| *found) }
    };
    let mut readers = [0, 1].map(|n| Some(Box::pin(get(n))));
    let mut done = [0, 0, 0];
    for who in steps {
        done[*who] += 1;
        if *who == 2 {
            match done[2] {
                1 => rows.iter().for_each(|row| *row.version.lock().unwrap() = new),
                n @ (2 | 3) => {
                    feeds[n - 2].apply(&[entry]);
                    told[n - 2].store(1, Ordering::SeqCst);
                }
                _ if matches!(change, Change::UpdateAndDie) => {}
                _ => replicas[0].outdate(id, new.unwrap_or(i64::MAX)).await,
            }
            continue;
        }
        let row = &rows[*who];
        let knows_before = told[*who].load(Ordering::SeqCst) == 1 && done[*who] == 1;
        match done[*who] {
            2 => row.before.add_permits(1),
            // Should it find that what it read is outdated by now, it reads once more.
            3 => {
                row.after.add_permits(2);
                row.before.add_permits(1);
            }
            _ => {}
        }
        // It runs until it stops at the next gate, or is through.
        let goal = done[*who];
        let Some(reader) = &mut readers[*who] else { continue };
        let at_goal = async {
            while row.place.load(Ordering::SeqCst) < goal || goal == 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            found = reader => {
                if knows_before {
                    assert_eq!(found, new, "{steps:?} {change:?}: it began after it was told");
                }
                readers[*who] = None;
            }
            () = at_goal => {}
        }
    }
    // All is said and done. Whoever looks now, and a newcomer who finds only what Redis kept, sees what is.
    for (n, row) in rows.iter().enumerate() {
        row.before.add_permits(9);
        row.after.add_permits(9);
        assert!(readers[n].is_none(), "{steps:?} {change:?}: a reader hangs");
        assert_eq!(get(n).await, new, "{steps:?} {change:?}: replica {n}");
        let newcomer = cache(Some(redis));
        let found = newcomer.get(id, &feeds[n], now, || row.read(now)).await.unwrap().map(|found| *found);
        assert_eq!(found, new, "{steps:?} {change:?}: a newcomer");
    }
    if matches!(change, Change::Delete) {
        let key = redis.key(&format!("account:{id}"));
        let kept: String = redis.ask(async |client| client.get(key).await).await.unwrap();
        assert!(kept.ends_with(':'), "{steps:?}: what was deleted is still in Redis");
    }
}

#[tokio::test]
async fn no_order_of_readers_and_a_writer_on_three_replicas_leaves_an_old_value_behind() {
    let Some(server) = PrivateRedis::start().await else { return };
    let redis = Redis::connect(&config::Redis {
        url: server.url().into(),
        prefix: "identity".to_owned(),
        timeout: Duration::from_secs(1),
    })
    .unwrap();
    wait_until(Duration::from_secs(2), "Redis is there", async || redis.ping().await).await;
    let service = Service::start(Store::Sqlite).await;
    let feed = async || Feed::load(&service.app.db, &service.clock).await.unwrap();
    let id = AtomicI64::new(1);
    let orders = interleavings(&[3, 3, 4]);
    assert_eq!(orders.len(), 4200);
    for change in [Change::Update, Change::Delete, Change::UpdateAndDie] {
        for some in orders.chunks(60) {
            // A feed is trusted for two seconds.
            let feeds = [feed().await, feed().await];
            join_all(some.iter().map(|steps| run(steps, change, id.fetch_add(1, Ordering::SeqCst), &feeds, &redis)))
                .await;
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn of_those_who_miss_the_same_at_once_one_reads_and_nobody_is_given_what_was_read_before_the_news() {
    let service = Service::start(Store::Sqlite).await;
    let feed = Feed::load(&service.app.db, &service.clock).await.unwrap();
    let now = service.clock.now();
    let (cache, row) = (cache(None), Row::new());
    let get = || cache.get(1, &feed, now, || row.read(now));
    let until = async |place| {
        while row.place.load(Ordering::SeqCst) != place {
            tokio::task::yield_now().await;
        }
    };

    row.before.add_permits(50);
    row.after.add_permits(50);
    let found = join_all((0..50).map(|_| get())).await;
    assert!(found.into_iter().all(|found| *found.unwrap().unwrap() == 1));
    assert_eq!(row.reads.load(Ordering::SeqCst), 1);

    // One who looked before the change, and another who comes after it and waits for the first.
    row.before.forget_permits(50);
    row.after.forget_permits(50);
    row.place.store(0, Ordering::SeqCst);
    let cache = crate::cache::cache(None);
    let get = || cache.get(1, &feed, now, || row.read(now));
    let early = get();
    let late = async {
        until(BEFORE).await;
        row.before.add_permits(1);
        until(AFTER).await;
        *row.version.lock().unwrap() = Some(2);
        feed.apply(&[Entry::of_account(1, 2, now, now + LIFETIME)]);
        let opening = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            row.before.add_permits(9);
            row.after.add_permits(9);
        };
        tokio::join!(get(), opening).0
    };
    let (_, late) = tokio::join!(early, late);
    assert_eq!(*late.unwrap().unwrap(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_failed_read_is_everybodys_who_waited_for_it_and_is_not_kept() {
    let service = Service::start(Store::Sqlite).await;
    let feed = Feed::load(&service.app.db, &service.clock).await.unwrap();
    let (cache, now, reads) = (cache(None), service.clock.now(), AtomicUsize::new(0));
    let read = |works: bool| {
        let reads = &reads;
        async move {
            reads.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if works {
                Ok(Some(Versioned { version: 1, groups_version: 0, read_at: now, value: 1 }))
            } else {
                Err(Error::Unavailable { what: Dependency::Database, cause: None })
            }
        }
    };
    let failed = join_all((0..10).map(|_| cache.get(1, &feed, now, || read(false)))).await;
    assert!(failed.iter().all(|found| matches!(found, Err(Error::Unavailable { what: Dependency::Database, .. }))));
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    assert_eq!(cache.get(1, &feed, now, || read(true)).await.unwrap().map(|found| *found), Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_goes_away_leaves_nobody_waiting() {
    let service = Service::start(Store::Sqlite).await;
    let feed = Arc::new(Feed::load(&service.app.db, &service.clock).await.unwrap());
    let (cache, row, now) = (Arc::new(cache(None)), Arc::new(Row::new()), service.clock.now());
    let first = tokio::spawn({
        let (cache, row, feed) = (Arc::clone(&cache), Arc::clone(&row), Arc::clone(&feed));
        async move { cache.get(1, &feed, now, || row.read(now)).await.unwrap() }
    });
    wait_until(Duration::from_secs(1), "it reads", async || row.place.load(Ordering::SeqCst) == BEFORE).await;
    let waiting = cache.get(1, &feed, now, || row.read(now));
    let goes = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        first.abort();
        row.before.add_permits(1);
        row.after.add_permits(1);
    };
    let (found, ()) =
        tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(waiting, goes) }).await.unwrap();
    assert_eq!(found.unwrap().map(|found| *found), Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_feed_cant_be_read_the_cache_is_not_trusted() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        assert_eq!(my_name(&user, Face::Rest).await, "Jane");
        behind_its_back(service, "UPDATE users SET first_name = 'Ada'").await;
        behind_its_back(service, "ALTER TABLE revocations RENAME TO away").await;
        assert_eq!(my_name(&user, Face::Rest).await, "Jane");
        tokio::time::sleep(Duration::from_millis(2600)).await;
        assert_eq!(my_name(&user, Face::Rest).await, "Ada");
        behind_its_back(service, "ALTER TABLE away RENAME TO revocations").await;
    })
    .await;
}
