//! What HTTP itself could be made to do: hosts that aren't ours, answers that a browser takes for something else, calls in the
//! clear, and words that tell what the service is made of.

use std::{collections::BTreeSet, net::SocketAddr};

use reqwest::{Method, Version, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::{
    grpc_web::{self, frame},
    harness::{Actor, Service, Store},
};

const PROBES: [&str; 4] = ["/livez", "/readyz", "/api/health/", "/metrics"];
const LOGIN: &str = "/identity.v1.AuthService/Login";

/// An answer over HTTP/1.1, read from the socket.
#[derive(Debug)]
struct Raw {
    status: u16,
    head: String,
    body: String,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// Sends these lines as the head of a request, and `body` after it; the connection ends with the answer.
async fn raw(address: SocketAddr, lines: &[&str], body: &[u8]) -> Raw {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", lines.join("\r\n"), body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {lines:?}: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Raw { status, head: head.to_owned(), body: body.to_owned() }
}

/// The status of a call of no rpc in particular that names `host`, on each face; that of gRPC as REST has it.
async fn statuses(service: &Service, host: &str) -> [u16; 4] {
    let plain = raw(service.address, &["GET /api/docs/ HTTP/1.1", &format!("Host: {host}")], b"").await;
    if plain.status == 400 {
        assert_eq!(plain.json()["error"], "Unknown host", "{plain:?}");
        assert!(plain.header("x-request-id").is_some(), "{plain:?}");
    }
    // As `:authority`, in HTTP/2.
    let url = format!("http://{host}/api/docs/").parse::<url::Url>().unwrap();
    let http_2 = reqwest::Client::builder().http2_prior_knowledge();
    let http_2 = http_2.resolve(url.host_str().unwrap(), service.address).build().unwrap();
    let mut at_port = url.clone();
    at_port.set_port(Some(service.address.port())).unwrap();
    let http_2 = match url.domain() {
        Some(_) => http_2.get(at_port).send().await.unwrap().status().as_u16(),
        None => plain.status, // An address is gone to; one that isn't ours can't be named like that.
    };

    let origin = format!("http://{host}").parse().unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", service.address)).unwrap().origin(origin).connect_lazy();
    let grpc = Actor { channel, ..service.anonymous() };
    let status = grpc.call_grpc_raw(LOGIN, Vec::new()).await.unwrap_err();
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    let native = match reason.as_deref() {
        Some("HOST_NOT_ALLOWED") => {
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            400
        }
        Some("REQUIRED") => 200, // So it came as far as the handler.
        _ => panic!("{status:?}"),
    };

    let http = reqwest::Client::new().post(format!("http://{}{LOGIN}", service.address)).header(header::HOST, host);
    let web = http.header(header::CONTENT_TYPE, "application/grpc-web+proto").body(frame(b"")).send().await.unwrap();
    let headers = web.headers().clone();
    let reply = grpc_web::read(&headers, &web.bytes().await.unwrap());
    assert_eq!(reply.trailer("grpc-status"), Some("3"), "{:?}", reply.trailers);
    let is_refused = reply.trailer("grpc-message").is_some_and(|message| message.starts_with("Unknown%20host"));
    [plain.status, http_2, native, if is_refused { 400 } else { 200 }]
}

/// Line 48.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_a_host_that_is_not_ours_is_refused_on_every_face() {
    let hosts = ("ALLOWED_HOSTS", "users.example.com,.example.org,10.0.0.1");
    let service = Service::start_with(Store::Sqlite, &[hosts]).await;
    for ours in [
        "users.example.com",
        "USERS.example.com",
        "users.example.com.",
        "users.example.com:8443",
        "example.org",
        "a.b.example.org",
        "10.0.0.1",
    ] {
        assert_eq!(statuses(&service, ours).await, [200; 4], "{ours}");
    }
    for foreign in [
        "evil.example",
        "xusers.example.com",
        "example.com",
        "a.users.example.com",
        "users.example.com.evil.example",
        "xexample.org",
        "localhost",
        "127.0.0.1",
        "10.0.0.2",
    ] {
        assert_eq!(statuses(&service, foreign).await, [400; 4], "{foreign}");
    }
    service.stop().await;
}

/// Line 48.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_names_one_host_and_the_same_everywhere() {
    for settings in [&[][..], &[("ALLOWED_HOSTS", "localhost")]] {
        let service = Service::start_with(Store::Sqlite, settings).await;
        let heads: [&[&str]; 15] = [
            &["GET /livez HTTP/1.1"],
            &["GET /livez HTTP/1.1", "Host:"],
            &["GET /livez HTTP/1.1", "Host: localhost", "Host: localhost"],
            &["GET /livez HTTP/1.1", "Host: localhost", "hOST: evil.example"],
            &["GET /livez HTTP/1.0", "Host: localhost", "Host: localhost"],
            &["GET /livez HTTP/1.1", "Host: localhost, evil.example"],
            &["GET /livez HTTP/1.1", "Host: localhost evil.example"],
            &["GET /livez HTTP/1.1", "Host: localhost/evil.example"],
            &["GET /livez HTTP/1.1", "Host: evil.example@localhost"],
            &["GET /livez HTTP/1.1", "Host: localhost:80:80"],
            &["GET /livez HTTP/1.1", "Host: localhost:evil"],
            &["GET /livez HTTP/1.1", "Host: [::1"],
            &["GET /livez HTTP/1.1", "Host: [evil.example]"],
            &["GET /livez HTTP/1.1", "Host: \u{2028}localhost"],
            &["GET http://evil.example/livez HTTP/1.1", "Host: localhost"],
        ];
        for head in heads {
            let refused = raw(service.address, head, b"").await;
            assert_eq!(refused.status, 400, "{head:?}: {refused:?}");
            assert_eq!(
                refused.json(),
                json!({ "error": "Malformed request", "detail": "Name one host, and the same everywhere" })
            );
        }
        // What a proxy sends, and what HTTP/1.0 may leave out.
        for head in [&["GET http://localhost/livez HTTP/1.1", "Host: LOCALHOST"][..], &["GET /livez HTTP/1.0"]] {
            assert_eq!(raw(service.address, head, b"").await.status, 200, "{head:?}");
        }
        let nameless = raw(service.address, &["GET /api/docs/ HTTP/1.0"], b"").await;
        assert_eq!(nameless.status, if settings.is_empty() { 200 } else { 400 }, "{nameless:?}");
        // In HTTP/2 both may come, and then be two hosts.
        let http_2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let livez = http_2.get(format!("http://{}/livez", service.address));
        assert_eq!(livez.try_clone().unwrap().send().await.unwrap().status(), 200);
        let two = livez.header(header::HOST, "localhost").send().await.unwrap();
        assert_eq!((two.version(), two.status().as_u16()), (Version::HTTP_2, 400));
        service.stop().await;
    }
}

