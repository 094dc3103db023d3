//! Avatars in a folder or a bucket: what becomes of them when something breaks, and what is swept.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use image::ImageFormat;
use reqwest::Method;
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use crate::{
    avatar::{encoded, name_in, picture, served, upload},
    harness::{
        Actor, Face, Outcome, Service, Store,
        actor::outcome_of,
        gallery::{Gallery, KEY, Kind, Mood, in_every_gallery_outside},
        process::Installation,
        wait_until,
    },
};

pub fn file() -> Vec<u8> {
    encoded(&picture(30, 30), ImageFormat::Jpeg)
}

/// The name of the user's new avatar.
pub async fn new_avatar(service: &Service, user: &Actor) -> String {
    let profile = upload(user, Face::Rest, file()).await.expect(200);
    name_in(&served(service, &profile).await.1)
}

pub async fn get_picture(service: &Service, name: &str) -> Outcome {
    let picture = service.anonymous().request(Method::GET, &format!("/media/avatars/{name}"));
    outcome_of(picture.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_bucket_away_only_pictures_suffer_and_nobody_waits_long() {
    for store in Store::all() {
        let gallery = Gallery::open(Kind::Bucket).await;
        let service = Service::start_with(store, &gallery.settings()).await;
        let user = service.user("user@example.com").await;
        let name = new_avatar(&service, &user).await;
        for mood in [Mood::Hang, Mood::Break, Mood::Refuse] {
            gallery.set_mood(mood);
            let started = Instant::now();
            let with_pictures = async {
                let [rest, grpc] = Face::ALL.map(|face| upload(&user, face, file()));
                let refused = tokio::join!(rest, grpc, get_picture(&service, &name));
                for refused in [refused.0, refused.1, refused.2] {
                    assert_eq!((refused.status, refused.retry_after), (503, Some(1)), "{mood:?}: {refused:?}");
                    assert!(refused.text.contains("Avatars are out of reach"), "{refused:?}");
                }
                assert!(started.elapsed() < Duration::from_secs(7), "{mood:?}: {:?}", started.elapsed());
            };
            let without = async {
                for face in Face::ALL {
                    let bio = json!({ "bio": format!("{mood:?}") });
                    let profile = user.call(face, "ProfileService.UpdateMyProfile", bio).await.expect(200);
                    assert_eq!(name_in(profile["avatar"].as_str().unwrap()), name, "it is what it was");
                }
                let health = service.anonymous().request(Method::GET, "/api/health/").send().await.unwrap();
                assert_eq!(health.status(), 200);
                assert!(started.elapsed() < Duration::from_secs(2), "{mood:?}: {:?}", started.elapsed());
            };
            tokio::join!(with_pictures, without);
        }
        gallery.set_mood(Mood::Serve);
        assert_eq!(get_picture(&service, &name).await.status, 200);
        let next = new_avatar(&service, &user).await;
        assert_eq!(gallery.names(&service).await, [next].into());
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_does_not_wait_for_a_bucket_that_hangs_to_give_up_the_old_picture() {
    let gallery = Gallery::open(Kind::Bucket).await;
    let service = Service::start_with(Store::all()[0], &gallery.settings()).await;
    let user = service.user("user@example.com").await;
    let name = new_avatar(&service, &user).await;
    gallery.set_mood(Mood::Hang);
    let started = Instant::now();
    let clear = json!({ "avatar": null });
    let profile = user.call(Face::Rest, "ProfileService.UpdateMyProfile", clear).await.expect(200);
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!((&profile["avatar"], gallery.names(&service).await), (&Value::Null, [name].into()));

    // What could not be removed is left to the sweep, once the bucket is back.
    service.clock.advance(TimeDelta::hours(2));
    assert!(service.app.sweep_orphan_avatars().await.is_err());
    gallery.set_mood(Mood::Serve);
    service.clock.advance(TimeDelta::hours(2));
    assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 1);
    assert_eq!(gallery.names(&service).await, [].into());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_address_and_a_key_that_is_not_taken_are_an_outage_too() {
    for (setting, value) in [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_SECRET_ACCESS_KEY", "another")] {
        let gallery = Gallery::open(Kind::Bucket).await;
        let settings: Vec<_> = gallery.settings().into_iter().chain([(setting, value)]).collect();
        let service = Service::start_with(Store::all()[0], &settings).await;
        let user = service.user("user@example.com").await;
        for face in Face::ALL {
            let started = Instant::now();
            let refused = upload(&user, face, file()).await;
            assert_eq!((refused.status, refused.retry_after), (503, Some(1)), "{setting}: {refused:?}");
            assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_gets_its_key_from_its_platform() {
    // What EKS has beside each pod: it gives a key to whoever shows the token in a file.
    let given =
        json!({ "AccessKeyId": KEY.0, "SecretAccessKey": KEY.1, "Token": "", "Expiration": "2200-01-01T00:00:00Z" });
    let give = move |headers: http::HeaderMap| {
        let is_pod = headers.get("authorization").is_some_and(|token| token == "a-token-of-the-pod");
        std::future::ready(if is_pod {
            (http::StatusCode::OK, given.to_string())
        } else {
            (http::StatusCode::FORBIDDEN, String::new())
        })
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let platform = axum::Router::new().route("/keys", axum::routing::get(give));
    let platform = tokio::spawn(async move { axum::serve(listener, platform).await });

    let gallery = Gallery::open(Kind::Bucket).await;
    for (token, status) in [("a-token-of-the-pod", 200), ("another", 503)] {
        gallery.put("token");
        let file_with_token = gallery.folder().join("token");
        std::fs::write(&file_with_token, token).unwrap();
        let (url, path) = (format!("http://{address}/keys"), file_with_token.display().to_string());
        let mut settings = gallery.settings();
        settings.retain(|(name, _)| !["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(name));
        settings.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url));
        settings.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &path));
        let service = Service::start_with(Store::all()[0], &settings).await;
        let user = service.user("user@example.com").await;
        upload(&user, Face::Rest, file()).await.expect(status);
        service.stop().await;
    }
    platform.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_sweep_at_once_and_many_pictures_page_by_page() {
    in_every_gallery_outside(async |gallery, service| {
        let mut named = std::collections::BTreeSet::new();
        for n in 0..3 {
            let user = service.user(&format!("user{n}@example.com")).await;
            named.insert(new_avatar(service, &user).await);
        }
        // Their share is small enough to be believed: the pages are full of pictures that are too young.
        for n in 0..60 {
            gallery.put(&format!("{n:032x}.png"));
        }
        gallery.age(Duration::from_hours(2));
        for n in 0..1200 {
            gallery.put(&format!("{:032x}.png", 0x1000 + n));
        }
        let replica = service.replica().await;
        let (one, other) = tokio::join!(service.app.sweep_orphan_avatars(), replica.app.sweep_orphan_avatars());
        one.unwrap();
        other.unwrap();
        // Where the housekeeping of either came first, these found nothing due.
        let is_swept = async || gallery.names(service).await.len() <= 1203;
        wait_until(Duration::from_secs(20), "the orphans go", is_swept).await;
        let left = gallery.names(service).await;
        assert!(left.len() == 1203 && left.is_superset(&named), "{} are left", left.len());
        replica.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_or_bucket_of_another_database_is_left_alone() {
    in_every_gallery_outside(async |gallery, service| {
        let user = service.user("user@example.com").await;
        new_avatar(service, &user).await;
        for n in 0..150 {
            gallery.put(&format!("{n:032x}.jpg"));
        }
        gallery.age(Duration::from_hours(2));
        assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 0);
        assert_eq!(gallery.names(service).await.len(), 151);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_from_before_they_moved_out_of_the_database_are_found_and_replaced() {
    for kind in Kind::OUTSIDE {
        for store in Store::all() {
            let gallery = Gallery::open(kind).await;
            let service = Service::start(store).await;
            let user = service.user("user@example.com").await;
            let old = new_avatar(&service, &user).await;
            let service = service.restart_with(&gallery.settings()).await;
            let user = user.at(service.address);
            assert_eq!(get_picture(&service, &old).await.status, 200, "{kind:?} {store:?}");
            let new = new_avatar(&service, &user).await;
            assert_eq!(get_picture(&service, &old).await.status, 404);
            let in_table = identity::entity::avatar::Entity::find().all(service.app.db.reader()).await.unwrap();
            assert_eq!((in_table.len(), gallery.names(&service).await), (0, [new].into()));
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_made_for_our_eyes_only() {
    let gallery = Gallery::open(Kind::Folder).await;
    let service = Service::start_with(Store::all()[0], &gallery.settings()).await;
    let mode = std::fs::metadata(gallery.folder()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    service.stop().await;
}

#[tokio::test]
async fn a_folder_that_can_not_be_made_is_a_mistake_in_the_configuration() {
    let installation = Installation::with(&[("AVATAR_STORE", "file:///dev/null/avatars")]);
    let ended = installation.run(&["serve"]).await.expect(2);
    assert!(ended.stderr.contains("AVATAR_STORE: avatars can't be kept in /dev/null/avatars"), "{ended:?}");
    assert!(ended.stderr.contains("expected db, file:///path/to/folder or s3://bucket/prefix"), "{ended:?}");
}
