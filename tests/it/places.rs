//! Places that many share: searches, uploads and pictures of one user wait for each other, and don't hold up those of others.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use identity::places::Places;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use reqwest::Method;
use sea_orm::ConnectionTrait;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::{
    avatar::{encoded, picture, upload},
    directory::{add, person},
    harness::{Actor, Face, Outcome, PASSWORD, Service, Store, actor::outcome_of, on_each_store, wait_for, wait_until},
};

/// What the calls of others may take meanwhile. The machine is busy with the flood; without places they take longer by far, or
/// fail.
const PROMPT: Duration = Duration::from_secs(4);

/// What a call of somebody else answers, which has to be soon.
async fn prompt(what: &str, call: impl Future<Output = Outcome>) -> Outcome {
    let begun = Instant::now();
    let outcome = timeout(PROMPT, call).await.unwrap_or_else(|_| panic!("{what}: no answer within {PROMPT:?}"));
    eprintln!("{what}: {} in {:?}", outcome.status, begun.elapsed());
    outcome
}

#[tokio::test]
async fn each_user_has_places_of_its_own_and_is_forgotten_with_the_last_of_them() {
    let places = Places::new(2, 1);
    let moment = Duration::from_millis(100);
    let first = places.enter(7).await;
    let mut second = Box::pin(places.enter(7));
    assert!(timeout(moment, &mut second).await.is_err(), "one user has one place");
    let other = timeout(moment, places.enter(8)).await.expect("a place for another");
    let mut third = Box::pin(places.enter(9));
    assert!(timeout(moment, &mut third).await.is_err(), "there are two places");
    assert_eq!(places.users(), 3);

    // The one that waits for its user's own place is behind the one that waits for any.
    drop(first);
    let third = timeout(moment, third).await.expect("a place that is free again");
    assert!(timeout(moment, &mut second).await.is_err(), "there are two places");
    drop(other);
    let second = timeout(moment, second).await.expect("a place that is free again");
    assert_eq!(places.users(), 2);
    // Who waits no more has taken nothing.
    assert!(timeout(moment, places.enter(7)).await.is_err(), "one user has one place");
    drop((second, third));
    assert_eq!(places.users(), 0);
    let both = (places.enter(7).await, places.enter(8).await);
    drop(both);
}

// Searches.

/// Eight words too short for an index: all names are read for each of them.
const SLOW_SEARCH: &str = "/api/users/?ordering=last_name&search=q0+q1+q2+q3+q4+q5+q6+q7";

/// A directory of names so long that reading them takes a while.
async fn fill(service: &Service) {
    add(service, (0..200).map(|n| person(&format!("long{n}@example.com"), "Jane", "Doe")).collect()).await;
    // Written past the indexes, which are not asked and would take their time.
    let (no_index, long) = match service.app.db.backend_name() {
        "PostgreSQL" => ("DROP INDEX IF EXISTS users_name_text", "repeat('x', 100000)"),
        _ => ("DROP TRIGGER users_search_update", "replace(hex(zeroblob(50000)), '0', 'x')"),
    };
    let tx = service.app.db.begin().await.unwrap();
    tx.execute_unprepared(no_index).await.unwrap();
    let lengthen =
        format!("UPDATE users SET name_text = {long} || ' q0 q1 q2 q3 q4 q5 q6 q7' WHERE email_key LIKE 'long%'");
    tx.execute_unprepared(&lengthen).await.unwrap();
    tx.commit().await.unwrap();
}

/// What went another way than it should.
type Strange = Arc<Mutex<Vec<Outcome>>>;

