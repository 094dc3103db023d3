//! Avatars: what is taken, what is kept, and how it is served.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, RgbaImage};
use prost::Message;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, Outcome, Service,
    actor::{outcome_of, outcome_of_status},
    gallery::in_every_gallery,
    on_each_store,
};

/// Red on the left, blue on the right.
pub fn picture(width: u32, height: u32) -> DynamicImage {
    let side = |x, _| if x < width / 2 { Rgb([220, 20, 20]) } else { Rgb([20, 20, 220]) };
    RgbImage::from_fn(width, height, side).into()
}

pub fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// Sends the picture as the caller's new avatar.
pub async fn upload(actor: &Actor, face: Face, file: Vec<u8>) -> Outcome {
    match face {
        Face::Rest => {
            // Name and type lie, as they may.
            let part = Part::bytes(file).file_name("../../etc/passwd.svg").mime_str("text/html").unwrap();
            let request = actor.request(Method::PATCH, "/api/profile/me/").multipart(Form::new().part("avatar", part));
            outcome_of(request.send().await.unwrap()).await
        }
        Face::Grpc => {
            let request = identity::pb::UpdateMyProfileRequest { avatar: Some(file), ..Default::default() };
            let path = "/identity.v1.ProfileService/UpdateMyProfile";
            match actor.call_grpc_raw(path, request.encode_to_vec()).await {
                Ok(_) => actor.call(face, "ProfileService.GetMyProfile", json!({})).await,
                Err(status) => outcome_of_status(&status),
            }
        }
    }
}

/// What is served at the avatar of this profile.
pub async fn served(service: &Service, profile: &Value) -> (reqwest::Response, String) {
    let url = profile["avatar"].as_str().unwrap().to_owned();
    let base = format!("http://{}/media/avatars/", service.address);
    assert!(url.starts_with(&base), "{url}");
    (reqwest::get(&url).await.unwrap(), url)
}

/// The name of the file at this URL.
pub fn name_in(url: &str) -> String {
    url.rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_one_goes_with_the_new_and_null_takes_it_away() {
    in_every_gallery(async |gallery, service, face| {
        let user = service.user("user@example.com").await;
        let first = upload(&user, face, encoded(&picture(40, 40), ImageFormat::Png)).await.expect(200);
        let (_, old_url) = served(service, &first).await;
        let second = upload(&user, face, encoded(&picture(50, 50), ImageFormat::Png)).await.expect(200);
        let (response, url) = served(service, &second).await;
        assert_eq!((response.status().as_u16(), gallery.names(service).await), (200, [name_in(&url)].into()));
        assert_ne!(url, old_url);
        assert_eq!(reqwest::get(&old_url).await.unwrap().status(), 404);

        let clear = match face {
            Face::Rest => json!({ "avatar": null }),
            Face::Grpc => json!({ "update_mask": "avatar" }),
        };
        let profile = user.call(face, "ProfileService.UpdateMyProfile", clear).await.expect(200);
        assert_eq!(
            (profile.get("avatar").unwrap_or(&Value::Null), gallery.names(service).await),
            (&Value::Null, [].into())
        );
        assert_eq!(reqwest::get(&url).await.unwrap().status(), 404);
    })
    .await;
}

/// A PNG of a few hundred bytes whose head claims this many pixels each way.
pub fn bomb(side: u32) -> Vec<u8> {
    let mut png = encoded(&picture(1, 1), ImageFormat::Png);
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..29]);
    png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    png
}

/// The most memory that this process ever had.
pub fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn transparency_stays() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let glass = DynamicImage::from(RgbaImage::from_pixel(30, 30, image::Rgba([10, 200, 10, 100])));
        let profile = upload(&user, Face::Rest, encoded(&glass, ImageFormat::Png)).await.expect(200);
        let (response, _) = served(service, &profile).await;
        assert_eq!(response.headers()["content-type"], "image/png");
        let kept = image::load_from_memory(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(kept.to_rgba8().get_pixel(3, 3).0, [10, 200, 10, 100]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_cached_for_good_and_asked_for_by_its_tag() {
    in_every_gallery(async |_, service, face| {
        let user = service.user("user@example.com").await;
        let profile = upload(&user, face, encoded(&picture(40, 40), ImageFormat::Jpeg)).await.expect(200);
        let (response, url) = served(service, &profile).await;
        assert_eq!(response.headers()["content-type"], "image/jpeg");
        assert_eq!(response.headers()["cache-control"], "public, max-age=31536000, immutable");
        let tag = response.headers()["etag"].clone();
        let again = reqwest::Client::new().get(&url).header("if-none-match", &tag).send().await.unwrap();
        assert_eq!((again.status().as_u16(), again.bytes().await.unwrap().len()), (304, 0));
        let head = reqwest::Client::new().head(&url).send().await.unwrap();
        assert_eq!((head.status().as_u16(), &head.headers()["etag"]), (200, &tag));
        for strange in ["%00", "a%00.png", "%ff", "..", "0.png"] {
            let url = format!("http://{}/media/avatars/{strange}", service.address);
            assert_eq!(reqwest::get(url).await.unwrap().status(), 404, "{strange}");
        }
        let name = url.rsplit('/').next().unwrap();
        assert!(name.len() >= 36, "unguessable: {name}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_new_avatars_at_once_leave_one() {
    in_every_gallery(async |gallery, service, face| {
        let user = service.user("user@example.com").await;
        let file = encoded(&picture(60, 60), ImageFormat::Jpeg);
        let uploads = (0..10).map(|_| upload(&user, face, file.clone()));
        for outcome in futures_util::future::join_all(uploads).await {
            outcome.expect(200);
        }
        let profile = user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        let (response, url) = served(service, &profile).await;
        assert_eq!((response.status().as_u16(), gallery.names(service).await), (200, [name_in(&url)].into()));
    })
    .await;
}
