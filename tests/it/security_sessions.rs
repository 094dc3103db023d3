//! Sessions, as a thief meets them: what a stolen token is good for, and until when.
//! The lines are those of `docs/security.md`.

use std::{collections::BTreeSet, io::Cursor};

use chrono::Duration;
use futures_util::future::join_all;
use identity::entity::{audit_event, avatar, outbox, profile, session, user_group, user_permission, verification_code};
use image::ImageFormat;
use reqwest::Method;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::{
    account::{update, verify},
    grpc_web,
    harness::{
        Actor, Face, PASSWORD, Service, Store, actor::claims, everywhere, on_each_store, redis::PrivateRedis,
        stores::setting, within_a_second,
    },
    password_change::{self, NEW, change},
    role,
    session::{audit_trail, claim, login, me, refresh, refresh_token},
    user::user_id,
};

/// Line 20.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_begins_a_session_of_its_own() {
    everywhere(async |service, face| {
        let registered = service.user("user@example.com").await;
        let login = json!({ "email": "USER@example.com", "password": PASSWORD });
        let answer = service.anonymous().call(face, "AuthService.Login", login).await.expect(200);
        let first = claims(registered.access_token.as_deref().unwrap());
        let second = claims(answer["access_token"].as_str().unwrap());
        assert_ne!(first["sid"], second["sid"]);
        assert_eq!(first["user_id"], second["user_id"]);
        assert_eq!(answer["user"]["roles"], json!(["User"]));
    })
    .await;
}

/// Line 21.
#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_both_tokens_on_every_face_and_no_other_session() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let elsewhere = service.login("user@example.com").await;
        let answer = user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        assert_eq!(answer, json!({ "message": "Successfully logged out" }));
        for face in Face::ALL {
            me(&user, face).await.expect(401);
            user.call(face, "AuthService.Logout", json!({})).await.expect(401);
            refresh(&user, face, user.refresh_token.as_deref().unwrap()).await.expect(401);
            me(&elsewhere, face).await.expect(200);
        }
        refresh(&elsewhere, face, elsewhere.refresh_token.as_deref().unwrap()).await.expect(200);
        // What was thrown away is not stolen.
        assert!(audit_trail(service).await.iter().all(|event| event.kind != "session.refresh_token_reused"));
    })
    .await;
}

/// Lines 21, 24.
#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_the_session_here_and_after_a_restart() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let there = user.at(replica.address);
        there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        let replica = replica.restart().await;
        let there = user.at(replica.address);
        there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        replica.stop().await;
    })
    .await;
}

/// Line 21.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_and_a_logout_at_once_leave_nothing_alive() {
    on_each_store(async |service| {
        for round in 0..10 {
            let user = service.user(&format!("user{round}@example.com")).await;
            let token = user.refresh_token.clone().unwrap();
            let (refreshed, _) = tokio::join!(refresh(&user, Face::Grpc, &token), async {
                user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200)
            },);
            if refreshed.status == 200 {
                let answer = refreshed.expect(200);
                me(&user.with_token(answer["access_token"].as_str().unwrap()), Face::Rest).await.expect(401);
                refresh(&user, Face::Rest, &refresh_token(&answer)).await.expect(401);
            } else {
                refreshed.expect(401);
            }
        }
    })
    .await;
}

/// Line 22.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_refreshes_of_one_token_at_once_give_one_successor() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let there = user.at(replica.address);
        let spent = user.refresh_token.clone().unwrap();
        let calls = (0..50).map(|n| refresh([&user, &there][n % 2], Face::ALL[n / 2 % 2], &spent));
        let answers: Vec<_> = join_all(calls).await.into_iter().map(|outcome| outcome.expect(200)).collect();
        let successors: BTreeSet<_> = answers.iter().map(|a| claim(a, "refresh_token", "jti")).collect();
        assert_eq!(successors.len(), 1, "a fork: {successors:?}");

        let row = session::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!((row.generation, row.revoked_at), (2, None));
        for answer in &answers {
            me(&user.with_token(answer["access_token"].as_str().unwrap()), Face::Rest).await.expect(200);
        }
        refresh(&there, Face::Rest, &refresh_token(&answers[0])).await.expect(200);
        replica.stop().await;
    })
    .await;
}

