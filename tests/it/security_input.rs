//! Input, as an attacker writes it. What every route and rpc does with bad input of every kind is in `bad_input.rs`.
//! The lines are those of `docs/security.md`.

use identity::entity::user;
use prost_reflect::Kind;
use reqwest::{Method, header, multipart};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    bad_input::right_fields,
    directory::{add, list, list_by, names, person},
    harness::{
        Face, PASSWORD, Service, Store,
        actor::{method, outcome_of, route},
        everywhere, on_each_store,
    },
    registration::{CONTROL, NO_ADDRESS, TAKEN, account, complaints},
    rest::{LOGIN, MAX_BYTES, nested, post, raw},
    rest_parity::{rpcs, state},
    session::me,
    shutdown::read_until,
};

/// Line 38.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_too_large_announced_or_not() {
    let service = Service::start(Store::Sqlite).await;
    let padded = |length: usize| {
        let empty = r#"{"x": ""}"#;
        empty.replace("\"\"", &format!("\"{}\"", "x".repeat(length - empty.len())))
    };
    for (length, status) in [(MAX_BYTES, 422), (MAX_BYTES + 1, 413), (40 * MAX_BYTES, 413)] {
        let announced = post(&service.anonymous(), LOGIN, padded(length)).await;
        assert_eq!(announced.status, status, "{length} bytes, announced: {announced:?}");
        // Chunked, so that the end comes as a surprise.
        let body = padded(length);
        let head = "POST /api/auth/login/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                    transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let answer = raw(service.address, format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{length} bytes, chunked: {answer}");
        if status == 413 {
            let told = r#"{"error":"The request is too large: a body may have 65536 bytes at most"}"#;
            assert_eq!(announced.text, told);
            assert!(answer.ends_with(told), "{answer}");
        }
    }
    service.stop().await;
}

/// Line 38.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_a_request_says_that_the_connection_closes() {
    let service = Service::start(Store::Sqlite).await;
    let login = |length: usize, sent: &str| {
        format!(
            "POST /api/auth/login/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{sent}"
        )
    };
    for (what, request, status, closes) in [
        ("too large", login(MAX_BYTES + 1, "{"), "413", true),
        ("never read, for there is no such route", login(2, "{}").replace("login", "logon"), "404", false),
        ("read", login(2, "{}"), "422", false),
    ] {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        for _ in 0..if closes { 1 } else { 2 } {
            socket.write_all(request.as_bytes()).await.unwrap();
            let answer = read_until(&mut socket, "\r\n\r\n").await.to_lowercase();
            assert!(answer.starts_with(&format!("http/1.1 {status}")), "{what}: {answer}");
            let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            socket.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
            assert_eq!(answer.contains("\r\nconnection: close\r\n"), closes, "{what}: {answer}");
        }
    }
    service.stop().await;
}

/// Line 38.
#[tokio::test(flavor = "multi_thread")]
async fn json_may_nest_32_levels_deep() {
    let service = Service::start(Store::Sqlite).await;
    assert_eq!(post(&service.anonymous(), LOGIN, nested(32)).await.status, 422);
    assert_eq!(post(&service.anonymous(), LOGIN, nested(33)).await.status, 400);
    // Brackets in a text are text.
    let text = format!(r#"{{"x": "{}\"[["}}"#, "[".repeat(100));
    assert_eq!(post(&service.anonymous(), LOGIN, text).await.status, 422);
    service.stop().await;
}

/// Line 38.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_twice_is_malformed() {
    let service = Service::start(Store::Sqlite).await;
    for twice in [r#"{"email": "a", "email": "a"}"#, r#"{"email": "a", "\u0065mail": "b"}"#, r#"{"x": 1, "x": 1}"#] {
        let outcome = post(&service.anonymous(), LOGIN, twice).await;
        assert_eq!(outcome.status, 400, "{twice}: {outcome:?}");
        assert!(outcome.text.contains("Malformed request"), "{twice}: {}", outcome.text);
    }
    service.stop().await;
}