/// Line 48.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_asked_by_whatever_address_they_have() {
    let settings = [("ALLOWED_HOSTS", "users.example.com"), ("SECURE_SSL_REDIRECT", "true")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    for path in PROBES {
        for host in ["10.1.2.3:8000", "[fd00::1]:8000", "localhost"] {
            let probe = raw(service.address, &[&format!("GET {path} HTTP/1.1"), &format!("Host: {host}")], b"").await;
            assert_eq!(probe.status, 200, "{path} at {host}: {probe:?}");
        }
    }
    let mut health = HealthClient::new(service.anonymous().channel);
    health.check(HealthCheckRequest::default()).await.unwrap();
    // What only looks like one is none.
    for path in ["/livez/", "//livez", "/%6civez", "/api/health/x", "/api//health/"] {
        let head = [&format!("GET {path} HTTP/1.1")[..], "Host: 10.1.2.3"];
        assert_eq!(raw(service.address, &head, b"").await.status, 400, "{path}");
    }
    service.stop().await;
}

/// Line 48.
#[tokio::test(flavor = "multi_thread")]
async fn links_lead_to_the_public_url_or_to_the_host_that_was_named() {
    for (settings, expected) in [
        (&[][..], "http://users.example.com:8443"),
        (&[("ALLOWED_HOSTS", ".example.com,127.0.0.1")][..], "http://users.example.com:8443"),
        (&[("PUBLIC_URL", "https://id.example.com")][..], "https://id.example.com"),
    ] {
        let settings = [settings, &[("TRUSTED_PROXIES", "127.0.0.1")]].concat();
        let service = Service::start_with(Store::Sqlite, &settings).await;
        service.user("first@example.com").await;
        let user = service.user("second@example.com").await;
        let token = format!("Authorization: Bearer {}", user.access_token.unwrap());
        let head = [
            "GET /api/users/?page_size=1 HTTP/1.1",
            "Host: users.example.com:8443",
            "X-Forwarded-Host: evil.example",
            "X-Forwarded-Server: evil.example",
            "X-Host: evil.example",
            "Forwarded: host=evil.example",
            &token,
        ];
        let page = raw(service.address, &head, b"").await.json();
        let next = page["next"].as_str().unwrap();
        assert!(next.starts_with(&format!("{expected}/api/users/?")), "{settings:?}: {next}");
        service.stop().await;
    }
}