/// Lines 22, 23.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_just_replaced_gives_the_same_successor_for_ten_seconds() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let elsewhere = service.login("user@example.com").await;
        let spent = user.refresh_token.clone().unwrap();
        let first = refresh(&user, face, &spent).await.expect(200);
        service.clock.advance(Duration::seconds(10));
        let second = refresh(&user, face, &spent).await.expect(200);
        assert_eq!(refresh_token(&first), refresh_token(&second), "one successor, to the letter");
        assert_ne!(claim(&first, "refresh_token", "jti"), claims(&spent)["jti"].as_str().unwrap());
        assert_ne!(claim(&first, "access_token", "jti"), claim(&second, "access_token", "jti"));
        assert_eq!(claim(&first, "access_token", "sid"), claim(&second, "access_token", "sid"));
        let [first, second] = [first, second].map(|a| user.with_token(a["access_token"].as_str().unwrap()));
        me(&first, face).await.expect(200);
        me(&second, face).await.expect(200);
        assert!(audit_trail(service).await.iter().all(|event| event.kind != "session.refresh_token_reused"));

        service.clock.advance(Duration::microseconds(1));
        refresh(&user, face, &spent).await.expect(401);
        for dead in [&user, &first, &second] {
            me(dead, face).await.expect(401);
        }
        me(&elsewhere, face).await.expect(200);
    })
    .await;
}

/// Line 23.
#[tokio::test(flavor = "multi_thread")]
async fn a_spent_refresh_token_ends_the_session() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let spent = user.refresh_token.clone().unwrap();
        let next = refresh(&user, face, &spent).await.expect(200);
        let next = (user.with_token(next["access_token"].as_str().unwrap()), refresh_token(&next));
        // The one before the last is theft even within the grace of the last.
        let last = refresh(&user, face, &next.1).await.expect(200);
        let refused = refresh(&user, face, &spent).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        if face == Face::Grpc {
            assert_eq!(refused.reason.as_deref(), Some("SESSION_ENDED"));
        }
        for token in [&spent, &next.1, &refresh_token(&last)] {
            refresh(&user, face, token).await.expect(401);
        }
        let last = user.with_token(last["access_token"].as_str().unwrap());
        for dead in [&user, &next.0, &last] {
            me(dead, face).await.expect(401);
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        me(&last.at(replica.address), face).await.expect(401);
        replica.stop().await;

        let trail = audit_trail(service).await;
        let thefts: Vec<_> = trail.iter().filter(|event| event.kind == "session.refresh_token_reused").collect();
        assert_eq!(thefts.len(), 1, "recorded, and once: {trail:?}");
        assert_eq!((thefts[0].user_id, thefts[0].actor_id), (Some(user_id(&user)), None), "nobody knows who it was");
    })
    .await;
}

/// Line 25.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_over_after_thirty_days_however_often_it_is_refreshed() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let began = service.clock.now();
        let mut token = user.refresh_token.clone().unwrap();
        for day in [6, 12, 18, 24] {
            service.set_clock(began + Duration::days(day));
            token = refresh_token(&refresh(&user, face, &token).await.expect(200));
        }
        service.set_clock(began + Duration::days(30) - Duration::seconds(1));
        let last = refresh(&user, face, &token).await.expect(200);
        token = refresh_token(&last);
        for kind in ["access_token", "refresh_token"] {
            let exp = claims(last[kind].as_str().unwrap())["exp"].as_i64().unwrap();
            assert_eq!(exp, (began + Duration::days(30)).timestamp(), "{kind}");
        }
        service.set_clock(began + Duration::days(30));
        refresh(&user, face, &token).await.expect(401);
        login(service, face, "user@example.com", PASSWORD).await.expect(200);
    })
    .await;
}

