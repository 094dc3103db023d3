//! Which passwords are taken, how they are kept and checked, and the threads that do it.

use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future};
use identity::{
    config::Config,
    error::{Dependency, Error},
    hash_pool::{HashPool, Scratch},
    model::password::{self, Argon2Params, Password, Verdict},
};

pub const TOO_SHORT: &str = "The password must contain at least 8 characters.";
pub const TOO_LONG: &str = "The password must contain at most 128 characters.";
const NO_DIGIT: &str = "The password must contain at least one digit.";
const NO_SPECIAL: &str = "The password must contain at least one special character.";
const CONTROL: &str = "The password must not contain control characters.";
pub const COMMON: &str = "The password is too common.";
pub const PERSONAL: &str = "The password must not be the same as the e-mail address or a name.";

/// The messages about a new password; none if it is taken.
pub fn refusal(raw: &str, personal: &[&str]) -> Vec<String> {
    let messages = Password::parse_new(raw, personal).err().unwrap_or_default();
    messages.into_iter().map(String::from).collect()
}

/// The reasons why a password is too weak.
#[track_caller]
pub fn reasons(raw: &str, personal: &[&str]) -> Vec<String> {
    let mut messages = refusal(raw, personal);
    assert!(!messages.is_empty(), "{raw:?} is taken");
    assert_eq!(messages.remove(0), "Password is too weak", "{raw:?}");
    messages
}

pub fn given(raw: &str) -> Password {
    Password::given(raw).unwrap()
}

/// So cheap that a test can afford hundreds.
pub fn cheap() -> Argon2Params {
    Argon2Params::new(64, 1, 1).unwrap()
}

pub fn verify(stored: &str, raw: &str, params: Argon2Params) -> Verdict {
    password::verify(stored, &given(raw), params, &mut Scratch::default()).unwrap()
}

pub const RIGHT: Verdict = Verdict::Right { outdated: false };
pub const RIGHT_BUT_OUTDATED: Verdict = Verdict::Right { outdated: true };

// Which ones are taken.

#[test]
fn the_documented_examples_are_taken() {
    for raw in ["SecurePass123!", "secure_password_123", "User123!pass", "Пароль №1 ünïcode!"] {
        assert_eq!(refusal(raw, &["user@example.com", "John", "Doe"]), [""; 0], "{raw}");
    }
}

#[test]
fn a_weak_password_is_refused_with_every_reason() {
    assert_eq!(refusal("", &[]), ["This field may not be blank."]);
    assert_eq!(reasons("abc", &[]), [TOO_SHORT, NO_DIGIT, NO_SPECIAL]);
    assert_eq!(reasons("only letters", &[]), [NO_DIGIT, NO_SPECIAL]);
    assert_eq!(reasons("letters-and-signs", &[]), [NO_DIGIT]);
    assert_eq!(reasons("letters4nd numbers", &[]), [NO_SPECIAL]);
    assert_eq!(reasons("12345678", &[]), [NO_SPECIAL, COMMON]);
    assert_eq!(reasons("tab\tand_1_nul\0", &[]), [CONTROL]);
    assert_eq!(reasons("password", &["password"]), [NO_DIGIT, NO_SPECIAL, COMMON, PERSONAL]);
}

#[test]
fn digits_and_letters_of_every_script_are_digits_and_letters() {
    assert_eq!(refusal("пароль-٤٢-жук", &[]), [""; 0]);
    assert_eq!(reasons("пароль42жук", &[]), [NO_SPECIAL]);
}

#[test]
fn a_login_takes_any_password_that_an_account_may_have() {
    for raw in ["x", " padded ", "old\tone", &"🔑".repeat(128)] {
        assert!(Password::given(raw).is_ok(), "{raw:?}");
    }
    assert_eq!(Password::given("").err(), Some("This field may not be blank."));
    assert_eq!(Password::given("nul\0").err(), Some("Null characters are not allowed."));
    let too_long = Some("Ensure this field has no more than 128 characters.");
    assert_eq!(Password::given(&"x".repeat(129)).err(), too_long);
    assert_eq!(Password::given(&"x".repeat(60_000)).err(), too_long);
}

