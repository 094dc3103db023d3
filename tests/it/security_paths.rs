//! Paths, as somebody writes them who hopes that two readers read them differently.
//! The lines are those of `docs/security.md`.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    harness::{Service, Store},
    harness::{metrics::Metrics, on_each_store},
    rest::raw,
    rest_parity::rest_routes,
};

/// Line 34.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_only_like_a_route_reaches_no_handler() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let token = user.access_token.as_deref().unwrap();
    let paths = [
        "//api/profile/me/",
        "/api//profile/me/",
        "/api/profile//me/",
        "/api/profile/me//",
        "/api/./profile/me/",
        "/api/x/../profile/me/",
        "/api%2fprofile%2fme/",
        "/api/profile%2fme/",
        "/api/profile/me%2f",
        "/api/profile/me/%00",
        "/api/Profile/me/",
        "/API/profile/me/",
        "/api/profile/me/x",
        "/api/profile/me;x=1/",
        "/api/users/1/roles/x/y/",
        "/api/users/1%2froles/",
        "/api/users//",
        "/api/users/%ff/",
        "/api/",
        "/",
        "/favicon.ico",
        "/identity.v1.AuthService",
        "*",
    ];
    for path in paths {
        let answer = raw(
            service.address,
            format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
            ),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.ends_with(r#"{"error":"Not found"}"#), "{path}: {answer}");
        assert!(answer.contains("x-request-id: ") && answer.contains("cache-control: no-store"), "{path}: {answer}");
    }
    service.stop().await;
}

/// A request by HTTP/2, written by hand: a client of any library would put its path right. Returns what came back until the
/// stream or the connection ended, which must be soon.
async fn http2(service: &Service, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut block = Vec::new();
    let all = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")];
    for (name, value) in all.iter().chain(headers) {
        block.push(0); // A literal, indexed nowhere.
        for text in [name, value] {
            // Seven bits of the length, and the rest of it in sevens.
            let mut length = text.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push(u8::try_from(length % 128).unwrap() | 128);
                    length /= 128;
                }
                block.push(u8::try_from(length).unwrap());
            }
            block.extend(text.as_bytes());
        }
    }
    let request = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(4, 0, 0, &[]),
        &frame(1, 4, 1, &block),  // HEADERS, and there are no more
        &frame(0, 1, 1, &[0; 5]), // DATA: an empty message of gRPC, and the end
    ]
    .concat();
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                break;
            }
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            let _ = stream.read_exact(&mut payload).await;
            answer.extend(&payload);
            let ends = matches!((head[3], head[4] & 1, head[8]), (0 | 1, 1, 1) | (3, _, 1) | (7, ..));
            if ends {
                break;
            }
        }
    };
    timeout(Duration::from_secs(5), read).await.expect("an answer, or the end of the connection");
    answer
}

/// How many calls reached each rpc, by its name.
async fn calls(service: &Service, rpc: &str) -> f64 {
    Metrics::of(service).await.sum("identity_calls_total", &[("rpc", rpc)])
}

/// Line 34.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_grpc_that_is_written_in_another_way_reaches_no_rpc() {
    const RPC: &str = "UserService.ListUsers";
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let token = format!("Bearer {}", admin.access_token.unwrap());
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("authorization", token.as_str())];
        let answer = http2(service, "/identity.v1.UserService/ListUsers", &headers).await;
        assert!(answer.windows(17).any(|part| part == b"admin@example.com"), "the way to write it");
        assert_eq!(calls(service, RPC).await.to_string(), "1");
        for path in [
            "identity.v1.UserService/ListUsers",
            "//identity.v1.UserService/ListUsers",
            "/identity.v1.UserService//ListUsers",
            "/identity.v1.UserService/ListUsers/",
            "/./identity.v1.UserService/ListUsers",
            "/identity.v1.UserService/./ListUsers",
            "/identity.v1.UserService/../identity.v1.UserService/ListUsers",
            "/identity.v1.UserService%2fListUsers",
            "/identity.v1.UserService%2FListUsers",
            "/identity.v1.UserService/List%55sers",
            "/identity%2ev1.UserService/ListUsers",
            "/Identity.v1.UserService/ListUsers",
            "/identity.v1.userservice/listusers",
            "/identity.v1.UserService/ListUsers%00",
            "/identity.v1.UserService/ListUsers;x",
            "/identity.v1.UserService\\ListUsers",
            "/identity.v1.UserService/ListUsers\\",
            "/grpc.health.v1.Health/../identity.v1.UserService/ListUsers",
            "http://localhost/identity.v1.UserService/ListUsers",
            "",
            "*",
        ] {
            let answer = http2(service, path, &headers).await;
            assert!(!answer.windows(17).any(|part| part == b"admin@example.com"), "{path}");
            assert_eq!(calls(service, RPC).await.to_string(), "1", "{path}");
        }
    })
    .await;
}

/// Line 34.
#[tokio::test(flavor = "multi_thread")]
async fn the_rules_are_the_same_for_a_path_without_its_slash_and_for_every_face_of_an_rpc() {
    for store in Store::all() {
        let service =
            Service::start_with(store, &[("RATE_LIMIT_VERIFICATION", "off"), ("RATE_LIMIT_API", "off")]).await;
        let user = service.user("user@example.com").await;
        let anyone = service.anonymous();
        // Each of them would be something else each time.
        let steady = rest_routes()
            .into_iter()
            .filter(|(rpc, ..)| !["AuthService.Logout", "UserService.DeleteUser"].contains(rpc));
        for (rpc, verb, path) in steady {
            let bare = path.trim_end_matches('/');
            for actor in [&anyone, &user] {
                let mut told = Vec::new();
                for path in [path.clone(), bare.to_owned(), format!("{bare}?x=/"), format!("{path}?/../x")] {
                    let request = actor.request(verb.clone(), &path).header("content-type", "application/json");
                    told.push(request.body("{\"x\":").send().await.unwrap().status().as_u16());
                }
                assert!(told.windows(2).all(|two| two[0] == two[1]), "{rpc}: {told:?}");
            }
        }
        service.stop().await;
    }
}