/// Line 26.
#[tokio::test(flavor = "multi_thread")]
async fn deactivation_ends_every_session_everywhere_and_for_good() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let admin = service.admin("admin@example.com").await;
        let phone = service.user("user@example.com").await;
        let laptop = service.login("user@example.com").await.at(replica.address);
        let id = user_id(&phone);
        let answer = update(&admin, face, id, json!({ "is_active": false })).await.expect(200);
        assert_eq!(answer["is_active"], false);
        phone.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        within_a_second(async || laptop.call(face, "ProfileService.GetMyProfile", json!({})).await.status == 401).await;
        let refresh = json!({ "refresh_token": laptop.refresh_token });
        laptop.call(face, "AuthService.RefreshToken", refresh.clone()).await.expect(401);
        let login = json!({ "email": "user@example.com", "password": PASSWORD });
        phone.call(face, "AuthService.Login", login).await.expect(401);

        update(&admin, face, id, json!({ "is_active": true })).await.expect(200);
        for dead in [&phone, &laptop] {
            dead.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        }
        laptop.call(face, "AuthService.RefreshToken", refresh).await.expect(401);
        let back = service.login("user@example.com").await;
        back.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        replica.stop().await;
    })
    .await;
}

/// Line 26.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_leaves_nothing_but_the_audit() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let elsewhere = service.login("user@example.com").await.at(replica.address);
        let id = user_id(&user);
        let group = admin.call(face, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
        let member = json!({ "id": group["id"], "user_id": id });
        admin.call(face, "RoleService.AddGroupMember", member).await.expect(201);
        let grant = json!({ "id": id, "permission": "shop.refund" });
        admin.call(face, "RoleService.GrantPermission", grant).await.expect(201);
        let mut picture = Vec::new();
        image::DynamicImage::new_rgb8(8, 8).write_to(&mut Cursor::new(&mut picture), ImageFormat::Png).unwrap();
        let form = reqwest::multipart::Form::new().part("avatar", reqwest::multipart::Part::bytes(picture));
        let answer = user.request(Method::PATCH, "/api/profile/me/").multipart(form).send().await.unwrap();
        let avatar: Value = answer.json().await.unwrap();
        let avatar = avatar["avatar"].as_str().unwrap().rsplit_once("/media").unwrap().1.to_owned();

        let answer = user.call(face, "UserService.DeleteUser", json!({ "id": id })).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        let gone = async || elsewhere.call(face, "ProfileService.GetMyProfile", json!({})).await.status == 401;
        within_a_second(gone).await;
        let refresh = json!({ "refresh_token": elsewhere.refresh_token });
        elsewhere.call(face, "AuthService.RefreshToken", refresh).await.expect(401);
        let login = json!({ "email": "user@example.com", "password": PASSWORD });
        user.call(face, "AuthService.Login", login).await.expect(404);
        admin.call(face, "UserService.GetUser", json!({ "id": id })).await.expect(404);
        let picture = user.request(Method::GET, &format!("/media{avatar}")).send().await.unwrap();
        assert_eq!(picture.status(), 404);

        let db = service.app.db.reader();
        let left = [
            profile::Entity::find().filter(profile::Column::UserId.eq(id)).count(db).await.unwrap(),
            session::Entity::find().filter(session::Column::UserId.eq(id)).count(db).await.unwrap(),
            avatar::Entity::find().filter(avatar::Column::UserId.eq(id)).count(db).await.unwrap(),
            verification_code::Entity::find().filter(verification_code::Column::UserId.eq(id)).count(db).await.unwrap(),
            user_group::Entity::find().filter(user_group::Column::UserId.eq(id)).count(db).await.unwrap(),
            user_permission::Entity::find().filter(user_permission::Column::UserId.eq(id)).count(db).await.unwrap(),
            outbox::Entity::find().filter(outbox::Column::UserId.eq(id)).count(db).await.unwrap(),
        ];
        assert_eq!(left, [0; 7]);
        let audit = audit_event::Entity::find()
            .filter(audit_event::Column::UserId.eq(id))
            .order_by_desc(audit_event::Column::Id)
            .one(db)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((audit.kind.as_str(), audit.actor_id), ("user.deleted", Some(id)));
        // The address is free again, and its new owner is somebody else.
        let again = service.user("user@example.com").await;
        assert_ne!(user_id(&again), id);
        user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        replica.stop().await;
    })
    .await;
}

