//! Passwords, as an attacker meets them: how they are kept, which are taken, what a guess costs and what it tells.
//! The lines are those of `docs/security.md`.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use identity::{
    config::Config,
    db::{Db, DbOptions},
    entity::user::{self, Column},
    hash_pool::Scratch,
    model::password::{self, Argon2Params, Verdict},
};
use reqwest::Method;
use rustix::time::{ClockId, clock_gettime};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, sea_query::Expr};
use serde_json::{Value, json};

use crate::{
    harness::{
        Face, PASSWORD, Service, Store,
        actor::method,
        everywhere,
        load::Dice,
        metrics::Metrics,
        on_each_store,
        process::Installation,
        stores::{migrated_database, setting},
        wait_until,
    },
    password::{
        COMMON, PERSONAL, RIGHT, RIGHT_BUT_OUTDATED, TOO_LONG, TOO_SHORT, cheap, given, reasons, refusal, verify,
    },
    rest_parity::{rest_routes, rpcs},
    session::{login, store_password, stored_password},
    user::{set_flags, user_id},
};

const EMAIL: &str = "user.name-1@example.com";

/// Line 8.
#[test]
fn a_hash_is_argon2id_in_the_phc_format_with_a_salt_of_its_own() {
    let mut scratch = Scratch::default();
    let [one, two] =
        [0; 2].map(|_| password::hash(&given("User123!pass"), Argon2Params::default(), &mut scratch).unwrap());
    let fields: Vec<_> = one.split('$').collect();
    assert_eq!(fields[..4], ["", "argon2id", "v=19", "m=19456,t=2,p=1"]);
    assert_eq!((fields[4].len(), fields[5].len(), one.len()), (22, 43, 97));
    assert_ne!(one, two);
    for stored in [one, two] {
        assert_eq!(verify(&stored, "User123!pass", Argon2Params::default()), RIGHT);
        for wrong in ["user123!pass", "User123!pas", "User123!pass ", " User123!pass", "x"] {
            assert_eq!(verify(&stored, wrong, Argon2Params::default()), Verdict::Wrong, "{wrong:?}");
        }
    }
}

/// Line 8.
#[test]
fn a_hash_is_outdated_once_the_cost_has_risen() {
    let stored = password::hash(&given("User123!pass"), cheap(), &mut Scratch::default()).unwrap();
    for (memory_kib, iterations, parallelism, expected) in [
        (64, 1, 1, RIGHT),
        (32, 1, 1, RIGHT),
        (65, 1, 1, RIGHT_BUT_OUTDATED),
        (64, 2, 1, RIGHT_BUT_OUTDATED),
        (64, 1, 2, RIGHT_BUT_OUTDATED),
    ] {
        let now = Argon2Params::new(memory_kib, iterations, parallelism).unwrap();
        assert_eq!(verify(&stored, "User123!pass", now), expected, "{now}");
        assert_eq!(verify(&stored, "user123!pass", now), Verdict::Wrong, "{now}");
    }
}

/// Line 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_the_django_service_kept_logs_in_and_is_kept_as_argon2id_from_then_on() {
    let hashes: Vec<Value> = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
    on_each_store(async |service| {
        for (n, case) in hashes.iter().enumerate() {
            let [name, password, hash] = ["name", "password", "hash"].map(|key| case[key].as_str().unwrap());
            let email = format!("user{n}@example.com");
            service.user(&email).await;
            store_password(service, &email, hash).await;
            let face = Face::ALL[n % 2];
            if case["valid"] == json!(true) {
                login(service, face, &email, password).await.expect(200);
                let kept = stored_password(service, &email).await;
                assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{name}: {kept}");
                login(service, face, &email, password).await.expect(200);
                assert_eq!(stored_password(service, &email).await, kept, "{name}: once is enough");
                login(service, face, &email, "wrong-password-1").await.expect(401);
            } else {
                login(service, face, &email, password).await.expect(401);
                assert_eq!(stored_password(service, &email).await, hash, "{name}: it stays as it was");
            }
        }
    })
    .await;
}