/// So many who search as one user, each anew as soon as there is an answer, or none within `patience`. It ends when dropped.
fn flood(attacker: &Actor, searchers: usize, patience: Duration, strange: &Strange) -> JoinSet<()> {
    let mut flood = JoinSet::new();
    for _ in 0..searchers {
        let (attacker, strange) = (attacker.clone(), Arc::clone(strange));
        flood.spawn(async move {
            loop {
                let search = attacker.request(Method::GET, SLOW_SEARCH).timeout(patience).send();
                if let Ok(response) = search.await {
                    let outcome = outcome_of(response).await;
                    if outcome.status != 200 && !outcome.text.contains("Too many searches") {
                        strange.lock().unwrap().push(outcome);
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    flood
}

/// While one user floods the directory, others are served, the service is healthy, and a logout elsewhere counts.
async fn nobody_else_notices(store: Store, searchers: usize, patience: Duration) {
    eprintln!("on {store:?}");
    let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
    let elsewhere = service.replica().await;
    let [attacker, other, leaving] = ["attacker", "other", "leaving"].map(|name| format!("{name}@example.com"));
    let [attacker, other, leaving] =
        [service.user(&attacker).await, service.user(&other).await, service.user(&leaving).await];
    fill(&service).await;
    let begun = Instant::now();
    outcome_of(attacker.request(Method::GET, SLOW_SEARCH).send().await.unwrap()).await.expect(200);
    eprintln!("one search takes {:?}", begun.elapsed());

    let strange = Strange::default();
    let mut flood = flood(&attacker, searchers, patience, &strange);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let login = json!({ "email": "other@example.com", "password": PASSWORD });
    for face in Face::ALL {
        prompt("a profile", other.call(face, "ProfileService.GetMyProfile", json!({}))).await.expect(200);
        prompt("a login", service.anonymous().call(face, "AuthService.Login", login.clone())).await.expect(200);
        let bio = other.call(face, "ProfileService.UpdateMyProfile", json!({ "bio": "Hello", "update_mask": "bio" }));
        prompt("a change", bio).await.expect(200);
    }
    let health = async || outcome_of(other.request(Method::GET, "/api/health/").send().await.unwrap()).await;
    prompt("health", health()).await.expect(200);
    leaving.at(elsewhere.address).call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
    let begun = Instant::now();
    wait_until(Duration::from_secs(3), "a logout elsewhere counts", async || {
        leaving.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.status == 401
    })
    .await;
    eprintln!("a logout elsewhere counted after {:?}", begun.elapsed());
    let begun = Instant::now();
    let search = || other.request(Method::GET, "/api/users/?search=other").send();
    wait_until(Duration::from_secs(10), "others may search too", async || search().await.unwrap().status() == 200)
        .await;
    eprintln!("a search of another took {:?}", begun.elapsed());
    if patience > Duration::from_secs(2) {
        // Now and then one comes at the right moment.
        let refused = wait_for(Duration::from_secs(30), "a search too many is refused", async || {
            let answer = attacker.call(Face::Grpc, "UserService.ListUsers", json!({ "search": "q0 q1" })).await;
            (answer.status != 200).then_some(answer)
        })
        .await;
        let told = (refused.status, refused.reason.as_deref(), refused.retry_after);
        assert_eq!(told, (503, Some("OVERLOADED"), Some(1)), "{refused:?}");
        assert_eq!(refused.text, "Service unavailable: Too many searches at once. Try again soon");
    }
    eprintln!("all of it took {:?}", begun.elapsed());
    flood.shutdown().await;
    let strange = std::mem::take(&mut *strange.lock().unwrap());
    assert!(strange.is_empty(), "of the searches: {strange:?}");
    service.stop().await;
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_of_one_user_hold_up_nobody_else() {
    for store in Store::all() {
        nobody_else_notices(store, 60, Duration::from_secs(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_that_nobody_waits_for_any_more_hold_up_nobody_else() {
    for store in Store::all() {
        nobody_else_notices(store, 20, Duration::from_millis(50)).await;
    }
}

// Uploads.

/// The head of a change of one's own profile that doesn't say how long it is.
fn head(actor: &Actor, content_type: &str) -> String {
    let token = actor.access_token.as_deref().unwrap();
    format!(
        "PATCH /api/profile/me/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: {content_type}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
}

/// Begins an upload, sends more of it than every request may have, and then nothing more.
async fn stall(actor: &Actor, service: &Service) -> TcpStream {
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    let head = head(actor, "multipart/form-data; boundary=x");
    socket.write_all(format!("{head}14000\r\n{}\r\n", "x".repeat(0x14000)).as_bytes()).await.unwrap();
    socket
}

/// A new bio, in JSON that doesn't say how long it is. The answer is the status line.
async fn change_in_chunks(actor: &Actor, service: &Service) -> String {
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    let head = head(actor, "application/json");
    socket.write_all(format!("{head}f\r\n{{\"bio\":\"Hello\"}}\r\n0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// A picture of more than 64 KiB.
fn large_picture() -> Vec<u8> {
    let noise = RgbImage::from_fn(200, 200, |x, y| {
        let [a, b, c, _] = (x * 7919 + y * 104_729).wrapping_mul(2_654_435_761).to_be_bytes();
        image::Rgb([a, b, c])
    });
    let mut file = encoded(&noise.into(), ImageFormat::Png);
    assert!(file.len() < 2 << 20);
    file.resize(file.len().max(100_000), 0); // What follows its end is no part of a PNG.
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_of_one_user_hold_up_nobody_else() {
    on_each_store(async |service| {
        let attacker = service.user("attacker@example.com").await;
        let other = service.user("other@example.com").await;
        let held = join_all((0..40).map(|_| stall(&attacker, service))).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for face in Face::ALL {
            let bio = json!({ "bio": "Hello", "update_mask": "bio" });
            let small = other.call(face, "ProfileService.UpdateMyProfile", bio.clone());
            prompt("a small change", small).await.expect(200);
            prompt("an upload", upload(&other, face, large_picture())).await.expect(200);
            let own = attacker.call(face, "ProfileService.UpdateMyProfile", bio);
            prompt("a small change of the same user", own).await.expect(200);
            let own = timeout(Duration::from_millis(500), upload(&attacker, face, large_picture())).await;
            assert!(own.is_err(), "the user's next upload waits for the others: {own:?}");
        }
        assert_eq!(timeout(PROMPT, change_in_chunks(&other, service)).await.unwrap(), "HTTP/1.1 200 OK");
        drop(held);
        prompt("an upload of the same user", upload(&attacker, Face::Rest, large_picture())).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_32_uploads_are_under_way_and_nothing_small_waits_for_them() {
    let service = Service::start(Store::all()[0]).await;
    let user = service.user("user@example.com").await;
    let mut held = Vec::new();
    for n in 0..16 {
        let sender = service.user(&format!("sender{n}@example.com")).await;
        held.extend([stall(&sender, &service).await, stall(&sender, &service).await]);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for face in Face::ALL {
        let bio = json!({ "bio": "small", "update_mask": "bio" });
        prompt("a small change", user.call(face, "ProfileService.UpdateMyProfile", bio)).await.expect(200);
        let waiting = timeout(Duration::from_millis(500), upload(&user, face, large_picture())).await;
        assert!(waiting.is_err(), "it had to wait: {waiting:?}");
    }
    // One goes, one may come.
    held.pop();
    prompt("an upload", upload(&user, Face::Grpc, large_picture())).await.expect(200);
    drop(held);
    service.stop().await;
}

// Pictures.

#[tokio::test(flavor = "multi_thread")]
async fn many_pictures_of_one_user_hold_up_nobody_else() {
    on_each_store(async |service| {
        let attacker = service.user("attacker@example.com").await;
        let other = service.user("other@example.com").await;
        // Much to decode, in a file that is no upload.
        let slow = encoded(&DynamicImage::from(GrayImage::new(3200, 3200)), ImageFormat::Png);
        assert!(slow.len() < 65_536, "{}", slow.len());
        let mut pictures = JoinSet::new();
        for n in 0..48 {
            let (attacker, slow) = (attacker.clone(), slow.clone());
            pictures.spawn(async move { upload(&attacker, Face::ALL[n % 2], slow).await });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        while pictures.try_join_next().is_some() {}
        let begun = Instant::now();
        let tiny = encoded(&picture(10, 10), ImageFormat::Png);
        upload(&other, Face::Rest, tiny).await.expect(200);
        let took = begun.elapsed();
        let mut done = 0;
        while let Some(outcome) = pictures.try_join_next() {
            outcome.unwrap().expect(200);
            done += 1;
        }
        eprintln!("a tiny picture took {took:?}, and {done} large ones were done meanwhile");
        assert!(done < 10, "a tiny picture waited for {done} large ones of somebody else");
        pictures.shutdown().await;
    })
    .await;
}
