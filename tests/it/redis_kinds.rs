//! The kinds of Redis: over TLS and with a password, behind Sentinel, a Cluster. Through each, two replicas count failed logins
//! together.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{
    Face, PASSWORD,
    authority::Authority,
    process::{Installation, Serving},
    redis, wait_until,
};

const WRONG: &str = "wr0ng-Passw0rd";
/// How long servers may take to find each other, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that keeps its files in a folder. It ends when this is dropped.
struct Server {
    port: u16,
    process: Child,
}

impl Server {
    /// Starts it; `None` where there is none to start.
    async fn start(folder: &Path, arguments: &[&str]) -> Option<Self> {
        let port = free_port();
        Self::start_at(port, folder, &[&["--port", &port.to_string()], arguments].concat()).await
    }

    async fn start_at(port: u16, folder: &Path, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", redis::program_or_skip()?]).args(arguments).current_dir(folder);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { port, process };
        wait_until(PATIENCE, "the server takes connections", async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })
        .await;
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port whose companion, 10000 above, is a port as well: there the nodes of a cluster speak to each other.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        if port < 50_000 && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 10_000)).is_ok() {
            return port;
        }
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("identity-test-").tempdir().unwrap()
}

/// Two replicas over one SQLite file, with this Redis.
fn replicas(folder: &Path, url: &str, settings: &[(&str, &str)]) -> [Installation; 2] {
    let database = format!("sqlite:{}", folder.join("identity.db").display());
    let common = [
        ("DATABASE_URL", database.as_str()),
        ("REDIS_URL", url),
        ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789"),
        ("RATE_LIMIT_LOGIN", "5/15m"),
        ("RATE_LIMIT_REGISTER", "off"),
        ("DEBUG", "true"),
    ];
    [(); 2].map(|()| Installation::with(&[&common, settings].concat()))
}

async fn until_cache_is(state: &str, replica: &Serving<'_>) {
    let anyone = replica.anonymous();
    wait_until(PATIENCE, state, async || {
        let answer = anyone.request(Method::GET, "/api/health/").send().await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()["cache"] == state
    })
    .await;
}

async fn status_of_login(replica: &Serving<'_>, email: &str, password: &str) -> u16 {
    let login = json!({ "email": email, "password": password });
    replica.anonymous().call(Face::Grpc, "AuthService.Login", login).await.status
}