/// Line 26.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_all_other_sessions_and_the_owner_is_told() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let here = service.user("user@example.com").await;
        verify(service, "user@example.com").await;
        let there = service.login("user@example.com").await;
        let elsewhere = service.login("user@example.com").await.at(replica.address);
        let answer = change(&here, face, PASSWORD, NEW).await.expect(200);
        assert_eq!(answer, json!({ "message": "Password changed successfully" }));

        here.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        let refresh = |actor: &Actor| json!({ "refresh_token": actor.refresh_token });
        here.call(face, "AuthService.RefreshToken", refresh(&here)).await.expect(200);
        there.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        there.call(face, "AuthService.RefreshToken", refresh(&there)).await.expect(401);
        elsewhere.call(face, "AuthService.RefreshToken", refresh(&elsewhere)).await.expect(401);
        within_a_second(async || elsewhere.call(face, "ProfileService.GetMyProfile", json!({})).await.status == 401)
            .await;

        password_change::login(service, face, PASSWORD).await.expect(401);
        password_change::login(service, face, NEW).await.expect(200);
        let mail = service.mails_to("user@example.com", 2).await.remove(1);
        assert_eq!(mail.subject, "Your password was changed");
        assert!(!mail.text.contains(NEW) && !mail.text.contains(PASSWORD), "{}", mail.text);
        replica.stop().await;
    })
    .await;
}

/// Line 26.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_role_counts_on_every_replica_within_a_second() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let admin = service.admin("admin@example.com").await;
        let staff = service.user("staff@example.com").await;
        let there = staff.at(replica.address);
        let id = user_id(&staff);
        let may = async |actor: &Actor| actor.call(face, "RoleService.ListGroups", json!({})).await.status;
        assert_eq!([may(&staff).await, may(&there).await], [403, 403]);
        role::add(&admin, face, id, "admin").await.expect(201);
        assert_eq!(may(&staff).await, 200, "with the token from before");
        within_a_second(async || may(&there).await == 200).await;
        let fields = json!({ "id": id, "role": "admin" });
        admin.call(face, "RoleService.RemoveUserRole", fields).await.expect(204);
        assert_eq!(may(&staff).await, 403);
        within_a_second(async || may(&there).await == 403).await;
        replica.stop().await;
    })
    .await;
}

/// Line 20.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_brings_a_session_along_and_each_access_token_names_its_own() {
    everywhere(async |service, face| {
        let mut sessions = BTreeSet::new();
        let user = service.user("user@example.com").await;
        let known = claims(user.access_token.as_deref().unwrap())["sid"].clone();
        for _ in 0..3 {
            // Logged in already, and naming the session that it would like to have.
            let mut fields = json!({ "email": "user@example.com", "password": PASSWORD });
            if face == Face::Rest {
                fields["sid"] = known.clone();
                fields["session"] = known.clone();
            }
            let answer = user.call(face, "AuthService.Login", fields).await.expect(200);
            for token in ["access_token", "refresh_token"] {
                let sid = claim(&answer, token, "sid");
                assert_ne!(json!(sid), known);
                sessions.insert(sid);
            }
        }
        assert_eq!(sessions.len(), 3, "one session for each login, and both tokens name it");
        let rows = session::Entity::find().all(service.app.db.reader()).await.unwrap();
        assert_eq!(rows.len(), 4);
        assert!(sessions.iter().all(|sid| rows.iter().any(|row| row.id.to_string() == *sid)));
    })
    .await;
}

/// Line 21.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_is_over_for_browsers_too_and_a_logout_of_theirs_for_all() {
    on_each_store(async |service| {
        let web = async |rpc: &str, token: &str| {
            let reply = grpc_web::call(service, &format!("/identity.v1.{rpc}"), Some(token), &[], false).await;
            reply.trailer("grpc-status").unwrap().to_owned()
        };
        service.user("user@example.com").await;
        for by_web in [true, false] {
            let user = service.login("user@example.com").await;
            let token = user.access_token.clone().unwrap();
            assert_eq!(web("ProfileService/GetMyProfile", &token).await, "0");
            if by_web {
                assert_eq!(web("AuthService/Logout", &token).await, "0");
            } else {
                user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
            }
            assert_eq!(web("ProfileService/GetMyProfile", &token).await, "16");
            for face in Face::ALL {
                me(&user, face).await.expect(401);
                refresh(&user, face, user.refresh_token.as_deref().unwrap()).await.expect(401);
            }
        }
    })
    .await;
}

