//! What several replicas share goes wrong: Redis, or PostgreSQL itself.

use std::time::{Duration, Instant};

use fred::{interfaces::ClientLike, types::config::Config};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    faults::READY_WITHIN,
    harness::{
        Actor, Face, PASSWORD, Service, Store, has_postgres,
        postgres::{self, PrivatePostgres},
        process::Installation,
        proxy::{Proxy, Way},
        redis::PrivateRedis,
        skip, wait_until, within_a_second,
    },
    user::user_id,
};

/// How much longer the first answer may take once Redis is gone.
const FIRST_ANSWER: Duration = Duration::from_millis(150);

/// Two replicas, and a Redis on a line that can break.
struct Pair {
    redis: PrivateRedis,
    line: Proxy,
    one: Service,
    other: Service,
    admin: Actor,
    users: usize,
}

impl Pair {
    /// `None` where there is no Redis.
    async fn start() -> Option<Self> {
        let redis = PrivateRedis::start().await?;
        let line = Proxy::to(&redis.url()).await;
        let url = line.url(&redis.url());
        let store = *Store::all().last().unwrap();
        let settings = [
            ("REDIS_URL", url.as_str()),
            ("RATE_LIMIT_LOGIN", "5/15m"),
            // The clock is moved by hours.
            ("JWT_EXPIRATION_DELTA", "86400"),
            // What is measured is not the hash.
            ("ARGON2_MEMORY_KIB", "64"),
            ("ARGON2_ITERATIONS", "1"),
        ];
        let one = Service::start_with(store, &settings).await;
        let other = one.replica().await;
        let admin = one.admin("admin@example.com").await;
        let pair = Self { redis, line, one, other, admin, users: 0 };
        pair.until_cache_is("ok").await;
        Some(pair)
    }

    async fn until_cache_is(&self, state: &str) {
        for replica in [&self.one, &self.other] {
            wait_until(Duration::from_secs(1), state, async || {
                let health = replica.anonymous().request(reqwest::Method::GET, "/api/health/").send().await.unwrap();
                health.json::<Value>().await.unwrap()["cache"] == state
            })
            .await;
        }
    }

    /// What holds whatever becomes of Redis: what was done at one replica counts at the other within a second, and guesses
    /// are limited.
    async fn holds(&mut self, when: &str) {
        eprintln!("{when}");
        for (here, there) in [(&self.one, &self.other), (&self.other, &self.one)] {
            self.users += 1;
            let email = format!("user{}@example.com", self.users);
            let user = here.user(&email).await;
            let (id, leaving) = (user_id(&user), here.login(&email).await);
            let (seen, left) = (user.at(there.address), leaving.at(there.address));
            // All of it was looked at before, and may be remembered.
            let profile = async |face| seen.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
            for face in Face::ALL {
                profile(face).await;
                left.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
            }

            user.call(Face::Rest, "ProfileService.UpdateMyProfile", json!({ "bio": when })).await.expect(200);
            within_a_second(async || profile(Face::Grpc).await["bio"] == when).await;
            let role = json!({ "id": id, "role": "seller" });
            self.admin.at(here.address).call(Face::Grpc, "RoleService.AddUserRole", role).await.expect(201);
            within_a_second(async || profile(Face::Rest).await["roles"] == json!(["Seller"])).await;
            let token = json!({ "token": user.access_token });
            within_a_second(async || {
                let told = seen.call(Face::Grpc, "AuthService.VerifyToken", token.clone()).await.expect(200);
                told["roles"] == json!(["User", "Seller"])
            })
            .await;
            leaving.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
            within_a_second(async || {
                left.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.status == 401
            })
            .await;
            // What was seen once stays.
            assert_eq!(
                (&profile(Face::Rest).await["bio"], &profile(Face::Grpc).await["roles"]),
                (&json!(when), &json!(["Seller"]))
            );
        }
        // Five are let through by Redis, or by the replica itself; by both, should Redis come or go meanwhile. One that Redis
        // counted too late to say so counts twice.
        let guess = json!({ "email": format!("user{}@example.com", self.users), "password": "wr0ng-Passw0rd" });
        let guesses = (0..11)
            .map(async |n| self.one.anonymous().call(Face::ALL[n % 2], "AuthService.Login", guess.clone()).await);
        let statuses: Vec<_> = join_all(guesses).await.iter().map(|outcome| outcome.status).collect();
        assert!(statuses.iter().all(|status| [401, 429].contains(status)), "{when}: {statuses:?}");
        assert!(statuses.contains(&401) && statuses.contains(&429), "{when}: {statuses:?}");
        // Or every address would be refused after a while, for the client's sake.
        self.one.clock.advance(chrono::Duration::minutes(16));
    }