/// Line 39.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_has_no_control_characters() {
    everywhere(async |service, face| {
        for name in ["a\0b", "a\nb", "a\tb", "\u{1b}[31mred", "a\u{7f}b", "a\u{85}b"] {
            let new = json!({ "email": "user@example.com", "password": PASSWORD, "first_name": name });
            let outcome = service.anonymous().call(face, "AuthService.Register", new).await;
            assert_eq!((outcome.status, complaints(&outcome)), (400, [("first_name", CONTROL)].into()), "{name:?}");
        }
    })
    .await;
}

/// Line 40.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_id_is_nobody() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let ids = [
        "0",
        "-1",
        "9223372036854775807",
        "9223372036854775808",
        "100000000000000000000",
        "1.0",
        "1e0",
        "0x1",
        "one",
        "%20",
        "1%20",
        "%D9%A1",
        "null",
        "%00",
    ];
    for id in ids {
        for path in [format!("/api/users/{id}/"), format!("/api/profile/{id}/")] {
            let response = user.request(Method::GET, &path).send().await.unwrap();
            assert_eq!(response.status(), 404, "{path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{path}");
        }
    }
    service.stop().await;
}

/// Line 40.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_is_not_found() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        for page in [0, -1, 2, 40_000, i64::MAX, i64::MIN] {
            for size in [1, 100] {
                let answer = list(&user, face, json!({ "page": page, "page_size": size })).await;
                assert_eq!(answer.status, 404, "{page}: {answer:?}");
                match face {
                    Face::Rest => assert_eq!(answer.text, r#"{"error":"Invalid page"}"#),
                    Face::Grpc => {
                        assert_eq!((&*answer.text, answer.reason.as_deref()), ("Invalid page", Some("PAGE_NOT_FOUND")));
                    }
                }
            }
        }
    })
    .await;
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        for page in ["", "x", "+1", "1.0", "1e0", "last", "99999999999999999999", "%00", "1%00", "%D9%A1"] {
            let answer = list_by(&user, &format!("page={page}")).await;
            assert_eq!((answer.status, &*answer.text), (404, r#"{"error":"Invalid page"}"#), "{page}");
        }
    })
    .await;
}

/// Line 41.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_address_is_refused_at_registration_and_login_alike() {
    let long_local = format!("{}@example.com", "a".repeat(65));
    let too_long = format!("{}@{}.com", "a".repeat(60), "b.".repeat(95));
    let bad = [
        "plain",
        "@example.com",
        "user@",
        "user@localhost",
        "user@.com",
        "user@example..com",
        "user@-example.com",
        "user@example.c",
        "user@127.0.0.1",
        "user@[127.0.0.1]",
        "a b@example.com",
        "user@exa mple.com",
        "a..b@example.com",
        ".a@example.com",
        "\"quoted\"@example.com",
        "user@example.com\r\nBcc: other@example.com",
        "us\r\ner@example.com",
        "user\0@example.com",
        "user@example\0.com",
        &long_local,
    ];
    everywhere(async |service, face| {
        for rpc in ["AuthService.Register", "AuthService.Login"] {
            for email in bad {
                let outcome = service.anonymous().call(face, rpc, account(email)).await;
                assert_eq!(complaints(&outcome), [("email", NO_ADDRESS)].into(), "{rpc} {email:?}: {outcome:?}");
                assert_eq!(outcome.status, 400, "{rpc} {email:?}");
            }
            assert_eq!(too_long.len(), 255);
            // 154 characters, but what IDNA makes of the ligatures are three letters each.
            let grows = format!("{}@{}.{}.com", "a".repeat(64), ["ﬃ".repeat(21).as_str(); 3].join("."), "ﬃ".repeat(19));
            for email in [&too_long, &grows] {
                let messages = service.anonymous().call(face, rpc, account(email)).await.expect_field(400, "email");
                assert_eq!(messages, ["Ensure this field has no more than 254 characters."]);
            }
        }
    })
    .await;
}

/// Line 41.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_kept_as_typed_with_its_domain_in_lower_case() {
    let cases = [
        (" User.Name+Tag@EXAMPLE.Com\n", "User.Name+Tag@example.com"),
        ("o'brien@sub.example.co", "o'brien@sub.example.co"),
        ("Почта@Пример.РФ", "Почта@пример.рф"),
        ("user@XN--E1AFMKFD.xn--p1ai", "user@xn--e1afmkfd.xn--p1ai"),
    ];
    everywhere(async |service, face| {
        for (typed, kept) in cases {
            let new = json!({ "email": typed, "password": PASSWORD, "first_name": " Jane\t", "last_name": "李 " });
            let answer = service.anonymous().call(face, "AuthService.Register", new).await.expect(201);
            assert_eq!((&answer["email"], &answer["user"]["email"]), (&json!(kept), &json!(kept)));
            assert_eq!((&answer["first_name"], &answer["last_name"]), (&json!("Jane"), &json!("李")));
        }
    })
    .await;
}