/// Line 9.
#[test]
fn length_counts_characters_not_bytes() {
    assert_eq!(reasons("Ключ-12", &[]), [TOO_SHORT]);
    assert_eq!(refusal("Ключ-123", &[]), [""; 0]);

    let longest = format!("1{}", "🔑".repeat(127));
    assert_eq!(longest.len(), 509);
    assert_eq!(refusal(&longest, &[]), [""; 0]);
    assert_eq!(reasons(&format!("{longest}🔑"), &[]), [TOO_LONG]);
    assert_eq!(reasons(&"1-a".repeat(20_000), &[]), [TOO_LONG]);
}

/// Line 9.
#[test]
fn every_character_up_to_the_longest_password_counts() {
    let longest = "🔑".repeat(128);
    let almost = format!("{}🔒", "🔑".repeat(127));
    let stored = password::hash(&given(&longest), cheap(), &mut Scratch::default()).unwrap();
    assert_eq!(verify(&stored, &longest, cheap()), RIGHT);
    assert_eq!(verify(&stored, &almost, cheap()), Verdict::Wrong);
}

/// Line 10.
#[test]
fn the_three_thousand_most_common_passwords_are_refused() {
    let list = include_str!("../data/common-passwords-top-3000.txt");
    let passwords: Vec<_> = list.lines().filter(|line| !line.starts_with("# ")).collect();
    assert_eq!(passwords.len(), 3000);
    for raw in passwords {
        reasons(raw, &[]);
        reasons(&raw.to_uppercase(), &[]);
    }
}

/// Line 10.
#[test]
fn a_common_password_stays_common_in_disguise() {
    for raw in [
        "Password1!",
        "P@55w0rd",
        "pa$$word-2024",
        "!!PASSWORD!!1",
        "@dmin123!",
        "Qwerty123!",
        "L3tM31n!!",
        "123_Welcome_123",
        "Dr4g0n#99",
        "12345678!",
        "#1Stunna",
        "1qaz!QAZ",
        "9-11-1961",
    ] {
        assert_eq!(reasons(raw, &[]), [COMMON], "{raw}");
    }
    // A word within a longer one, or a number within another, is no disguise.
    for raw in ["my-password-1", "passwords_are_2_long", "dragonfly-77", "8123456-91", "Str0ng!Passw0rd"] {
        assert_eq!(refusal(raw, &[]), [""; 0], "{raw}");
    }
}

/// Line 10.
#[test]
fn a_password_equal_to_the_address_or_a_name_is_refused_in_any_case() {
    let personal = ["John.Doe-1985@Example.com", "Jörg-Straße-7", "", "Μίλτος_2ς"];
    for raw in
        ["John.Doe-1985@Example.com", "JOHN.DOE-1985@EXAMPLE.COM", "john.doe-1985", "JÖRG-STRASSE-7", "ΜΊΛΤΟΣ_2Σ"]
    {
        assert_eq!(reasons(raw, &personal), [PERSONAL], "{raw}");
    }
    assert_eq!(refusal("john.doe-1985!", &personal), [""; 0]);
    assert_eq!(refusal("example.com-1", &personal), [""; 0]);
}

/// How long this thread has computed.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs().try_into().unwrap())
}

/// Line 12.
#[test]
fn an_unknown_account_or_one_without_a_password_costs_what_a_wrong_password_costs() {
    for stored in
        [&password::decoy(Argon2Params::default()), "!", "", "gibberish", "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99"]
    {
        let mut scratch = Scratch::default();
        let verdict = password::verify(stored, &given("User123!pass"), Argon2Params::default(), &mut scratch).unwrap();
        assert_eq!(verdict, Verdict::Wrong);
        // The memory of a real hash was filled.
        assert_eq!(scratch.kept_bytes(), 19 << 20, "{stored}");
    }

    let params = Argon2Params::default();
    let mut scratch = Scratch::default();
    let stored = password::hash(&given("User123!pass"), params, &mut scratch).unwrap();
    // What the thread itself computes, and the shortest of many, so that a busy machine makes no difference; taken in turns.
    let decoy = password::decoy(params);
    let [mut wrong, mut unknown, mut unusable] = [Duration::MAX; 3];
    for _ in 0..15 {
        for (stored, shortest) in [(stored.as_str(), &mut wrong), (decoy.as_str(), &mut unknown), ("!", &mut unusable)]
        {
            let start = computed();
            password::verify(stored, &given("user123!pass"), params, &mut scratch).unwrap();
            *shortest = computed().saturating_sub(start).min(*shortest);
        }
    }
    for other in [unknown, unusable] {
        let ratio = other.as_secs_f64() / wrong.as_secs_f64();
        assert!((0.8..1.25).contains(&ratio), "wrong {wrong:?}, unknown {unknown:?}, unusable {unusable:?}");
    }
}