/// What every answer says, whatever it answers.
#[track_caller]
fn assert_told(what: &str, headers: &header::HeaderMap) {
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { panic!("{what}: {name}: {headers:?}") };
        value.to_str().unwrap().to_owned()
    };
    assert_eq!(one("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(one("referrer-policy"), "no-referrer", "{what}");
    let policy = one("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{what}: {policy}");
    assert!(!headers.contains_key("server") && !headers.contains_key("x-powered-by"), "{what}: {headers:?}");
}

/// Line 49.
#[tokio::test(flavor = "multi_thread")]
async fn each_answer_tells_browsers_to_run_and_frame_nothing() {
    let settings = [("ALLOWED_HOSTS", "127.0.0.1"), ("CORS_ALLOWED_ORIGINS", "https://app.example.com")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    // A connection a request: a body that is too large costs its own.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let user = Actor { http: http.clone(), ..service.user("user@example.com").await };
    let anonymous = Actor { http, ..service.anonymous() };
    let mut seen = BTreeSet::new();
    let json = |actor: &Actor, path: &str, body: &str| {
        let request = actor.request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        request.body(body.to_owned())
    };
    let mut requests = vec![
        user.request(Method::GET, "/api/profile/me/"),
        user.request(Method::HEAD, "/api/profile/me/"),
        user.request(Method::DELETE, "/api/profile/me/"),
        user.request(Method::GET, "/api/users/999/"),
        user.request(Method::DELETE, "/api/users/999/"),
        user.request(Method::GET, "/api/docs/"),
        user.request(Method::GET, "/api/openapi.json"),
        user.request(Method::GET, "/media/avatars/none.png"),
        user.request(Method::GET, "/nothing"),
        user.request(Method::OPTIONS, "/api/users/"),
        user.request(Method::GET, LOGIN),
        user.request(Method::GET, "/api/users/").header(header::HOST, "evil.example"),
        user.request(Method::OPTIONS, "/api/users/")
            .header(header::ORIGIN, "https://app.example.com")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET"),
        anonymous.request(Method::GET, "/api/profile/me/"),
        anonymous.request(Method::POST, "/api/auth/login/"),
        json(&anonymous, "/api/auth/login/", "{"),
        json(&anonymous, "/api/auth/login/", "{}"),
        json(&anonymous, "/api/auth/login/", &format!("{{\"email\": \"{}\"}}", "x".repeat(70_000))),
        json(&anonymous, LOGIN, "{}"),
        json(&user, "/api/users/", "{}"),
        anonymous.request(Method::POST, LOGIN).header(header::CONTENT_TYPE, "application/grpc-web").body(frame(b"")),
        anonymous
            .request(Method::POST, "/identity.v1.Nothing/Nothing")
            .header(header::CONTENT_TYPE, "application/grpc"),
    ];
    requests.extend(PROBES.map(|path| anonymous.request(Method::GET, path)));
    for request in requests {
        let what = format!("{request:?}");
        let response = request.send().await.unwrap();
        seen.insert(response.status().as_u16());
        assert_told(&what, response.headers());
    }
    assert_eq!(seen, BTreeSet::from([200, 400, 401, 403, 404, 405, 413, 415, 422]));
    for rpc in ["ProfileService/GetMyProfile", "UserService/GetUser", "AuthService/Nothing"] {
        let metadata = match user.call_grpc_raw(&format!("/identity.v1.{rpc}"), Vec::new()).await {
            Ok(response) => response.metadata().clone(),
            Err(status) => status.metadata().clone(),
        };
        assert_told(rpc, &metadata.into_headers());
    }
    service.stop().await;
}

/// Line 49.
#[tokio::test(flavor = "multi_thread")]
async fn hsts_is_told_to_whoever_comes_over_tls_and_nobody_else() {
    let year = ("SECURE_HSTS_SECONDS", "31536000");
    let proxy = ("TRUSTED_PROXIES", "127.0.0.1");
    for (settings, expected) in [
        (vec![proxy], None),
        (vec![proxy, ("SECURE_HSTS_SECONDS", "0"), ("SECURE_HSTS_INCLUDE_SUBDOMAINS", "true")], None),
        (vec![year], None), // Whoever says so is no proxy of ours.
        (vec![proxy, year], Some("max-age=31536000")),
        (vec![proxy, year, ("SECURE_HSTS_INCLUDE_SUBDOMAINS", "true")], Some("max-age=31536000; includeSubDomains")),
    ] {
        let service = Service::start_with(Store::Sqlite, &settings).await;
        for path in ["/api/docs/", "/nothing", "/livez"] {
            for (proto, told) in [("https", expected), ("http", None), ("https,http", None), ("", None)] {
                let request = service.anonymous().request(Method::GET, path).header("x-forwarded-proto", proto);
                let response = request.send().await.unwrap();
                let hsts = response.headers().get(header::STRICT_TRANSPORT_SECURITY).map(|v| v.to_str().unwrap());
                assert_eq!(hsts, told, "{path} by {proto:?} with {settings:?}");
            }
            // A proxy that adds its word to that of its client.
            let both = service.anonymous().request(Method::GET, path).header("x-forwarded-proto", "https");
            let both = both.header("x-forwarded-proto", "http").send().await.unwrap();
            assert!(!both.headers().contains_key(header::STRICT_TRANSPORT_SECURITY), "{path} with {settings:?}");
            let response = service.anonymous().request(Method::GET, path).send().await.unwrap();
            assert!(!response.headers().contains_key(header::STRICT_TRANSPORT_SECURITY), "{path} with {settings:?}");
        }
        service.stop().await;
    }
}

/// Line 49.
#[tokio::test(flavor = "multi_thread")]
async fn calls_in_the_clear_are_sent_to_https() {
    let redirect = ("SECURE_SSL_REDIRECT", "true");
    let settings = [redirect, ("TRUSTED_PROXIES", "127.0.0.1"), ("ALLOWED_HOSTS", "users.example.com")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    let host = "Host: users.example.com";
    for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308), ("PATCH", 308), ("DELETE", 308)] {
        for path in ["/api/users/?page=2&search=a%20b", "//evil.example/x", "/nothing", LOGIN] {
            let answer = raw(service.address, &[&format!("{method} {path} HTTP/1.1"), host], b"").await;
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(answer.header("location"), Some(&format!("https://users.example.com{path}")[..]));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.body, "");
        }
    }
    let whole = raw(service.address, &["OPTIONS * HTTP/1.1", host], b"").await;
    assert_eq!((whole.status, &whole.json()["error"]), (400, &json!("Insecure connection")));
    let foreign = raw(service.address, &["GET /api/users/ HTTP/1.1", "Host: evil.example"], b"").await;
    assert_eq!((foreign.status, foreign.header("location")), (400, None), "{foreign:?}");
    let secure = ["GET /api/docs/ HTTP/1.1", host, "X-Forwarded-Proto: https"];
    assert_eq!(raw(service.address, &secure, b"").await.status, 200);

    let origin = "http://users.example.com".parse().unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", service.address)).unwrap().origin(origin).connect_lazy();
    let grpc = Actor { channel, ..service.anonymous() };
    let status = grpc.call_grpc_raw(LOGIN, Vec::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "TLS_REQUIRED");
    service.stop().await;

    let settings = [redirect, ("PUBLIC_URL", "https://id.example.com/users/")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    let answer = raw(service.address, &["GET /api/users/?page=2 HTTP/1.1", "Host: whatever"], b"").await;
    assert_eq!(answer.header("location"), Some("https://id.example.com/users/api/users/?page=2"), "{answer:?}");
    service.stop().await;
}

/// Line 52. The statuses, and the words to the letter, of what libraries would have refused in words of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_library_refuses_is_told_in_our_words() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let token = format!("Authorization: Bearer {}", user.access_token.as_ref().unwrap());
    let (host, as_json) = ("Host: localhost", "Content-Type: application/json");
    let form = "Content-Type: multipart/form-data; boundary=x";
    let malformed = |detail: &str| json!({ "error": "Malformed request", "detail": detail });
    let not_found = json!({ "error": "Not found" });
    let unsupported = json!({ "error": "Unsupported media type: send application/json" });
    let not_grpc = json!({ "error": "Unsupported media type: this is a path of gRPC over HTTP/2, and of gRPC-Web" });
    let login = "POST /api/auth/login/ HTTP/1.1";
    let profile = "PATCH /api/profile/me/ HTTP/1.1";
    let cases: [(&[&str], &[u8], u16, Value); 22] = [
        (&[login, host, as_json], b"{]", 400, malformed("The body is not valid JSON: line 1, column 2.")),
        (
            &[login, host, as_json],
            b"{\"email\": \"\xff\"}",
            400,
            malformed("The body is not valid JSON: line 1, column 12."),
        ),
        (
            &[login, host, as_json],
            b"[]",
            400,
            malformed("The body must be one JSON object of at most 256 keys, all different."),
        ),
        (
            &[login, host, as_json],
            b"{\"email\": 1, \"password\": []}",
            400,
            json!({ "email": ["Not a valid string."], "password": ["Not a valid string."] }),
        ),
        (&[login, host, "Content-Type: \u{e9}"], b"{}", 415, unsupported.clone()),
        (&[login, host, "Content-Type: application/x-www-form-urlencoded"], b"email=a", 415, unsupported),
        (&[profile, host, &token, form], b"no form", 400, malformed("The body is not a valid form.")),
        (
            &[profile, host, &token, form],
            b"--x\r\nno: head\r\n\r\n--x--",
            400,
            malformed("The body is not a valid form."),
        ),
        (&["GET /api/users/%ff/ HTTP/1.1", host, &token], b"", 404, not_found.clone()),
        (&["GET /api/users/%00/ HTTP/1.1", host, &token], b"", 404, not_found.clone()),
        (&["GET /api/users/99999999999999999999/ HTTP/1.1", host, &token], b"", 404, not_found.clone()),
        (&["GET /media/avatars/%ff HTTP/1.1", host], b"", 404, json!({ "error": "Avatar not found" })),
        (&["GET /api/users/?page=%ff HTTP/1.1", host, &token], b"", 404, json!({ "error": "Invalid page" })),
        (&["GET /nothing HTTP/1.1", host], b"", 404, not_found.clone()),
        (&["OPTIONS * HTTP/1.1", host], b"", 404, not_found.clone()),
        (&["TRACE /api/users/ HTTP/1.1", host], b"", 405, json!({ "error": "Method not allowed" })),
        (&["PROPFIND /api/docs/ HTTP/1.1", host], b"", 405, json!({ "error": "Method not allowed" })),
        (&["GET /identity.v1.AuthService/Login HTTP/1.1", host], b"", 415, not_grpc.clone()),
        (
            &["POST /identity.v1.AuthService/Login HTTP/1.1", host, "Content-Type: application/grpc"],
            b"",
            415,
            not_grpc.clone(),
        ),
        (
            &["PUT /identity.v1.AuthService/Login HTTP/1.1", host, "Content-Type: application/grpc-web"],
            b"",
            415,
            not_grpc,
        ),
        (
            &["GET /api/profile/me/ HTTP/1.1", host, "Authorization: Bearer a.b.c"],
            b"",
            401,
            json!({ "error": "Invalid token", "detail": "The token is not valid here. Log in again" }),
        ),
        (
            &["GET /api/profile/me/ HTTP/1.1", host, "Authorization: Basic YTpi"],
            b"",
            401,
            json!({ "error": "Authentication required", "detail": "Authentication credentials were not provided" }),
        ),
    ];
    for (head, body, status, expected) in cases {
        let answer = raw(service.address, head, body).await;
        assert_eq!((answer.status, answer.json()), (status, expected), "{head:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{head:?}");
    }
    service.stop().await;
}