    /// What a profile and a login take.
    async fn answers(&self) -> Duration {
        let begun = Instant::now();
        self.admin.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        let login = json!({ "email": "admin@example.com", "password": PASSWORD });
        self.admin.call(Face::Rest, "AuthService.Login", login).await.expect(200);
        begun.elapsed()
    }

    /// It happens to Redis, and is undone later.
    async fn breaks(&mut self, how: &str) {
        match how {
            "is killed" => self.redis.kill().await,
            "hangs" => self.redis.hang(),
            "is cut off" => self.line.set(Way::Cut),
            "is in a black hole" => self.line.set(Way::BlackHole),
            "is far away" => self.line.set(Way::Delay(Duration::from_millis(80))),
            other => panic!("{other}"),
        }
    }

    async fn mends(&mut self, how: &str) {
        match how {
            "is killed" => self.redis.restart().await,
            "hangs" => self.redis.wake(),
            _ => self.line.set(Way::Pass),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_agree_whatever_becomes_of_redis() {
    let Some(mut pair) = Pair::start().await else { return };
    pair.holds("all is well").await;
    pair.line.set(Way::Delay(Duration::from_millis(30)));
    pair.until_cache_is("ok").await;
    pair.holds("Redis is slow").await;
    pair.line.set(Way::Pass);
    for how in ["is killed", "hangs", "is cut off", "is in a black hole", "is far away"] {
        let usual = pair.answers().await;
        pair.breaks(how).await;
        let first = pair.answers().await;
        eprintln!("Redis {how}: the first answers took {first:?}, those before {usual:?}");
        assert!(first < 2 * usual + FIRST_ANSWER, "Redis {how}: {first:?}, and {usual:?} before");
        pair.holds(&format!("Redis {how}")).await;
        pair.until_cache_is("degraded").await;
        pair.mends(how).await;
        pair.until_cache_is("ok").await;
        pair.holds(&format!("Redis {how} no more")).await;
    }
    pair.one.stop().await;
    pair.other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_with_what_redis_held() {
    let Some(mut pair) = Pair::start().await else { return };
    pair.holds("before").await;
    let client = fred::clients::Client::new(Config::from_url(&pair.redis.url()).unwrap(), None, None, None);
    client.init().await.unwrap();
    let user = pair.one.user("kept@example.com").await;
    let there = user.at(pair.other.address);
    let leaving = pair.one.login("kept@example.com").await;
    leaving.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
    user.call(Face::Rest, "ProfileService.UpdateMyProfile", json!({ "bio": "kept" })).await.expect(200);
    for _ in 0..3 {
        client.flushall::<()>(false).await.unwrap();
        let left = leaving.at(pair.other.address);
        within_a_second(async || left.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.status == 401)
            .await;
        let profile = there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(profile["bio"], "kept");
        pair.holds("Redis was emptied").await;
    }
    pair.one.stop().await;
    pair.other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_of_postgresql_the_service_is_ready_within_two_seconds_and_has_lost_nothing() {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes a PostgreSQL server of its own, and there is no `initdb`");
    }
    let server = PrivatePostgres::start().await;
    let installation = Installation::with(&[("DATABASE_URL", server.url.as_str()), ("DEBUG", "true")]);
    let service = installation.serve().await;
    let user = service.anonymous().sign_up("user@example.com").await;
    for round in 0..3 {
        let leaving = {
            let mut actor = service.anonymous();
            let login = json!({ "email": "user@example.com", "password": PASSWORD });
            actor.take_tokens(&actor.call(Face::Grpc, "AuthService.Login", login).await.expect(200));
            actor
        };
        let bio = json!({ "bio": format!("round {round}") });
        user.call(Face::Rest, "ProfileService.UpdateMyProfile", bio.clone()).await.expect(200);
        leaving.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        server.kill_immediate().await;
        user.call(Face::Rest, "UserService.ListUsers", json!({})).await.expect(503);

        server.restart().await;
        let back = Instant::now();
        let health = async || {
            let answer = user.request(reqwest::Method::GET, "/api/health/").send().await.unwrap();
            answer.status() == 200
        };
        wait_until(READY_WITHIN, "health", health).await;
        let list = async || user.call(Face::Grpc, "UserService.ListUsers", json!({})).await.status;
        wait_until(READY_WITHIN, "a list", async || list().await == 200).await;
        eprintln!("ready {:?} after PostgreSQL", back.elapsed());
        assert!(back.elapsed() < READY_WITHIN, "{:?}", back.elapsed());
        let profile = user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(profile["bio"], bio["bio"]);
        leaving.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
    }
    service.stop().await;
}