/// Line 12.
#[tokio::test(flavor = "multi_thread")]
async fn with_strict_privacy_an_unknown_address_is_told_what_a_wrong_password_is() {
    for store in Store::all() {
        for face in Face::ALL {
            let service = Service::start_with(store, &[("AUTH_PRIVACY", "strict")]).await;
            service.user("user@example.com").await;
            let login = async |email: &str| {
                let login = json!({ "email": email, "password": "wr0ng-Password" });
                let outcome = service.anonymous().call(face, "AuthService.Login", login).await;
                (outcome.status, outcome.text, outcome.reason)
            };
            let wrong = login("user@example.com").await;
            assert_eq!(wrong.0, 401);
            assert_eq!(login("nobody@example.com").await, wrong);
            service.stop().await;
        }
    }
}

/// Line 13.
#[test]
fn debug_does_not_show_a_password() {
    assert!(!format!("{:?}", given("User123!pass")).contains("User"));
}

/// Line 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_hash_that_was_cheaper_than_is_asked_for_is_made_anew_at_the_next_login() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let cheap = [("ARGON2_MEMORY_KIB", "64"), ("ARGON2_ITERATIONS", "1")];
        let service = Service::start_with(store, &cheap).await;
        service.user(EMAIL).await;
        let before = stored_password(&service, EMAIL).await;
        assert!(before.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{before}");
        let service = service.restart_with(&[("ARGON2_MEMORY_KIB", "19456"), ("ARGON2_ITERATIONS", "2")]).await;
        login(&service, face, EMAIL, "wr0ng-Passw0rd").await.expect(401);
        assert_eq!(stored_password(&service, EMAIL).await, before, "whoever doesn't know it changes nothing");
        login(&service, face, EMAIL, PASSWORD).await.expect(200);
        let after = stored_password(&service, EMAIL).await;
        assert!(after.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{after}");
        login(&service, face, EMAIL, PASSWORD).await.expect(200);
        // Nor is it made cheaper again.
        let service = service.restart_with(&cheap).await;
        login(&service, face, EMAIL, PASSWORD).await.expect(200);
        assert_eq!(stored_password(&service, EMAIL).await, after);
        service.stop().await;
    }
}

/// Line 8.
#[test]
fn hashes_are_no_cheaper_than_owasp_recommends_wherever_something_is_at_stake() {
    for (name, value, least) in [("ARGON2_MEMORY_KIB", "19455", "19456"), ("ARGON2_ITERATIONS", "1", "2")] {
        for debug in [None, Some("true")] {
            let loaded = Config::load(|asked| match asked {
                "DEBUG" => debug.map(str::to_owned),
                _ => (asked == name).then(|| value.to_owned()),
            });
            match (debug, loaded) {
                (None, Err(mistakes)) => {
                    let told = mistakes.to_string();
                    assert!(told.contains(name) && told.contains(least), "{told}");
                }
                (Some(_), Ok(_)) => {}
                (debug, loaded) => panic!("{name}={value} with DEBUG={debug:?}: {:?}", loaded.map(|_| "taken")),
            }
        }
    }
    let hashing = Config::load(|_| None).unwrap().hashing;
    assert_eq!((hashing.memory_kib, hashing.iterations, hashing.parallelism), (19456, 2, 1));
}