/// Line 41.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_one_account_however_it_is_spelled() {
    let cases = [
        ("user@example.com", "USER@Example.COM"),
        ("straße@example.com", "STRASSE@example.com"),
        ("jos\u{e9}@example.com", "JOSE\u{301}@example.com"),
        ("почта@example.com", "ПОЧТА@example.com"),
        ("user@пример.рф", "user@xn--e1afmkfd.xn--p1ai"),
        ("user@example.org", "user@ｅｘａｍｐｌｅ.org"),
    ];
    everywhere(async |service, face| {
        for (first, second) in cases {
            let anyone = service.anonymous();
            let registered = anyone.call(face, "AuthService.Register", account(first)).await.expect(201);
            let again = anyone.call(face, "AuthService.Register", account(second)).await;
            assert_eq!((again.status, complaints(&again)), (400, [("email", TAKEN)].into()), "{second}: {again:?}");
            if face == Face::Grpc {
                assert_eq!(again.reason.as_deref(), Some("EMAIL_TAKEN"));
            }
            let login = anyone.call(face, "AuthService.Login", account(second)).await.expect(200);
            assert_eq!(login["user"]["id"], registered["id"], "{second}");
        }
    })
    .await;
}

/// Line 42.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_words_anywhere_in_every_script() {
    everywhere(async |service, face| {
        let admin = service.admin("root@example.net").await;
        let people = [
            ("jonas@mail.ru", "Jonas", "Groß"),
            ("ivan@пример.рф", "Иван", "Ёлкин"),
            ("i.tekin@mail.ru", "İlhan", "Işık"),
            ("wei@example.com", "小明", "王"),
            ("perc%nt@mail.ru", "100% Ann_Lee", r"back\slash"),
            ("quote@mail.ru", r#"Anne "Q" OR"#, "O'Brien, NEAR(x* y)"),
            ("plain@mail.ru", "AND", "--"),
            ("accent@mail.ru", "E\u{301}lodie", "Ångström"),
        ];
        add(service, people.into_iter().map(|(email, first, last)| person(email, first, last)).collect()).await;
        for (search, expected) in [
            ("GROSS", vec!["jonas"]),
            ("groß", vec!["jonas"]),
            ("ẞ", vec!["jonas"]),
            ("ИВАН", vec!["ivan"]),
            ("вАн ЁлК", vec!["ivan"]),
            ("елкин", vec![]),
            ("РИМЕР.рф", vec!["ivan"]),
            ("ё", vec!["ivan"]),
            ("İLHAN", vec!["i.tekin"]),
            ("i\u{307}lhan", vec!["i.tekin"]),
            ("ilhan", vec![]),
            ("lhan", vec!["i.tekin"]),
            ("işık", vec!["i.tekin"]),
            ("ışık", vec![]),
            ("王", vec!["wei"]),
            ("小明", vec!["wei"]),
            ("王,小", vec!["wei"]),
            ("élo", vec!["accent"]),
            ("ÉLODIE a\u{30a}ng", vec!["accent"]),
            ("%", vec!["perc%nt"]),
            ("c%n", vec!["perc%nt"]),
            ("%%%", vec![]),
            ("_", vec!["perc%nt"]),
            ("n_l", vec!["perc%nt"]),
            ("a_n", vec![]),
            (r"\", vec!["perc%nt"]),
            (r"k\s", vec!["perc%nt"]),
            (r"back\slash", vec!["perc%nt"]),
            ("backslash", vec![]),
            ("perc%nt", vec!["perc%nt"]),
            ("pla%mail", vec![]),
            ("pla_n@mail", vec![]),
            (r"\%", vec![]),
            ("\"", vec!["quote"]),
            ("\"q\"", vec!["quote"]),
            ("\"\"\"", vec![]),
            ("'", vec!["quote"]),
            ("o'brien", vec!["quote"]),
            ("';--", vec![]),
            ("*", vec!["quote"]),
            ("x*", vec!["quote"]),
            ("NEAR(x*", vec!["quote"]),
            ("near(", vec!["quote"]),
            ("OR", vec!["quote"]),
            ("AND", vec!["plain"]),
            ("NOT", vec![]),
            ("-- and", vec!["plain"]),
            ("--", vec!["plain"]),
            ("^pla", vec![]),
            ("search_text:pla", vec![]),
            ("{pla}", vec![]),
            ("(pla)", vec![]),
            ("pla + ain", vec![]),
            ("mail.ru an", vec!["i.tekin", "perc%nt", "quote", "plain"]),
            ("mail.ru, an ,LAIN", vec!["plain"]),
            ("plain plain plain", vec!["plain"]),
            ("plain nobody", vec![]),
            ("s@m", vec!["jonas"]),
            // From one name into the next there is no way.
            ("jonasgroß", vec![]),
            ("jo as", vec!["jonas"]),
        ] {
            let page = list(&admin, face, json!({ "search": search })).await.expect(200);
            assert_eq!((names(&page), &page["count"]), (expected.clone(), &json!(expected.len())), "{search}");
        }
        assert_eq!(list(&admin, face, json!({ "search": " , " })).await.expect(200)["count"], people.len() + 1);
    })
    .await;
}

/// Line 38.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_have_five_mebibytes_and_its_form_a_little_more() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let patch = || user.request(Method::PATCH, "/api/profile/me/");
        // JSON gets no more than elsewhere, though this route takes uploads.
        let json = format!(r#"{{"bio": "{}"}}"#, "x".repeat(MAX_BYTES));
        // Who goes on sending may find the connection closed before the answer.
        let told = |sent: reqwest::Result<reqwest::Response>| match sent {
            Ok(sent) => sent.status().as_u16(),
            Err(error) if error.is_connect() => panic!("{error}"),
            Err(_) => 413,
        };
        let json = patch().header(header::CONTENT_TYPE, "application/json").body(json);
        assert_eq!(told(json.send().await), 413);
        for (length, status) in [((5 << 20) + 1, 400), ((5 << 20) + (64 << 10), 413), (20 << 20, 413)] {
            let part = multipart::Part::bytes(vec![0; length]).file_name("a.png");
            let form = patch().multipart(multipart::Form::new().part("avatar", part));
            assert_eq!(told(form.send().await), status, "{length}");
        }
        // Nor does a form hold many small things.
        let part = |n| format!("--x\r\nContent-Disposition: form-data; name=\"field{n}\"\r\n\r\nx\r\n");
        let form = (0..20_000).map(part).collect::<String>() + "--x--\r\n";
        let sent =
            patch().header(header::CONTENT_TYPE, "multipart/form-data; boundary=x").body(form).send().await.unwrap();
        assert!([400, 413].contains(&sent.status().as_u16()), "{}", sent.status());
        me(&user, Face::Grpc).await.expect(200);
    })
    .await;
}

