//! Properties that hold for whatever somebody types. Made-up examples look for one that doesn't; what they find is shrunk to the
//! least that fails, and told.

use std::{collections::HashSet, fmt::Debug};

use identity::domain::user::{EMAIL_MAX_CHARS, EmailAddress, PersonName, fold};
use proptest::{
    prelude::*,
    string::string_regex,
    test_runner::{Config, TestRunner},
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::{runtime::Handle, task::block_in_place};

use crate::{
    directory::{add, ids, list, person},
    harness::{
        Actor, Face, Service, Store,
        actor::{method, outcome_of, route},
        everywhere, on_each_store,
    },
    rest_parity::rpcs,
};

/// Looks for an example of which `holds` doesn't hold. What it finds is told, not written into a file.
fn check<T: Debug>(cases: u32, examples: impl Strategy<Value = T>, holds: impl Fn(T) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    TestRunner::new(config).run(&examples, holds).unwrap_or_else(|failure| panic!("{failure}"));
}

/// The same, of a service.
fn check_calls<T: Debug>(
    cases: u32,
    examples: impl Strategy<Value = T>,
    holds: impl AsyncFn(T) -> Result<(), TestCaseError>,
) {
    #[expect(
        clippy::disallowed_methods,
        reason = "proptest asks for an answer at once; the service has other threads"
    )]
    block_in_place(|| check(cases, examples, |example| Handle::current().block_on(holds(example))));
}

fn text(regex: &str) -> impl Strategy<Value = String> + use<> {
    string_regex(regex).expect("a regular expression")
}

/// What may be an address, and often is.
fn addresses() -> impl Strategy<Value = String> {
    let local =
        prop_oneof![text("[a-zA-Z0-9.+_'-]{1,20}"), text("\\PC{1,20}"), text("[a-zßİıςΣЖж\u{345}\u{301}]{1,8}")];
    let domain = prop_oneof![
        text("[a-zA-Z0-9-]{1,12}\\.[a-z]{2,6}"),
        text("[а-яßςéü]{1,8}\\.(рф|de|com)"),
        text("\\PC{1,12}"),
        text("xn--[a-z0-9-]{1,8}\\.com"),
    ];
    prop_oneof![8 => (local, domain).prop_map(|(local, domain)| format!("{local}@{domain}")), 1 => any::<String>()]
}

/// Line 41. What is taken as an address is shown as one, has one key in whatever case and spelling, and fits the column.
#[test]
fn an_address_stays_what_it_is() {
    check(4000, addresses(), |raw| {
        let Ok(address) = EmailAddress::parse(&raw) else { return Ok(()) };
        let shown = address.as_str();
        let again = EmailAddress::parse(shown);
        prop_assert_eq!(again.as_ref(), Ok(&address), "{:?} is shown as {:?}", raw, shown);
        prop_assert!(
            shown.chars().count() <= EMAIL_MAX_CHARS && !shown.contains(|c: char| c.is_control() || c.is_whitespace())
        );
        prop_assert_eq!(fold(address.key()), address.key());
        for other in [shown.to_ascii_uppercase(), shown.to_ascii_lowercase(), format!(" {shown}\t")] {
            let other = EmailAddress::parse(&other);
            prop_assert_eq!(other.as_ref().map(EmailAddress::key), Ok(address.key()), "{:?}", shown);
        }
        Ok(())
    });
}

/// Line 36. A masked address shows one character of what stands before the `@`, and never all of it where there are more.
#[test]
fn a_masked_address_keeps_its_secret() {
    check(4000, addresses(), |raw| {
        let masked = EmailAddress::mask(&raw);
        let (local, domain) = raw.rsplit_once('@').unwrap_or((&raw, ""));
        let hidden = masked.strip_suffix(&format!("@{domain}")).expect("the domain stays");
        let (first, stars) = hidden.split_at(hidden.len() - 3);
        prop_assert_eq!(stars, "***");
        prop_assert!(first.chars().count() <= 1 && local.starts_with(first));
        prop_assert!(local.chars().count() < 2 || local == "****" || hidden != local);
        Ok(())
    });
}

/// What people may be called: letters of several scripts, and what means something to SQL, to LIKE and to FTS5.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        text("[a-cA-C%_\\\\'\"*:()^ -]{0,8}"),
        text("[ÀàßẞİıςΣσЖжé\u{301}日本\u{fb01} ]{0,6}"),
        text("\\PC{0,10}")
    ]
}

