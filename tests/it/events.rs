//! Events for another service: signed, at least once, and as `docs/events.md` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::Duration,
};

use aws_lc_rs::hmac;
use chrono::TimeDelta;
use identity::entity::outbox::{self, State};
use sea_orm::{EntityTrait, QueryOrder};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::{
    Face, PASSWORD, Service, Store,
    process::{Installation, Peer},
    python,
    receiver::{Received, Receiver},
    smtp::{Answer, MailServer},
    stores::migrated_database,
    wait_until,
};

const BACK: Duration = Duration::from_secs(22);
const SOON: Duration = Duration::from_secs(8);
const PAGE: &str = include_str!("../../docs/events.md");

async fn service(store: Store, receiver: &Receiver) -> Service {
    Service::start_with(store, &[("NOTIFICATION_SERVICE_URL", &receiver.url())]).await
}

async fn rows(service: &Service) -> Vec<outbox::Model> {
    let all = outbox::Entity::find().order_by_asc(outbox::Column::Id).all(service.app.db.reader()).await.unwrap();
    all.into_iter().filter(|row| row.kind.starts_with("user.")).collect()
}

/// The time at which the request was signed, if `key` signed it.
fn signed_at(request: &Received, key: &str) -> Option<i64> {
    let (t, v1) = request.header("x-identity-signature").split_once(',')?;
    let (t, v1) = (t.strip_prefix("t=")?, v1.strip_prefix("v1=")?);
    let signed = [t.as_bytes(), b".", &request.body].concat();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), &signed, &hex::decode(v1).ok()?).ok()?;
    t.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_and_verifies_is_told_of_in_signed_events() {
    for store in Store::all() {
        for face in Face::ALL {
            let receiver = Receiver::start().await;
            let service = service(store, &receiver).await;
            let registered_at = service.clock.now();
            let id = service.anonymous().register("user@example.com").await;
            receiver.take(1, SOON).await;
            service.clock.advance(TimeDelta::minutes(3));
            let code = service.code_mailed_to("user@example.com", 1).await;
            let guess = json!({ "email": "user@example.com", "code": code });
            service.anonymous().call(face, "AuthService.VerifyEmail", guess).await.expect(200);

            let received = receiver.take(2, SOON).await;
            let key = service.app.config.keys().unwrap().of_events();
            let times = [registered_at, service.clock.now()];
            let told = [("user.registered", false, 1), ("user.verified", true, 2)];
            for ((request, at), (kind, is_verified, version)) in received.iter().zip(times).zip(told) {
                let event = request.json();
                assert_eq!(
                    event,
                    json!({
                        "id": request.header("x-identity-event-id"), "version": 1, "type": kind,
                        "occurred_at": at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
                        "data": {
                            "user": {
                                "id": id, "email": "user@example.com", "first_name": "Jane", "last_name": "Doe",
                                "is_active": true, "is_verified": is_verified, "roles": ["User"],
                            },
                            "user_version": version, "changed": [],
                        },
                    })
                );
                assert_eq!(request.header("x-identity-event"), kind);
                assert_eq!(request.header("content-type"), "application/json");
                assert_eq!(signed_at(request, key.expose_secret()), Some(at.timestamp()));
                assert_eq!(signed_at(request, "another key"), None);
            }
            wait_until(SOON, "the settling", async || {
                rows(&service).await.iter().all(|row| row.state == State::Sent && row.payload.is_empty())
            })
            .await;
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_user_is_told_of_once_and_by_its_most_telling_name() {
    for store in Store::all() {
        for face in Face::ALL {
            let receiver = Receiver::start().await;
            let service = service(store, &receiver).await;
            let admin = service.admin("admin@example.com").await;
            let new = json!({ "email": "user@example.com", "password": PASSWORD });
            let made = admin.call(face, "UserService.CreateUser", new).await.expect(201);
            let id = made["id"].clone();
            let group = admin.call(face, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
            let member = json!({ "id": group["id"], "user_id": id });
            let grant = json!({ "id": id, "permission": "shop.refund" });
            let both =
                json!({ "id": id, "first_name": "John", "is_active": false, "is_seller": true, "is_verified": true });
            let nothing = json!({ "id": id, "first_name": "John", "is_seller": true });
            let calls = [
                ("UserService.UpdateUser", json!({ "id": id, "last_name": "Doe" })),
                ("UserService.UpdateUser", both),
                ("UserService.UpdateUser", nothing),
                ("RoleService.AddUserRole", json!({ "id": id, "role": "moderator" })),
                ("RoleService.AddUserRole", json!({ "id": id, "role": "moderator" })),
                ("RoleService.RemoveUserRole", json!({ "id": id, "role": "seller" })),
                ("RoleService.GrantPermission", grant.clone()),
                ("RoleService.GrantPermission", grant.clone()),
                ("RoleService.RevokePermission", grant),
                ("RoleService.AddGroupMember", member.clone()),
                ("RoleService.RemoveGroupMember", member),
                ("UserService.DeleteUser", json!({ "id": id })),
            ];
            for (rpc, fields) in calls {
                let outcome = admin.call(face, rpc, fields).await;
                assert!(outcome.status < 300, "{rpc}: {outcome:?}");
            }
            let mut told: Vec<_> = receiver.take(13, SOON).await.iter().map(Received::json).collect();
            told.retain(|event| event["data"]["user"]["id"] == id);
            // Sent in order, but for what had to be sent again.
            told.sort_by_key(|event| {
                (event["data"]["user_version"].as_i64(), event["type"].as_str().map(str::to_owned))
            });
            let told: Vec<_> = told
                .iter()
                .map(|event| {
                    let data = &event["data"];
                    (event["type"].as_str().unwrap(), data["user_version"].as_i64().unwrap(), data["changed"].clone())
                })
                .collect();
            let nothing_named = || json!([]);
            assert_eq!(
                told,
                [
                    ("user.registered", 1, nothing_named()),
                    ("user.updated", 2, json!(["last_name"])),
                    ("user.roles_changed", 3, nothing_named()),
                    ("user.updated", 3, json!(["first_name", "is_active"])),
                    ("user.verified", 3, nothing_named()),
                    ("user.roles_changed", 4, nothing_named()),
                    ("user.roles_changed", 5, nothing_named()),
                    ("user.roles_changed", 6, nothing_named()),
                    ("user.roles_changed", 7, nothing_named()),
                    ("user.roles_changed", 8, nothing_named()),
                    ("user.roles_changed", 9, nothing_named()),
                    ("user.deleted", 10, nothing_named()),
                ]
            );
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_made_by_an_operator_is_told_of_and_nobody_where_nobody_listens() {
    for store in Store::all() {
        let receiver = Receiver::start().await;
        let service = service(store, &receiver).await;
        service.admin("admin@example.com").await;
        let event = receiver.take(1, SOON).await[0].json();
        assert_eq!((&event["type"], &event["data"]["user"]["roles"]), (&json!("user.registered"), &json!(["Admin"])));
        service.stop().await;

        let service = Service::start(store).await;
        service.user("user@example.com").await;
        assert_eq!(rows(&service).await, []);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_lies_in_the_database_sealed() {
    let mut receiver = Receiver::start().await;
    receiver.go_away().await;
    let service = service(Store::Sqlite, &receiver).await;
    service.anonymous().register("user@example.com").await;
    wait_until(SOON, "an attempt", async || rows(&service).await[0].last_error.is_some()).await;
    let row = rows(&service).await.remove(0);
    assert!(row.payload.len() > 100 && !row.payload.contains("user"), "{row:?}");
    assert!(row.last_error.unwrap().contains("refused"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_though_the_receiver_refuses_hangs_and_says_no() {
    for store in Store::all() {
        let database = migrated_database(store).await;
        let mut receiver = Receiver::start().await;
        let installation = Installation::with(&[
            ("DATABASE_URL", &database.url),
            ("DEBUG", "true"),
            ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789"),
            ("RATE_LIMIT_REGISTER", "off"),
            ("NOTIFICATION_SERVICE_URL", &receiver.url()),
        ]);
        let service = installation.serve().await;
        let anyone = service.anonymous();
        let mut expected = BTreeSet::new();
        receiver.go_away().await;
        expected.extend(anyone.register_ten("refuses").await);
        sleep(Duration::from_secs(2)).await;
        receiver.answer(|_| None);
        receiver.come_back().await;
        expected.extend(anyone.register_ten("hangs").await);
        sleep(Duration::from_secs(6)).await;
        receiver.answer(|_| Some(500));
        expected.extend(anyone.register_ten("fails").await);
        sleep(Duration::from_secs(6)).await;
        receiver.answer(|_| Some(503));
        sleep(Duration::from_secs(2)).await;

        receiver.answer(|_| Some(200));
        let taken = receiver.take(expected.len(), BACK).await;
        let of = |request: &Received| request.json()["data"]["user"]["email"].as_str().unwrap().to_owned();
        assert_eq!(taken.iter().map(of).collect::<BTreeSet<_>>(), expected, "on {store:?}");
        assert_eq!(taken.len(), expected.len());
        // The id is the event's, not the attempt's; the signature is the attempt's.
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut signatures = BTreeSet::new();
        let received = receiver.received();
        for request in &received {
            ids.entry(of(request)).or_default().insert(request.header("x-identity-event-id").to_owned());
            signatures.insert(request.header("x-identity-signature").to_owned());
        }
        assert!(received.len() > expected.len(), "nothing was tried twice");
        assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
        assert!(signatures.len() > expected.len(), "an old signature was sent again");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_means_what_the_page_says() {
    for (status, state, others_go_on) in [
        (410, State::Abandoned, true),
        (400, State::Pending, true),
        (422, State::Pending, true),
        (500, State::Pending, true),
        (302, State::Pending, false),
        (401, State::Pending, false),
        (404, State::Pending, false),
        (429, State::Pending, false),
        (503, State::Pending, false),
    ] {
        // A machine that is busy may rest where the lane doesn't, and the other way round; not each time.
        let mut seen = Vec::new();
        while seen.len() < 5 && !seen.contains(&others_go_on) {
            seen.push(!lane_rests_after(status, state).await);
        }
        assert!(seen.contains(&others_go_on), "{status}: others go on at once: {seen:?}");
    }
}

/// Whether an event waits where the receiver answered to the one before it with this status, which leaves that in this state.
async fn lane_rests_after(status: u16, state: State) -> bool {
    let receiver = Receiver::start().await;
    receiver.answer(move |event| {
        let first = event["data"]["user"]["email"] == "first@example.com";
        Some(if first { status } else { 200 })
    });
    let service = service(Store::Sqlite, &receiver).await;
    let anyone = service.anonymous();
    anyone.register("first@example.com").await;
    wait_until(SOON, "an attempt", async || rows(&service).await[0].last_error.is_some()).await;
    let row = rows(&service).await.remove(0);
    assert_eq!((row.state, row.last_error), (state, Some(format!("HTTP {status}"))), "{status}");
    assert_eq!(receiver.received().len(), 1, "{status}: a redirect is not followed");

    let begun = Instant::now();
    anyone.register("second@example.com").await;
    receiver.take(1, BACK).await;
    let waited = begun.elapsed();
    service.stop().await;
    // The lane rests for up to a second after its first failure to reach anybody.
    waited > Duration::from_millis(300)
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_and_events_do_not_wait_for_each_others_servers() {
    let (receiver, server) = (Receiver::start().await, MailServer::start().await);
    let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let url = receiver.url();
    let settings = [("EMAIL_HOST", host.as_str()), ("EMAIL_PORT", &port), ("EMAIL_BACKEND", "smtp")];
    let settings = [&settings[..], &[("NOTIFICATION_SERVICE_URL", url.as_str())]].concat();
    let service = Service::start_with(Store::Sqlite, &settings).await;

    server.answer(|_| Answer::Silence);
    for n in 0..20 {
        service.anonymous().register(&format!("mail-hangs{n}@example.com")).await;
    }
    receiver.take(20, SOON).await;
    assert_eq!(server.taken().len(), 0);
    server.answer_yes();
    // What hangs is given up bit by bit, and due again a little later each time.
    let clock = service.clock.clone();
    let ticking = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(100)).await;
            clock.advance(TimeDelta::milliseconds(100));
        }
    });
    server.take(20, BACK).await;
    ticking.abort();

    receiver.answer(|_| None);
    for n in 0..20 {
        service.anonymous().register(&format!("events-hang{n}@example.com")).await;
    }
    server.take(40, SOON).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_an_operator_prints_signs_the_events_and_is_no_other_secret() {
    let secret = "a-secret-for-tests-that-is-long-enough-0123456789";
    let installation = Installation::with(&[("SECRET_KEY", secret)]);
    let printed = installation.run(&["event-key"]).await.expect(0).stdout;
    let key = printed.trim_end();
    assert!(key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    assert_eq!(installation.run(&["event-key"]).await.expect(0).stdout, printed);

    let receiver = Receiver::start().await;
    let settings = [("SECRET_KEY", secret), ("NOTIFICATION_SERVICE_URL", &receiver.url())];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    service.user("user@example.com").await;
    let request = receiver.take(1, SOON).await.remove(0);
    assert!(signed_at(&request, key).is_some());
    assert!(signed_at(&request, secret).is_none());
    service.stop().await;
    let shown = installation.run(&["config"]).await.expect(0).stdout;
    assert!(!shown.contains(key), "{shown}");
}

/// The first block of this language on the page.
fn block(language: &str) -> &'static str {
    let start = PAGE.find(&format!("```{language}\n")).expect("such a block") + language.len() + 4;
    &PAGE[start..start + PAGE[start..].find("```").unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_on_the_page_is_like_a_real_one() {
    let receiver = Receiver::start().await;
    let service = service(Store::Sqlite, &receiver).await;
    let account =
        json!({ "email": "user@example.com", "password": PASSWORD, "first_name": "John", "last_name": "Doe" });
    service.anonymous().call(Face::Rest, "AuthService.Register", account).await.expect(201);
    let request = receiver.take(1, SOON).await.remove(0);
    let mut shown: Value = serde_json::from_str(block("json")).unwrap();
    let real = request.json();
    for key in ["id", "occurred_at"] {
        assert_eq!(shown[key].as_str().unwrap().len(), real[key].as_str().unwrap().len(), "{key}");
        shown[key] = real[key].clone();
    }
    assert_eq!(shown, real);
    // In the order of the page, too.
    let keys = |text: &str| {
        let mut at: Vec<_> = ["\"id\"", "\"version\"", "\"type\"", "\"occurred_at\"", "\"data\"", "\"user_version\""]
            .map(|key| (text.find(key).unwrap(), key))
            .into();
        at.sort_unstable();
        at.into_iter().map(|(_, key)| key).collect::<Vec<_>>()
    };
    assert_eq!(keys(block("json")), keys(std::str::from_utf8(&request.body).unwrap()));
    for line in block("http").lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(request.header(name).len() > 16, value.len() > 16, "{name}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_on_the_page_takes_our_events_and_no_others() {
    let Some(python) = python() else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/events");
    let installation = Installation::with(&[("NOTIFICATION_SERVICE_URL", &url)]);
    let key = installation.run(&["event-key"]).await.expect(0).stdout.trim_end().to_owned();
    let script = installation.folder().join("receiver.py");
    fs::write(&script, block("python")).unwrap();
    let mut command = Command::new(python);
    command.arg(script).env("IDENTITY_EVENT_KEY", &key).env("PORT", port.to_string());
    let mut receiver = Peer::start(command);

    // The service tries until the receiver is there.
    let service = installation.serve().await;
    service.anonymous().register("user@example.com").await;
    assert_eq!(receiver.line(BACK).await, "user.registered user@example.com");

    let post = async |age_secs: i64, key: &str, signed: &str, body: &str| {
        let t = chrono::DateTime::<chrono::Utc>::from(std::time::UNIX_EPOCH + unix_time()).timestamp() - age_secs;
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        let v1 = hex::encode(hmac::sign(&key, format!("{t}.{signed}").as_bytes()));
        let request = reqwest::Client::new().post(&url).header("x-identity-signature", format!("t={t},v1={v1}"));
        request.body(body.to_owned()).send().await.unwrap().status().as_u16()
    };
    let body = json!({ "id": "1", "type": "user.registered", "data": { "user": { "email": "a@b.c" } } }).to_string();
    assert_eq!(post(0, &key, &body, &body).await, 204);
    assert_eq!(post(0, "another key", &body, &body).await, 401);
    assert_eq!(post(0, &key, &body, &body.replace("registered", "deleted")).await, 401);
    assert_eq!(post(301, &key, &body, &body).await, 401);
    let unsigned = reqwest::Client::new().post(&url).body(body).send().await.unwrap();
    assert_eq!(unsigned.status().as_u16(), 401);
    service.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "the receiver goes by the system's clock")]
fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}