/// Of failures at both, each knows.
async fn count_together(replicas: [&Serving<'_>; 2], email: &str) {
    for replica in replicas {
        until_cache_is("ok", replica).await;
    }
    replicas[0].anonymous().sign_up(email).await;
    for n in 0..5 {
        assert_eq!(status_of_login(replicas[n % 2], email, WRONG).await, 401, "failure {n}");
    }
    for replica in replicas {
        assert_eq!(status_of_login(replica, email, PASSWORD).await, 429, "{}", replica.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_a_redis_over_tls_with_a_password() {
    let (files, authority) = (folder(), Authority::new());
    authority.write_certificate(files.path());
    let port = free_port();
    let tls_port = port.to_string();
    let arguments = [
        ["--port", "0"],
        ["--tls-port", &tls_port],
        ["--tls-cert-file", "server.crt"],
        ["--tls-key-file", "server.key"],
        ["--tls-auth-clients", "no"],
        ["--requirepass", "p@ss:w/rd"],
    ];
    let Some(_server) = Server::start_at(port, files.path(), arguments.as_flattened()).await else { return };
    let (url, trust) = (format!("rediss://:p%40ss%3Aw%2Frd@127.0.0.1:{port}"), authority.file());
    let [one, two] = replicas(files.path(), &url, &[("SSL_CERT_FILE", &trust)]);
    let (one, two) = (one.serve().await, two.serve().await);
    count_together([&one, &two], "user@example.com").await;
    one.stop().await;
    two.stop().await;

    // Whom it doesn't trust, or who doesn't let it in, it does without.
    let stranger = Authority::new();
    let wrong = url.replace("w%2Frd", "w%2Frong");
    for (url, trust) in [(&url, &stranger.file()), (&wrong, &trust)] {
        let [one, _] = replicas(files.path(), url, &[("SSL_CERT_FILE", trust)]);
        let one = one.serve().await;
        until_cache_is("degraded", &one).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        until_cache_is("degraded", &one).await;
        assert_ne!(status_of_login(&one, "user@example.com", WRONG).await, 429);
        assert!(!one.log().contains("w/r") && !one.log().contains("w%2Fr"), "{}", one.log());
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_sentinel_to_the_redis_that_takes_over() {
    let files = folder();
    let [first, second, watcher] = ["first", "second", "watcher"].map(|name| files.path().join(name));
    for folder in [&first, &second, &watcher] {
        fs::create_dir(folder).unwrap();
    }
    let in_memory = ["--save", "", "--repl-diskless-sync-delay", "0"];
    let Some(first) = Server::start(&first, &in_memory).await else { return };
    let follows = format!("127.0.0.1 {}", first.port);
    let second = Server::start(&second, &[&in_memory[..], &["--replicaof", &follows]].concat()).await.unwrap();
    wait_until(PATIENCE, "the second follows the first", async || {
        tell(second.port, &["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let port = free_port();
    let watched = format!(
        "port {port}\nsentinel monitor users 127.0.0.1 {} 1\nsentinel down-after-milliseconds users 500\n\
         sentinel failover-timeout users 2000\n",
        first.port
    );
    fs::write(watcher.join("sentinel.conf"), watched).unwrap();
    let _sentinel = Server::start_at(port, &watcher, &["sentinel.conf", "--sentinel"]).await.unwrap();
    wait_until(PATIENCE, "Sentinel knows of both", async || {
        tell(port, &["SENTINEL", "REPLICAS", "users"]).contains(&second.port.to_string())
    })
    .await;

    let url = format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=users");
    let [one, two] = replicas(files.path(), &url, &[]);
    let (one, two) = (one.serve().await, two.serve().await);
    count_together([&one, &two], "user@example.com").await;
    drop(first);
    until_cache_is("degraded", &one).await;
    until_cache_is("degraded", &two).await;
    count_together([&one, &two], "another@example.com").await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_a_cluster() {
    let files = folder();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let folder = files.path().join(name);
        fs::create_dir(&folder).unwrap();
        let of_cluster = ["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let Some(node) = Server::start(&folder, &of_cluster).await else { return };
        nodes.push(node);
    }
    let ports: Vec<_> = nodes.iter().map(|node| node.port).collect();
    let places: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let arguments: Vec<_> = ["--cluster", "create"].into_iter().chain(places.iter().map(String::as_str)).collect();
    tell(ports[0], &[&arguments[..], &["--cluster-yes"]].concat());
    for port in &ports {
        wait_until(PATIENCE, "the cluster stands", async || {
            tell(*port, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
        })
        .await;
    }

    let url = format!("redis-cluster://{}?node={}&node={}", places[0], places[1], places[2]);
    let [one, two] = replicas(files.path(), &url, &[]);
    let (one, two) = (one.serve().await, two.serve().await);
    for n in 0..4 {
        count_together([&one, &two], &format!("user{n}@example.com")).await;
    }
    // What is counted lies on more than one of them.
    let held = ports.iter().filter(|port| !tell(**port, &["KEYS", "*limit*"]).trim().is_empty()).count();
    assert!(held > 1, "{held} of the nodes hold all");
    one.stop().await;
    two.stop().await;
}

/// What `redis-cli` has to say.
fn tell(port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    // A command for a whole cluster names its nodes itself.
    if arguments[0] != "--cluster" {
        command.args(["-p", &port.to_string()]);
    }
    let output = command.args(arguments).output().expect("redis-cli comes with the server");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
