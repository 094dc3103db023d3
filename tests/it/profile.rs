//! One's own profile: what it shows, and what changes it.

use identity::entity::{profile, user};
use identity::pb;
use prost::Message;
use reqwest::{Method, multipart::Form};
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, Service,
    actor::{Outcome, outcome_of, outcome_of_status},
    everywhere, on_each_store,
};
use crate::user::user_id;

const CONTROL: &str = "Control characters are not allowed.";

async fn patch(actor: &Actor, face: Face, fields: Value) -> Outcome {
    actor.call(face, "ProfileService.UpdateMyProfile", fields).await
}

/// What is stored of a user.
async fn stored(service: &Service, actor: &Actor) -> (user::Model, profile::Model) {
    let found = user::Entity::find_by_id(user_id(actor)).find_also_related(profile::Entity);
    let (user, profile) = found.one(service.app.db.reader()).await.unwrap().unwrap();
    (user, profile.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_profile_shows_every_documented_key() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let mut mine = user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        // Protobuf's JSON leaves an unset field out, ours writes null.
        assert_eq!(mine["avatar"].take(), Value::Null);
        assert_eq!(
            mine,
            json!({
                "id": mine["id"].as_i64().unwrap(),
                "user": { "id": user_id(&user), "email": "user@example.com", "first_name": "Jane", "last_name": "Doe" },
                "avatar": null, "bio": "", "is_public": true, "timezone": "UTC", "streak_visibility": true,
                "roles": ["User"],
            })
        );
        let other = service.user("other@example.com").await;
        let seen =
            other.call(face, "ProfileService.GetProfile", json!({ "user_id": user_id(&user) })).await.expect(200);
        assert!(seen.get("streak_visibility").is_none_or(Value::is_null), "the owner's alone: {seen}");
    })
    .await;
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let mine = user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert!(mine.as_object().unwrap().contains_key("avatar"), "{mine}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let all = json!({ "bio": "Line one\n\tLine two\r\n", "is_public": false, "timezone": "europe/moscow", "streak_visibility": false });
        let answer = patch(&user, face, all).await.expect(200);
        assert_eq!(answer["bio"], "Line one\n\tLine two\r\n");
        assert_eq!(answer["timezone"], "Europe/Moscow");
        assert_eq!((&answer["is_public"], &answer["streak_visibility"]), (&json!(false), &json!(false)));

        let answer = patch(&user, face, json!({ "bio": "Новая" })).await.expect(200);
        assert_eq!((&answer["bio"], &answer["timezone"]), (&json!("Новая"), &json!("Europe/Moscow")));
        assert_eq!((&answer["is_public"], &answer["streak_visibility"]), (&json!(false), &json!(false)));

        let same = patch(&user, face, json!({})).await.expect(200);
        assert_eq!(same, answer, "an empty patch changes nothing");
        let read = user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(read, answer);

        let answer = patch(&user, face, json!({ "bio": "" })).await.expect(200);
        assert_eq!(answer["bio"], "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn null_clears_what_can_be_cleared() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let filled = json!({ "bio": "About me", "timezone": "Asia/Tokyo", "is_public": false });
        patch(&user, face, filled.clone()).await.expect(200);

        let clear = match face {
            Face::Rest => json!({ "bio": null, "timezone": null, "avatar": null }),
            Face::Grpc => json!({ "update_mask": "bio,timezone,avatar" }),
        };
        let answer = patch(&user, face, clear).await.expect(200);
        assert_eq!((&answer["bio"], &answer["timezone"]), (&json!(""), &json!("UTC")));
        assert_eq!((&answer["avatar"], &answer["is_public"]), (&Value::Null, &json!(false)));

        let clear = match face {
            Face::Rest => json!({ "is_public": null, "streak_visibility": null, "bio": "kept out" }),
            Face::Grpc => json!({ "update_mask": "isPublic,streakVisibility,bio", "bio": "kept out" }),
        };
        let outcome = patch(&user, face, clear).await;
        assert_eq!(outcome.status, 400, "{outcome:?}");
        assert_eq!(outcome.fields.keys().collect::<Vec<_>>(), ["is_public", "streak_visibility"]);
        assert_eq!(outcome.fields["is_public"], ["This field may not be null."]);
        assert_eq!(stored(service, &user).await.1.bio, "", "all or nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_narrows_a_patch_and_names_only_fields_that_are() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let narrowed = json!({ "bio": "new", "timezone": "Asia/Tokyo", "is_public": false, "update_mask": "bio" });
        let answer = patch(&user, Face::Grpc, narrowed).await.expect(200);
        assert_eq!((&answer["bio"], &answer["timezone"]), (&json!("new"), &json!("UTC")));
        assert_eq!(answer["is_public"], json!(true));

        // Beyond what JSON can spell: paths as they are on the wire.
        for path in ["roles", "user", "id", "is_staff", "bio.text", "*", ""] {
            let update_mask = prost_types::FieldMask { paths: vec!["bio".into(), path.into()] };
            let update = pb::UpdateMyProfileRequest {
                bio: Some("newer".into()),
                update_mask: Some(update_mask),
                ..Default::default()
            };
            let path_of_rpc = "/identity.v1.ProfileService/UpdateMyProfile";
            let refused = user.call_grpc_raw(path_of_rpc, update.encode_to_vec()).await.unwrap_err();
            outcome_of_status(&refused).expect_field(400, "update_mask");
        }
        assert_eq!(stored(service, &user).await.1.bio, "new");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_a_profile_are_checked_all_at_once() {
    const NO_ZONE: &str = "Not a valid IANA time zone.";
    let longest = "я".repeat(1000);
    let too_long = format!("{longest}!");
    let cases: [(Value, &[(&str, &str)]); 8] = [
        (json!({ "bio": too_long }), &[("bio", "Ensure this field has no more than 1000 characters.")]),
        (json!({ "bio": "a\0b" }), &[("bio", CONTROL)]),
        (json!({ "bio": "\u{1b}[31m" }), &[("bio", CONTROL)]),
        (json!({ "bio": "a\u{85}b" }), &[("bio", CONTROL)]),
        (json!({ "timezone": "" }), &[("timezone", "This field may not be blank.")]),
        (json!({ "timezone": "Mars/Olympus" }), &[("timezone", NO_ZONE)]),
        (json!({ "timezone": "../../etc/passwd" }), &[("timezone", NO_ZONE)]),
        (json!({ "bio": "a\u{7f}b", "timezone": "UTC\0" }), &[("bio", CONTROL), ("timezone", NO_ZONE)]),
    ];
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        for (request, expected) in &cases {
            let outcome = patch(&user, face, request.clone()).await;
            assert_eq!(outcome.status, 400, "{request}: {outcome:?}");
            let found: Vec<_> = outcome.fields.iter().map(|(field, m)| (field.as_str(), m[0].as_str())).collect();
            assert_eq!(found, *expected, "{request}");
        }
        assert_eq!(patch(&user, face, json!({ "bio": longest })).await.expect(200)["bio"], json!(longest));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_rest_unknown_keys_are_ignored_and_wrong_types_are_not() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let extra = json!({ "bio": "new", "nonsense": [1], "update_mask": "timezone", "user": { "id": 1 }, "id": 99 });
        assert_eq!(patch(&user, Face::Rest, extra).await.expect(200)["bio"], "new");

        let mistyped =
            json!({ "bio": 1, "is_public": "yes", "timezone": [], "streak_visibility": 1, "avatar": "me.png" });
        let outcome = patch(&user, Face::Rest, mistyped).await;
        assert_eq!(outcome.status, 400, "{outcome:?}");
        let fields: Vec<_> = outcome.fields.keys().map(String::as_str).collect();
        assert_eq!(fields, ["avatar", "bio", "is_public", "streak_visibility", "timezone"]);

        let form = Form::new().text("bio", "by form").text("is_public", "false").text("timezone", "America/New_York");
        let sent = user.request(Method::PATCH, "/api/profile/me/").multipart(form).send().await.unwrap();
        let answer = outcome_of(sent).await.expect(200);
        assert_eq!((&answer["bio"], &answer["is_public"]), (&json!("by form"), &json!(false)));
        assert_eq!(answer["timezone"], "America/New_York");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_profile_leaves_the_directory_and_comes_back() {
    everywhere(async |service, face| {
        let [user, other] = [service.user("user@example.com").await, service.user("other@example.com").await];
        let look = || other.call(face, "UserService.GetUser", json!({ "id": user_id(&user) }));
        for (is_public, status) in [(false, 404), (true, 200)] {
            patch(&user, face, json!({ "is_public": is_public })).await.expect(200);
            let (row, profile) = stored(service, &user).await;
            assert_eq!((row.listed, profile.is_public), (is_public, is_public));
            assert_eq!(look().await.status, status);
        }
        patch(&user, face, json!({ "bio": "of something else" })).await.expect(200);
        assert!(stored(service, &user).await.0.listed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_of_different_fields_at_once_all_survive() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let replica = service.replica().await;
        let there = user.at(replica.address);
        let before = stored(service, &user).await.0.version;
        for round in 0..5 {
            let (bio, zone) = (format!("round {round}"), ["Asia/Tokyo", "Europe/Moscow"][round % 2]);
            let public = round % 2 == 0;
            let (a, b, c, d) = tokio::join!(
                patch(&user, Face::Rest, json!({ "bio": bio })),
                patch(&there, Face::Grpc, json!({ "timezone": zone })),
                patch(&there, Face::Rest, json!({ "is_public": public })),
                patch(&user, Face::Grpc, json!({ "streak_visibility": public })),
            );
            for outcome in [a, b, c, d] {
                outcome.expect(200);
            }
            let (row, profile) = stored(service, &user).await;
            assert_eq!((profile.bio, profile.timezone.as_str()), (bio, zone));
            assert_eq!((profile.is_public, profile.streak_visibility, row.listed), (public, public, public));
        }
        assert_eq!(stored(service, &user).await.0.version, before + 20, "each change has a version of its own");
        replica.stop().await;
    })
    .await;
}
