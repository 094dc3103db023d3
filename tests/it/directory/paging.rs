//! From page to page: by number and by link, and by token.

use std::collections::HashSet;

use identity::entity::user;
use serde_json::{Value, json};

use super::{add, ids, list, list_by, names, noon, person, remove};
use crate::{
    harness::{Face, Service, Store, everywhere, on_each_store},
    user::user_id,
};

/// This many people, named alike by threes.
fn crowd(count: u32) -> Vec<user::Model> {
    let one = |n| person(&format!("user{n}@example.com"), &format!("Name{}", n % 3), "Doe");
    (0..count).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_cut_into_pages() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let everyone: Vec<i64> =
            [user_id(&admin)].into_iter().chain(add(service, crowd(44)).await.iter().map(|u| u.id)).collect();
        let at = |query: &str| json!(format!("http://{}/api/users/{query}", service.address));
        for (page, shown, next, previous) in [
            (Value::Null, &everyone[..20], at("?page=2"), Value::Null),
            (json!(1), &everyone[..20], at("?page=2"), Value::Null),
            (json!(2), &everyone[20..40], at("?page=3"), at("")),
            (json!(3), &everyone[40..], Value::Null, at("?page=2")),
        ] {
            let fields = if page.is_null() { json!({}) } else { json!({ "page": page }) };
            let answer = list(&admin, face, fields).await.expect(200);
            assert_eq!(ids(&answer), shown, "page {page}");
            assert_eq!((&answer["next"], &answer["previous"]), (&next, &previous), "page {page}");
            assert_eq!(answer["count"], 45, "page {page}");
        }
        // A last page that is full is the last.
        let answer = list(&admin, face, json!({ "page": 3, "page_size": 15 })).await.expect(200);
        assert_eq!((ids(&answer), &answer["next"]), (everyone[30..].to_vec(), &Value::Null));
        assert_eq!(answer["previous"], at("?page=2&page_size=15"));
        // Nobody at all is a page too, but there is none behind it.
        let nobody = list(&admin, face, json!({ "search": "nobody" })).await.expect(200);
        assert_eq!((&nobody["count"], &nobody["results"], &nobody["next"]), (&json!(0), &json!([]), &Value::Null));
        assert_eq!(list(&admin, face, json!({ "search": "nobody", "page": 2 })).await.status, 404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_page_size_is_the_default() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        add(service, crowd(120)).await;
        for (size, shown) in
            [(1, 1), (99, 99), (100, 100), (101, 100), (i64::MAX, 100), (0, 20), (-1, 20), (i64::MIN, 20)]
        {
            let answer = list(&admin, face, json!({ "page_size": size })).await.expect(200);
            assert_eq!(ids(&answer).len(), shown, "{size}");
        }
    })
    .await;
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        add(service, crowd(30)).await;
        for size in ["", "x", "+5", "5.0", "99999999999999999999", "-99999999999999999999", "%00"] {
            let answer = list_by(&admin, &format!("page_size={size}")).await.expect(200);
            assert_eq!(ids(&answer).len(), 20, "{size}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_keep_every_other_parameter() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        add(service, crowd(5)).await;
        let base = format!("http://{}/api/users/", service.address);
        for (query, next, previous) in [
            (
                "utm=a&page=2&page_size=2&Page=7&tag=b&tag=a&page=2",
                json!("?Page=7&page=3&page_size=2&tag=b&tag=a&utm=a"),
                json!("?Page=7&page_size=2&tag=b&tag=a&utm=a"),
            ),
            (
                "search=user+%40EXAMPLE,&empty=&bare&page_size=2",
                json!("?bare=&empty=&page=2&page_size=2&search=user+%40EXAMPLE%2C"),
                Value::Null,
            ),
            ("page_size=2&x=%D0%B6%26%3D%23", json!("?page=2&page_size=2&x=%D0%B6%26%3D%23"), Value::Null),
            ("page_size=02&page=03", Value::Null, json!("?page=2&page_size=02")),
        ] {
            let answer = list_by(&admin, query).await.expect(200);
            let absolute = |link: &Value| link.as_str().map_or(Value::Null, |query| json!(format!("{base}{query}")));
            assert_eq!((&answer["next"], &answer["previous"]), (&absolute(&next), &absolute(&previous)), "{query}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_faces_give_the_same_links_and_following_them_shows_everyone() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let mut expected: Vec<i64> = add(service, crowd(23)).await.iter().map(|user| user.id).collect();
        expected.reverse();
        let fields = json!({ "ordering": "-id", "search": "user, @Example.com", "is_verified": false, "page_size": 5 });
        let first = list(&admin, Face::Grpc, fields.clone()).await.expect(200);
        assert_eq!(first["next"], list(&admin, Face::Rest, fields).await.expect(200)["next"]);

        let (mut seen, mut links, mut page) = (ids(&first), vec![], first);
        while let Some(next) = page["next"].as_str() {
            links.push(next.to_owned());
            let query = next.split_once('?').unwrap().1.to_owned();
            page = list_by(&admin, &query).await.expect(200);
            seen.extend(ids(&page));
        }
        assert_eq!(seen, expected);
        for link in links.iter().rev().skip(1) {
            assert_eq!(page["previous"], *link);
            page = list_by(&admin, link.split_once('?').unwrap().1).await.expect(200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_to_the_public_address_where_one_is_set() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("PUBLIC_URL", "https://id.example.com")]).await;
        let admin = service.admin("admin@example.com").await;
        add(&service, crowd(2)).await;
        for face in Face::ALL {
            let answer = list(&admin, face, json!({ "page_size": 1, "page": 2 })).await.expect(200);
            assert_eq!(answer["next"], "https://id.example.com/api/users/?page=3&page_size=1");
            assert_eq!(answer["previous"], "https://id.example.com/api/users/?page_size=1");
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_token_everyone_who_was_there_all_the_time_is_seen_once() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let orders = ["id", "-id", "email", "-last_name,first_name", "first_name,-date_joined", "-date_joined"];
        for (round, ordering) in orders.into_iter().enumerate() {
            // Of every three, one goes away meanwhile. Names and times are shared, so that ties lie across pages.
            let people = (0..60).map(|n: i64| user::Model {
                date_joined: noon() + chrono::Duration::microseconds(n % 4),
                ..person(&format!("r{round}n{n}@example.com"), &format!("F{}", n % 5), &format!("L{}", n % 7))
            });
            let people = add(service, people.collect()).await;
            let (mut going, staying): (Vec<_>, Vec<_>) = people.iter().map(|u| u.id).partition(|id| id % 3 == 0);
            let fields = json!({ "ordering": ordering, "search": format!("r{round}n"), "page_size": 7 });
            let (mut seen, mut page, mut added) =
                (Vec::new(), list(&admin, Face::Grpc, fields.clone()).await.expect(200), 0);
            loop {
                seen.extend(ids(&page));
                let token = page["next_page_token"].as_str().unwrap().to_owned();
                if token.is_empty() {
                    break;
                }
                assert_eq!(ids(&page).len(), 7, "{ordering}");
                // The very user at which the page ended, if that is one that may go, and one more.
                let last = *ids(&page).last().unwrap();
                let leaving = going.iter().position(|id| *id == last).or(going.len().checked_sub(1));
                if let Some(at) = leaving {
                    remove(service, going.remove(at)).await;
                }
                let new = |n: i64| {
                    person(&format!("r{round}n{n}@example.com"), &format!("F{}", n % 5), &format!("L{}", n % 7))
                };
                add(service, vec![new(1000 + added), new(2000 + added)]).await;
                added += 1;
                assert!(added < 60, "{ordering}: it never ends");
                let mut fields = fields.clone();
                fields["page_token"] = json!(token);
                page = list(&admin, Face::Grpc, fields).await.expect(200);
                assert!(page["next"].is_null() && page["previous"].is_null());
            }
            assert_eq!(page["count"], i64::try_from(staying.len() + going.len()).unwrap() + 2 * added, "{ordering}");
            let once: HashSet<_> = seen.iter().collect();
            assert_eq!(once.len(), seen.len(), "{ordering}: somebody was seen twice: {seen:?}");
            let missed: Vec<_> = staying.iter().filter(|id| !once.contains(id)).collect();
            assert!(missed.is_empty(), "{ordering}: {missed:?} were missed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_continues_a_page_however_that_was_found() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let people: Vec<_> = add(service, crowd(9)).await.iter().map(|user| user.id).collect();
        let list = async |fields| list(&admin, Face::Grpc, fields).await.expect(200);
        let fields = |page: Value| json!({ "search": "user", "page_size": 4, "page": page });
        let second = list(fields(json!(2))).await;
        assert_eq!(ids(&second), people[4..8]);
        let mut next = fields(json!(99)); // a page counts for nothing beside a token
        next["page_token"] = second["next_page_token"].clone();
        next["page_size"] = json!(1); // pages may change their size
        let third = list(next).await;
        assert_eq!((ids(&third), &third["next_page_token"]), (people[8..].to_vec(), &json!("")));
        // The token of no page is the beginning.
        assert_eq!(ids(&list(json!({ "search": "user", "page_token": "" })).await), people);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_own_list_alone() {
    on_each_store(async |service| {
        let [admin, user] = [service.admin("admin@example.com").await, service.user("user@example.com").await];
        let other = service.user("other@example.com").await;
        add(service, crowd(9)).await;
        let fields = json!({ "page_size": 2, "ordering": "first_name", "search": "name", "is_verified": false });
        let token = list(&user, Face::Grpc, fields.clone()).await.expect(200)["next_page_token"].clone();
        let with = |key: &str, value: Value| {
            let mut fields = fields.clone();
            fields["page_token"] = token.clone();
            fields[key] = value;
            fields
        };
        let same = with("page_token", token.clone());
        list(&user, Face::Grpc, same.clone()).await.expect(200);
        list(&other, Face::Grpc, same.clone()).await.expect(200);
        let text = token.as_str().unwrap();
        let changed = format!("{}{}", if text.starts_with('A') { "B" } else { "A" }, &text[1..]);
        for (who, fields) in [
            (&admin, same),
            (&user, with("ordering", json!("-first_name"))),
            (&user, with("ordering", json!("last_name"))),
            (&user, with("search", json!("name1"))),
            (&user, with("search", json!("na me"))),
            (&user, with("role", json!("seller"))),
            (&user, with("is_verified", json!(true))),
            (&user, with("page_token", json!("nonsense"))),
            (&user, with("page_token", json!("AAAA"))),
            (&user, with("page_token", json!("é\n"))),
            (&user, with("page_token", json!(changed))),
            (&user, with("page_token", json!(text[..text.len() - 4]))),
        ] {
            let wrong = list(who, Face::Grpc, fields.clone()).await;
            let wrong = wrong.expect_field(400, "page_token");
            let told = "It did not come with a page of this very list. Repeat the filters and the ordering of the first call, or \
                        begin without a token.";
            assert_eq!(wrong, [told], "{fields}");
        }
        // REST knows no such field, and so passes it over.
        let page = list_by(&user, "page_token=nonsense&page_size=2").await.expect(200);
        assert_eq!(names(&page).len(), 2);
        assert!(page.get("next_page_token").is_none());
    })
    .await;
}

/// Beyond some depth the service looks for a page from the end, where that is nearer.
#[tokio::test(flavor = "multi_thread")]
async fn pages_far_behind_are_those_that_tokens_lead_to() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        for from in (0..2400).step_by(800) {
            let one = |n: u32| user::Model {
                listed: !n.is_multiple_of(7),
                is_verified: n.is_multiple_of(2),
                is_freelancer: !n.is_multiple_of(3),
                date_joined: noon() + chrono::Duration::seconds((n / 10).into()),
                ..person(&format!("u{n}@example.com"), "Jane", &format!("Doe{}", n % 97))
            };
            add(service, (from..from + 800).map(one).collect()).await;
        }
        let filters = [
            (&admin, json!({})),
            (&admin, json!({ "ordering": "-email" })),
            (&admin, json!({ "role": "freelancer", "ordering": "last_name,-id" })),
            (&user, json!({ "ordering": "-date_joined" })),
            (&user, json!({ "ordering": "last_name" })),
            (&user, json!({ "is_verified": false })),
        ];
        for (who, filter) in filters {
            let with = |key: &str, value: Value| {
                let mut fields = filter.clone();
                fields["page_size"] = json!(100);
                fields[key] = value;
                fields
            };
            let (mut token, mut number) = (json!(""), 0);
            loop {
                number += 1;
                let by_token = if number == 1 { with("page", json!(1)) } else { with("page_token", token.clone()) };
                let by_token = list(who, Face::Grpc, by_token).await.expect(200);
                let by_number = list(who, Face::Grpc, with("page", json!(number))).await.expect(200);
                assert_eq!(ids(&by_token), ids(&by_number), "{filter}, page {number}");
                assert_eq!(by_token["count"], by_number["count"], "{filter}, page {number}");
                token = by_number["next_page_token"].clone();
                assert_eq!(by_token["next_page_token"].is_null(), token.is_null(), "{filter}, page {number}");
                if token.as_str().unwrap_or_default().is_empty() {
                    break;
                }
            }
            let count = list(who, Face::Grpc, filter.clone()).await.expect(200)["count"].clone();
            assert_eq!(count.as_u64().map(|count| count.div_ceil(100)), Some(number), "{filter}");
            assert!(number > 10, "{filter}: none of its pages is far");
            list(who, Face::Rest, with("page", json!(number + 1))).await.expect(404);
        }
    })
    .await;
}