// How they are kept.

#[test]
fn a_cost_beyond_reason_is_refused() {
    for (memory_kib, iterations, parallelism) in [
        (0, 1, 1),
        (7, 1, 1),
        (64, 0, 1),
        (64, 1, 0),
        (64, 1, 9),
        (262_145, 1, 1),
        (19456, 54, 1),
        (u32::MAX, u32::MAX, 65),
    ] {
        assert!(Argon2Params::new(memory_kib, iterations, parallelism).is_err());
    }
    assert_eq!(Argon2Params::new(19456, 2, 1), Ok(Argon2Params::default()));
    assert!(Argon2Params::new(262_144, 4, 64).is_ok());
}

#[test]
fn every_hash_that_django_made_matches_its_password_only_and_is_outdated() {
    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        password: String,
        hash: String,
        valid: bool,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
    for Case { name, password, hash, valid } in cases {
        let expected = if valid { RIGHT_BUT_OUTDATED } else { Verdict::Wrong };
        assert_eq!(verify(&hash, &password, Argon2Params::default()), expected, "{name}");
        let other = format!("{password}x");
        assert_eq!(verify(&hash, &other, Argon2Params::default()), Verdict::Wrong, "{name}");
    }
}

/// Made with argon2-cffi 25.1, bcrypt 5.0 and Django 5.2 for the password `User123!pass`.
const FURTHER_DJANGO_HASHES: [&str; 5] = [
    "argon2$argon2i$v=19$m=512,t=2,p=2$b2xkc2FsdDEyMzQ1$tCCne5yTvixb3DZWgHnHyQ",
    "argon2$argon2d$v=19$m=512,t=2,p=2$b2xkc2FsdDEyMzQ1$4IRx7iTF0iBFxvngLNzkKg",
    "argon2$argon2id$v=16$m=512,t=2,p=2$b2xkc2FsdDEyMzQ1$ttWrFb3oURUS36XQjbK7kg",
    "bcrypt$$2b$05$UIpfM..Iu7PdpT.aSXd2te0MetWqHucoXKjRAXL4n.6J4dhq8uEdW",
    "scrypt$1024$salt$8$2$QLfKW2QOyR3GWdkWHEc1yXTXvpGMybz47KOoghgJoEPUUF2LGuWH9oHPBTAE9l+KZM/Wn8Z27avnWAZYZvaFeA==",
];

/// The same password, by argon2-cffi: what [`password::hash`] writes, from another hand.
const ARGON2_REFERENCE: &str =
    "$argon2id$v=19$m=64,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$eW9uI9Fva3bjrZFO4Y+sqyemKMVif4lMBO3/8MO8rqE";

#[test]
fn hashes_of_older_django_versions_and_of_other_libraries_match() {
    for stored in FURTHER_DJANGO_HASHES {
        assert_eq!(verify(stored, "User123!pass", cheap()), RIGHT_BUT_OUTDATED, "{stored}");
        assert_eq!(verify(stored, "User123!past", cheap()), Verdict::Wrong, "{stored}");
    }
    assert_eq!(verify(ARGON2_REFERENCE, "User123!pass", cheap()), RIGHT);
}

