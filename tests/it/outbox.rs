//! The outbox: what was promised by mail arrives, whatever becomes of the mail server or of us.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use futures_util::future::join_all;
use identity::{
    db::{Db, DbOptions},
    domain::outbox::{GivenUp, requeue},
    entity::{
        outbox::{self, State},
        user,
    },
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    sea_query::Expr,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::{
    Face, PASSWORD, Service, Store,
    process::{Installation, Peer},
    python, skip,
    smtp::{Answer, MailServer, Stage, Taken},
    stores::{Database, migrated_database},
    wait_until,
};
use crate::user::{set_flags, user_id};

/// What the outbox promises of a server that comes back, and a little for a machine that is busy.
const BACK: Duration = Duration::from_secs(22);
const SOON: Duration = Duration::from_secs(8);

/// The service in this process, with its mail going to `server`.
async fn service(store: Store, server: &MailServer) -> Service {
    service_with(store, server, &[]).await
}

async fn service_with(store: Store, server: &MailServer, more: &[(&str, &str)]) -> Service {
    let settings = server.settings();
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    settings.extend(more);
    Service::start_with(store, &settings).await
}

/// The service as a program of its own over this database, with its mail going to `server`.
fn installation(database: &Database, server: &MailServer) -> Installation {
    let mut installation = Installation::with(&[("DATABASE_URL", &database.url), ("DEBUG", "true")]);
    installation.set("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789");
    for name in ["RATE_LIMIT_REGISTER", "RATE_LIMIT_LOGIN"] {
        installation.set(name, "off");
    }
    for (name, value) in server.settings() {
        installation.set(&name, &value);
    }
    installation
}

async fn open(database: &Database) -> Db {
    Db::connect(&DbOptions { url: database.url.clone(), ..DbOptions::default() }).await.unwrap()
}

async fn rows(db: &Db) -> Vec<outbox::Model> {
    outbox::Entity::find().order_by_asc(outbox::Column::Id).all(db.reader()).await.unwrap()
}

/// The one message to this user.
async fn row_of(db: &Db, user_id: i64) -> outbox::Model {
    let found = outbox::Entity::find().filter(outbox::Column::UserId.eq(user_id)).one(db.reader()).await.unwrap();
    found.expect("a message")
}

/// How often each address got a mail.
fn by_recipient(taken: &[Taken]) -> BTreeMap<&str, usize> {
    taken.iter().fold(BTreeMap::new(), |mut counts, mail| {
        *counts.entry(mail.to.as_str()).or_default() += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mail_arrives_once_though_the_server_refuses_hangs_and_says_no() {
    for store in Store::all() {
        let database = migrated_database(store).await;
        let mut server = MailServer::start().await;
        let installation = installation(&database, &server);
        let service = installation.serve().await;
        let anyone = service.anonymous();
        let mut expected = BTreeSet::new();
        server.go_away().await;
        expected.extend(anyone.register_ten("refuses").await);
        sleep(Duration::from_secs(2)).await;

        server.answer(|stage| if stage == Stage::Greeting { Answer::Silence } else { Answer::Yes });
        server.come_back().await;
        expected.extend(anyone.register_ten("greets-nobody").await);
        sleep(Duration::from_secs(6)).await;

        server.answer(|stage| match stage {
            Stage::Text(_) => Answer::Silence,
            _ => Answer::Yes,
        });
        expected.extend(anyone.register_ten("takes-for-ever").await);
        sleep(Duration::from_secs(6)).await;

        server.answer(|stage| match stage {
            Stage::Recipient(_) => Answer::Say("451 4.3.0 try again later".into()),
            _ => Answer::Yes,
        });
        expected.extend(anyone.register_ten("not-now").await);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(server.taken().len(), 0);

        server.answer_yes();
        let taken = server.take(expected.len(), BACK).await;
        let ids: BTreeSet<_> = taken.iter().map(Taken::message_id).collect();
        assert_eq!(ids.len(), taken.len());
        sleep(Duration::from_secs(2)).await;
        let taken = server.taken();
        let expected: BTreeMap<_, _> = expected.iter().map(|email| (email.as_str(), 1)).collect();
        assert_eq!(by_recipient(&taken), expected, "on {store:?}");
        let db = open(&database).await;
        assert!(rows(&db).await.iter().all(|row| row.state == State::Sent && row.payload.is_empty()));
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_sending_and_settling_gives_a_second_copy_under_the_same_id() {
    let database = migrated_database(Store::Sqlite).await;
    let server = MailServer::start().await;
    // It takes the mail, and its answer is on the way for ever.
    let took = Arc::new(std::sync::Mutex::new(Vec::new()));
    server.answer({
        let took = Arc::clone(&took);
        move |stage| match stage {
            Stage::Text(text) => {
                took.lock().unwrap().push(Taken { to: String::new(), text: text.into() });
                Answer::Silence
            }
            _ => Answer::Yes,
        }
    });
    let installation = installation(&database, &server);
    let service = installation.serve().await;
    service.anonymous().register("user@example.com").await;
    wait_until(SOON, "the first copy", async || !took.lock().unwrap().is_empty()).await;
    service.kill();

    server.answer_yes();
    let service = installation.serve().await;
    // The lease of the one that died has to run out.
    let taken = server.take(1, Duration::from_secs(50)).await;
    assert_eq!(taken[0].message_id(), took.lock().unwrap()[0].message_id());
    sleep(Duration::from_secs(3)).await;
    assert_eq!((server.taken().len(), took.lock().unwrap().len()), (1, 1), "no third");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_brings_a_second_copy_under_the_same_id() {
    for store in Store::all() {
        let server = MailServer::start().await;
        let lost = AtomicBool::new(false);
        server.answer(move |stage| match stage {
            Stage::Text(_) if !lost.swap(true, Ordering::SeqCst) => Answer::HangUp,
            _ => Answer::Yes,
        });
        let service = service(store, &server).await;
        let id = service.anonymous().register("user@example.com").await;
        wait_until(SOON, "the failure", async || row_of(&service.app.db, id).await.last_error.is_some()).await;
        service.clock.advance(TimeDelta::seconds(2));
        let taken = server.take(2, SOON).await;
        assert_eq!(taken[0].message_id(), taken[1].message_id());
        assert_eq!(taken[0].text, taken[1].text);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_leaves_its_mails_to_the_next_at_once() {
    for store in Store::all() {
        let server = MailServer::start().await;
        let connected = Arc::new(AtomicBool::new(false));
        server.answer({
            let connected = Arc::clone(&connected);
            move |_| {
                connected.store(true, Ordering::SeqCst);
                Answer::Silence
            }
        });
        let service = service(store, &server).await;
        service.user("user@example.com").await;
        wait_until(SOON, "an attempt", async || connected.load(Ordering::SeqCst)).await;
        // The clock stands still: a lease would never end.
        let service = service.restart().await;
        server.answer_yes();
        server.take(1, Duration::from_secs(15)).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_replicas_one_sends_each_mail() {
    for store in Store::all() {
        let server = MailServer::start().await;
        let first = service(store, &server).await;
        let replicas = [first.replica().await, first.replica().await];
        let actors = [first.anonymous(), replicas[0].anonymous(), replicas[1].anonymous()];
        let emails: Vec<_> = (0..45).map(|n| format!("user{n}@example.com")).collect();
        join_all(emails.iter().enumerate().map(|(n, email)| actors[n % 3].register(email))).await;
        server.take(45, BACK).await;
        sleep(Duration::from_secs(1)).await;
        assert!(by_recipient(&server.taken()).values().all(|count| *count == 1), "on {store:?}");
        assert_eq!(server.taken().len(), 45);
        for service in replicas.into_iter().chain([first]) {
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_for_good_is_given_up_at_once_and_who_is_not_waits() {
    for store in Store::all() {
        let server = MailServer::start().await;
        server.answer(|stage| match stage {
            Stage::Recipient("gone@example.com") => Answer::Say("550 5.1.1 <gone@example.com>: no such user".into()),
            Stage::Recipient("full@example.com") => Answer::Say("452 4.2.2 mailbox full".into()),
            Stage::Recipient("relay@example.com") => Answer::Say("554 5.7.1 relay access denied".into()),
            Stage::Text(text) if text.contains("spam@example.com") => Answer::Say(format!(
                "552 5.3.4 too long: {}",
                text.lines().find(|line| line.contains("code is")).unwrap()
            )),
            _ => Answer::Yes,
        });
        let service = service(store, &server).await;
        let (anyone, db) = (service.anonymous(), &service.app.db);
        let mut ids = BTreeMap::new();
        for who in ["gone", "full", "relay", "spam", "fine"] {
            ids.insert(who, anyone.register(&format!("{who}@example.com")).await);
        }
        let seen = async |who: &str| {
            let row = row_of(db, ids[who]).await;
            (row.state, row.last_error.unwrap_or_default())
        };
        wait_until(SOON, "an attempt with each", async || {
            for who in ids.keys() {
                if seen(who).await == (State::Pending, String::new()) {
                    return false;
                }
            }
            true
        })
        .await;
        assert_eq!(seen("gone").await, (State::Abandoned, "the recipient: 550 5.1.1 <…>: no such user".into()));
        assert_eq!(seen("full").await, (State::Pending, "the recipient: 452 4.2.2 mailbox full".into()));
        assert_eq!(seen("relay").await, (State::Pending, "the recipient: 554 5.7.1 relay access denied".into()));
        // A server may quote the text, and so the code: only its codes are kept.
        assert_eq!(seen("spam").await, (State::Abandoned, "the text: 552 5.3.4".into()));
        assert_eq!(seen("fine").await, (State::Sent, String::new()));
        assert_eq!(by_recipient(&server.taken()), [("fine@example.com", 1)].into());
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_that_every_mail_would_get_gives_up_none() {
    let credentials = [("EMAIL_HOST_USER", "me"), ("EMAIL_HOST_PASSWORD", "the-password-of-the-mail-server")];
    let noes = [
        ("login", "535 5.7.8 not you: AUTH PLAIN the-password-of-the-mail-server", "the login: 535 5.7.8"),
        ("sender", "550 5.1.0 sender rejected", "the sender: 550 5.1.0 sender rejected"),
        ("greeting", "554 5.3.2 no service here", "connecting: 554 5.3.2 no service here"),
    ];
    for (at, no, error) in noes {
        let server = MailServer::start().await;
        server.answer(move |stage| match (at, stage) {
            ("login", Stage::Login(_)) | ("sender", Stage::Sender(_)) | ("greeting", Stage::Greeting) => {
                Answer::Say(no.into())
            }
            _ => Answer::Yes,
        });
        let service = service_with(Store::Sqlite, &server, &credentials).await;
        let id = service.anonymous().register("user@example.com").await;
        let db = &service.app.db;
        wait_until(SOON, "an attempt", async || row_of(db, id).await.last_error.is_some()).await;
        let row = row_of(db, id).await;
        assert_eq!((row.state, row.last_error.as_deref()), (State::Pending, Some(error)));
        server.answer_yes();
        service.clock.advance(TimeDelta::seconds(5));
        server.take(1, BACK).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_is_never_far_while_the_server_is_away_and_later_spares_it() {
    for (stage_of_the_no, attempts, least, most) in [
        // The server, whatever was tried before: it may be back any moment.
        ("greeting", 100, 2, 5),
        ("greeting", 1000, 2, 5),
        // This mail: for an hour as quickly, then seldom.
        ("recipient", 100, 9, 15),
        ("recipient", 1000, 180, 300),
    ] {
        let server = MailServer::start().await;
        server.answer(move |stage| match (stage_of_the_no, stage) {
            ("greeting", Stage::Greeting) | ("recipient", Stage::Recipient(_)) => Answer::Say("450 4.2.0 no".into()),
            _ => Answer::Yes,
        });
        let service = service(Store::Sqlite, &server).await;
        let db = &service.app.db;
        let id = service.anonymous().register("user@example.com").await;
        wait_until(SOON, "an attempt", async || row_of(db, id).await.last_error.is_some()).await;
        let tx = db.begin().await.unwrap();
        let update = outbox::Entity::update_many().col_expr(outbox::Column::Attempts, Expr::value(attempts));
        update.exec(&tx).await.unwrap();
        tx.commit().await.unwrap();
        service.clock.advance(TimeDelta::seconds(20));
        let now = service.clock.now();
        wait_until(SOON, "another", async || {
            let row = row_of(db, id).await;
            row.attempts > attempts && row.leased_until.is_none()
        })
        .await;
        let wait = (row_of(db, id).await.next_attempt_at - now).num_seconds();
        assert!((least..=most).contains(&wait), "{stage_of_the_no}, {attempts}: {wait} s");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_and_one_that_hangs_hold_up_no_other() {
    for store in Store::all() {
        let server = MailServer::start().await;
        server.answer(|stage| match stage {
            Stage::Recipient(to) if to.starts_with("hangs") => Answer::Silence,
            _ => Answer::Yes,
        });
        let service = service(store, &server).await;
        let (anyone, db) = (service.anonymous(), &service.app.db);
        let template = {
            let id = anyone.register("first@example.com").await;
            server.take(1, SOON).await;
            wait_until(SOON, "the settling", async || row_of(db, id).await.state == State::Sent).await;
            row_of(db, id).await
        };
        // Sealed for another place, too short, no base64; and one that a newer release may have written.
        for (kind, payload) in [
            ("verification_code", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            ("verification_code", ""),
            ("verification_code", "***"),
            ("of_tomorrow", "***"),
        ] {
            let mut row = template.clone().into_active_model();
            row.id = sea_orm::ActiveValue::NotSet;
            row.dedup_id = Set(uuid::Uuid::new_v4());
            (row.kind, row.payload) = (Set(kind.into()), Set(payload.into()));
            (row.state, row.user_id, row.attempts) = (Set(State::Pending), Set(None), Set(0));
            let tx = db.begin().await.unwrap();
            row.insert(&tx).await.unwrap();
            tx.commit().await.unwrap();
        }
        for n in 0..5 {
            anyone.register(&format!("hangs{n}@example.com")).await;
        }
        for n in 0..20 {
            anyone.register(&format!("user{n}@example.com")).await;
        }
        server.take(21, SOON).await;
        let unreadable = "the payload can't be read: was SECRET_KEY another?";
        let rows = rows(db).await;
        let broken: Vec<_> = rows.iter().filter(|row| row.user_id.is_none()).collect();
        assert_eq!(broken.len(), 4);
        for row in broken {
            let (attempts, error) = if row.kind == "of_tomorrow" { (0, None) } else { (1, Some(unreadable)) };
            assert_eq!((row.state, row.attempts, row.last_error.as_deref()), (State::Pending, attempts, error));
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mails_of_a_user_come_in_the_order_in_which_they_were_posted() {
    let server = MailServer::start().await;
    let service = service_with(Store::Sqlite, &server, &[("RATE_LIMIT_VERIFICATION", "off")]).await;
    let user = service.user("user@example.com").await;
    for _ in 0..9 {
        user.call(Face::Rest, "AuthService.SendVerification", json!({})).await.expect(200);
    }
    let taken = server.take(10, SOON).await;
    let posted: Vec<_> = rows(&service.app.db).await.iter().map(|row| row.dedup_id.to_string()).collect();
    let came: Vec<_> = taken.iter().map(|mail| mail.message_id()[1..37].to_owned()).collect();
    assert_eq!(came, posted);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_was_given_up_and_has_it_tried_anew() {
    for store in Store::all() {
        let database = migrated_database(store).await;
        let server = MailServer::start().await;
        let installation = installation(&database, &server);
        let empty = installation.run(&["outbox"]).await.expect(0);
        assert_eq!(empty.stdout, "nothing waits, and nothing was given up\n");

        server.answer(|stage| match stage {
            Stage::Recipient("gone@example.com") => Answer::Say("550 5.1.1 no such user".into()),
            Stage::Recipient("late@example.com") => Answer::Say("451 4.3.0 not now".into()),
            _ => Answer::Yes,
        });
        let db = open(&database).await;
        let service = installation.serve().await;
        let gone = service.anonymous().register("gone@example.com").await;
        let late = service.anonymous().register("late@example.com").await;
        // Two days ago, so that the next failure is the last.
        wait_until(SOON, "an attempt", async || row_of(&db, late).await.last_error.is_some()).await;
        let posted_at = row_of(&db, late).await.created_at - TimeDelta::days(2);
        let tx = db.begin().await.unwrap();
        outbox::Entity::update_many()
            .col_expr(outbox::Column::CreatedAt, Expr::value(posted_at))
            .filter(outbox::Column::UserId.eq(late))
            .exec(&tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        wait_until(BACK, "the end", async || row_of(&db, late).await.state == State::Abandoned).await;

        let listed = installation.run(&["outbox"]).await.expect(0).stdout;
        let lines: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["id", "kind", "user", "state", "age", "attempts", "next", "last", "error"]);
        let given_up = |line: &[&str], user: i64| {
            line[1] == "verification_code" && line[2] == user.to_string() && line[3..5] == ["given", "up"]
        };
        assert!(given_up(&lines[1], gone) && lines[1].join(" ").ends_with("550 5.1.1 no such user"), "{listed}");
        assert!(given_up(&lines[2], late) && lines[2][5] == "2d", "{listed}");
        assert!(!listed.contains("code is") && !listed.contains(&row_of(&db, gone).await.payload), "{listed}");

        let unknown = installation.run(&["outbox", "requeue", "--id", "999"]).await.expect(1);
        assert!(unknown.stderr.contains("no message 999 was given up: nothing changed"), "{unknown:?}");
        installation.run(&["outbox", "requeue"]).await.expect(2);
        installation.run(&["outbox", "requeue", "--id", "1", "--all"]).await.expect(2);

        // Of new tries there are many: it fails again, and is not given up.
        let row = row_of(&db, late).await;
        let requeued = installation.run(&["outbox", "requeue", "--id", &row.id.to_string()]).await.expect(0);
        assert_eq!(requeued.stdout, "1 message will be tried again\n");
        wait_until(SOON, "two more attempts", async || row_of(&db, late).await.attempts >= 2).await;
        assert_eq!(row_of(&db, late).await.state, State::Pending);

        server.answer_yes();
        let requeued = installation.run(&["outbox", "requeue", "--all"]).await.expect(0);
        assert_eq!(requeued.stdout, "1 message will be tried again\n");
        server.take(2, BACK).await;
        wait_until(SOON, "nothing left", async || {
            installation.run(&["outbox"]).await.expect(0).stdout == "nothing waits, and nothing was given up\n"
        })
        .await;
        let nothing = installation.run(&["outbox", "requeue", "--all"]).await.expect(0);
        assert_eq!(nothing.stdout, "nothing was given up\n");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_that_is_put_in_again_tells_when_the_change_was_though_the_account_is_gone() {
    for store in Store::all() {
        let server = MailServer::start().await;
        server.answer(|stage| match stage {
            Stage::Recipient(_) => Answer::Say("550 5.1.1 no such user".into()),
            _ => Answer::Yes,
        });
        let service = service(store, &server).await;
        let owner = service.user("owner@example.com").await;
        let id = user_id(&owner);
        set_flags(&service, id, &[(user::Column::IsVerified, true)]).await;
        let fields = json!({ "old_password": PASSWORD, "new_password": "An0ther-passw0rd" });
        owner.call(Face::Rest, "AuthService.ChangePassword", fields).await.expect(200);
        let changed_at = service.clock.now().format("%-d %B %Y at %H:%M UTC").to_string();
        owner.call(Face::Rest, "UserService.DeleteUser", json!({ "id": id })).await.expect(204);
        let posted = async || outbox::Entity::find().all(service.app.db.reader()).await.unwrap();
        wait_until(SOON, "the end", async || {
            posted().await.iter().map(|row| (row.kind.as_str(), row.state)).eq([("password_changed", State::Abandoned)])
        })
        .await;

        service.clock.advance(TimeDelta::days(2));
        server.answer_yes();
        let put_in = requeue(&service.app.db, GivenUp::All, service.clock.now()).await.unwrap();
        assert_eq!(put_in, 1);
        let mail = server.take(1, BACK).await.remove(0).text.replace("=\n", "");
        assert!(mail.contains(&changed_at), "{changed_at}: {mail}");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_to_a_domain_in_the_spelling_that_every_server_takes() {
    let server = MailServer::start().await;
    let service = service(Store::Sqlite, &server).await;
    service.anonymous().register("user@пример.рф").await;
    let beyond = service.anonymous().register("почта@example.com").await;
    assert_eq!(server.take(1, SOON).await[0].to, "user@xn--e1afmkfd.xn--p1ai");
    // The other has no other spelling, and this server takes none like it.
    wait_until(SOON, "the refusal", async || row_of(&service.app.db, beyond).await.state == State::Abandoned).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tls_is_asked_for_nothing_goes_in_the_clear() {
    let server = MailServer::start().await;
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    server.answer({
        let said = Arc::clone(&said);
        move |stage| {
            said.lock().unwrap().push(format!("{stage:?}"));
            Answer::Yes
        }
    });
    let settings = [("EMAIL_USE_TLS", "true"), ("EMAIL_HOST_USER", "me"), ("EMAIL_HOST_PASSWORD", "secret")];
    let service = service_with(Store::Sqlite, &server, &settings).await;
    let id = service.anonymous().register("user@example.com").await;
    wait_until(SOON, "an attempt", async || row_of(&service.app.db, id).await.last_error.is_some()).await;
    let row = row_of(&service.app.db, id).await;
    assert_eq!((row.state, &row.last_error.unwrap()[..9]), (State::Pending, "STARTTLS:"));
    assert!(said.lock().unwrap().iter().all(|stage| stage == "Greeting" || stage == "Hello"), "{said:?}");
    service.stop().await;
}

/// A mail server in Python: it speaks TLS with a certificate made for it here, and wants a login.
fn mail_server_in_python(python: &str, way: &str, host: &str, port: u16, folder: &Path) -> Peer {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new(python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/mail_server.py"))
        .args([way, host, &port.to_string()])
        .args([certificate, key])
        .args(["me", "a-password"]);
    Peer::start(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_mail_server_takes_mail_over_tls_of_both_kinds_after_a_login() {
    let Some(python) = python() else { return };
    // An address of our own, since port 465 is one for all.
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = format!("127.77.{high}.{}", low.max(1));
    for (way, host, port) in [("starttls", "localhost", 0), ("tls", own.as_str(), 465)] {
        let port = match std::net::TcpListener::bind((host, port)) {
            Ok(listener) => listener.local_addr().unwrap().port(),
            Err(error) => {
                skip(&format!("{way}: nobody may listen on {host}:{port} here: {error}"));
                continue;
            }
        };
        let mut installation = Installation::new();
        let mut server = mail_server_in_python(&python, way, host, port, installation.folder());
        assert_eq!(server.line(BACK).await, "ready");
        for (name, value) in [
            ("EMAIL_HOST", host),
            ("EMAIL_PORT", &port.to_string()),
            ("EMAIL_USE_TLS", "true"),
            ("EMAIL_HOST_USER", "me"),
            ("EMAIL_HOST_PASSWORD", "a-password"),
            ("DEFAULT_FROM_EMAIL", "Users <users@example.com>"),
        ] {
            installation.set(name, value);
        }
        // As long as nobody vouches for its certificate, it gets nothing.
        let service = installation.serve().await;
        service.anonymous().register("user@example.com").await;
        wait_until(SOON, "an attempt", async || {
            let listed = installation.run(&["outbox"]).await.expect(0).stdout;
            listed.contains("certificate")
        })
        .await;
        service.stop().await;

        let certificate = installation.folder().join("certificate.pem");
        installation.set("SSL_CERT_FILE", certificate.to_str().unwrap());
        let service = installation.serve().await;
        let mail: Value = serde_json::from_str(&server.line(BACK).await).unwrap();
        assert_eq!((&mail["encrypted"], &mail["login"]), (&json!(true), &json!(true)), "{way}");
        assert_eq!((&mail["sender"], &mail["recipients"]), (&json!("users@example.com"), &json!(["user@example.com"])));
        let text = mail["text"].as_str().unwrap();
        assert!(text.contains("your verification code is") && text.contains("<!DOCTYPE html>"), "{text}");
        service.stop().await;
    }
}
