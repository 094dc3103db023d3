//! Connections that are there to do harm: too many, too slow, too much. Each is ended within a bound, and nobody else notices.

mod figures;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use identity::{metrics::connections::Connections, server::Patience};
use image::{DynamicImage, ImageFormat, RgbImage};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    avatar::{encoded, upload},
    harness::{
        Face, Service, Store,
        authority::Authority,
        floods::{Flood, floods},
        frames::{
            DATA, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, PING, PREFACE, RST_STREAM,
            SETTINGS, Speaker, frame, request, settings, window_update,
        },
        metrics::Metrics,
        process::Installation,
        wait_until,
    },
};

/// For what would take minutes.
const IMPATIENT: Patience = Patience {
    head: Duration::from_millis(800),
    http1_idle: Duration::from_millis(1500),
    http2_idle: Duration::from_millis(1500),
    crowded_idle: Duration::from_millis(300),
    answer: Duration::from_millis(800),
    write: Duration::from_millis(800),
    look_every: Duration::from_millis(100),
};
/// When what is due after 0.8 s must have come, on a machine that is busy.
const SOON: Duration = Duration::from_secs(6);
/// How long anybody may wait for an answer, whatever others do.
const PROMPT: Duration = Duration::from_secs(2);

/// When sockets that say little must be closed.
const LIMIT: Duration = Duration::from_secs(15);

const HEALTH: &str = "GET /api/health/ HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Somebody who does no harm, and calls all the time on connections of its own.
struct Innocent {
    stop: CancellationToken,
    calls: JoinHandle<u32>,
}

impl Innocent {
    async fn start(service: &Service) -> Self {
        let (stop, address) = (CancellationToken::new(), service.address);
        let user = service.user("innocent@example.com").await;
        let until = stop.clone();
        let calls = tokio::spawn(async move {
            let mut calls = 0;
            while !until.is_cancelled() {
                for face in Face::ALL {
                    let user = user.at(address);
                    let call = user.call(face, "ProfileService.GetMyProfile", json!({}));
                    timeout(PROMPT, call).await.expect("somebody else waits").expect(200);
                    calls += 1;
                }
                sleep(Duration::from_millis(50)).await;
            }
            calls
        });
        Self { stop, calls }
    }

    /// How many calls were answered, each within two seconds.
    async fn stop(self) -> u32 {
        self.stop.cancel();
        self.calls.await.unwrap()
    }
}

fn connections(service: &Service) -> &Connections {
    &service.app.metrics.connections
}

/// How many connections were cut off for this.
fn cut(service: &Service, why: &str) -> usize {
    let metrics = Metrics::read(service.app.metrics.render().unwrap());
    metrics.sum("identity_connections_cut_total", &[("why", why)]).to_string().parse().expect("a whole number")
}

/// After how long the other end closes this, whatever it says until then.
async fn closed_after(mut stream: TcpStream, bound: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let mut said = [0; 4096];
    timeout(bound, async { while stream.read(&mut said).await.is_ok_and(|count| count > 0) {} })
        .await
        .ok()
        .map(|()| begun.elapsed())
}