#[test]
fn a_broken_or_hostile_hash_matches_nothing_and_costs_nothing() {
    let b64 = |bytes: usize| "A".repeat(bytes);
    let (out32, out20, out64) = (format!("{}=", b64(43)), format!("{}=", b64(27)), format!("{}==", b64(86)));
    let (salt, bare32) = ("b2xkc2FsdDEyMzQ1", b64(43));
    let bcrypt_tail = "XKR7I4dXaIpHw0dcpsIDzuF46kQ2DZL3.9Dg.TCs7FxDX257IYhiK";
    let mut hostile = vec![
        String::new(),
        "!".into(),
        "!Sc5b5c2jhcTytuXRxy7d60lAOoIXBBP50nK2Tc8U".into(),
        "User123!pass".into(),
        "$".into(),
        "$".repeat(500),
        "$".repeat(1_000_000),
        "\0".into(),
        "пароль$ключ$соль$хеш".into(),
        "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99".into(),
        "5f4dcc3b5aa765d61d8327deb882cf99".into(),
        "plain$User123!pass".into(),
        // Work without end.
        format!("pbkdf2_sha256$4294967295$salt${out32}"),
        format!("pbkdf2_sha256$4000001$salt${out32}"),
        format!("pbkdf2_sha256$99999999999999999999$salt${out32}"),
        format!("pbkdf2_sha1$4294967295$salt${out20}"),
        format!("argon2$argon2id$v=19$m=102400,t=4294967295,p=8${salt}${bare32}"),
        format!("argon2$argon2id$v=19$m=102400,t=11,p=8${salt}${bare32}"),
        format!("$argon2id$v=19$m=64,t=4294967295,p=1${salt}${bare32}"),
        format!("bcrypt_sha256$$2b$31${bcrypt_tail}"),
        format!("bcrypt_sha256$$2b$15${bcrypt_tail}"),
        format!("bcrypt_sha256$$2b$99${bcrypt_tail}"),
        format!("scrypt$16384$salt$8$4294967295${out64}"),
        format!("scrypt$1048576$salt$1$5${out64}"),
        // Memory without end.
        format!("$argon2id$v=19$m=4294967295,t=1,p=1${salt}${bare32}"),
        format!("$argon2id$v=19$m=262145,t=1,p=1${salt}${bare32}"),
        format!("scrypt$2147483648$salt$8$1${out64}"),
        format!("scrypt$524288$salt$8$1${out64}"),
        format!("scrypt$2$salt$4294967295$4294967295${out64}"),
        format!("scrypt$4294967295$salt$4294967295$4294967295${out64}"),
        // Out of the other end.
        format!("pbkdf2_sha256$0$salt${out32}"),
        format!("pbkdf2_sha256$-1$salt${out32}"),
        format!("pbkdf2_sha256$+1$salt${out32}"),
        format!("pbkdf2_sha256$$salt${out32}"),
        format!("pbkdf2_sha256$1$${out32}"),
        "pbkdf2_sha256$1$salt$".into(),
        "pbkdf2_sha256$1$salt$AAAA".into(),
        format!("pbkdf2_sha256$1$salt${out20}"),
        format!("pbkdf2_sha256$1$salt${bare32}"),
        format!("pbkdf2_sha256$1$salt${out32}$more"),
        format!("pbkdf2_sha256$1$salt${}", "ключ".repeat(5)),
        format!("$argon2id$v=19$m=64,t=0,p=1${salt}${bare32}"),
        format!("$argon2id$v=19$m=64,t=1,p=0${salt}${bare32}"),
        format!("$argon2id$v=19$m=64,t=1,p=9${salt}${bare32}"),
        format!("$argon2id$v=19$m=4294967295,t=1,p=4294967295${salt}${bare32}"),
        format!("$argon2id$v=19$m=0,t=1,p=1${salt}${bare32}"),
        format!("$argon2id$v=19$t=1,m=64,p=1${salt}${bare32}"),
        format!("$argon2id$v=19$m=64,t=1,p=1,keyid=AA${salt}${bare32}"),
        format!("$argon2id$v=18$m=64,t=1,p=1${salt}${bare32}"),
        format!("$argon2x$v=19$m=64,t=1,p=1${salt}${bare32}"),
        format!("$argon2id$v=19$m=64,t=1,p=1$AAAA${bare32}"),
        format!("$argon2id$v=19$m=64,t=1,p=1${salt}$"),
        format!("$argon2id$v=19$m=64,t=1,p=1${salt}$AAAAAA"),
        format!("$argon2id$v=19$m=64,t=1,p=1${salt}${out32}"),
        format!("argon2$$argon2id$v=19$m=64,t=1,p=1${salt}${bare32}"),
        format!("bcrypt_sha256$$2b$00${bcrypt_tail}"),
        format!("bcrypt_sha256$$2b$03${bcrypt_tail}"),
        format!("bcrypt_sha256$$9z$05${bcrypt_tail}"),
        format!("bcrypt_sha256$2b$05${bcrypt_tail}"),
        format!("bcrypt$$2b$05${}", "я".repeat(26) + "."),
        "bcrypt$".into(),
        format!("scrypt$0$salt$8$1${out64}"),
        format!("scrypt$1$salt$8$1${out64}"),
        format!("scrypt$3$salt$8$1${out64}"),
        format!("scrypt$2$salt$0$1${out64}"),
        format!("scrypt$2$salt$1$0${out64}"),
        format!("scrypt$2$$1$1${out64}"),
        format!("scrypt$2$salt$1$1${out32}"),
        "scrypt$2$salt$1$1$".into(),
        // Right but for a sign, a blank and padding that Django does not write.
        FURTHER_DJANGO_HASHES[4].replace("$1024$", "$+1024$"),
        FURTHER_DJANGO_HASHES[4].replace("$1024$", "$ 1024$"),
        FURTHER_DJANGO_HASHES[4].replace("==", ""),
        ARGON2_REFERENCE.to_owned() + "=",
        ARGON2_REFERENCE.to_owned() + "$",
    ];
    // Whatever a stored hash is cut to.
    for whole in FURTHER_DJANGO_HASHES.iter().chain([&ARGON2_REFERENCE]) {
        hostile.extend((0..whole.len()).map(|length| whole[..length].to_owned()));
    }
    for stored in hostile {
        // The best of three: the machine may be busy with other tests.
        let took = (0..3).map(|_| {
            let start = Instant::now();
            assert_eq!(verify(&stored, "User123!pass", cheap()), Verdict::Wrong, "{stored}");
            start.elapsed()
        });
        let took = took.min().unwrap_or_default();
        assert!(took < Duration::from_millis(50), "{took:?} for {stored}");
    }
}