/// Texts that are looked up, or are no words: what they mean is not changed by what can't be seen in them, for then nothing is
/// found.
const LOOKED_UP: [&str; 5] = ["ordering", "page_token", "refresh_token", "token", "code"];

/// Line 39.
#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_any_request_holds_what_cannot_be_seen() {
    for store in Store::all() {
        let cheap = [("ARGON2_MEMORY_KIB", "64"), ("ARGON2_ITERATIONS", "1"), ("RATE_LIMIT_API", "off")];
        let service = Service::start_with(store, &cheap).await;
        let admin = service.admin("admin@example.com").await;
        service.user("user@example.com").await;
        admin.call(Face::Rest, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
        let mut tried = 0;
        for rpc in rpcs() {
            let in_path = |name: &str| route(rpc).is_some_and(|(_, path, _)| path.contains(&format!("{{{name}}}")));
            for field in method(rpc).input().fields().filter(|field| field.kind() == Kind::String) {
                let name = field.name();
                // A password that an account has already may be any.
                let is_known = matches!((rpc.as_str(), name), ("AuthService.Login", "password") | (_, "old_password"));
                if LOOKED_UP.contains(&name) || is_known {
                    continue;
                }
                for bad in ["\u{0}", "\u{1}", "\u{1b}[31m", "\u{7f}", "\u{85}", "\u{9b}31m"] {
                    let mut fields = right_fields(rpc, 0);
                    for other in method(rpc).input().fields() {
                        if !other.supports_presence() && !other.is_list() && fields.get(other.name()).is_none() {
                            fields[other.name()] =
                                if other.kind() == Kind::String { json!("seller") } else { json!(2) };
                        }
                    }
                    fields[name] = json!(format!("a{bad}b-1@example.com"));
                    for face in Face::ALL {
                        // A path can't hold it as it is; written in another way it is looked at in `bad_input.rs`.
                        if face == Face::Rest && (route(rpc).is_none() || in_path(name)) {
                            continue;
                        }
                        let told = admin.call(face, rpc, fields.clone()).await;
                        let is_path = in_path(name) && told.status == 404;
                        assert!(told.status == 400 || is_path, "{rpc} {name} {bad:?} by {face:?}: {told:?}");
                        assert!(is_path || told.fields.contains_key(name), "{rpc} {name} {bad:?}: {told:?}");
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 100, "{tried}");
        // A text of several lines may have them.
        let bio = json!({ "bio": "one\r\n\ttwo" });
        let told = admin.call(Face::Rest, "ProfileService.UpdateMyProfile", bio.clone()).await.expect(200);
        assert_eq!(told["bio"], bio["bio"]);
        service.stop().await;
    }
}

/// Line 40.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_nobody_has_is_nobody_wherever_it_stands() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_API", "off")]).await;
        let admin = service.admin("admin@example.com").await;
        let mut tried = 0;
        for rpc in rpcs() {
            for field in method(rpc).input().fields().filter(|field| field.kind() == Kind::Int64) {
                let name = field.name();
                // A size that is none is the default; a filter by what there isn't finds nothing; what is not there is left out of
                // a batch.
                if ["page_size", "group", "ids"].contains(&name) || rpc == "AuditService.ListAuditEvents" {
                    continue;
                }
                let fill = |value: Value| {
                    let mut fields = right_fields(rpc, 0);
                    for other in method(rpc).input().fields() {
                        if !other.supports_presence() && !other.is_list() && fields.get(other.name()).is_none() {
                            fields[other.name()] = match other.name() {
                                "permission" => json!("shop.refund"),
                                _ if other.kind() == Kind::String => json!("seller"),
                                _ => json!(1),
                            };
                        }
                    }
                    fields[name] = value;
                    fields
                };
                for number in [0, -1, i64::MAX, i64::MIN, 4_294_967_297] {
                    let told = admin.call(Face::Grpc, rpc, fill(json!(number))).await;
                    assert!((400..500).contains(&told.status), "{rpc} {name} {number}: {told:?}");
                }
                let Some((verb, path, has_body)) = route(rpc) else { continue };
                for number in
                    ["0", "-1", "9223372036854775807", "9223372036854775808", "100000000000000000000", "1e3", "01x"]
                {
                    let filled = path.replace(&format!("{{{name}}}"), number);
                    let filled = filled.replace("{id}", "1").replace("{user_id}", "1").replace("{role}", "seller");
                    let filled = filled.replace("{permission}", "shop.refund");
                    let mut request = if path.contains(&format!("{{{name}}}")) || has_body {
                        admin.request(verb.clone(), &filled)
                    } else {
                        admin.request(verb.clone(), &format!("{filled}?{name}={number}"))
                    };
                    if has_body {
                        let text = fill(json!("$")).to_string().replace("\"$\"", number);
                        request = request.header(header::CONTENT_TYPE, "application/json").body(text);
                    }
                    let told = outcome_of(request.send().await.unwrap()).await;
                    assert!((400..500).contains(&told.status), "{rpc} {name} {number}: {told:?}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 100, "{tried}");
        service.stop().await;
    }
}

/// Line 41.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_as_long_as_a_mail_server_takes_and_no_other_line_comes_of_it() {
    let local = "a".repeat(64);
    let longest = format!("{local}@{}.{}.{}.com", "b".repeat(62), "c".repeat(61), "d".repeat(60));
    assert_eq!(longest.len(), 254);
    everywhere(async |service, face| {
        let anyone = service.anonymous();
        let register = async |email: &str| anyone.call(face, "AuthService.Register", account(email)).await;
        register(&longest).await.expect(201);
        register(&longest.replace(".com", "e.com")).await.expect_field(400, "email");
        let mail = service.mails_to(&longest, 1).await.remove(0);
        assert!(!mail.subject.contains('\n'), "{}", mail.subject);
        for email in [
            "a@example.com\nBcc: b@example.com",
            "a@example.com\r\n\r\nhello",
            "a\r@example.com",
            "a@example.com%0d%0aBcc: b@example.com\u{d}",
            "a@exa\u{2028}mple.com",
            "a@example.com\u{85}x",
            "a@example.com, b@example.com",
            "a@example.com;b@example.com",
            "Jane <a@example.com>",
            "a@example.com>",
            "a@@example.com",
            "a@b@example.com",
            "a@xn--.com",
            "a@xn--a\u{df}.com",
            "a@exa_mple.com",
            "a@\u{202e}moc.example",
        ] {
            let told = register(email).await;
            assert_eq!(
                (told.status, told.fields.contains_key("email"), told.fields.len()),
                (400, true, 1),
                "{email:?}: {told:?}"
            );
        }
        assert_eq!(user::Entity::find().count(service.app.db.reader()).await.unwrap(), 1);
    })
    .await;
}

/// Line 43.
#[tokio::test(flavor = "multi_thread")]
async fn both_faces_say_the_same_of_every_value_of_every_field() {
    const TEXTS: [&str; 9] = [
        "",
        " ",
        "a\u{0}b",
        "\u{202e}\u{feff}",
        "%_\\'\";--",
        "A@Example.COM ",
        "seller",
        "shop.refund",
        "Europe/Berlin",
    ];
    for store in Store::all() {
        let settings = [
            ("ARGON2_MEMORY_KIB", "64"),
            ("ARGON2_ITERATIONS", "1"),
            ("RATE_LIMIT_API", "off"),
            ("PUBLIC_URL", "https://id.example.com"),
        ];
        let mut services = Vec::new();
        for _ in Face::ALL {
            let service = Service::start_with(store, &settings).await;
            let admin = service.admin("admin@example.com").await;
            service.user("user@example.com").await;
            admin.call(Face::Rest, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
            services.push((service, admin));
        }
        let long = ["x".repeat(151), "\u{436}".repeat(1001)];
        let texts = TEXTS.into_iter().chain(long.iter().map(String::as_str)).map(|text| json!(text));
        let numbers = [0, -1, 1, 2, 3_000_000_000, i64::MAX].map(|number| json!(number));
        for rpc in rpcs().iter().filter(|rpc| *rpc != "AuthService.Logout") {
            let Some((_, path, _)) = route(rpc) else { continue };
            for field in method(rpc).input().fields().filter(|field| !field.is_list()) {
                let values: Vec<_> = match field.kind() {
                    // Behind a path there may be another route.
                    Kind::String if path.contains(&format!("{{{}}}", field.name())) => continue,
                    Kind::String if field.name() == "page_token" => continue,
                    Kind::String => texts.clone().collect(),
                    Kind::Int64 => numbers.to_vec(),
                    _ => continue,
                };
                for (at, value) in values.into_iter().enumerate() {
                    let mut fields = right_fields(rpc, at);
                    for other in method(rpc).input().fields() {
                        if !other.supports_presence() && !other.is_list() && fields.get(other.name()).is_none() {
                            fields[other.name()] = match other.name() {
                                "permission" => json!("shop.refund"),
                                _ if other.kind() == Kind::String => json!("seller"),
                                _ => json!(2),
                            };
                        }
                    }
                    fields[field.name()] = value;
                    let mut told = Vec::new();
                    for ((_, admin), face) in services.iter().zip(Face::ALL) {
                        told.push(crate::rest_parity::told(admin.call(face, rpc, fields.clone()).await));
                    }
                    assert_eq!(told[0], told[1], "{rpc} {fields} on {store:?}: REST, then gRPC");
                }
            }
        }
        let [rest, grpc] = [&services[0].0, &services[1].0].map(state);
        assert_eq!(rest.await, grpc.await, "{store:?}");
        for (service, _) in services {
            service.stop().await;
        }
    }
}
