//! What Prometheus reads at `/metrics`, who may, and that the page, the dashboard and the alerts name what is there.

#![allow(clippy::float_cmp, reason = "these are counts, and floats hold them to the last one")]

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use expect_test::expect_file;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Face, PASSWORD, Service, Store, everywhere, metrics::Metrics, on_each_store, redis::PrivateRedis, wait_until,
};

/// Hashing has the lowest priority, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(20);

fn face_label(face: Face) -> &'static str {
    match face {
        Face::Rest => "rest",
        Face::Grpc => "grpc",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_rpc_face_and_outcome() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let before = Metrics::of(service).await;
        user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        user.call(face, "UserService.GetUser", json!({ "id": 99 })).await.expect(404);
        service.anonymous().call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        let after = Metrics::of(service).await;
        let grew = |rpc: &str, on_rest: &str, on_grpc: &str| {
            let code = if face == Face::Rest { on_rest } else { on_grpc };
            let labels = [("rpc", rpc), ("face", face_label(face)), ("code", code)];
            after.sum("identity_calls_total", &labels) - before.sum("identity_calls_total", &labels)
        };
        assert_eq!(grew("ProfileService.GetMyProfile", "200", "OK"), 1.0);
        assert_eq!(grew("ProfileService.GetMyProfile", "401", "UNAUTHENTICATED"), 1.0);
        assert_eq!(grew("UserService.GetUser", "404", "NOT_FOUND"), 1.0);
        let labels = [("rpc", "ProfileService.GetMyProfile"), ("face", face_label(face))];
        assert_eq!(after.sum("identity_call_duration_seconds_count", &labels), 2.0);
        let took = after.sum("identity_call_duration_seconds_sum", &labels);
        assert!(took > 0.0 && took < 5.0, "{took}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_shows_and_one_whose_client_goes_away_ends_as_cancelled() {
    let service = Service::start_with(Store::Sqlite, &[("ARGON2_ITERATIONS", "50")]).await;
    for face in Face::ALL {
        let labels = [("rpc", "AuthService.Login"), ("face", face_label(face))];
        let under_way = async || Metrics::of(&service).await.sum("identity_calls_in_flight", &labels);
        let (anyone, login) = (service.anonymous(), json!({ "email": "nobody@example.com", "password": PASSWORD }));
        let call = tokio::spawn(async move { anyone.call(face, "AuthService.Login", login).await });
        wait_until(SOON, "the call to show", async || under_way().await == 1.0).await;
        call.abort();
        wait_until(SOON, "the call to end", async || under_way().await == 0.0).await;
        let ended = Metrics::of(&service).await;
        assert_eq!(ended.sum("identity_calls_total", &[labels[0], labels[1], ("code", "CANCELLED")]), 1.0, "{face:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_callers_make_up_shows_in_no_label() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("somebody@example.com").await;
    for n in 0..20 {
        let path = format!("/made/up/{n}?of=somebody@example.com");
        user.request(Method::GET, &path).send().await.unwrap();
        let method = Method::from_bytes(format!("MADEUP{n}").as_bytes()).unwrap();
        user.request(method, "/api/users/").send().await.unwrap();
        let _ = user.call_grpc_raw(&format!("/identity.v1.MadeUp{n}/Call"), Vec::new()).await;
        let _ = user.call_grpc_raw(&format!("/made.up.V{n}/Call"), Vec::new()).await;
    }
    let metrics = Metrics::of(&service).await;
    assert!(!metrics.text.to_lowercase().contains("made") && !metrics.text.contains("somebody"), "{}", metrics.text);
    let rpcs: BTreeSet<_> = metrics
        .series("identity_calls_total")
        .map(|(series, _)| series.split("rpc=\"").nth(1).unwrap().split('"').next().unwrap().to_owned())
        .collect();
    assert_eq!(rpcs, ["AuthService.Register", "Unknown"].map(str::to_owned).into());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_there_for_peers_that_may_read_them_and_for_nobody_behind_a_proxy() {
    let status_and_body = async |service: &Service, method: Method, path: &str, header: Option<&'static str>| {
        let mut request = service.anonymous().request(method, path);
        if let Some(header) = header {
            request = request.header(header, "for=127.0.0.1");
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers().len(), answer.text().await.unwrap())
    };
    for (from, may_read) in [
        (None, true),
        (Some("127.0.0.1"), true),
        (Some("10.0.0.0/8,127.0.0.0/8"), true),
        (Some("10.0.0.0/8,::1"), false),
        (Some("off"), false),
    ] {
        let settings: Vec<_> = from.iter().map(|from| ("METRICS_FROM", *from)).collect();
        let service = Service::start_with(Store::Sqlite, &settings).await;
        let ask = async |method, path, header| status_and_body(&service, method, path, header).await;
        assert_eq!(ask(Method::GET, "/metrics", None).await.0 == 200, may_read, "{from:?}");
        // Else it is as if there were no such path.
        for method in [Method::GET, Method::POST, Method::DELETE] {
            for header in [None, Some("forwarded"), Some("x-forwarded-for"), Some("via"), Some("x-real-ip")] {
                if may_read && method == Method::GET && header.is_none() {
                    continue;
                }
                let nothing = ask(method.clone(), "/nothing", header).await;
                assert_eq!(nothing.0, 404);
                assert_eq!(ask(method.clone(), "/metrics", header).await, nothing, "{from:?} {method} {header:?}");
            }
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_say_what_they_let_through_and_what_not() {
    for face in Face::ALL {
        let settings = [("RATE_LIMIT_LOGIN", "2/1m"), ("RATE_LIMIT_API", "6/1m")];
        let service = Service::start_with(Store::Sqlite, &settings).await;
        service.user("user@example.com").await;
        let guess = json!({ "email": "user@example.com", "password": "wr0ng-Passw0rd" });
        for _ in 0..3 {
            service.anonymous().call(face, "AuthService.Login", guess.clone()).await;
        }
        for _ in 0..8 {
            service.anonymous().call(face, "UserService.ListUsers", json!({})).await;
        }
        let metrics = Metrics::of(&service).await;
        let asked = |limit, outcome| {
            metrics.sum("identity_limit_checks_total", &[("limit", limit), ("outcome", outcome), ("counted", "here")])
        };
        assert_eq!((asked("login", "allowed"), asked("login", "refused")), (2.0, 1.0));
        // The registration counts as well.
        assert_eq!((asked("calls_of_client", "allowed"), asked("calls_of_client", "refused")), (6.0, 6.0));
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hashing_threads_and_their_queue_show() {
    let settings = [("HASH_THREADS", "1"), ("HASH_QUEUE", "1"), ("ARGON2_ITERATIONS", "20")];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    let logins: Vec<_> = (0..5)
        .map(|n| {
            let (anyone, login) =
                (service.anonymous(), json!({ "email": format!("{n}@example.com"), "password": PASSWORD }));
            tokio::spawn(async move { anyone.call(Face::Rest, "AuthService.Login", login).await.status })
        })
        .collect();
    wait_until(SOON, "the thread to be busy, and its queue full", async || {
        let metrics = Metrics::of(&service).await;
        metrics.sum("identity_hash_threads_busy", &[]) == 1.0 && metrics.sum("identity_hash_queue_length", &[]) == 1.0
    })
    .await;
    let mut refused = 0.0;
    for login in logins {
        refused += f64::from(u8::from(login.await.unwrap() == 503));
    }
    assert!(refused >= 1.0);
    // The thread counts once it is done, and whoever waits for it hears of it a little earlier.
    wait_until(SOON, "all to be counted, and the thread to rest", async || {
        let metrics = Metrics::of(&service).await;
        metrics.sum("identity_hash_duration_seconds_count", &[]) == 5.0 - refused
            && metrics.sum("identity_hash_threads_busy", &[]) == 0.0
    })
    .await;
    let metrics = Metrics::of(&service).await;
    assert_eq!(metrics.sum("identity_hash_refused_total", &[]), refused);
    assert_eq!(metrics.sum("identity_hash_threads", &[]), 1.0);
    assert_eq!(metrics.sum("identity_hash_queue_max", &[]), 1.0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_outbox_and_the_sessions_that_stand_are_counted() {
    for store in Store::all() {
        // Nobody listens on port 1.
        let settings = [("EMAIL_BACKEND", "smtp"), ("EMAIL_HOST", "127.0.0.1"), ("EMAIL_PORT", "1")];
        let service = Service::start_with(store, &settings).await;
        let user = service.user("user@example.com").await;
        service.login("user@example.com").await;
        let figures = async || {
            service.app.count_figures(true).await;
            Metrics::of(&service).await
        };
        let now = figures().await;
        let code = ("kind", "verification_code");
        assert_eq!(now.sum("identity_outbox_messages", &[code, ("state", "waiting")]), 1.0, "{store:?}");
        assert_eq!(now.sum("identity_outbox_oldest_seconds", &[code]), 0.0);
        assert_eq!(now.sum("identity_sessions", &[]), 2.0);
        assert!(now.series("identity_outbox_messages").count() > 10, "kinds without messages have a figure as well");

        user.call(Face::Rest, "AuthService.Logout", json!({})).await;
        service.clock.advance(chrono::Duration::minutes(5));
        let later = figures().await;
        assert_eq!(later.sum("identity_outbox_oldest_seconds", &[code]), 300.0);
        assert_eq!(later.sum("identity_sessions", &[]), 1.0);
        assert_eq!(later.sum("identity_feed_entries", &[("kind", "session")]), 1.0);

        service.clock.advance(chrono::Duration::hours(24));
        wait_until(Duration::from_secs(15), "the mail to be given up", async || {
            figures().await.sum("identity_outbox_messages", &[code, ("state", "given_up")]) == 1.0
        })
        .await;
        assert_eq!(figures().await.sum("identity_outbox_messages", &[code, ("state", "waiting")]), 0.0);

        // What nobody knows has no figure.
        service.app.db.close().await;
        let away = figures().await;
        assert_eq!(away.series("identity_outbox_messages").count() + away.series("identity_sessions").count(), 0);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pools_of_the_database_show() {
    on_each_store(async |service| {
        service.user("user@example.com").await;
        let tx = service.app.db.begin().await.unwrap();
        let metrics = Metrics::of(service).await;
        let pool = if service.app.db.backend_name() == "SQLite" { "write" } else { "main" };
        let connections = |state| metrics.sum("identity_database_connections", &[("pool", pool), ("state", state)]);
        let max = metrics.sum("identity_database_connections_max", &[("pool", pool)]);
        assert!(connections("in_use") >= 1.0 && connections("in_use") + connections("idle") <= max, "{}", metrics.text);
        assert_eq!(max, if pool == "write" { 1.0 } else { 8.0 });
        assert!(metrics.sum("identity_transaction_wait_seconds_count", &[]) >= 2.0);
        drop(tx);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_shows_whether_it_answers_and_what_was_counted_in_it() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let url = redis.url();
    let service =
        Service::start_with(Store::Sqlite, &[("REDIS_URL", url.as_str()), ("RATE_LIMIT_LOGIN", "5/15m")]).await;
    let up = async || Metrics::of(&service).await.sum("identity_redis_up", &[]) == 1.0;
    wait_until(SOON, "Redis", up).await;
    service.user("user@example.com").await;
    service.login("user@example.com").await;
    let metrics = Metrics::of(&service).await;
    assert_eq!(metrics.sum("identity_limit_checks_total", &[("limit", "login"), ("counted", "shared")]), 1.0);
    assert!(metrics.sum("identity_redis_commands_total", &[("outcome", "answered")]) >= 2.0);
    assert_eq!(metrics.sum("identity_redis_commands_total", &[("outcome", "failed")]), 0.0);
    redis.hang();
    wait_until(SOON, "it to show that Redis hangs", async || !up().await).await;
    let metrics = Metrics::of(&service).await;
    assert!(metrics.sum("identity_redis_commands_total", &[("outcome", "failed")]) >= 1.0, "{}", metrics.text);
    redis.wake();
    service.stop().await;
}

/// `docs/metrics.md` is written by this test: `UPDATE_EXPECT=1 scripts/test integration metrics`.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_metrics_lists_each_and_each_shows_after_a_little_traffic() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let url = redis.url();
    let service = Service::start_with(Store::Sqlite, &[("REDIS_URL", url.as_str())]).await;
    let mut page = String::from(
        "# Metrics\n\nWhat `GET /metrics` says, in the text format OpenMetrics 1.0. [operations.md](operations.md#metrics) says who may\n\
         read it. A histogram `x` has the series `x_bucket`, `x_sum` and `x_count`; times are in seconds.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in service.app.metrics.described() {
        let labels = if metric.labels.is_empty() { "" } else { &format!("`{}`", metric.labels.replace(", ", "`, `")) };
        writeln!(page, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.meaning).unwrap();
    }
    expect_file!["../../docs/metrics.md"].assert_eq(&page);

    let user = service.user("user@example.com").await;
    user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    service.app.count_figures(true).await;
    // As the listener does that has a certificate.
    service.app.metrics.connections.set_certificate_end(service.clock.now().timestamp() + 60);
    let metrics = Metrics::of(&service).await;
    let mut shown: BTreeSet<_> = metrics.families.iter().map(|(name, kind)| series_name(name, kind)).collect();
    for metric in service.app.metrics.described() {
        assert!(shown.remove(metric.name), "{} doesn't show: {}", metric.name, metrics.text);
        let name = if metric.kind == "histogram" { format!("{}_count", metric.name) } else { metric.name.to_owned() };
        let (series, _) = metrics.series(&name).next().unwrap_or_else(|| panic!("{name} has no sample"));
        for label in metric.labels.split(", ").filter(|label| !label.is_empty()) {
            assert!(series.contains(&format!("{label}=\"")), "{series} lacks {label}");
        }
    }
    assert!(shown.is_empty(), "{shown:?} is not on the page");
    let of_process = |name: &str| metrics.sum(name, &[]);
    assert!(of_process("process_resident_memory_bytes") > 1e6, "{}", metrics.text);
    assert!(of_process("process_cpu_seconds_total") > 0.0 && of_process("process_threads") >= 2.0);
    assert!((3.0..of_process("process_max_fds")).contains(&of_process("process_open_fds")));
    assert_eq!(metrics.sum("identity_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    service.stop().await;
}

/// What its samples are called, of a histogram without what is added.
fn series_name(family: &str, kind: &str) -> String {
    if kind == "counter" { format!("{family}_total") } else { family.to_owned() }
}

/// The names of metrics in a text: ours, those of the process, and Prometheus' own `up`.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_metric = |word: &&str| word.starts_with("identity_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_and_the_alerts_name_metrics_that_there_are_and_each_alert_has_its_advice() {
    let service = Service::start(Store::Sqlite).await;
    let mut known = BTreeSet::new();
    for metric in service.app.metrics.described() {
        match metric.kind.as_str() {
            "histogram" => known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", metric.name))),
            _ => known.extend([metric.name.to_owned()]),
        }
    }
    service.stop().await;

    let dashboard: Value = serde_json::from_str(include_str!("../../deploy/grafana/identity.json")).unwrap();
    let alerts = include_str!("../../deploy/prometheus/alerts.yml");
    let mut panels = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        if panel["type"] == "row" {
            continue;
        }
        panels += 1;
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap_or_else(|| panic!("{title} shows nothing"));
        for target in targets {
            let named = named_in(target["expr"].as_str().unwrap());
            assert!(!named.is_empty(), "{title} names no metric");
            assert!(named.is_subset(&known), "{title}: {:?}", named.difference(&known));
        }
    }
    assert!(panels > 10);

    let page = include_str!("../../docs/operations.md");
    let mut named = Vec::new();
    let mut expressions = 0;
    for line in alerts.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            named.push(name);
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            expressions += 1;
            let metrics = named_in(expression);
            assert!(metrics.is_subset(&known), "{expression}: {:?}", metrics.difference(&known));
            assert!(!metrics.is_empty() || expression.starts_with("up{"), "{expression}");
        } else if let Some(link) = line.strip_prefix("runbook: ") {
            assert_eq!(link, format!("docs/operations.md#{}", named.last().unwrap().to_lowercase()));
        }
    }
    assert_eq!(named.len(), expressions);
    let with_advice: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("### Identity")).collect();
    let without_prefix: Vec<_> = named.iter().map(|name| name.strip_prefix("Identity").unwrap()).collect();
    assert_eq!(with_advice, without_prefix, "each alert has its advice on the page, in the same order");
}