// The threads that do it.

async fn run<T: Send + 'static>(
    pool: &HashPool,
    job: impl FnOnce(&mut Scratch) -> T + Send + 'static,
) -> identity::error::Result<T> {
    pool.place()?.run(job).await
}

/// A pool of one thread, which is busy until the sender is dropped.
async fn busy_pool(capacity: usize) -> (HashPool, mpsc::Sender<()>) {
    let pool = HashPool::start(1, capacity).unwrap();
    let (release, released) = mpsc::channel::<()>();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let busy = pool.clone();
    tokio::spawn(async move {
        run(&busy, move |_| {
            started.send(()).unwrap();
            let _ = released.recv();
        })
        .await
    });
    has_started.await.unwrap();
    (pool, release)
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_takes_again_when_there_is_room() {
    let (pool, release) = busy_pool(2).await;
    let mut waiting = [1, 2].map(|number| Box::pin(run(&pool, move |_| number)));
    for job in &mut waiting {
        assert!(job.as_mut().now_or_never().is_none());
    }
    assert_eq!((pool.queued(), pool.capacity()), (2, 2));

    let refused = run(&pool, |_| 3).now_or_never().expect("no waiting");
    assert!(
        matches!(refused, Err(Error::Unavailable { what: Dependency::PasswordHashing, cause: None })),
        "{refused:?}"
    );

    drop(release);
    let results: Vec<_> = future::join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(results, [1, 2]);
    assert_eq!(run(&pool, |_| 4).await.unwrap(), 4);
    assert_eq!(pool.queued(), 0);
}

#[tokio::test]
async fn a_job_whose_caller_left_never_runs() {
    let (pool, release) = busy_pool(8).await;
    let (ran, has_run) = mpsc::channel();
    let mut job = Box::pin(run(&pool, move |_| ran.send(())));
    assert!(job.as_mut().now_or_never().is_none());
    assert_eq!(pool.queued(), 1);
    drop(job);
    drop(release);
    run(&pool, |_| ()).await.unwrap();
    assert_eq!(has_run.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[tokio::test]
async fn callers_who_left_make_room_in_a_full_queue() {
    let (pool, release) = busy_pool(2).await;
    for _ in 0..10 {
        let mut job = Box::pin(run(&pool, |_| ()));
        assert!(job.as_mut().now_or_never().is_none(), "refused");
    }
    assert_eq!(pool.queued(), 2);
    drop(release);
    run(&pool, |_| ()).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_the_error_of_its_call_and_the_thread_lives_on() {
    let pool = HashPool::start(1, 8).unwrap();
    let thread = |_: &mut Scratch| std::thread::current().id();
    let before = run(&pool, thread).await.unwrap();
    let result = run(&pool, |_| panic!("this panic belongs to the test")).await.map(|()| "no error");
    assert!(matches!(result, Err(Error::Internal(_))), "{result:?}");
    let after = tokio::time::timeout(Duration::from_secs(10), run(&pool, thread)).await;
    assert_eq!(after.expect("the thread died").unwrap(), before);
}

#[tokio::test]
async fn a_thread_holds_the_memory_of_one_hash_from_its_first_login_on() {
    let pool = HashPool::start(1, 8).unwrap();
    let params = Argon2Params::default();
    assert_eq!(run(&pool, |scratch| scratch.kept_bytes()).await.unwrap(), 0);

    // A hash of Django's takes 100 MiB, and leaves nothing.
    let foreign = "argon2$argon2id$v=19$m=102400,t=2,p=8$MVlua1diaENMZHdya0g1cTZyZXh1dg$ak8aiYJuuA5jAl9lSvmO8t1em0/NKpp+ZFkFchmCtu8";
    for (stored, expected) in [(foreign, 0), ("!", 19 << 20), (ARGON2_REFERENCE, 19 << 20), (foreign, 19 << 20)] {
        let verdict =
            run(&pool, move |scratch| password::verify(stored, &given("User123!pass"), params, scratch)).await;
        verdict.unwrap().unwrap();
        assert_eq!(run(&pool, |scratch| scratch.kept_bytes()).await.unwrap(), expected, "after {stored}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_registrations_at_once_are_admitted_on_two_threads() {
    let hashing = Config::load(|name| (name == "HASH_THREADS").then(|| "2".into())).unwrap().hashing;
    let pool = HashPool::start(hashing.threads, hashing.queue).unwrap();
    let calls = (0..100)
        .map(|_| run(&pool, |scratch| password::hash(&given("User123!pass"), Argon2Params::default(), scratch)));
    let hashes: Vec<_> = future::join_all(calls).await.into_iter().map(|hash| hash.unwrap().unwrap()).collect();
    assert_eq!(hashes.len(), 100);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_threads_have_names_and_a_low_priority_and_end_with_the_last_handle() {
    use rustix::{process::getpriority_process, thread::gettid};

    let pool = HashPool::start(1, 8).unwrap();
    let seen = |_: &mut Scratch| {
        let name = std::thread::current().name().map(str::to_owned);
        (name, gettid(), getpriority_process(Some(gettid())).unwrap())
    };
    let (name, thread, priority) = run(&pool, seen).await.unwrap();
    assert_eq!(name.as_deref(), Some("hash-0"));
    let usual = getpriority_process(Some(gettid())).unwrap();
    assert_eq!(priority, (usual + 10).min(19));

    let task = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let other = pool.clone();
    drop(pool);
    run(&other, |_| ()).await.unwrap();
    assert!(Path::new(&task).exists());
    drop(other);
    for _ in 0..200 {
        if !Path::new(&task).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{task} lives on");
}
