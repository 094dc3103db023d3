//! What is acknowledged holds, whatever comes at once and whatever ends the service.
//! The lines are those of `docs/security.md`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use identity::entity::{profile, session, user};
use reqwest::Method;
use rustix::process::Signal;
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::{
    endurance::{ENDS_WITHIN, READY_WITHIN, kill_cycles, ready, seed},
    harness::{
        Face, PASSWORD, Store,
        load::{Crowd, Leniency, Whom, installation},
        on_each_store,
        process::Installation,
        smtp::MailServer,
        wait_until,
    },
    registration::{TAKEN, account, complaints},
    shutdown::{BOUND, begin_a_registration, connect, read_until, refused},
};

/// Line 58.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_registrations_of_one_address_at_once_make_one_account() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let actors = [service.anonymous(), replica.anonymous()];
        let attempts = (0..100).map(|n| {
            let (actor, face) = (&actors[n % 2], Face::ALL[n / 2 % 2]);
            actor.call(face, "AuthService.Register", account("user@example.com"))
        });
        let outcomes = join_all(attempts).await;
        let refused: Vec<_> = outcomes.iter().filter(|outcome| outcome.status != 201).collect();
        assert_eq!(refused.len(), 99);
        for outcome in refused {
            assert_eq!((outcome.status, complaints(outcome)), (400, [("email", TAKEN)].into()), "{outcome:?}");
        }
        let db = service.app.db.reader();
        assert_eq!(user::Entity::find().count(db).await.unwrap(), 1);
        assert_eq!(profile::Entity::find().count(db).await.unwrap(), 1);
        assert_eq!(session::Entity::find().count(db).await.unwrap(), 1);

        // One mail, from whichever replica takes it out of the outbox.
        let sent = || service.mails.lock().unwrap().len() + replica.mails.lock().unwrap().len();
        wait_until(Duration::from_secs(5), "the mail", async || sent() > 0).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(sent(), 1);
        replica.stop().await;
    })
    .await;
}

/// Line 59.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_kill() {
    let installation = Installation::with(&[("RATE_LIMIT_REGISTER", "off")]);
    for round in 0..20 {
        let service = installation.serve().await;
        let mut user = service.anonymous();
        let account = json!({ "email": format!("user{round}@example.com"), "password": PASSWORD });
        let registered = user.call(Face::Rest, "AuthService.Register", account).await.expect(201);
        user.take_tokens(&registered);
        let bio = json!({ "bio": format!("round {round}") });
        user.call(Face::Rest, "ProfileService.UpdateMyProfile", bio.clone()).await.expect(200);
        service.kill();

        let service = installation.serve().await;
        let profile =
            user.at(service.address).call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(profile["bio"], bio["bio"]);
        assert_eq!(profile["user"]["id"], registered["id"]);
        assert_eq!(user.at(service.address).request(Method::GET, "/api/health/").send().await.unwrap().status(), 200);
        service.kill();
    }
}

/// Line 59.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing_that_was_acknowledged() {
    for store in Store::all() {
        let starts = kill_cycles(store, 3, false).await;
        assert!(starts[starts.len() / 2] < READY_WITHIN, "{starts:?}");
    }
}

/// Line 60.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_under_load_answers_whoever_was_heard() {
    for store in Store::all() {
        let (seed, mails) = (seed(), MailServer::start().await);
        let (_database, installation) = installation(store, &mails).await;
        let (mut service, _) = ready(&installation).await;
        let mut crowd = Crowd::new(service.address, seed).await;
        for round in 0..3 {
            let is_over = AtomicBool::new(false);
            let stop = async {
                sleep(Duration::from_millis(400)).await;
                is_over.store(true, Ordering::SeqCst);
                service.signal(Signal::TERM);
            };
            let address = service.address;
            let refused = tokio::join!(crowd.work(address, &is_over), stop).0;
            assert_eq!(service.exit_code(ENDS_WITHIN).await, Some(0), "{}", service.log());
            service = ready(&installation).await.0;
            crowd.look(service.address, Leniency::UnansweredIsNotDone, Whom::All).await;
            assert_eq!((refused, &crowd.losses), (0, &Vec::new()), "round {round} on {store:?}");
        }
        println!("{store:?}: acknowledged {:?}", crowd.acknowledged());
        service.stop().await;
    }
}

/// Line 60.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_while_new_ones_are_refused() {
    for signal in [Signal::TERM, Signal::INT] {
        let installation = Installation::new();
        let mut service = installation.serve().await;
        let body = json!({ "email": "user@example.com", "password": PASSWORD }).to_string();
        let mut call = begin_a_registration(&service, &body).await;

        service.signal(signal);
        refused(&service).await;
        call.write_all(body.as_bytes()).await.unwrap();
        let answer = read_until(&mut call, "\r\n\r\n").await.to_lowercase();
        assert!(answer.starts_with("http/1.1 201"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(service.exit_code(BOUND).await, Some(0), "after {signal:?}: {}", service.log());

        // And what it answered is true.
        let service = installation.serve().await;
        let login = json!({ "email": "user@example.com", "password": PASSWORD });
        service.anonymous().call(Face::Rest, "AuthService.Login", login).await.expect(200);
    }
}

/// Line 60.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_finish_are_cut_off() {
    let installation = Installation::new();
    let mut service = installation.serve().await;
    let body_to_come = begin_a_registration(&service, "{}").await;
    let mut head_to_come = connect(&service).await;
    head_to_come.write_all(b"GET /api/health/ HTTP/1.1\r\nhost: loc").await.unwrap();
    // HTTP/2 (RFC 9113 §3.4) that says hello and then answers nothing, no ping either.
    let mut deaf = connect(&service).await;
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    deaf.read_u8().await.unwrap();

    service.signal(Signal::TERM);
    assert_eq!(service.exit_code(BOUND).await, Some(0), "{}", service.log());
    drop((body_to_come, head_to_come, deaf));
}