/// Line 9.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_password_is_taken_whole_and_a_longer_one_not_at_all() {
    // A digit of four bytes: 512 in all.
    let longest = format!("\u{1d7d9}{}", "\u{1f511}".repeat(127));
    assert_eq!((longest.chars().count(), longest.len()), (128, 512));
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let started = Service::start_with(store, &[("ARGON2_MEMORY_KIB", "64"), ("ARGON2_ITERATIONS", "1")]).await;
        let service = &started;
        let anyone = service.anonymous();
        let register = async |email: &str, password: &str| {
            anyone.call(face, "AuthService.Register", json!({ "email": email, "password": password })).await
        };
        register(EMAIL, &longest).await.expect(201);
        let shorter: String = longest.chars().take(127).collect();
        for other in [shorter.clone(), format!("{shorter}\u{1f512}"), longest[4..].to_owned()] {
            login(service, face, EMAIL, &other).await.expect(401);
        }
        login(service, face, EMAIL, &longest).await.expect(200);
        for longer in [format!("{longest}1"), "1-a".repeat(20_000)] {
            assert_eq!(register("two@example.com", &longer).await.expect_field(400, "password")[1..], [TOO_LONG]);
            login(service, face, EMAIL, &longer).await.expect_field(400, "password");
        }
        // Nothing is trimmed either.
        register("three@example.com", "  padded-1  ").await.expect(201);
        login(service, face, "three@example.com", "padded-1").await.expect(401);
        login(service, face, "three@example.com", "  padded-1  ").await.expect(200);
        started.stop().await;
    }
}

/// The fields that hold a password, by the rpc: those that set one, then those that are held against one.
fn password_fields() -> [Vec<(&'static str, String)>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for rpc in rpcs() {
        for field in method(rpc).input().fields().filter(|field| field.name().contains("password")) {
            let sets = match (rpc.as_str(), field.name()) {
                ("AuthService.Login", "password") | ("AuthService.ChangePassword", "old_password") => false,
                ("AuthService.Register" | "UserService.CreateUser", "password")
                | ("AuthService.ChangePassword", "new_password") => true,
                _ => panic!("{rpc} has {}: is it held to the rules, and is guessing at it limited?", field.name()),
            };
            found[usize::from(!sets)].push((rpc.as_str(), field.name().to_owned()));
        }
    }
    found
}

/// Line 10.
#[tokio::test(flavor = "multi_thread")]
async fn however_a_password_is_set_it_is_no_common_one_and_no_name() {
    everywhere(async |service, face| {
        let admin = service.admin(EMAIL).await;
        let [setting, _] = password_fields();
        assert_eq!(setting.len(), 3, "{setting:?}");
        for (rpc, field) in setting {
            // Oneself has an address and no name.
            let is_new = rpc != "AuthService.ChangePassword";
            for (weak, why) in [
                ("Password1!", COMMON),
                ("P@55w0rd", COMMON),
                ("#1stunna", COMMON),
                (EMAIL, PERSONAL),
                ("U\u{017f}er.Name-1", PERSONAL),
                ("Jane-1-of-Doe", PERSONAL),
            ] {
                if !is_new && why == PERSONAL && weak.starts_with("Jane") {
                    continue;
                }
                let mut fields = json!({ field.clone(): weak });
                if is_new {
                    fields["email"] = json!(EMAIL);
                    fields["first_name"] = json!("jane-1-OF-doe");
                } else {
                    fields["old_password"] = json!(PASSWORD);
                }
                let told = admin.call(face, rpc, fields).await.expect_field(400, &field);
                assert_eq!(
                    (told[0].as_str(), told.last().unwrap().as_str()),
                    ("Password is too weak", why),
                    "{rpc} {weak}"
                );
            }
        }
    })
    .await;
}

/// How many hashes were computed so far.
pub async fn hashes(service: &Service) -> u32 {
    let count = Metrics::of(service).await.sum("identity_hash_duration_seconds_count", &[]);
    count.to_string().parse().expect("a whole number")
}

/// Waits until so many were computed: one is counted a moment after its caller has it.
pub async fn until_hashes_are(expected: u32, service: &Service) {
    wait_until(Duration::from_secs(5), "the hashes", async || hashes(service).await >= expected).await;
    assert_eq!(hashes(service).await, expected);
}

