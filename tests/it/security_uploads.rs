//! Uploads, as an attacker makes them: pictures that are none, that grow, that remember.
//! The lines are those of `docs/security.md`.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use image::{DynamicImage, ImageFormat};
use sea_orm::ConnectionTrait;

use crate::{
    avatar::{bomb, encoded, peak_memory_kib, picture, served, upload},
    avatar_store::{file, get_picture, new_avatar},
    harness::{
        Face, Service, Store,
        gallery::{Gallery, Kind, in_every_gallery, in_every_gallery_outside},
        on_each_store,
    },
};

/// Lines 44, 45, 47.
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

/// Line 44.
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

/// Lines 45, 46.
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
            assert_eq!(
                response.headers()["content-security-policy"],
                "default-src 'none'; frame-ancestors 'none'; sandbox"
            );
            let small = image::load_from_memory(&response.bytes().await.unwrap()).unwrap().to_rgb8();
            assert_eq!(small.dimensions(), (512, 307), "{format:?}");
            assert!(small.get_pixel(5, 150).0[0] > 180 && small.get_pixel(505, 150).0[2] > 180, "{format:?}");
        }
    })
    .await;
}

/// Line 45.
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

/// Lines 45, 46.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_half_written_in_a_folder_is_swept() {
    let gallery = Gallery::open(Kind::Folder).await;
    let service = Service::start_with(Store::all()[0], &gallery.settings()).await;
    let draft = "0123456789abcdef0123456789abcdef.jpg#1";
    gallery.put(draft);
    assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 0);
    assert_eq!(gallery.names(&service).await, [draft.to_owned()].into());
    service.clock.advance(TimeDelta::hours(2));
    assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 1);
    assert_eq!(gallery.names(&service).await, [].into());
    service.stop().await;
}

/// Line 46.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_whose_change_failed_is_swept_once_it_is_old_enough() {
    in_every_gallery_outside(async |gallery, service| {
        let [owner, gone] = [service.user("owner@example.com").await, service.user("gone@example.com").await];
        let named = new_avatar(service, &owner).await;
        // The account goes while its picture is on the way: it is there, and then there is no profile to name it.
        let tx = service.app.db.begin().await.unwrap();
        tx.execute_unprepared("DELETE FROM users WHERE email = 'gone@example.com'").await.unwrap();
        tx.commit().await.unwrap();
        upload(&gone, Face::Rest, file()).await.expect(401);
        let mut kept = gallery.names(service).await;
        assert!(kept.len() == 2 && kept.contains(&named), "{kept:?}");
        // What isn't ours stays, whatever its age.
        let mut left = std::collections::BTreeSet::from([named.clone()]);
        for foreign in ["notes.txt", "0123.jpg", "deeper/0123456789abcdef0123456789abcdef.jpg"] {
            gallery.put(foreign);
            left.insert(foreign.split('/').next().unwrap().to_owned());
        }
        kept.extend(left.iter().cloned());

        service.clock.advance(TimeDelta::minutes(58));
        assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 0);
        assert_eq!(gallery.names(service).await, kept, "a change may still be under way");
        service.clock.advance(TimeDelta::minutes(60));
        assert_eq!(service.app.sweep_orphan_avatars().await.unwrap(), 1);
        assert_eq!(gallery.names(service).await, left);
        assert_eq!(get_picture(service, &named).await.status, 200);
    })
    .await;
}

/// So many mebibytes of zeroes, as zlib keeps them: one is compressed, the others are the same again.
fn zeroes(mebibytes: usize) -> Vec<u8> {
    let mut one = Vec::with_capacity(1 << 16);
    let mut compress = flate2::Compress::new(flate2::Compression::best(), false);
    compress.compress_vec(&vec![0; 1 << 20], &mut one, flate2::FlushCompress::Full).unwrap();
    // Adler-32: the sum of the bytes and one, and the sum of these sums.
    let sum = u32::try_from((mebibytes << 20) % 65_521).unwrap() << 16 | 1;
    [&[0x78, 0xda], one.repeat(mebibytes).as_slice(), &[3, 0], &sum.to_be_bytes()].concat()
}

/// Line 47.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_half_a_megabyte_that_would_be_fourteen_gigabytes_is_refused_at_once() {
    // What it claims is there: 60 000 × 60 000 pixels of four bytes, as far as half a megabyte goes.
    let chunk = [&b"IDAT"[..], &zeroes(510)].concat();
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let length = u32::try_from(chunk.len() - 4).unwrap().to_be_bytes();
    let file =
        [&bomb(60_000)[..33], &length, &chunk, &crc.sum().to_be_bytes(), b"\0\0\0\0IEND\xae\x42\x60\x82"].concat();
    assert!((450_000..650_000).contains(&file.len()), "{}", file.len());
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        for face in Face::ALL {
            let before = peak_memory_kib();
            let mut quickest = Duration::MAX;
            for _ in 0..3 {
                let begun = Instant::now();
                let told = upload(&user, face, file.clone()).await.expect_field(400, "avatar");
                quickest = quickest.min(begun.elapsed());
                assert_eq!(told, ["Ensure this image is no larger than 4096 × 4096 pixels."]);
            }
            assert!(quickest < Duration::from_millis(100), "{face:?}: {quickest:?}");
            let more = peak_memory_kib() - before;
            assert!(more < 32 * 1024, "{face:?}: it took {more} KiB");
        }
    })
    .await;
}

/// A GIF of so many pictures of the largest size.
fn animation(pictures: usize) -> Vec<u8> {
    let mut one = encoded(&DynamicImage::new_rgb8(4096, 4096), ImageFormat::Gif);
    // A head, which may hold a table of colours, the picture, and a last byte.
    assert_eq!(one.pop(), Some(b';'));
    let colours = if one[10] & 0x80 == 0 { 0 } else { 3 << (1 + usize::from(one[10] & 7)) };
    let (head, picture) = one.split_at(13 + colours);
    [head, &picture.repeat(pictures), b";"].concat()
}

/// Lines 44, 47.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_animation_of_fourteen_gigabytes_no_more_than_the_first_picture_is_decoded() {
    // 67 MB each, once decoded.
    let file = animation(210);
    assert!(file.len() < 5 << 20, "{}", file.len());
    let service = Service::start(Store::all()[0]).await;
    let user = service.user("user@example.com").await;
    for face in Face::ALL {
        // What was needed to make the file is forgotten.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak_memory_kib();
        let profile = upload(&user, face, file.clone()).await.expect(200);
        let more = peak_memory_kib() - before;
        assert!(more < 300 * 1024, "{face:?}: it took {more} KiB");
        let (response, _) = served(&service, &profile).await;
        assert_eq!(response.status(), 200);
    }
    service.stop().await;
}

/// Line 46.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_served_so_that_no_browser_takes_it_for_anything_else() {
    in_every_gallery(async |_, service, face| {
        let user = service.user("user@example.com").await;
        // A picture to the decoder, and a page to whoever guesses.
        let mut file = encoded(&picture(30, 30), ImageFormat::Gif);
        file.extend(b"<html><script>alert(document.domain)</script></html>");
        let profile = upload(&user, face, file).await.expect(200);
        let (response, url) = served(service, &profile).await;
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
        ] {
            assert_eq!(response.headers()[header], value, "{url}");
        }
        assert!(["image/jpeg", "image/png"].contains(&response.headers()["content-type"].to_str().unwrap()));
        let bytes = response.bytes().await.unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"<script"), "what came is not what is kept");
    })
    .await;
}