/// Refreshes a session so many times, by `callers` at once each time, and looks whether all got the same successor. Returns
/// the number of those who were answered.
async fn storms(service: &Service, rounds: usize, callers: usize) -> usize {
    let replica = service.replica().await;
    let mut user = service.user("storm@example.com").await;
    let mut answered = 0;
    for round in 0..rounds {
        let there = user.at(replica.address);
        let spent = user.refresh_token.clone().unwrap();
        let calls = (0..callers).map(async |n| {
            // On a busy machine the database may seem to be away; whoever is told so comes again.
            for _ in 0..50 {
                let outcome = refresh([&user, &there][n % 2], Face::ALL[n / 2 % 2], &spent).await;
                if outcome.status != 503 {
                    return outcome.expect(200);
                }
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            panic!("the database stays away");
        });
        let answers: Vec<_> = join_all(calls).await;
        let successors: BTreeSet<_> = answers.iter().map(refresh_token).collect();
        assert_eq!(successors.len(), 1, "round {round}: a fork");
        let row = session::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        let generation = i64::try_from(round).unwrap() + 2;
        assert_eq!((row.generation, row.revoked_at), (generation, None), "round {round}");
        answered += answers.len();
        user.take_tokens(&answers[round % callers]);
        me(&user.at(replica.address), Face::ALL[round % 2]).await.expect(200);
    }
    let trail = audit_trail(service).await;
    assert!(trail.iter().all(|event| event.kind != "session.refresh_token_reused"), "taken for theft");
    replica.stop().await;
    answered
}

/// Line 22.
#[tokio::test(flavor = "multi_thread")]
async fn storm_after_storm_of_refreshes_never_forks_a_session() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
        assert_eq!(storms(&service, 8, 50).await, 400);
        service.stop().await;
    }
}

/// Line 22.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/refresh-storm runs it"]
async fn as_many_storms_of_refreshes_as_were_asked_for() {
    let rounds = setting("STORMS").map_or(1000, |rounds| rounds.parse().expect("a number"));
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
        let begun = std::time::Instant::now();
        let answered = storms(&service, rounds, 50).await;
        println!("{store:?}: {rounds} rounds, {answered} answers, no fork, in {:.1?}", begun.elapsed());
        service.stop().await;
    }
}

/// Lines 23, 24.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_ended_stays_ended_though_redis_forgets_everything_and_the_service_starts_anew() {
    for (store, face) in Store::all().into_iter().zip(Face::ALL) {
        let Some(mut redis) = PrivateRedis::start().await else { return };
        let url = redis.url();
        let service = Service::start_with(store, &[("REDIS_URL", url.as_str())]).await;
        crate::redis::until_cache_is("ok", &service).await;
        let live = service.user("user@example.com").await;
        let [gone, robbed] = [service.login("user@example.com").await, service.login("user@example.com").await];
        gone.call(face, "AuthService.Logout", json!({})).await.expect(200);
        let first = robbed.refresh_token.clone().unwrap();
        let second = refresh_token(&refresh(&robbed, face, &first).await.expect(200));
        let next = refresh(&live, face, live.refresh_token.as_deref().unwrap()).await.expect(200);

        redis.kill().await;
        redis.restart().await;
        let service = service.restart().await;
        crate::redis::until_cache_is("ok", &service).await;
        let at = |actor: &Actor| actor.at(service.address);
        me(&at(&gone), face).await.expect(401);
        refresh(&at(&gone), face, gone.refresh_token.as_deref().unwrap()).await.expect(401);
        // What was just replaced is still known to be, and who comes late is still a thief.
        let again = refresh(&at(&live), face, live.refresh_token.as_deref().unwrap()).await.expect(200);
        assert_eq!(refresh_token(&again), refresh_token(&next));
        service.clock.advance(Duration::seconds(11));
        refresh(&at(&robbed), face, &first).await.expect(401);
        refresh(&at(&robbed), face, &second).await.expect(401);
        me(&at(&robbed), face).await.expect(401);
        me(&at(&live), face).await.expect(200);
        service.stop().await;
    }
}