/// Line 52.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_library_of_grpc_refuses_is_told_in_our_words() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let undecodable = (Code::InvalidArgument, "The request message can't be decoded");
    let too_large = (Code::OutOfRange, "The request message is too large");
    let unknown = (Code::Unimplemented, "There is no such rpc");
    for (path, message, (code, words)) in [
        (LOGIN, b"\xff\xff\xff".to_vec(), undecodable),
        (LOGIN, b"\x0a\x02\xff\xfe".to_vec(), undecodable), // A string that is no UTF-8.
        (LOGIN, vec![0; 70_000], too_large),
        ("/identity.v1.AuthService/Nothing", Vec::new(), unknown),
        ("/nothing.v1.Nothing/Nothing", Vec::new(), unknown),
        ("/grpc.health.v1.Health/Check", b"\xff".to_vec(), undecodable),
        ("/grpc.health.v1.Health/Check", b"\x0a\x01x".to_vec(), (Code::NotFound, "There is no such service")),
    ] {
        let status = user.call_grpc_raw(path, message).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, words), "{path}");
        assert_eq!(status.get_error_details().error_info().unwrap().domain, "identity.v1", "{path}");
    }
    for (encoding, body) in
        [("application/grpc-web+proto", &b"\x00\x00\x00\x00\x09x"[..]), ("application/grpc-web-text", b"?!?!")]
    {
        let request = user.request(Method::POST, LOGIN).header(header::CONTENT_TYPE, encoding).body(body);
        let response = request.send().await.unwrap();
        let message = response.headers()["grpc-message"].to_str().unwrap().replace("%20", " ").replace("%27", "'");
        assert_eq!(message, undecodable.1, "{encoding}");
    }
    service.stop().await;
}

/// Line 54.
#[tokio::test(flavor = "multi_thread")]
async fn reflection_can_be_switched_off() {
    for (setting, code) in [("true", None), ("false", Some(Code::Unimplemented))] {
        let service = Service::start_with(Store::Sqlite, &[("REFLECTION", setting)]).await;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            // Field 7: the services are to be listed.
            let listed = service.anonymous().call_grpc_raw(&path, b"\x3a\x00".to_vec()).await;
            assert_eq!(listed.err().map(|status| status.code()), code, "{version}, REFLECTION={setting}");
        }
        // Health isn't reflection.
        service.anonymous().call_grpc_raw("/grpc.health.v1.Health/Check", Vec::new()).await.unwrap();
        service.stop().await;
    }
}
