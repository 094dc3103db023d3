//! What pages in a browser may do: those of other origins (CORS), and those whose tokens are in cookies.

use identity::{config::Config, pb};
use prost::Message;
use reqwest::{Method, RequestBuilder, Response, header};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    grpc_web::{self, Reply, frame},
    harness::{Actor, Face, PASSWORD, Service, Store, actor::claims},
};

const APP: &str = "https://app.example.com";
const WITH_COOKIES: (&str, &str) = ("AUTH_COOKIES", "true");
const ME: &str = "/identity.v1.ProfileService/GetMyProfile";

/// Origins that are not [`APP`], however alike.
const OTHERS: [&str; 12] = [
    "null",
    "*",
    "",
    "https://evil.example",
    "https://app.example.com/",
    "https://app.example.com:443",
    "https://app.example.com:8443",
    "https://APP.example.com",
    "http://app.example.com",
    "https://x.app.example.com",
    "https://app.example.com.evil.example",
    "https://xapp.example.com",
];

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

fn preflight(actor: &Actor, path: &str, origin: &str, method: &str) -> RequestBuilder {
    let request = actor.request(Method::OPTIONS, path).header(header::ORIGIN, origin);
    let request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, method);
    request.header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,x-grpc-web")
}

/// A call of gRPC-Web, without its answer.
fn web(actor: &Actor, path: &str, message: &[u8]) -> RequestBuilder {
    actor.request(Method::POST, path).header(header::CONTENT_TYPE, "application/grpc-web+proto").body(frame(message))
}

async fn reply(response: Response) -> Reply {
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    grpc_web::read(&headers, &response.bytes().await.unwrap())
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_listed_origins_may_call_and_read_and_no_others() {
    for cookies in ["false", "true"] {
        let origins = ("CORS_ALLOWED_ORIGINS", "http://localhost:3000,https://app.example.com");
        let service = Service::start_with(Store::Sqlite, &[origins, ("AUTH_COOKIES", cookies)]).await;
        let user = service.user("user@example.com").await;
        let credentials = (cookies == "true").then_some("true");
        for origin in [APP, "http://localhost:3000"] {
            for (path, method) in [("/api/profile/me/", "PATCH"), ("/api/users/1/", "DELETE"), (ME, "POST")] {
                let answer = preflight(&service.anonymous(), path, origin, method).send().await.unwrap();
                assert_eq!(answer.status(), 200, "{path}");
                assert_eq!(header(&answer, "access-control-allow-origin"), Some(origin));
                assert_eq!(header(&answer, "access-control-allow-credentials"), credentials);
                let allowed = |name, what: &str| {
                    let list = header(&answer, name).unwrap().to_lowercase();
                    assert!(list.split(',').any(|item| item == what.to_lowercase()), "{name}: {list}");
                };
                allowed("access-control-allow-methods", method);
                for name in ["authorization", "content-type", "x-grpc-web", "x-user-agent", "x-request-id"] {
                    allowed("access-control-allow-headers", name);
                }
                assert_eq!(header(&answer, "access-control-max-age"), Some("600"));
                assert!(header(&answer, "x-request-id").is_some());
            }
            for (request, status) in [
                (user.request(Method::GET, "/api/profile/me/"), 200),
                (user.request(Method::GET, "/nothing"), 404),
                (service.anonymous().request(Method::GET, "/api/profile/me/"), 401),
                (web(&user, ME, b""), 200),
                (web(&service.anonymous(), ME, b""), 200),
            ] {
                let answer = request.header(header::ORIGIN, origin).send().await.unwrap();
                assert_eq!(answer.status(), status);
                assert_eq!(header(&answer, "access-control-allow-origin"), Some(origin));
                assert_eq!(header(&answer, "access-control-allow-credentials"), credentials);
                assert!(header(&answer, "vary").unwrap().contains("origin"));
                let shown: Vec<_> = header(&answer, "access-control-expose-headers").unwrap().split(',').collect();
                for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "retry-after"] {
                    assert!(shown.contains(&name), "{shown:?}");
                }
                assert!(!shown.iter().any(|name| name.contains("cookie") || *name == "*"), "{shown:?}");
            }
        }
        for origin in OTHERS {
            for request in [
                preflight(&service.anonymous(), "/api/profile/me/", origin, "PATCH"),
                user.request(Method::GET, "/api/profile/me/").header(header::ORIGIN, origin),
                web(&user, ME, b"").header(header::ORIGIN, origin),
            ] {
                let answer = request.send().await.unwrap();
                assert_eq!(header(&answer, "access-control-allow-origin"), None, "{origin:?}");
                // Or a cache would hand the answer for one origin to another.
                assert!(header(&answer, "vary").unwrap().contains("origin"), "{origin:?}");
            }
        }
        service.stop().await;
    }
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_needs_no_token_and_uses_up_no_limit() {
    let settings = [("CORS_ALLOWED_ORIGINS", APP), ("RATE_LIMIT_API", "2/1m")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    let anonymous = service.anonymous();
    for _ in 0..5 {
        let answer = preflight(&anonymous, "/api/profile/me/", APP, "GET").send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    for status in [401, 401, 429] {
        let call = anonymous.request(Method::GET, "/api/profile/me/").header(header::ORIGIN, APP);
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), status);
        // So the page can tell its user for how long to wait.
        assert_eq!(header(&answer, "access-control-allow-origin"), Some(APP));
    }
    assert_eq!(preflight(&anonymous, "/api/profile/me/", APP, "GET").send().await.unwrap().status(), 200);
    // What is no preflight is a call like any other.
    let bare = anonymous.request(Method::OPTIONS, "/api/profile/me/").send().await.unwrap();
    assert_eq!(bare.status(), 429);
    service.stop().await;
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_list_no_page_of_another_origin_reads_anything() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    for origin in OTHERS.into_iter().chain([APP]) {
        let before = preflight(&user, "/api/profile/me/", origin, "GET").send().await.unwrap();
        assert_eq!(before.status(), 405);
        let call = user.request(Method::GET, "/api/profile/me/").header(header::ORIGIN, origin).send().await.unwrap();
        for answer in [before, call] {
            assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control-")), "{answer:?}");
        }
    }
    service.stop().await;
}

/// Line 50.
#[test]
fn an_origin_that_stands_for_many_is_refused_at_the_start() {
    for wrong in
        ["*", "null", "https://*.example.com", "https://app.example.com/", "app.example.com", "https://APP.example.com"]
    {
        for cookies in ["true", "false"] {
            let mistakes = Config::load(|name| match name {
                "CORS_ALLOWED_ORIGINS" => Some(wrong.to_owned()),
                "AUTH_COOKIES" => Some(cookies.to_owned()),
                _ => None,
            });
            let mistakes = mistakes.unwrap_err().to_string();
            assert!(mistakes.starts_with("CORS_ALLOWED_ORIGINS: "), "{wrong}: {mistakes}");
        }
    }
}

/// The cookies that an answer sets: name, value, attributes.
fn set_cookies(response: &Response) -> Vec<(String, String, String)> {
    let mut cookies: Vec<_> = response
        .headers()
        .get_all(header::SET_COOKIE)
        .iter()
        .map(|line| {
            let (pair, attributes) = line.to_str().unwrap().split_once("; ").unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.to_owned(), attributes.to_owned())
        })
        .collect();
    cookies.sort();
    cookies
}