/// Line 11.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_without_a_look_at_the_password_costs_no_hash() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let limits = [("RATE_LIMIT_LOGIN", "1/15m"), ("RATE_LIMIT_REGISTER", "2/1h")];
        let service = Service::start_with(store, &limits).await;
        let user = service.user(EMAIL).await;
        let other = service.user("other@example.com").await;
        login(&service, face, "nobody@example.com", PASSWORD).await.expect(404);
        until_hashes_are(3, &service).await;
        let long = "1-a".repeat(20_000);
        let new = |email: &str, password: &str| json!({ "email": email, "password": password });
        let change = |old: &str, new: &str| json!({ "old_password": old, "new_password": new });
        let anyone = service.anonymous();
        for (actor, rpc, fields, status) in [
            (&anyone, "AuthService.Register", new("no address", PASSWORD), 400),
            (&anyone, "AuthService.Register", new("new@example.com", "weak"), 400),
            (&anyone, "AuthService.Register", new("new@example.com", &long), 400),
            (&anyone, "AuthService.Register", json!({ "password": PASSWORD }), 422),
            (&anyone, "AuthService.Register", new("new@example.com", PASSWORD), 429),
            (&anyone, "AuthService.Login", new("no address", PASSWORD), 400),
            (&anyone, "AuthService.Login", new(EMAIL, &long), 400),
            (&anyone, "AuthService.Login", json!({ "email": EMAIL }), 422),
            (&anyone, "AuthService.Login", new("nobody@example.com", PASSWORD), 429),
            (&user, "AuthService.ChangePassword", change(PASSWORD, "weak"), 400),
            (&user, "AuthService.ChangePassword", change(PASSWORD, &EMAIL.replace('u', "U")), 400),
            (&user, "AuthService.ChangePassword", change(&long, "An0ther-passw0rd"), 400),
            (&anyone, "AuthService.ChangePassword", change(PASSWORD, "An0ther-passw0rd"), 401),
            (&other, "UserService.CreateUser", new("new@example.com", PASSWORD), 403),
        ] {
            let outcome = actor.call(face, rpc, fields).await;
            assert_eq!(outcome.status, status, "{rpc}: {outcome:?}");
        }
        assert_eq!(hashes(&service).await, 3);
        service.stop().await;
    }
}

/// Line 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_costs_one_hash_whether_there_is_such_a_user_or_not() {
    everywhere(async |service, face| {
        let [_, inactive] = [service.user(EMAIL).await, service.user("inactive@example.com").await];
        service.user("unusable@example.com").await;
        store_password(service, "unusable@example.com", "!").await;
        set_flags(service, user_id(&inactive), &[(Column::IsActive, false)]).await;
        until_hashes_are(3, service).await;
        let logins = [
            (EMAIL, PASSWORD, 200),
            (EMAIL, "wr0ng-Passw0rd", 401),
            ("nobody@example.com", PASSWORD, 404),
            ("inactive@example.com", PASSWORD, 401),
            ("inactive@example.com", "wr0ng-Passw0rd", 401),
            ("unusable@example.com", "!", 401),
        ];
        for ((email, password, status), expected) in logins.into_iter().zip(4..) {
            login(service, face, email, password).await.expect(status);
            until_hashes_are(expected, service).await;
        }
    })
    .await;
}

/// Line 13.
#[test]
fn no_answer_has_a_place_for_a_password_or_its_hash() {
    let mut open: Vec<_> = rpcs().iter().map(|rpc| method(rpc).output()).collect();
    let mut seen = BTreeSet::new();
    while let Some(message) = open.pop() {
        if !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            let name = field.name();
            assert!(!["password", "hash", "secret"].iter().any(|word| name.contains(word)), "{}", field.full_name());
            open.extend(field.kind().as_message().cloned());
        }
    }
    assert!(seen.contains("identity.v1.User") && seen.contains("identity.v1.Profile"), "{seen:?}");
    // Nor can a row be written as JSON, or as anything else, by accident.
    for file in std::fs::read_dir("src/entity").unwrap() {
        let path = file.unwrap().path();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("Serialize"), "{}", path.display());
    }
}