/// Lines 36, 42. A search finds whom a plain look at the folded texts finds, whatever characters it is made of.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_occurs() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
        let admin = service.admin("admin@example.com").await;
        let people = proptest::collection::vec((names(), names(), 0..4_usize), 1..6);
        let words = proptest::collection::vec(prop_oneof![names(), text("[a-c%_\\\\]{1,3}")], 1..4);
        let count = std::sync::atomic::AtomicUsize::new(0);
        check_calls(40, (people, words), async |(people, words)| {
            let search = words.join(",");
            prop_assume!(
                search.chars().count() <= 200 && search.split(|c: char| c.is_whitespace() || c == ',').count() <= 8
            );
            prop_assume!(!search.contains(char::is_control));
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let is_name = |name: &String| PersonName::parse(name).is_ok();
            let people = people.into_iter().filter(|(first, last, _)| is_name(first) && is_name(last)).enumerate();
            let people = people.map(|(at, (first, last, domain))| {
                let domain = ["example.com", "a%b.example", "пример.рф", "c_c.example"][domain];
                let domain = if EmailAddress::parse(&format!("x@{domain}")).is_ok() { domain } else { "example.org" };
                person(&format!("p{n}.{at}@{domain}"), &first, &last)
            });
            let people: Vec<_> = people.collect();
            let added = if people.is_empty() { Vec::new() } else { add(&service, people).await };
            let words: Vec<_> =
                search.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty()).map(fold).collect();
            let expected: HashSet<i64> = added
                .iter()
                .filter(|one| {
                    let texts = [fold(&one.email), fold(&format!("{} {}", one.first_name, one.last_name))];
                    words.iter().all(|word| texts.iter().any(|text| text.contains(word)))
                })
                .map(|one| one.id)
                .collect();
            // Of this case's people; those of the cases before are there, too.
            let mut found = HashSet::new();
            for page in 1.. {
                let asked = json!({ "search": search, "page_size": 100, "ordering": "-id", "page": page });
                let answer = list(&admin, Face::Grpc, asked).await.expect(200);
                let here = ids(&answer);
                found.extend(here.iter().copied().filter(|id| added.iter().any(|one| one.id == *id)));
                if here.len() < 100 {
                    break;
                }
            }
            prop_assert_eq!(found, expected, "{:?} among {:?} on {:?}", search, added, store);
            Ok(())
        });
        service.stop().await;
    }
}

/// Lines 36, 40. By number and by token, in whatever order and whatever size of page, a walk through the directory meets each
/// user once, and both walks the same.
#[tokio::test(flavor = "multi_thread")]
async fn every_walk_meets_each_user_once() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let crowd =
            (0..23).map(|n| person(&format!("p{n}@example.com"), ["A", "a", "Ж"][n % 3], ["", "x"][n % 2])).collect();
        add(service, crowd).await;
        let key = prop_oneof![
            Just("id"),
            Just("email"),
            Just("date_joined"),
            Just("first_name"),
            Just("last_name"),
            text("[a-z]{0,3}").prop_map(|_| "nonsense")
        ];
        let ordering = proptest::collection::vec((any::<bool>(), key), 0..4);
        let ordering = ordering.prop_map(|terms| {
            terms
                .into_iter()
                .map(|(down, key)| format!("{}{key}", if down { "-" } else { "" }))
                .collect::<Vec<_>>()
                .join(",")
        });
        check_calls(6, (2..12_i64, ordering), async |(size, ordering)| {
            let asked = json!({ "page_size": size, "ordering": ordering });
            let (mut by_token, mut by_page) = (Vec::new(), Vec::new());
            let mut token = json!("");
            loop {
                let mut asked = asked.clone();
                asked["page_token"] = token;
                let page = list(&admin, Face::Grpc, asked).await.expect(200);
                by_token.extend(ids(&page));
                token = page["next_page_token"].clone();
                if token.as_str().is_none_or(str::is_empty) {
                    break;
                }
            }
            for number in 1.. {
                let mut asked = asked.clone();
                asked["page"] = json!(number);
                let page = list(&admin, Face::Rest, asked).await.expect(200);
                by_page.extend(ids(&page));
                if page["next"].is_null() {
                    break;
                }
            }
            prop_assert_eq!(by_token.iter().collect::<HashSet<_>>().len(), 24);
            prop_assert_eq!(by_token, by_page, "{}", ordering);
            Ok(())
        });
    })
    .await;
}

/// Any JSON, not too deep.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..6_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        text("[a-z@.%_*]{0,12}").prop_map(Value::from),
        Just(json!("seller")),
        Just(json!("user@example.com")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Lines 37, 52. Whatever JSON stands in the fields of whatever route, the answer is no fault, and in our words.
#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_field_is_a_fault() {
    for store in Store::all() {
        let service =
            Service::start_with(store, &[("RATE_LIMIT_API", "off"), ("RATE_LIMIT_VERIFICATION", "off")]).await;
        let admin = service.admin("admin@example.com").await;
        service.user("user@example.com").await;
        // Those that take the caller out of the game come to it.
        let routes: Vec<_> = rpcs()
            .iter()
            .filter(|rpc| *rpc != "AuthService.Logout")
            .filter(|rpc| route(rpc).is_some_and(|r| r.2))
            .collect();
        let examples = (0..routes.len(), proptest::collection::vec(values(), 12));
        check_calls(150, examples, async |(at, values)| {
            let (verb, path, _) = route(routes[at]).expect("a route");
            let fields: Map<_, _> = method(routes[at])
                .input()
                .fields()
                .zip(values)
                .map(|(field, value)| (field.name().to_owned(), value))
                .collect();
            let path = path.replace("{id}", "2").replace("{user_id}", "2");
            let request = admin.request(verb, &path).json(&fields);
            let answer = outcome_of(request.send().await.unwrap()).await;
            prop_assert!(answer.status < 500, "{} {:?}: {:?}", routes[at], fields, answer);
            let is_json = serde_json::from_str::<Value>(&answer.text).is_ok_and(|body| body.is_object());
            prop_assert!(answer.status < 400 || is_json, "{} {:?}: {:?}", routes[at], fields, answer);
            Ok(())
        });
        service.stop().await;
    }
}