/// What a browser keeps of an answer that sets both cookies: they are the tokens of `body`, and set as they must be.
#[track_caller]
fn jar(response: &Response, access: &str, refresh: &str) -> String {
    let attributes = |seconds: u32| format!("Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Strict");
    let expected = [
        ("__Host-access_token".to_owned(), access.to_owned(), attributes(3600)),
        ("__Host-refresh_token".to_owned(), refresh.to_owned(), attributes(604_800)),
    ];
    assert_eq!(set_cookies(response), expected);
    assert_eq!(header(response, "cache-control"), Some("no-store"));
    format!("__Host-access_token={access}; __Host-refresh_token={refresh}")
}

/// Whether the answer takes both cookies away.
#[track_caller]
fn is_cleared(response: &Response) -> bool {
    let attributes = "Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict";
    let cleared = ["__Host-access_token", "__Host-refresh_token"];
    let set = set_cookies(response);
    assert!(
        set.is_empty() || set == cleared.map(|name| (name.to_owned(), String::new(), attributes.to_owned())),
        "{set:?}"
    );
    !set.is_empty()
}

/// A login as a page makes it.
fn login(service: &Service) -> RequestBuilder {
    let fields = json!({ "email": "user@example.com", "password": PASSWORD });
    service.anonymous().request(Method::POST, "/api/auth/login/").json(&fields)
}