async fn connect(address: SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

/// Sends the head of a request, a byte a second: after how long the other end closes.
async fn trickles(socket: TcpStream, bound: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let (mut from, mut to) = socket.into_split();
    let talk = async {
        let _ = to.write_all(b"GET /api/health/ HTTP/1.1\r\nx: ").await;
        while to.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    let listen = async { while from.read_u8().await.is_ok() {} };
    let ended = async {
        tokio::select! { () = talk => {}, () = listen => {} }
    };
    timeout(bound, ended).await.ok().map(|()| begun.elapsed())
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sockets_that_say_little_are_closed_within_fifteen_seconds_while_others_are_served() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write_certificate(folder.path());
    let (certificate, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    let tls = [("TLS_CERT_FILE", certificate.to_str().unwrap()), ("TLS_KEY_FILE", key.to_str().unwrap())];
    let many = ("MAX_CONNECTIONS_PER_CLIENT", "2000");
    let service = Service::start_with(Store::Sqlite, &[many]).await;
    let with_tls = Service::start_with(Store::Sqlite, &[&tls[..], &[many]].concat()).await;
    let innocent = Innocent::start(&service).await;

    let (plain, tls) = (service.address, with_tls.address);
    let mut sockets = JoinSet::new();
    for n in 0..1000 {
        // One by one: a queue that is full is the kernel's affair.
        let mut socket = connect(if n % 5 == 4 { tls } else { plain }, "").await;
        sockets.spawn(async move {
            match n % 5 {
                0 => {}
                // A head that never ends, a byte a second.
                1 | 2 => return trickles(socket, LIMIT).await,
                // HTTP/2 that says hello and no more.
                3 => socket.write_all(&[PREFACE, &settings(&[])].concat()).await.unwrap(),
                // TLS whose handshake stops after its first byte.
                _ => socket.write_all(&[0x16]).await.unwrap(),
            }
            closed_after(socket, LIMIT).await
        });
    }
    let closed = sockets.join_all().await;
    assert!(closed.iter().all(Option::is_some), "{} stay open", closed.iter().filter(|after| after.is_none()).count());
    let longest = closed.into_iter().flatten().max().unwrap();
    let served = innocent.stop().await;
    eprintln!("the last was closed after {longest:?}; {served} other calls were answered meanwhile");
    assert!(served > 20);
    assert!(cut(&service, "silent") >= 800);
    service.stop().await;
    with_tls.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_begins_on_an_old_connection_must_end_as_soon() {
    let service = Service::start_with_patience(IMPATIENT, Store::Sqlite, &[]).await;
    let mut stream = connect(service.address, HEALTH).await;
    let mut said = [0; 4096];
    assert!(stream.read(&mut said).await.unwrap() > 0);
    stream.write_all(b"GET /api/health/ HTT").await.unwrap();
    closed_after(stream, SOON).await.expect("it is closed");
    assert_eq!(cut(&service, "head"), 1);
    // An empty line begins none.
    let mut stream = connect(service.address, HEALTH).await;
    assert!(stream.read(&mut said).await.unwrap() > 0);
    stream.write_all(b"\r\n").await.unwrap();
    sleep(IMPATIENT.head + Duration::from_millis(300)).await;
    stream.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(timeout(SOON, stream.read(&mut said)).await.unwrap().unwrap() > 0, "it was closed for an empty line");
    assert_eq!(cut(&service, "head"), 1);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_connections_and_a_proxy_any_number() {
    let few = ("MAX_CONNECTIONS_PER_CLIENT", "5");
    for (settings, most) in [
        (&[few][..], 5),
        (&[few, ("TRUSTED_PROXIES", "127.0.0.0/8")], 20),
        (&[few, ("RATE_LIMIT_EXEMPT", "127.0.0.1")], 20),
    ] {
        let service = Service::start_with(Store::Sqlite, settings).await;
        let mut open = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(service.address).await.unwrap();
            // Who is turned away may find the connection reset already.
            let _ = stream.write_all(HEALTH.as_bytes()).await;
            if matches!(stream.read_u8().await, Ok(b'H')) {
                open.push(stream);
            }
        }
        assert_eq!(open.len(), most, "{settings:?}");
        assert_eq!(usize::try_from(connections(&service).open.get()).unwrap(), most);
        // One that ends leaves its seat to another.
        drop(open.pop());
        let seats = i64::try_from(most - 1).unwrap();
        wait_until(PROMPT, "a seat", async || connections(&service).open.get() == seats).await;
        assert_eq!(connect(service.address, HEALTH).await.read_u8().await.unwrap(), b'H');
        drop(open);
        wait_until(PROMPT, "nobody", async || connections(&service).open.get() == 0).await;
        assert_eq!(cut(&service, "too_many"), 20 - most);
        service.stop().await;
    }
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_once_that_a_client_wants_too_many_connections_and_names_the_setting_for_proxies() {
    let installation = Installation::with(&[("MAX_CONNECTIONS_PER_CLIENT", "1")]);
    let service = installation.serve().await;
    let mut only = connect(service.address, HEALTH).await;
    assert_eq!(only.read_u8().await.unwrap(), b'H');
    for _ in 0..3 {
        let refused = TcpStream::connect(service.address).await.unwrap();
        closed_after(refused, SOON).await.expect("it is closed");
    }
    let log = service.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("as many connections as it may")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("TRUSTED_PROXIES") && warnings[0].contains("127.0.0.1"), "{log}");
    drop(only);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_than_there_may_be_are_served_and_the_next_comes_when_one_ends() {
    let service = Service::start_with(Store::Sqlite, &[("MAX_CONNECTIONS", "3")]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(service.address, HEALTH).await;
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
        open.push(stream);
    }
    let mut next = connect(service.address, HEALTH).await;
    assert!(timeout(Duration::from_millis(300), next.read_u8()).await.is_err(), "it has to wait");
    drop(open.pop());
    assert_eq!(timeout(PROMPT, next.read_u8()).await.expect("its turn").unwrap(), b'H');
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_nothing_with_a_seat_leaves_it_soon_where_seats_are_scarce() {
    let patience = Patience {
        crowded_idle: Duration::from_millis(300),
        look_every: Duration::from_millis(100),
        ..Patience::default()
    };
    let within = Duration::from_millis(1500);
    // One of two seats is taken by whoever waits for the next connection.
    for (seats, is_crowded) in [("2", true), ("400", false)] {
        let service = Service::start_with_patience(patience, Store::Sqlite, &[("MAX_CONNECTIONS", seats)]).await;
        let http1 = connect(service.address, HEALTH).await;
        assert_eq!(closed_after(http1, within).await.is_some(), is_crowded, "HTTP/1, of {seats}");
        let mut http2 = Speaker::connect(service.address, &[]).await;
        http2.say(&request(1, "/livez", &[])).await.unwrap();
        http2.hear_of(HEADERS).await;
        assert_eq!(timeout(within, http2.hear_of(GOAWAY)).await.is_ok(), is_crowded, "HTTP/2, of {seats}");
        drop(http2);
        service.stop().await;
    }
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_128_streams_at_most() {
    let service = Service::start(Store::Sqlite).await;
    // Without a window no answer can end, and so no stream.
    let mut speaker = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let promised = speaker.hear_of(SETTINGS).await;
    let limit: Vec<_> = promised
        .payload
        .chunks(6)
        .filter(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes())
        .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
        .collect();
    assert_eq!(limit, [128]);
    speaker.say(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    for n in 0..129 {
        speaker.say(&request(2 * n + 1, "/livez", &[])).await.unwrap();
    }
    let refused = speaker.hear_of(RST_STREAM).await;
    let refused_stream = 7_u32.to_be_bytes();
    assert_eq!((refused.stream, &refused.payload[..]), (257, &refused_stream[..]), "REFUSED_STREAM");
    drop(speaker);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_the_connection_while_others_are_served() {
    let service = Service::start(Store::Sqlite).await;
    let innocent = Innocent::start(&service).await;
    let mut ours = 0;
    for Flood { what, first, next, is_ours } in floods() {
        let mut speaker = Speaker::connect(service.address, &[]).await;
        speaker.say(&first).await.unwrap();
        let after = speaker.flood(next, SOON).await.unwrap_or_else(|| panic!("{what}: it goes on"));
        eprintln!("{what}: ended after {after:?}");
        ours += usize::from(is_ours);
    }
    let served = innocent.stop().await;
    eprintln!("{served} other calls were answered meanwhile");
    // Of the others the library took care.
    wait_until(PROMPT, "the floods", async || cut(&service, "flood") >= ours).await;
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_calls_much_is_no_flood() {
    let off = [("RATE_LIMIT_API", "off"), ("MAX_CONNECTIONS_PER_CLIENT", "2")];
    let service = Service::start_with(Store::Sqlite, &off).await;
    let mut speaker = Speaker::connect(service.address, &[]).await;
    // A thousand calls, each with frames beside it as careful clients send them, and one in ten taken back.
    for batch in 0..10_u32 {
        let (mut unanswered, mut said) = (BTreeSet::new(), Vec::new());
        for n in 0..100 {
            let stream = 2 * (batch * 100 + n) + 1;
            said.extend([request(stream, "/livez", &[]), window_update(0, 100), frame(PING, 0, 0, &[0; 8])].concat());
            if n % 10 == 0 {
                said.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            } else {
                unanswered.insert(stream);
            }
        }
        speaker.say(&said).await.unwrap();
        while !unanswered.is_empty() {
            let heard = speaker.hear().await.expect("the connection stays");
            assert!(heard.kind != RST_STREAM || !unanswered.contains(&heard.stream), "{heard:?}");
            if heard.flags & END_STREAM != 0 {
                unanswered.remove(&heard.stream);
            }
        }
    }
    drop(speaker);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_end_the_connection() {
    let service = Service::start_with_patience(IMPATIENT, Store::Sqlite, &[]).await;
    let ask = [request(1, "/api/health/", &[]), request(3, "/api/openapi.json", &[])].concat();

    // HTTP/2 with no window at all, and with one that opens byte by byte.
    let mut closed = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    closed.say(&ask).await.unwrap();
    let (_, heard) = closed.end(SOON).await.expect("it is ended");
    assert!(heard.iter().any(|frame| frame.kind == HEADERS) && heard.iter().all(|frame| frame.kind != DATA));
    let mut tiny = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    tiny.say(&ask).await.unwrap();
    let more = || [window_update(1, 1), window_update(3, 1)].concat();
    let (from, mut to) = tiny.0.into_split();
    let opens = tokio::spawn(async move {
        while to.write_all(&more()).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    timeout(SOON, opens).await.expect("it is ended").unwrap();
    drop(from);
    assert_eq!(cut(&service, "answer"), 2);

    // HTTP/1 that asks and asks, and reads nothing: neither end can write any more.
    let deaf = TcpStream::connect(service.address).await.unwrap();
    let ask = "GET /api/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    let deaf = Arc::new(deaf);
    let asks = tokio::spawn({
        let deaf = Arc::clone(&deaf);
        async move {
            loop {
                deaf.writable().await.unwrap();
                match deaf.try_write(ask.as_bytes()) {
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
        }
    });
    wait_until(SOON, "the end of the deaf one", async || cut(&service, "answer") >= 3).await;
    timeout(SOON, asks).await.expect("it is closed").unwrap();
    drop(deaf);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_nobody_is_cut_off_for_another() {
    let proxy = [("TRUSTED_PROXIES", "127.0.0.0/8"), ("RATE_LIMIT_API", "off")];
    let service = Service::start_with_patience(IMPATIENT, Store::Sqlite, &proxy).await;
    let mut speaker = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    // Many clients ping and take back more than one may.
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(3000);
    speaker.say(&pings).await.unwrap();
    // One takes nothing of its answer; the others do, for longer than an answer may lie.
    speaker.say(&request(1, "/api/health/", &[])).await.unwrap();
    let begun = Instant::now();
    let mut stream = 3;
    while begun.elapsed() < 3 * IMPATIENT.answer {
        speaker.say(&[request(stream, "/livez", &[]), window_update(stream, 10_000)].concat()).await.unwrap();
        loop {
            let heard = speaker.hear().await.expect("the others are cut off for one");
            if heard.stream == stream && heard.flags & END_STREAM != 0 && heard.kind != PING {
                break;
            }
        }
        stream += 2;
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cut(&service, "answer") + cut(&service, "flood"), 0);
    // Alone, the one is cut off as ever.
    speaker.end(SOON).await.expect("it is ended");
    assert_eq!(cut(&service, "answer"), 1);
    service.stop().await;
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn connections_with_nothing_under_way_are_told_good_bye_and_those_that_wait_for_us_stay() {
    let service = Service::start_with_patience(IMPATIENT, Store::Sqlite, &[]).await;
    // Nothing new for longer than anybody may idle, and than an answer may take: it is we who have nothing to say.
    let mut health = HealthClient::new(service.anonymous().channel);
    let mut watched = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    watched.next().await.unwrap().unwrap();
    let still_watches = tokio::spawn(async move { timeout(Duration::from_secs(4), watched.next()).await });

    let mut http1 = connect(service.address, HEALTH).await;
    let mut said = [0; 4096];
    assert!(http1.read(&mut said).await.unwrap() > 0);
    let after = closed_after(http1, SOON).await.expect("it is closed");
    assert!(after >= Duration::from_secs(1), "after {after:?}");
    let mut http2 = Speaker::connect(service.address, &[]).await;
    http2.say(&request(1, "/api/health/", &[])).await.unwrap();
    let (after, heard) = http2.end(SOON).await.expect("it is closed");
    assert!(after >= Duration::from_secs(1), "after {after:?}");
    let good_bye = heard.iter().find(|frame| frame.kind == GOAWAY).expect("a good-bye");
    assert_eq!(good_bye.payload[4..8], [0; 4], "NO_ERROR");

    assert!(still_watches.await.unwrap().is_err(), "who watches was cut off");
    service.stop().await;
}

/// Something that does not get small.
fn noise() -> DynamicImage {
    let mut state = 1_u32;
    let noise = RgbImage::from_fn(500, 500, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [red, green, blue, _] = state.to_be_bytes();
        image::Rgb([red, green, blue])
    });
    noise.into()
}

/// Line 51.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_pictures_has_few_of_them_in_memory_and_keeps_them_from_nobody_else() {
    let service = Service::start_with(Store::Sqlite, &[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let user = service.user("user@example.com").await;
    let profile = upload(&user, Face::Rest, encoded(&noise(), ImageFormat::Png)).await.expect(200);
    let path = profile["avatar"].as_str().unwrap().split_once("/media/").unwrap().1;
    let path = format!("/media/{path}");
    let size = user.request(Method::GET, &path).send().await.unwrap().bytes().await.unwrap().len();
    assert!(size > 100_000, "{size} bytes");

    // Fifty that nobody takes: four are answered, and the others wait for those.
    let mut deaf = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    for n in 0..50 {
        deaf.say(&request(2 * n + 1, &path, &[("x-forwarded-for", "203.0.113.1")])).await.unwrap();
    }
    for _ in 0..4 {
        deaf.hear_of(HEADERS).await;
    }
    assert!(timeout(Duration::from_millis(500), deaf.hear_of(HEADERS)).await.is_err(), "a fifth is answered");
    // Others notice nothing.
    let another = user.coming_from("203.0.113.2");
    let taken = timeout(PROMPT, another.request(Method::GET, &path).send()).await.expect("soon").unwrap();
    assert_eq!(taken.bytes().await.unwrap().len(), size);
    // Who takes none is told soon to come back later.
    let same = user.coming_from("203.0.113.1");
    let refused = timeout(2 * PROMPT, same.request(Method::GET, &path).send()).await.expect("soon").unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    // With the connection the places are free.
    drop(deaf);
    let taken = timeout(PROMPT, same.request(Method::GET, &path).send()).await.expect("soon").unwrap();
    assert_eq!(taken.bytes().await.unwrap().len(), size);
    // A proxy that doesn't say for whom it asks is no client: there may be many behind it.
    let mut proxy = Speaker::connect(service.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    for n in 0..10 {
        proxy.say(&request(2 * n + 1, &path, &[])).await.unwrap();
    }
    let answered = async {
        for _ in 0..10 {
            proxy.hear_of(HEADERS).await;
        }
    };
    timeout(Duration::from_millis(1500), answered).await.expect("all are answered before anybody is refused");
    service.stop().await;
}

/// Line 52.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_in_our_words() {
    let service = Service::start(Store::Sqlite).await;
    let long = "x".repeat(100_000);
    let many = "x: y\r\n".repeat(200);
    for (request, status, error) in [
        ("NONSENSE\r\n\r\n".to_owned(), "400 Bad Request", "Malformed request"),
        ("GET / HTTP/3.7\r\n\r\n".to_owned(), "400 Bad Request", "Malformed request"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), "400 Bad Request", "Malformed request"),
        ("G\u{1}T / HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request", "Malformed request"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(),
            "400 Bad Request",
            "Malformed request",
        ),
        (format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), "414 URI Too Long", "The URI is too long"),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
            "431 Request Header Fields Too Large",
            "The headers are too large",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
            "431 Request Header Fields Too Large",
            "The headers are too large",
        ),
    ] {
        // On a new connection, and on one that served a call before.
        for before in ["", HEALTH] {
            let mut stream = connect(service.address, before).await;
            if !before.is_empty() {
                let mut said = [0; 4096];
                assert!(stream.read(&mut said).await.unwrap() > 0);
            }
            // The last of it may find the connection closed.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            timeout(PROMPT, stream.read_to_end(&mut answer)).await.expect("it is closed").unwrap();
            let answer = String::from_utf8(answer).unwrap();
            let what = &request[..request.len().min(40)];
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what:?}: {answer:?}"));
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{what:?}: {head}");
            assert_eq!(serde_json::from_str::<Value>(body).unwrap(), json!({ "error": error }), "{what:?}");
            let lines = [
                "content-type: application/json".to_owned(),
                "connection: close".to_owned(),
                "cache-control: no-store".to_owned(),
                "x-content-type-options: nosniff".to_owned(),
                format!("content-length: {}", body.len()),
            ];
            for line in lines {
                assert_eq!(head.lines().filter(|l| **l == line).count(), 1, "{what:?}: {line:?} in {head}");
            }
            assert_eq!(head.lines().filter(|line| line.starts_with("content-length")).count(), 1, "{head}");
            assert_eq!(head.lines().filter(|line| line.starts_with("x-request-id: ")).count(), 1, "{head}");
        }
    }
    service.stop().await;
}
