//! TLS on the listeners: what it takes, what it refuses, and new certificates while it runs.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::harness::{
    Face, Service, Store,
    authority::Authority,
    metrics::Metrics,
    process::Installation,
    tls::{Client, get_over},
    wait_until,
};

/// How long the service may take to see that a file changed.
const SEEN_WITHIN: Duration = Duration::from_secs(15);

/// A folder with the pair in it.
fn put(folder: &Path, (certificate, key): (String, String)) {
    fs::write(folder.join("server.crt"), certificate).unwrap();
    fs::write(folder.join("server.key"), key).unwrap();
}

/// An installation whose listener has a certificate of this authority.
fn installation(authority: &Authority, settings: &[(&str, &str)]) -> Installation {
    let mut installation = Installation::with(settings);
    authority.write_certificate(installation.folder());
    installation.set("TLS_CERT_FILE", "server.crt");
    installation.set("TLS_KEY_FILE", "server.key");
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn every_face_answers_by_tls_of_both_versions_and_nothing_answers_without() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write_certificate(folder.path());
    let (certificate, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    let settings = [("TLS_CERT_FILE", certificate.to_str().unwrap()), ("TLS_KEY_FILE", key.to_str().unwrap())];
    let service = Service::start_with(Store::Sqlite, &[&settings[..], &[("GRPC_ADDR", "127.0.0.1:0")]].concat()).await;
    for version in [&TLS12, &TLS13] {
        let client = Client::speaking(&authority, version);
        for (protocol, address) in
            [("h2", service.address), ("http/1.1", service.address), ("h2", service.grpc_address.unwrap())]
        {
            let stream = client.connect(address, protocol).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(session.alpn_protocol(), Some(protocol.as_bytes()));
        }
        let answer = client.get(service.address, "/api/health/").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for address in [service.address, service.grpc_address.unwrap()] {
            let health = client.actor(address).call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await;
            health.expect(401);
        }
    }
    // Who forgot about TLS is told nothing, and soon.
    for words in ["GET /api/health/ HTTP/1.1\r\nhost: localhost\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut said)).await.expect("it is closed");
        assert!(!String::from_utf8_lossy(&said).contains("HTTP"), "{said:?}");
    }
    // Prometheus is told how long the certificate lasts.
    let answer = Client::trusting(&authority).get(service.address, "/metrics").await.unwrap();
    let metrics = Metrics::read(answer.split_once("\r\n\r\n").unwrap().1.to_owned());
    assert!(metrics.sum("identity_tls_certificate_left_seconds", &[]) > 86_400.0, "{answer}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_without_a_restart_and_a_bad_one_is_not() {
    let (first, second, third) = (Authority::new(), Authority::new(), Authority::new());
    let installation = installation(&first, &[]);
    let service = installation.serve().await;
    assert!(service.greeting.contains("https://127.0.0.1"), "{}", service.greeting);
    let is_trusted_by =
        async |authority: &Authority| Client::trusting(authority).connect(service.address, "http/1.1").await.is_ok();
    assert!(is_trusted_by(&first).await && !is_trusted_by(&second).await);
    let mut before = Client::trusting(&first).connect(service.address, "http/1.1").await.unwrap();
    assert!(get_over(&mut before, "/api/health/", false).await.unwrap().starts_with("HTTP/1.1 200"));

    // Seen without a word.
    put(installation.folder(), second.certificate());
    wait_until(SEEN_WITHIN, "the second certificate", async || is_trusted_by(&second).await).await;
    assert!(!is_trusted_by(&first).await);
    assert!(get_over(&mut before, "/api/health/", false).await.unwrap().starts_with("HTTP/1.1 200"), "old connections");

    // A key that is not its key; then no certificate; then nothing at all.
    let says = async |word: &str| {
        service.signal(Signal::HUP);
        wait_until(SEEN_WITHIN, word, async || service.log().contains(word)).await;
        assert!(is_trusted_by(&second).await, "the certificate in force stays: {}", service.log());
    };
    put(installation.folder(), (third.certificate().0, second.certificate().1));
    says("is not the key of the certificate").await;
    fs::write(installation.folder().join("server.crt"), "nonsense").unwrap();
    says("has no certificate in it").await;
    fs::remove_file(installation.folder().join("server.crt")).unwrap();
    says("can't be read").await;

    put(installation.folder(), third.certificate());
    service.signal(Signal::HUP);
    wait_until(SEEN_WITHIN, "the third certificate", async || is_trusted_by(&third).await).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_can_not_be_used_is_a_mistake_of_the_configuration() {
    let authority = Authority::new();
    let (good, key) = authority.certificate();
    let files = |certificate: &str, key: &str| (certificate.to_owned(), key.to_owned());
    for (pair, variable, wrong) in [
        (files("", &key), "TLS_CERT_FILE", "has no certificate in it"),
        (files("-----BEGIN CERTIFICATE-----\nAA", &key), "TLS_CERT_FILE", "is no PEM"),
        (files(&good, "no key"), "TLS_KEY_FILE", "has no private key in it"),
        (files(&good, &authority.certificate().1), "TLS_KEY_FILE", "is not the key of the certificate"),
        (authority.certificate_of(2020..2021), "TLS_CERT_FILE", "the certificate ended at"),
        (authority.certificate_of(2090..2091), "TLS_CERT_FILE", "the certificate is valid from"),
    ] {
        let installation = installation(&authority, &[]);
        put(installation.folder(), pair);
        let said = installation.run(&["serve"]).await.expect(2).stderr;
        assert!(said.contains(variable) && said.contains(wrong), "{wrong}: {said}");
    }
    for (settings, variable, wrong) in [
        (&[("TLS_KEY_FILE", "")][..], "TLS_KEY_FILE", "it is not set, and TLS_CERT_FILE is"),
        (&[("TLS_CERT_FILE", "")], "TLS_CERT_FILE", "it is not set, and TLS_KEY_FILE is"),
        (&[("TLS_CERT_FILE", "elsewhere.crt")], "TLS_CERT_FILE", "can't be read"),
        (&[("TLS_CLIENT_AUTH", "required")], "TLS_CLIENT_CA_FILE", "it is not set, and TLS_CLIENT_AUTH requires"),
        (&[("TLS_CLIENT_CA_FILE", "server.key")], "TLS_CLIENT_CA_FILE", "has no certificate in it"),
        (
            &[("TLS_CLIENT_CA_FILE", "server.crt"), ("TLS_CERT_FILE", ""), ("TLS_KEY_FILE", "")],
            "TLS_CERT_FILE",
            "TLS_CLIENT_CA_FILE needs it",
        ),
    ] {
        let mut installation = installation(&authority, &[]);
        for (name, value) in settings {
            installation.set(name, value);
        }
        let said = installation.run(&["serve"]).await.expect(2).stderr;
        assert!(said.contains(variable) && said.contains(wrong), "{wrong}: {said}");
    }
}

/// What the log says of calls that came with a certificate.
fn certificates_in(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["span"]["certificate"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_may_show_a_certificate_or_have_to_and_the_log_names_them() {
    let (authority, strange) = (Authority::new(), Authority::new());
    let by_name = Client::showing(&authority, authority.certificate_for(&["billing.internal", "10.0.0.7"]));
    let by_common_name = Client::showing(&authority, authority.certificate_by_common_name("Reports"));
    let stranger = Client::showing(&authority, strange.certificate_for(&["billing.internal"]));
    let nobody = Client::trusting(&authority);
    let expired = Client::showing(&authority, authority.certificate_of(2020..2021));
    for (auth, of_nobody) in [("optional", true), ("required", false)] {
        let settings = [
            ("TLS_CLIENT_CA_FILE", authority.file()),
            ("TLS_CLIENT_AUTH", auth.to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let installation = installation(&authority, &settings);
        let service = installation.serve().await;
        for (client, is_let_in, who) in [
            (&by_name, true, "a name"),
            (&by_common_name, true, "a common name"),
            (&nobody, of_nobody, "nobody"),
            (&stranger, false, "a stranger"),
            (&expired, false, "an old one"),
        ] {
            let answer = client.get(service.address, "/api/users/").await;
            let is_answered = answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 401"));
            assert_eq!(is_answered, is_let_in, "{who} by REST, {auth}: {}", service.log());
            let answer =
                client.actor(service.address).call_grpc_raw("/identity.v1.UserService/ListUsers", vec![]).await;
            let is_answered = answer.is_err_and(|status| status.code() == Code::Unauthenticated);
            assert_eq!(is_answered, is_let_in, "{who} by gRPC, {auth}: {}", service.log());
        }
        let mut named = certificates_in(&service.log());
        named.dedup();
        assert_eq!(named, ["billing.internal", "Reports"], "{}", service.log());

        // The service itself is no stranger.
        let mut beside = Installation::with(&settings);
        for file in ["server.crt", "server.key"] {
            fs::copy(installation.folder().join(file), beside.folder().join(file)).unwrap();
        }
        beside.set("LISTEN_ADDR", &service.address.to_string());
        beside.set("TLS_CERT_FILE", "server.crt");
        beside.set("TLS_KEY_FILE", "server.key");
        let said = beside.run(&["healthcheck"]).await.expect(0).stdout;
        assert!(said.contains(r#""status":"ok""#), "{said}");
        // With files that are half renewed it has nothing to show, which matters only where it has to.
        fs::write(beside.folder().join("server.key"), authority.certificate().1).unwrap();
        beside.run(&["healthcheck"]).await.expect(i32::from(!of_nobody));
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_for_grpc_serves_grpc_alone() {
    let service = Service::start_with(Store::Sqlite, &[("GRPC_ADDR", "127.0.0.1:0")]).await;
    let user = service.user("user@example.com").await;
    let address = service.grpc_address.unwrap();
    let there = user.at(address);
    let profile = there.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    assert_eq!(profile["user"]["email"], "user@example.com");
    for path in ["/api/profile/me/", "/api/health/", "/metrics", "/livez", "/media/avatars/x.png", "/api/docs/", "/"] {
        let answer = there.request(reqwest::Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        assert!(answer.headers().contains_key("x-request-id"), "{path}");
        let said: Value = answer.json().await.unwrap();
        assert_eq!(said, json!({ "error": "Not found", "detail": "This port is for gRPC alone" }), "{path}");
    }
    // What it counts shows where Prometheus asks.
    let metrics = Metrics::of(&service).await;
    assert!(metrics.sum("identity_calls_total", &[("rpc", "ProfileService.GetMyProfile"), ("face", "grpc")]) >= 1.0);
    service.stop().await;
}