/// The cookies of a new session.
async fn logged_in(service: &Service) -> String {
    let response = login(service).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let cookies = set_cookies(&response);
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    cookies.iter().map(|(name, value, _)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
}

/// Lines 7, 50.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_need_not_hold_its_tokens() {
    for store in Store::all() {
        let service = Service::start_with(store, &[WITH_COOKIES]).await;
        let (page, origin) = (service.anonymous(), format!("http://{}", service.address));
        let post = |path: &str, cookies: &str, body: Value| {
            let request = page.request(Method::POST, path).header(header::ORIGIN, &origin).json(&body);
            request.header(header::COOKIE, cookies.to_owned())
        };
        let body = async |response: Response, status: u16| {
            assert_eq!(response.status(), status);
            let text = response.text().await.unwrap();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        // The tokens are in the body as ever, for whoever wants them there.
        let account = json!({ "email": "user@example.com", "password": PASSWORD });
        for (path, status) in [("/api/auth/register/", 201), ("/api/auth/login/", 200)] {
            let response = post(path, "", account.clone()).send().await.unwrap();
            let (headers, response) = (response.headers().clone(), response);
            let cookies = set_cookies(&response);
            let answer = body(response, status).await;
            assert_eq!(cookies[0].1, answer["access_token"].as_str().unwrap());
            assert_eq!(cookies[1].1, answer["refresh_token"].as_str().unwrap());
            assert_eq!(headers["cache-control"], "no-store");
        }
        let response = post("/api/auth/login/", "", account).send().await.unwrap();
        let (access, refresh) = (set_cookies(&response)[0].1.clone(), set_cookies(&response)[1].1.clone());
        let cookies = jar(&response, &access, &refresh);

        let profile =
            page.request(Method::GET, "/api/profile/me/").header(header::COOKIE, &cookies).send().await.unwrap();
        assert_eq!(set_cookies(&profile), []);
        assert_eq!(body(profile, 200).await["user"]["email"], "user@example.com");
        let reply_to_web = reply(
            web(&page, ME, b"").header(header::COOKIE, &cookies).header(header::ORIGIN, &origin).send().await.unwrap(),
        )
        .await;
        assert_eq!(reply_to_web.trailer("grpc-status"), Some("0"), "{:?}", reply_to_web.trailers);

        let response = post("/api/auth/refresh/", &cookies, json!({})).send().await.unwrap();
        let (access, refresh) = (set_cookies(&response)[0].1.clone(), set_cookies(&response)[1].1.clone());
        let next = jar(&response, &access, &refresh);
        let answer = body(response, 200).await;
        assert_eq!(
            (answer["access_token"].as_str(), answer["refresh_token"].as_str()),
            (Some(&*access), Some(&*refresh))
        );
        assert_ne!(next, cookies);
        // One in the body counts for more, and without either there is a field missing.
        let chosen = json!({ "refresh_token": refresh });
        let response = post("/api/auth/refresh/", "__Host-refresh_token=x", chosen).send().await.unwrap();
        assert_eq!(
            claims(body(response, 200).await["refresh_token"].as_str().unwrap())["sid"],
            claims(&refresh)["sid"]
        );
        let response = post("/api/auth/refresh/", "", json!({})).send().await.unwrap();
        assert_eq!(body(response, 422).await, json!({ "refresh_token": ["This field is required."] }));

        let response = post("/api/auth/logout/", &next, json!({})).send().await.unwrap();
        assert!(is_cleared(&response));
        assert_eq!(body(response, 200).await, json!({ "message": "Successfully logged out" }));
        let after = page.request(Method::GET, "/api/profile/me/").header(header::COOKIE, &next).send().await.unwrap();
        assert!(is_cleared(&after), "the session is over, and the cookies with it");
        assert_eq!(after.status(), 401);
        let after = post("/api/auth/refresh/", &next, json!({})).send().await.unwrap();
        assert!(is_cleared(&after));
        assert_eq!(after.status(), 401);
        service.stop().await;
    }
}

/// Lines 7, 50.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_speaks_grpc_web_need_not_hold_its_tokens_either() {
    let service = Service::start_with(Store::Sqlite, &[WITH_COOKIES]).await;
    service.user("user@example.com").await;
    let (page, origin) = (service.anonymous(), format!("http://{}", service.address));
    let call = async |rpc: &str, cookies: &str, message: Vec<u8>| {
        let request = web(&page, &format!("/identity.v1.AuthService/{rpc}"), &message);
        request.header(header::ORIGIN, &origin).header(header::COOKIE, cookies.to_owned()).send().await.unwrap()
    };
    let login = pb::LoginRequest { email: Some("user@example.com".into()), password: Some(PASSWORD.into()) };
    let response = call("Login", "", login.encode_to_vec()).await;
    let (access, refresh) = (set_cookies(&response)[0].1.clone(), set_cookies(&response)[1].1.clone());
    let cookies = jar(&response, &access, &refresh);
    let answer = pb::LoginResponse::decode(reply(response).await.message.unwrap().as_slice()).unwrap();
    assert_eq!((answer.access_token, answer.refresh_token), (access, refresh));

    let response = call("RefreshToken", &cookies, Vec::new()).await;
    let (access, refresh) = (set_cookies(&response)[0].1.clone(), set_cookies(&response)[1].1.clone());
    let next = jar(&response, &access, &refresh);
    assert_eq!(reply(response).await.trailer("grpc-status"), Some("0"));
    let response = call("RefreshToken", "", Vec::new()).await;
    assert_eq!(reply(response).await.trailer("grpc-status"), Some("3"));

    let response = call("Logout", &next, Vec::new()).await;
    assert!(is_cleared(&response));
    assert_eq!(reply(response).await.trailer("grpc-status"), Some("0"));
    let response = call("Logout", &next, Vec::new()).await;
    assert!(is_cleared(&response));
    assert_eq!(reply(response).await.trailer("grpc-status"), Some("16"));
    service.stop().await;
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_changes_something_only_for_a_page_of_ours() {
    let settings = [
        WITH_COOKIES,
        ("CORS_ALLOWED_ORIGINS", APP),
        ("PUBLIC_URL", "https://id.example.com/users"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    service.user("user@example.com").await;
    let cookies = logged_in(&service).await;
    let page = service.anonymous();
    // Each changes something, or hands out tokens.
    let calls = || {
        [
            page.request(Method::PATCH, "/api/profile/me/").json(&json!({ "bio": "changed" })),
            page.request(Method::POST, "/api/auth/refresh/").json(&json!({})),
            page.request(Method::POST, "/api/auth/send-verification/"),
            web(&page, "/identity.v1.AuthService/RefreshToken", b""),
            web(&page, ME, b""),
        ]
        .map(|request| request.header(header::COOKIE, &cookies).header(header::HOST, "users.example.com"))
    };
    let own = "http://users.example.com";
    let mut foreign: Vec<Vec<(&str, &str)>> = OTHERS.iter().map(|origin| vec![("origin", *origin)]).collect();
    foreign.extend([
        vec![],
        vec![("origin", own), ("origin", own)],
        vec![("origin", own), ("origin", "https://evil.example")],
        vec![("origin", own), ("sec-fetch-site", "cross-site")],
        vec![("origin", APP), ("sec-fetch-site", "cross-site")],
        vec![("origin", "http://users.example.com:8000")],
        vec![("origin", "http://users.example.com.")],
        vec![("origin", "http://xusers.example.com")],
        vec![("origin", "ftp://users.example.com")],
        vec![("origin", "https://id.example.com/users")],
        vec![("origin", "http://evil.example"), ("x-forwarded-host", "evil.example")],
        // A page that came in the clear may be anybody's.
        vec![("origin", own), ("x-forwarded-proto", "https")],
        vec![("referer", "http://users.example.com/")],
    ]);
    for told in foreign {
        for call in calls() {
            let call = told.iter().fold(call, |call, (name, value)| call.header(*name, *value));
            let what = format!("{call:?}");
            let response = call.send().await.unwrap();
            assert_eq!(set_cookies(&response), [], "{what}");
            if response.headers()[header::CONTENT_TYPE] == "application/json" {
                assert_eq!(response.status(), 403, "{what}");
                let refusal: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
                assert_eq!(refusal["error"], "You don't have permission to perform this action");
                assert_eq!(refusal["detail"], "With a cookie, the Origin must be one that may call the service");
            } else {
                assert_eq!(reply(response).await.trailer("grpc-status"), Some("7"), "{what}");
            }
        }
    }
    let profile = page.request(Method::GET, "/api/profile/me/").header(header::COOKIE, &cookies).send().await.unwrap();
    let profile: Value = serde_json::from_str(&profile.text().await.unwrap()).unwrap();
    assert_eq!(profile["bio"], "", "something was changed");
    for told in [
        vec![("origin", own)],
        vec![("origin", "https://users.example.com"), ("x-forwarded-proto", "https")],
        vec![("origin", "https://users.example.com")], // A proxy that we don't know of speaks TLS.
        vec![("origin", "https://id.example.com")],
        vec![("origin", APP), ("sec-fetch-site", "same-site")],
        vec![("origin", own), ("sec-fetch-site", "same-origin")],
    ] {
        for call in [page.request(Method::PATCH, "/api/profile/me/").json(&json!({ "bio": "" })), web(&page, ME, b"")] {
            let call = call.header(header::COOKIE, &cookies).header(header::HOST, "users.example.com");
            let response =
                told.iter().fold(call, |call, (name, value)| call.header(*name, *value)).send().await.unwrap();
            assert_eq!(response.status(), 200, "{told:?}");
            assert_ne!(header(&response, "grpc-status"), Some("7"), "{told:?}");
        }
    }
    service.stop().await;
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_header_needs_no_origin_and_hides_the_cookie() {
    let service = Service::start_with(Store::Sqlite, &[WITH_COOKIES]).await;
    let user = service.user("user@example.com").await;
    let other = service.user("other@example.com").await;
    let cookies = logged_in(&service).await;
    for origin in [None, Some("https://evil.example"), Some("null")] {
        let with = |request: RequestBuilder| match origin {
            Some(origin) => request.header(header::ORIGIN, origin).header(header::COOKIE, &cookies),
            None => request.header(header::COOKIE, &cookies),
        };
        let change = other.request(Method::PATCH, "/api/profile/me/").json(&json!({ "bio": "mine" }));
        let response = with(change).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let profile: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(profile["user"]["email"], "other@example.com");
        assert_eq!(reply(with(web(&other, ME, b"")).send().await.unwrap()).await.trailer("grpc-status"), Some("0"));
        // A bad one isn't made up for by a good cookie.
        let bad = user.with_token("bad").request(Method::GET, "/api/profile/me/");
        let bad = with(bad).send().await.unwrap();
        assert_eq!((bad.status().as_u16(), is_cleared(&bad)), (401, false));
        for scheme in ["Basic YTpi", ""] {
            let request = service.anonymous().request(Method::GET, "/api/profile/me/");
            let response = with(request.header(header::AUTHORIZATION, scheme)).send().await.unwrap();
            assert_eq!(response.status(), 401, "{scheme:?}");
        }
    }
    service.stop().await;
}

/// Line 4.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_good_for_its_own_use_and_by_its_own_name_only() {
    let service = Service::start_with(Store::Sqlite, &[WITH_COOKIES]).await;
    let mut user = service.user("user@example.com").await;
    let (access, refresh) = (user.access_token.take().unwrap(), user.refresh_token.take().unwrap());
    let origin = format!("http://{}", service.address);
    let statuses = async |cookies: &[String]| {
        let with = |request: RequestBuilder| {
            let request = request.header(header::ORIGIN, &origin);
            cookies.iter().fold(request, |request, line| {
                request.header(header::COOKIE, header::HeaderValue::from_bytes(line.as_bytes()).unwrap())
            })
        };
        let me = with(user.request(Method::GET, "/api/profile/me/")).send().await.unwrap().status().as_u16();
        let refreshed = with(user.request(Method::POST, "/api/auth/refresh/").json(&json!({})));
        (me, refreshed.send().await.unwrap().status().as_u16())
    };
    // The wrong token under a right name, and the right one under names that are read as the right ones elsewhere.
    assert_eq!(statuses(&[format!("__Host-access_token={refresh}; __Host-refresh_token={access}")]).await, (401, 401));
    for name in [
        "access_token",
        "__host-access_token",
        "__HOST-ACCESS_TOKEN",
        "__Secure-access_token",
        "x__Host-access_token",
        "__Host-access_token ",
        "\u{2000}__Host-access_token",
        "$Version=1,__Host-access_token",
        "__Host-access%5ftoken",
    ] {
        assert_eq!(statuses(&[format!("{name}={access}")]).await, (401, 422), "{name:?}");
    }
    assert_eq!(statuses(&[format!("__Host-access_token=\"{access}\"")]).await, (401, 422));
    // Of two, one was put there by somebody else.
    let (good, bad) = (format!("__Host-access_token={access}"), "__Host-access_token=x".to_owned());
    for two in [
        vec![format!("{good}; {bad}")],
        vec![format!("{bad}; {good}")],
        vec![format!("{good};{good}")],
        vec![good.clone(), bad],
    ] {
        assert_eq!(statuses(&two).await, (401, 422), "{two:?}");
    }
    let two = format!("__Host-refresh_token={refresh}; __Host-refresh_token={refresh}");
    assert_eq!(statuses(&[two]).await, (401, 401));
    // Among others, and in several lines as HTTP/2 has them.
    let lines = ["a=b".to_owned(), format!("c=\"d\"; {good};e"), format!("__Host-refresh_token={refresh}")];
    assert_eq!(statuses(&lines).await, (200, 200));
    service.stop().await;
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_for_browsers_and_where_the_operator_wants_them() {
    for (settings, takes) in [(&[][..], false), (&[WITH_COOKIES], true)] {
        let service = Service::start_with(Store::Sqlite, settings).await;
        let mut user = service.user("user@example.com").await;
        let (access, refresh) = (user.access_token.take().unwrap(), user.refresh_token.take().unwrap());
        let cookies = format!("__Host-access_token={access}; __Host-refresh_token={refresh}");
        let origin = format!("http://{}", service.address);
        assert_eq!(set_cookies(&login(&service).send().await.unwrap()).len(), if takes { 2 } else { 0 });
        let me = user.request(Method::GET, "/api/profile/me/").header(header::COOKIE, &cookies).send().await.unwrap();
        assert_eq!(me.status().as_u16(), if takes { 200 } else { 401 });
        // No page gets cookies whose calls would not be believed with them.
        for foreign in ["https://evil.example", "null"] {
            let response = login(&service).header(header::ORIGIN, foreign).send().await.unwrap();
            assert_eq!((response.status().as_u16(), set_cookies(&response)), (200, vec![]), "{foreign}");
        }
        // A program that speaks gRPC holds its tokens.
        for (rpc, code) in [
            ("ProfileService/GetMyProfile", Code::Unauthenticated),
            ("AuthService/RefreshToken", Code::InvalidArgument),
        ] {
            let mut request = tonic::Request::new(Vec::new());
            request.metadata_mut().insert("cookie", cookies.parse().unwrap());
            request.metadata_mut().insert("origin", origin.parse().unwrap());
            let status = user.send_grpc(&format!("/identity.v1.{rpc}"), request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
            assert!(status.metadata().get("set-cookie").is_none());
        }
        let fields = pb::LoginRequest { email: Some("user@example.com".into()), password: Some(PASSWORD.into()) };
        let native = user.call_grpc_raw("/identity.v1.AuthService/Login", fields.encode_to_vec()).await.unwrap();
        assert!(native.metadata().get("set-cookie").is_none());
        service.stop().await;
    }
}

/// Line 50.
#[tokio::test(flavor = "multi_thread")]
async fn cookies_go_when_their_session_does_and_not_before() {
    let service = Service::start_with(Store::Sqlite, &[WITH_COOKIES]).await;
    let user = service.user("user@example.com").await;
    let cookies = logged_in(&service).await;
    let (page, origin) = (service.anonymous(), format!("http://{}", service.address));
    let me =
        async || page.request(Method::GET, "/api/profile/me/").header(header::COOKIE, &cookies).send().await.unwrap();
    let refresh = async || {
        let request = page.request(Method::POST, "/api/auth/refresh/").json(&json!({})).header(header::ORIGIN, &origin);
        request.header(header::COOKIE, &cookies).send().await.unwrap()
    };
    // An access token that ran out: the refresh token is still good for another.
    service.set_clock(service.clock.now() + chrono::Duration::hours(2));
    let late = me().await;
    assert_eq!((late.status().as_u16(), is_cleared(&late)), (401, false));
    // Somebody else's token is over, not this session.
    let verify = page.request(Method::POST, "/api/auth/verify/").header(header::COOKIE, &cookies);
    let verify = verify.json(&json!({ "token": user.access_token })).send().await.unwrap();
    assert_eq!((verify.status().as_u16(), is_cleared(&verify)), (401, false));
    assert_eq!(refresh().await.status(), 200);
    // Much later the same token is stolen goods.
    service.set_clock(service.clock.now() + chrono::Duration::minutes(1));
    let reused = refresh().await;
    assert_eq!((reused.status().as_u16(), is_cleared(&reused)), (401, true));

    // A deactivated user's cookies go with the first call, by whatever rpc.
    let cookies = logged_in(&service).await;
    let admin = service.admin("admin@example.com").await;
    admin.call(Face::Rest, "UserService.UpdateUser", json!({ "id": 1, "is_active": false })).await.expect(200);
    let call = web(&page, ME, b"").header(header::COOKIE, &cookies).header(header::ORIGIN, &origin);
    let response = call.send().await.unwrap();
    assert!(is_cleared(&response));
    assert_eq!(reply(response).await.trailer("grpc-status"), Some("16"));
    service.stop().await;
}