/// The fields of a profile that may be told at once, each with what may come for it, and what becomes of that.
fn profile_changes() -> impl Strategy<Value = Map<String, Value>> {
    let bio = text("[a-z ЖЖ%'\\\\\n]{0,12}").prop_map(Value::from);
    let zone = prop_oneof![Just("Europe/Berlin"), Just("UTC"), Just("Asia/Tokyo")].prop_map(Value::from);
    let flag = || any::<bool>().prop_map(Value::from);
    let maybe = |value: BoxedStrategy<Value>| proptest::option::of(value);
    (maybe(bio.boxed()), maybe(zone.boxed()), maybe(flag().boxed()), maybe(flag().boxed())).prop_map(
        |(bio, zone, public, streak)| {
            let fields = [("bio", bio), ("timezone", zone), ("is_public", public), ("streak_visibility", streak)];
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        },
    )
}

async fn profile(actor: &Actor) -> Value {
    actor.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200)
}

/// Line 37. A change changes what it names, and nothing else; one with a mask no more than the mask names; and a mask that names
/// what there is not changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_changes_what_it_names() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let masks = proptest::option::of(proptest::sample::subsequence(
            vec!["bio", "timezone", "is_public", "streak_visibility", "id"],
            0..4,
        ));
        check_calls(10, (profile_changes(), masks), async |(fields, mask)| {
            let mask = mask.filter(|mask| face == Face::Grpc && !mask.is_empty());
            let mut expected = profile(&user).await;
            let named = |name: &str| mask.as_ref().is_none_or(|mask| mask.contains(&name));
            // A text that is named without a value is cleared; a flag can't be.
            let is_flag = |name: &str| ["is_public", "streak_visibility"].contains(&name);
            let foreign = mask.iter().flatten().any(|name| *name == "id");
            let missing = mask.iter().flatten().any(|name| is_flag(name) && !fields.contains_key(*name));
            let mut asked = fields.clone();
            if let Some(mask) = &mask {
                // As protobuf writes a mask in JSON.
                let camel = mask.iter().map(|name| match *name {
                    "is_public" => "isPublic",
                    "streak_visibility" => "streakVisibility",
                    other => other,
                });
                asked.insert("update_mask".into(), json!(camel.collect::<Vec<_>>().join(",")));
            }
            let answer = user.call(face, "ProfileService.UpdateMyProfile", Value::Object(asked)).await;
            if foreign || missing {
                prop_assert_eq!(answer.status, 400, "{:?} {:?}", fields, mask);
            } else {
                prop_assert_eq!(answer.status, 200, "{:?} {:?}: {:?}", fields, mask, answer);
                for name in mask.iter().flatten().filter(|name| !fields.contains_key(**name)) {
                    expected[name] = if *name == "timezone" { json!("UTC") } else { json!("") };
                }
                for (name, value) in fields.iter().filter(|(name, _)| named(name)) {
                    expected[name] = value.clone();
                }
            }
            prop_assert_eq!(profile(&user).await, expected, "{:?} {:?}", fields, mask);
            Ok(())
        });
    })
    .await;
}

/// Line 9. A password that may be chosen may be typed, and one that is longer than any account's is refused before it is hashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_taken_as_it_is_typed() {
    let cheap = [("ARGON2_MEMORY_KIB", "64"), ("ARGON2_ITERATIONS", "1")];
    let service = Service::start_with(Store::all()[0], &cheap).await;
    let anyone = service.anonymous();
    let passwords = prop_oneof![text("\\PC{0,140}"), text("[a-zа-я]{4,9}[0-9]{1,3}[!? €]{1,2}")];
    check_calls(40, (0..1_000_000_000_u64, passwords), async |(n, password)| {
        let account = json!({ "email": format!("p{n}@example.com"), "password": password });
        let registered =
            anyone.request(Method::POST, "/api/auth/register/").json(&account).send().await.unwrap().status();
        let login = anyone.request(Method::POST, "/api/auth/login/").json(&account).send().await.unwrap().status();
        let is_typed = (1..=128).contains(&password.chars().count()) && !password.contains('\0');
        let (is_taken, otherwise) = (registered == 201, if is_typed { 404 } else { 400 });
        prop_assert_eq!(login, if is_taken { 200 } else { otherwise }, "{:?}", password);
        // Neither cut nor trimmed.
        if is_taken {
            let longer = json!({ "email": account["email"], "password": format!("{password} ") });
            let status = anyone.request(Method::POST, "/api/auth/login/").json(&longer).send().await.unwrap().status();
            prop_assert!(status == 401 || status == 400, "{:?}", password);
        }
        Ok(())
    });
    service.stop().await;
}