/// Line 13.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_to_an_admin_shows_a_hash() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        service.user(EMAIL).await;
        let hash = stored_password(service, EMAIL).await;
        let parts: Vec<_> = hash.rsplit('$').take(2).collect();
        for (rpc, verb, path) in rest_routes().into_iter().filter(|(_, verb, _)| *verb == Method::GET) {
            let path = path.replace("/1/", "/2/");
            let answer = admin.request(verb, &path).send().await.unwrap();
            let text = answer.text().await.unwrap();
            assert!(!parts.iter().any(|part| text.contains(part)) && !text.contains("argon2"), "{rpc}: {text}");
        }
    })
    .await;
}

/// Line 12.
///
/// All kinds of a login that fails, in an order that chance chooses each time: what else the machine does falls upon all of them
/// alike.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/timing runs it"]
async fn as_many_wrong_logins_as_were_asked_for_take_as_long_whatever_is_wrong() {
    const KINDS: [&str; 5] = ["wrong", "unknown", "inactive", "unusable", "django"];
    let rounds: usize = setting("LOGINS").map_or(400, |rounds| rounds.parse().expect("a number"));
    let hashes: Vec<Value> = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
    let django = hashes.iter().find(|case| case["name"] == "pbkdf2_sha256_260000").unwrap()["hash"].as_str().unwrap();
    for (store, privacy) in Store::all().into_iter().flat_map(|store| ["documented", "strict"].map(|how| (store, how)))
    {
        let database = migrated_database(store).await;
        let installation = Installation::with(&[
            ("DATABASE_URL", &database.url),
            ("DEBUG", "true"),
            ("AUTH_PRIVACY", privacy),
            ("RATE_LIMIT_LOGIN", "off"),
            ("RATE_LIMIT_REGISTER", "off"),
            ("RATE_LIMIT_API", "off"),
            ("LOG_LEVEL", "warn"),
        ]);
        let service = installation.serve().await;
        let anyone = service.anonymous();
        let db = Db::connect(&DbOptions { url: database.url.clone(), ..DbOptions::default() }).await.unwrap();
        for kind in KINDS.into_iter().filter(|kind| *kind != "unknown") {
            let id = anyone.register(&format!("{kind}@example.com")).await;
            let tx = db.begin().await.unwrap();
            let changed = match kind {
                "inactive" => Some((Column::IsActive, Expr::value(false))),
                "unusable" => Some((Column::Password, Expr::value("!"))),
                "django" => Some((Column::Password, Expr::value(django))),
                _ => None,
            };
            if let Some((column, value)) = changed {
                let update = user::Entity::update_many().col_expr(column, value).filter(Column::Id.eq(id));
                update.exec(&tx).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
        db.close().await;
        let mut dice = Dice::new(std::process::id().into());
        let mut took = KINDS.map(|_| Vec::with_capacity(rounds));
        for round in 0..rounds + 10 {
            let mut left: Vec<_> = (0..KINDS.len()).collect();
            while !left.is_empty() {
                let kind = left.swap_remove(usize::try_from(dice.below(left.len().try_into().unwrap())).unwrap());
                let guess = json!({ "email": format!("{}@example.com", KINDS[kind]), "password": "wr0ng-Passw0rd" });
                let begun = Instant::now();
                let told = anyone.call(Face::ALL[round % 2], "AuthService.Login", guess).await;
                let elapsed = begun.elapsed();
                let status = if KINDS[kind] == "unknown" && privacy == "documented" { 404 } else { 401 };
                assert_eq!(told.status, status, "{told:?}");
                // The first find connections and memory that are new.
                if round >= 10 {
                    took[kind].push(elapsed);
                }
            }
        }
        let medians = took.map(|mut took| {
            took.sort_unstable();
            took[took.len() / 2]
        });
        for (kind, median) in KINDS.iter().zip(medians) {
            let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
            println!("{store:?}, {privacy}: {kind:8} {median:>10.3?}  {:+.2} %", (ratio - 1.0) * 100.0);
            // A hash of the old service costs what that service chose, until its owner has logged in.
            assert!(*kind == "django" || (ratio - 1.0).abs() < 0.05, "{kind}: {median:?}, and wrong {:?}", medians[0]);
        }
        service.stop().await;
    }
}
