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
    Actor, Face, Outcome, Service, Store,
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
async fn each_format_is_taken_made_small_and_served() {
    let formats = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif];
    let files = formats.map(|format| (format, encoded(&picture(1000, 600), format)));
    in_every_gallery(async |_, service, face| {
        let user = service.user("user@example.com").await;
        for (format, file) in &files {
            let profile = upload(&user, face, file.clone()).await.expect(200);
            let (response, _) = served(service, &profile).await;
            assert_eq!(response.headers()["x-content-type-options"], "nosniff");
            assert_eq!(response.headers()["content-security-policy"], "default-src 'none'; sandbox");
            let small = image::load_from_memory(&response.bytes().await.unwrap()).unwrap().to_rgb8();
            assert_eq!(small.dimensions(), (512, 307), "{format:?}");
            assert!(small.get_pixel(5, 150).0[0] > 180 && small.get_pixel(505, 150).0[2] > 180, "{format:?}");
        }
    })
    .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_picture_or_too_large_is_refused_and_changes_nothing() {
    in_every_gallery(async |gallery, service, face| {
        let user = service.user("user@example.com").await;
        let png = encoded(&picture(600, 600), ImageFormat::Png);
        let mut broken = png.clone();
        broken[60..].fill(0);
        let svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>".to_vec();
        let not_an_image = "Upload a valid image. The file you uploaded was either not an image or a corrupted image.";
        let too_wide = "Ensure this image is no larger than 4096 × 4096 pixels.";
        let cases = [
            (Vec::new(), "The submitted file is empty."),
            (b"hello".to_vec(), not_an_image),
            (svg, not_an_image),
            (broken, not_an_image),
            (encoded(&picture(10, 10), ImageFormat::Bmp), "Upload a JPEG, PNG, WebP or GIF image."),
            (encoded(&picture(4097, 10), ImageFormat::Png), too_wide),
            (bomb(60_000), too_wide),
            ([png, vec![0; 5 << 20]].concat(), "Ensure this file is no larger than 5 MiB."),
        ];
        for (file, message) in cases {
            let started = std::time::Instant::now();
            let outcome = upload(&user, face, file).await;
            assert_eq!(outcome.expect_field(400, "avatar"), [message]);
            assert!(started.elapsed().as_millis() < 1000, "{message}: took {:?}", started.elapsed());
        }
        assert_eq!(gallery.names(service).await, [].into());
    })
    .await;
}

/// A PNG of a few hundred bytes whose head claims this many pixels each way.
fn bomb(side: u32) -> Vec<u8> {
    let mut png = encoded(&picture(1, 1), ImageFormat::Png);
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..29]);
    png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    png
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_whose_profile_inflates_to_half_a_gigabyte_does_no_harm() {
    let service = Service::start(Store::all()[0]).await;
    let user = service.user("user@example.com").await;
    let mut profile = flate2::write::ZlibEncoder::new(b"iCCPx\0\0".to_vec(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 450 << 20), &mut profile).unwrap();
    let chunk = profile.finish().unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let png = encoded(&picture(4, 4), ImageFormat::Png);
    let length = u32::try_from(chunk.len() - 4).unwrap().to_be_bytes();
    let file = [&png[..33], &length, &chunk, &crc.sum().to_be_bytes(), &png[33..]].concat();
    let before = peak_memory_kib();
    let outcome = upload(&user, Face::Rest, file).await;
    assert!([200, 400].contains(&outcome.status), "{outcome:?}");
    let more = peak_memory_kib() - before;
    assert!(more < 400_000, "it took {more} KiB");
    service.stop().await;
}

/// The most memory that this process ever had.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_file_is_left_but_what_it_shows() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        // A JPEG that says in its EXIF that it lies on its side, and something private behind it.
        let jpeg = encoded(&picture(200, 100), ImageFormat::Jpeg);
        let exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0GPS 55.75 37.62";
        let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
        let file = [&jpeg[..2], &[0xff, 0xe1], &length, exif, &jpeg[2..]].concat();
        let profile = upload(&user, Face::Rest, file).await.expect(200);
        let (response, _) = served(service, &profile).await;
        let bytes = response.bytes().await.unwrap();
        assert!(!bytes.windows(3).any(|w| w == b"GPS") && !bytes.windows(4).any(|w| w == b"Exif"));
        let upright = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(upright.dimensions(), (100, 200));
        assert!(upright.get_pixel(50, 10).0[0] > 180 && upright.get_pixel(50, 190).0[2] > 180, "turned by a quarter");
    })
    .await;
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
