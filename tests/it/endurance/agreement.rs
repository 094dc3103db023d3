//! Replicas of one installation tell the same.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{ready, seed};
use crate::harness::{
    Actor, Face, PASSWORD, Store,
    actor::claims,
    has_postgres,
    load::{Dice, installation},
    process,
    smtp::MailServer,
    stores::setting,
};

/// How soon a write at one replica shows at the others.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);
/// How many write at once.
const WRITERS: u64 = 6;

/// One who writes, now here, now there.
struct Writer {
    n: u64,
    dice: Dice,
    replicas: Vec<Actor>,
    admin: String,
    email: String,
    token: String,
    writes: usize,
    slowest: Duration,
}

impl Writer {
    async fn write(&mut self) {
        let here = usize::try_from(self.dice.below(3)).unwrap();
        let face = if self.dice.below(2) == 0 { Face::Rest } else { Face::Grpc };
        let me = self.replicas[here].with_token(&self.token);
        match self.dice.below(4) {
            0 | 1 => {
                let bio = format!("{} by {} at {here}", self.writes, self.n);
                me.call(face, "ProfileService.UpdateMyProfile", json!({ "bio": bio })).await.expect(200);
                self.shows("a profile", "ProfileService.GetMyProfile", &self.token.clone(), |answer| {
                    answer["bio"] == bio
                })
                .await;
            }
            2 => {
                let id = claims(&self.token)["user_id"].as_str().unwrap().parse::<i64>().unwrap();
                let has = profile(&me).await["roles"] == json!(["Seller"]);
                let rpc = if has { "RoleService.RemoveUserRole" } else { "RoleService.AddUserRole" };
                let role = json!({ "id": id, "role": "seller" });
                let outcome = me.with_token(&self.admin).call(face, rpc, role).await;
                assert!(outcome.status < 300, "{outcome:?}");
                let roles = if has { json!(["User"]) } else { json!(["Seller"]) };
                self.shows("a role", "ProfileService.GetMyProfile", &self.token.clone(), |answer| {
                    answer["roles"] == roles
                })
                .await;
            }
            _ => {
                let login = json!({ "email": self.email, "password": PASSWORD });
                let answer = me.call(face, "AuthService.Login", login).await.expect(200);
                let leaving = answer["access_token"].as_str().unwrap().to_owned();
                for replica in &self.replicas {
                    profile(&replica.with_token(&leaving)).await;
                }
                me.with_token(&leaving).call(face, "AuthService.Logout", json!({})).await.expect(200);
                self.shows("a logout", "ProfileService.GetMyProfile", &leaving, Value::is_null).await;
            }
        }
        self.writes += 1;
    }

    /// Waits until the call gives it at every replica, and looks whether it stays so.
    async fn shows(&mut self, what: &str, rpc: &str, token: &str, is_it: impl Fn(&Value) -> bool) {
        let written = Instant::now();
        let is_it = &is_it;
        let each = self.replicas.iter().enumerate().map(async |(n, replica)| {
            let there = replica.with_token(token);
            // A refused call has no answer.
            let look = async || {
                let outcome = there.call(Face::ALL[n % 2], rpc, json!({})).await;
                assert!([200, 401].contains(&outcome.status), "{outcome:?}");
                is_it(&outcome.answer)
            };
            while !look().await {
                assert!(written.elapsed() < SHOWN_WITHIN, "{what} of {} does not show at replica {n}", self.email);
                sleep(Duration::from_millis(10)).await;
            }
            let took = written.elapsed();
            for _ in 0..3 {
                assert!(look().await, "{what} of {} was there at replica {n}, and is gone", self.email);
            }
            took
        });
        let slowest = join_all(each).await.into_iter().max().unwrap();
        self.slowest = self.slowest.max(slowest);
    }
}

async fn profile(of: &Actor) -> Value {
    of.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200)
}

/// Three replicas over one PostgreSQL and one Redis, under load for so long.
async fn agree(during: Duration) {
    let (seed, mails) = (seed(), MailServer::start().await);
    let (_database, installation) = installation(Store::Postgres, &mails).await;
    let services = [ready(&installation).await.0, ready(&installation).await.0, ready(&installation).await.0];
    let replicas: Vec<_> = services.iter().map(process::Serving::anonymous).collect();
    let login = json!({ "email": "admin@example.com", "password": PASSWORD });
    let admin = replicas[0].call(Face::Rest, "AuthService.Login", login).await.expect(200);
    let admin = admin["access_token"].as_str().unwrap().to_owned();
    let end = Instant::now() + during;
    let writers = (0..WRITERS).map(async |n| {
        let email = format!("writer{n}@example.com");
        let user = replicas[usize::try_from(n % 3).unwrap()].clone().sign_up(&email).await;
        let mut writer = Writer {
            n,
            dice: Dice::new(seed ^ (n << 32)),
            replicas: replicas.clone(),
            admin: admin.clone(),
            email,
            token: user.access_token.unwrap(),
            writes: 0,
            slowest: Duration::ZERO,
        };
        while Instant::now() < end {
            writer.write().await;
        }
        writer
    });
    let writers = join_all(writers).await;
    for writer in &writers {
        let id = claims(&writer.token)["user_id"].as_str().unwrap().parse::<i64>().unwrap();
        for (rpc, fields) in [
            ("ProfileService.GetMyProfile", json!({})),
            ("UserService.GetUser", json!({ "id": id })),
            ("RoleService.GetUserRoles", json!({ "id": id })),
            ("AuthService.VerifyToken", json!({ "token": writer.token })),
        ] {
            let told = replicas.iter().map(async |replica| {
                replica.with_token(&writer.token).call(Face::Grpc, rpc, fields.clone()).await.expect(200)
            });
            let told = join_all(told).await;
            assert!(told.iter().all(|one| *one == told[0]), "{rpc} of {}: {told:#?}", writer.email);
        }
    }
    println!(
        "three replicas for {during:?}: {} writes, each shown everywhere after {:?} at most; all tell the same in the end",
        writers.iter().map(|writer| writer.writes).sum::<usize>(),
        writers.iter().map(|writer| writer.slowest).max().unwrap()
    );
    for service in services {
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_agree_under_load() {
    if has_postgres() {
        agree(Duration::from_secs(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/agreement runs it"]
async fn three_replicas_agree_for_as_long_as_was_asked_for() {
    agree(Duration::from_secs(setting("SECONDS_OF_LOAD").map_or(60, |secs| secs.parse().expect("a number")))).await;
}
