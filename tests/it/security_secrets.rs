//! Secrets, and who could read them in the log.
//! The lines are those of `docs/security.md`.

use std::fs;

use identity::pb;
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use crate::harness::{
    Actor, Face, Store,
    process::{Installation, Serving},
    redis,
    smtp::{Answer, MailServer, Stage},
    stores::migrated_database,
    wait_for, wait_until,
};

/// Whatever there is to hear.
const LOUDEST: &str = "trace,fred=trace,identity::sql=trace,sqlx=trace,sea_orm=trace,h2=trace,hyper=trace";

/// All texts in the log, without times and numbers.
fn texts(log: &str) -> Vec<String> {
    fn collect(value: Value, texts: &mut Vec<String>) {
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(values) => values.into_iter().for_each(|value| collect(value, texts)),
            Value::Object(fields) => {
                fields.into_iter().filter(|(name, _)| name != "timestamp").for_each(|(name, value)| {
                    texts.push(name);
                    collect(value, texts);
                });
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    for line in log.lines() {
        collect(serde_json::from_str(line).unwrap_or_else(|_| panic!("no line of ours: {line}")), &mut all);
    }
    all
}

/// Whether a text has these six digits, and not as a part of something longer.
fn shows(text: &str, code: &str) -> bool {
    text.match_indices(code).any(|(at, _)| {
        let ends = [text[..at].chars().next_back(), text[at + code.len()..].chars().next()];
        ends.into_iter().flatten().all(|neighbour| !neighbour.is_alphanumeric())
    })
}

/// Does all that has a secret in it, with secrets that are known again; returns them.
async fn spill(anyone: &Actor, mails: &MailServer) -> (Vec<String>, Vec<String>) {
    let (mut secrets, mut codes) = (Vec::new(), Vec::new());
    for (n, face) in Face::ALL.into_iter().enumerate() {
        let (email, password) = (format!("owner{n}@example.com"), format!("C4nary-pass-{n}!"));
        let [wrong, next] = [format!("Wr0ng-canary-{n}!"), format!("N3xt-canary-{n}!")];
        secrets.extend([password.clone(), wrong.clone(), next.clone()]);
        let account = json!({ "email": email, "password": password });
        let mut tokens = vec![anyone.call(face, "AuthService.Register", account.clone()).await.expect(201)];
        tokens.push(anyone.call(face, "AuthService.Login", account).await.expect(200));
        let refused = json!({ "email": email, "password": wrong });
        anyone.call(face, "AuthService.Login", refused).await.expect(401);
        // Wrong in another field, so that the request is refused as a whole.
        let refused = json!({ "email": "no address", "password": wrong });
        anyone.call(face, "AuthService.Register", refused).await.expect(400);
        let refresh = json!({ "refresh_token": tokens[1]["refresh_token"] });
        tokens.push(anyone.call(face, "AuthService.RefreshToken", refresh).await.expect(200));
        let verify = json!({ "token": tokens[2]["access_token"] });
        anyone.call(face, "AuthService.VerifyToken", verify).await.expect(200);
        let mut user = anyone.clone();
        user.take_tokens(&tokens[2]);
        user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        let change = json!({ "old_password": wrong, "new_password": next });
        user.call(face, "AuthService.ChangePassword", change).await.expect(400);
        let change = json!({ "old_password": password, "new_password": next });
        user.call(face, "AuthService.ChangePassword", change).await.expect(200);

        let mail = wait_for(std::time::Duration::from_secs(10), "the mail with the code", async || {
            mails.taken().into_iter().find(|mail| mail.to == email)
        })
        .await;
        let (_, code) = mail.text.split_once("code is ").unwrap();
        let code = code[..6].to_owned();
        let guess = json!({ "email": email, "code": format!("c0de-canary-{n}") });
        secrets.push(format!("c0de-canary-{n}"));
        anyone.call(face, "AuthService.VerifyEmail", guess).await.expect(400);
        let verify = json!({ "email": email, "code": code });
        anyone.call(face, "AuthService.VerifyEmail", verify).await.expect(200);
        codes.push(code);

        user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        user.call(face, "AuthService.Logout", json!({})).await.expect(401);
        for answer in tokens {
            for name in ["access_token", "refresh_token"] {
                // The signature: whoever has it, has the token; the rest is no secret.
                let token = answer[name].as_str().unwrap();
                secrets.push(token.rsplit('.').next().unwrap().to_owned());
            }
        }
    }
    // Where no secret is looked for, and in what can't be read.
    let half = pb::LoginRequest { email: None, password: Some("H4lf-canary!".into()) }.encode_to_vec();
    let _ = anyone.call_grpc_raw("/identity.v1.AuthService/Login", half[..half.len() - 1].to_vec()).await;
    let request = anyone.request(Method::POST, "/api/auth/login/").header("content-type", "application/json");
    request.body(r#"{"password": "Br0ken-canary!""#).send().await.unwrap();
    for (name, value) in [
        ("cookie", "__Host-refresh=C00kie-canary; sessionid=C00kie-canary"),
        ("authorization", "Basic B4sic-canary"),
        ("authorization", "Bearer B3arer-canary"),
        ("proxy-authorization", "Basic Pr0xy-canary"),
        ("x-api-key", "Ap1key-canary"),
    ] {
        anyone.request(Method::GET, "/api/profile/me/?token=Qu3ry-canary").header(name, value).send().await.unwrap();
        let mut request = tonic::Request::new(Vec::new());
        request.metadata_mut().insert(name, value.parse().unwrap());
        let _ = anyone.send_grpc("/identity.v1.ProfileService/GetMyProfile", request).await;
    }
    let planted = ["H4lf", "Br0ken", "C00kie", "B4sic", "B3arer", "Pr0xy", "Ap1key", "Qu3ry"];
    secrets.extend(planted.map(|word| format!("{word}-canary")));
    (secrets, codes)
}

/// Line 55.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_in_the_log_however_much_is_logged() {
    for store in Store::all() {
        let (database, mails) = (migrated_database(store).await, MailServer::start().await);
        let mut installation = Installation::with(&[
            ("LOG_LEVEL", LOUDEST),
            ("LOG_FORMAT", "json"),
            ("DEBUG", "true"),
            ("JWT_SECRET_KEY", "jwt-Canary-of-32-bytes-and-a-few-more"),
            ("SECRET_KEY", "s3cret-Canary-of-32-bytes-and-a-few-more"),
            ("RATE_LIMIT_LOGIN", "off"),
            ("RATE_LIMIT_REGISTER", "off"),
            ("ARGON2_MEMORY_KIB", "64"),
            ("ARGON2_ITERATIONS", "1"),
        ]);
        for (name, value) in mails.settings() {
            installation.set(&name, &value);
        }
        let mut secrets = ["jwt-Canary", "s3cret-Canary"].map(str::to_owned).to_vec();
        let url = Url::parse(&database.url).unwrap();
        if store == Store::Postgres {
            secrets.extend(url.password().map(str::to_owned));
            for (name, value) in redis::place().await {
                // That of the tests asks for no password, and complains of one.
                let mut value = value;
                if name == "REDIS_URL" {
                    let mut url = Url::parse(&value).unwrap();
                    url.set_password(Some("R3dis-canary")).unwrap();
                    value = url.to_string();
                }
                installation.set(&name, &value);
            }
            secrets.push("R3dis-canary".into());
        }
        installation.set("DATABASE_URL", url.as_str());
        let service = installation.serve().await;
        let (spilled, codes) = spill(&service.anonymous(), &mails).await;
        secrets.extend(spilled);
        let config = installation.run(&["config"]).await.expect(0);
        let log = service.log();
        assert!(log.contains("\"level\":\"TRACE\""), "it logs no traces, and so the test shows nothing");
        for line in log.lines().chain(config.stdout.lines()).chain(config.stderr.lines()) {
            for secret in &secrets {
                assert!(!line.contains(secret.as_str()), "{secret} shows in: {line}");
            }
            assert!(!line.contains("$argon2"), "a hash shows in: {line}");
        }
        for text in texts(&log) {
            for code in &codes {
                assert!(!shows(&text, code), "{code} shows in: {text}");
            }
        }
    }
}

/// Line 55.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_in_what_is_said_of_a_setting_that_is_wrong() {
    let secret = "C4nary-of-a-setting";
    for (name, value) in [
        ("DATABASE_URL", format!("postgres://user:{secret}@[wrong")),
        ("DATABASE_URL", format!("mysql://user:{secret}@localhost/db")),
        ("DATABASE_READ_URL", format!("sqlite://{secret}:{secret}@x")),
        ("REDIS_URL", format!("redis://:{secret}@[wrong")),
        ("REDIS_URL", format!("http://:{secret}@localhost")),
        ("JWT_SECRET_KEY", secret.to_owned()),
        ("SECRET_KEY", secret[..8].to_owned()),
        ("NOTIFICATION_SERVICE_URL", format!("http://hook:{secret}@localhost")),
        ("NOTIFICATION_SERVICE_URL", format!("http://localhost/?key={secret}")),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://user:{secret}@localhost:4317")),
        ("PUBLIC_URL", format!("https://user:{secret}@localhost")),
        ("AVATAR_STORE", format!("s3://key:{secret}@bucket")),
    ] {
        // Where something is at stake.
        let installation = Installation::with(&[("POSTGRES_HOST", "localhost"), (name, &value)]);
        let ended = installation.run(&["config"]).await;
        let said = ended.stdout + &ended.stderr;
        assert!(!said.contains(&secret[..8]), "{name}={value}: {said}");
        assert!(said.contains(name), "{name}={value}: {said}");
    }
}

/// What a terminal would take for an order, and a reader for another line.
const HOSTILE: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\n2026-01-01T00:00:00Z ERROR forged\r\u{9b}31m\u{85}\u{2028}x\u{8}\u{0}";

/// Has hostile texts come from everywhere that texts come from.
async fn provoke(service: &Serving<'_>) {
    let anyone = service.anonymous();
    for (n, face) in Face::ALL.into_iter().enumerate() {
        for text in [HOSTILE.to_owned(), HOSTILE.replace('\0', "")] {
            for email in [text.clone(), format!("{text}@example.com")] {
                let fields = json!({ "email": email, "password": text, "first_name": text });
                anyone.call(face, "AuthService.Register", fields.clone()).await;
                anyone.call(face, "AuthService.VerifyEmail", json!({ "email": email, "code": text })).await;
            }
            anyone.call(face, "AuthService.VerifyToken", json!({ "token": text })).await;
            anyone.call(face, "AuthService.RefreshToken", json!({ "refresh_token": text })).await;
            anyone.with_token("\u{9b}31m").request(Method::GET, "/api/profile/me/").send().await.ok();
        }
        let mut user = anyone.clone();
        let account = json!({ "email": format!("user{n}@example.com"), "password": "Tr0ub4dor&3x" });
        user.take_tokens(&anyone.call(face, "AuthService.Register", account).await.expect(201));
        // A picture whose fault the decoder describes.
        let picture = [b"\x89PNG\r\n\x1a\n\0\0\0\x0d\x1b[2J", HOSTILE.as_bytes()].concat();
        crate::avatar::upload(&user, face, picture).await;
        user.call(face, "UserService.ListUsers", json!({ "search": HOSTILE, "ordering": HOSTILE })).await;
    }
    // As far as a header and a path take it.
    let bytes = "\u{9b}31m\u{85}\u{2028}x\tERROR forged";
    let value = reqwest::header::HeaderValue::from_bytes(bytes.as_bytes()).unwrap();
    for name in
        ["user-agent", "x-request-id", "x-forwarded-for", "traceparent", "host", "origin", "content-type", "accept"]
    {
        anyone.request(Method::GET, "/api/users/1/?%1b%0a=%1b%0a%0d").header(name, value.clone()).send().await.ok();
    }
    for path in ["/%1b%5b2J%0aERROR", "/api/users/%1b%0a/", "/media/avatars/%1b%0a.png"] {
        anyone.request(Method::GET, path).send().await.unwrap();
    }
    let _ = anyone.call_grpc_raw("/identity.v1.AuthService/%1b%5b2J%0aERROR", HOSTILE.as_bytes().to_vec()).await;
    let _ = anyone.call_grpc_raw("/identity.v1.AuthService/Login", HOSTILE.as_bytes().to_vec()).await;
}

/// Line 56.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_comes_from_outside_orders_a_terminal_about_or_begins_a_line_in_the_log() {
    for (store, format) in Store::all().into_iter().flat_map(|store| ["text", "json"].map(|format| (store, format))) {
        let (database, mails) = (migrated_database(store).await, MailServer::start().await);
        let mut installation = Installation::with(&[
            ("DATABASE_URL", &database.url),
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", format),
            ("DEBUG", "true"),
            ("RATE_LIMIT_LOGIN", "off"),
            ("RATE_LIMIT_REGISTER", "off"),
            ("ARGON2_MEMORY_KIB", "64"),
            ("ARGON2_ITERATIONS", "1"),
        ]);
        // What a mail server says is logged, and what a system says of a folder that can't be made.
        if store == Store::Postgres {
            mails.answer(|stage| match stage {
                Stage::Greeting => Answer::Say("421 \u{1b}[2J\u{9b}31m try later".into()),
                _ => Answer::Yes,
            });
            for (name, value) in mails.settings() {
                installation.set(&name, &value);
            }
        } else {
            fs::write(installation.folder().join("file"), "in the way").unwrap();
            installation.set("EMAIL_BACKEND", "file");
            installation.set("EMAIL_FILE_PATH", &format!("file/try later{}", HOSTILE.replace('\0', "")));
        }
        let service = installation.serve().await;
        provoke(&service).await;
        wait_until(std::time::Duration::from_secs(10), "a mail that was refused", async || {
            service.log().contains("try later")
        })
        .await;
        let log = fs::read(installation.folder().join("log")).unwrap();
        let log = String::from_utf8(log).expect("UTF-8");
        for line in log.lines() {
            let bad = line.chars().find(|c| (c.is_control() && *c != '\t') || matches!(c, '\u{2028}' | '\u{2029}'));
            assert_eq!(bad, None, "{line:?}");
            let begins = if format == "json" { "{\"timestamp\":\"2" } else { "2" };
            assert!(line.starts_with(begins) && !line.starts_with("2026-01-01T00:00:00Z"), "{line:?}");
            assert!(format == "text" || serde_json::from_str::<Value>(line).is_ok(), "{line:?}");
        }
    }
}
