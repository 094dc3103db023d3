//! The service under test: the real one, on a real socket, with a clock that stands still until it is moved.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use identity::{
    app::App,
    clock::Clock,
    config::Config,
    db::{Db, DbOptions},
    domain::user::EmailAddress,
    error::Cause,
    mail::{Mail, Mailer, Outgoing},
    model::password::Password,
    server::{Patience, Server},
};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Actor, Face, PASSWORD, redis,
    stores::{Database, Store, migrated_database},
    wait_for, wait_until,
};

/// What holds in every test that says nothing else. Limits stand in the way of tests of something else.
const SETTINGS: [(&str, &str); 4] = [
    ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789"),
    ("RATE_LIMIT_REGISTER", "off"),
    ("RATE_LIMIT_LOGIN", "off"),
    ("DEBUG", "true"),
];

pub struct Service {
    pub app: Arc<App>,
    pub clock: Clock,
    pub address: SocketAddr,
    /// Where it serves gRPC alone, if it does.
    pub grpc_address: Option<SocketAddr>,
    /// What it has sent.
    pub mails: Outgoing,
    database: Arc<Database>,
    settings: Vec<(String, String)>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Cause>>,
}

impl Service {
    pub async fn start(store: Store) -> Self {
        Self::start_with(store, &[]).await
    }

    /// With settings of its own, as the environment would give them.
    pub async fn start_with(store: Store, settings: &[(&str, &str)]) -> Self {
        Self::start_with_patience(Patience::default(), store, settings).await
    }

    /// With so much patience for clients that do nothing.
    pub async fn start_with_patience(patience: Patience, store: Store, settings: &[(&str, &str)]) -> Self {
        let mut settings: Vec<_> =
            SETTINGS.iter().chain(settings).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        if store == Store::Postgres && settings.iter().all(|(name, _)| name != "REDIS_URL") {
            settings.extend(redis::place().await);
        }
        let database = Arc::new(migrated_database(store).await);
        Box::pin(Self::run_with(patience, database, settings, Clock::frozen(now()))).await
    }

    /// Over the database at this URL, which is migrated if need be; without Redis.
    pub async fn start_over(url: &str) -> Self {
        Self::start_over_with(url, &[]).await
    }

    pub async fn start_over_with(url: &str, settings: &[(&str, &str)]) -> Self {
        let settings = SETTINGS.iter().chain(settings).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Box::pin(Self::run(Arc::new(Database::at(url)), settings, Clock::frozen(now()))).await
    }

    /// Another replica over the same database, with the same clock.
    pub async fn replica(&self) -> Self {
        Box::pin(Self::run(Arc::clone(&self.database), self.settings.clone(), self.clock.clone())).await
    }

    /// As [`Service::replica`], with these settings in place of those of this one.
    pub async fn replica_with(&self, changed: &[(&str, &str)]) -> Self {
        let mut settings = self.settings.clone();
        settings.extend(changed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        Box::pin(Self::run(Arc::clone(&self.database), settings, self.clock.clone())).await
    }

    /// Stops it, and starts it anew over the same database.
    pub async fn restart(self) -> Self {
        self.restart_with(&[]).await
    }

    /// Stops it, and starts it anew over the same database, with these settings in place of those of before.
    pub async fn restart_with(self, changed: &[(&str, &str)]) -> Self {
        let (database, mut settings, clock) = (Arc::clone(&self.database), self.settings.clone(), self.clock.clone());
        settings.extend(changed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        self.stop().await;
        Box::pin(Self::run(database, settings, clock)).await
    }

    async fn run(database: Arc<Database>, settings: Vec<(String, String)>, clock: Clock) -> Self {
        Self::run_with(Patience::default(), database, settings, clock).await
    }

    async fn run_with(
        patience: Patience,
        database: Arc<Database>,
        settings: Vec<(String, String)>,
        clock: Clock,
    ) -> Self {
        let set: HashMap<_, _> = settings.iter().cloned().collect();
        let config = Config::load(|name| match name {
            "DATABASE_URL" => Some(database.url.clone()),
            _ => set.get(name).cloned(),
        })
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let options = DbOptions {
            url: database.url.clone(),
            read_url: config.database.read_url.as_ref().map(|url| url.expose_secret().to_owned()),
            max_connections: 8,
            ..DbOptions::default()
        };
        let db = Db::connect(&options).await.unwrap();
        db.migrate().await.unwrap();
        let (mut mailer, mails) = Mailer::memory(&config.mail).unwrap();
        if set.contains_key("EMAIL_BACKEND") {
            mailer = Mailer::new(&config.mail).unwrap();
        }
        let app = Arc::new(Box::pin(App::new(config, clock.clone(), db, mailer)).await.unwrap());
        if let (Some(redis), true) = (&app.redis, set.contains_key("REDIS_PREFIX")) {
            wait_until(Duration::from_secs(5), "the shared Redis", async || redis.ping().await).await;
        }
        let mut server = Server::bind(Arc::clone(&app), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        server.patience = patience;
        let (address, grpc_address) = (server.local_addr().unwrap(), server.grpc_addr().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { server.run(stop).await }
        });
        Self { app, clock, address, grpc_address, mails, database, settings, stop, running }
    }

    /// Asks it to stop, as SIGTERM does, and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// Waits until it stops by itself, for `bound` at most. Returns what it says of why.
    pub async fn end(self, bound: Duration) -> String {
        let ended = timeout(bound, self.running).await.unwrap_or_else(|_| panic!("it still runs after {bound:?}"));
        ended.unwrap().expect_err("it was not told to stop").to_string()
    }

    /// Sets the clock to `at`.
    pub fn set_clock(&self, at: DateTime<Utc>) {
        let Clock::Frozen(micros) = &self.clock else { panic!("the clock of a test is frozen") };
        micros.store(at.timestamp_micros(), Ordering::SeqCst);
    }

    /// The mails sent to `email`, once there are `count` of them.
    pub async fn mails_to(&self, email: &str, count: usize) -> Vec<Mail> {
        wait_for(Duration::from_secs(5), &format!("{count} mails to {email}"), async || {
            let mails: Vec<_> = self.mails.lock().unwrap().iter().filter(|mail| mail.to == email).cloned().collect();
            (mails.len() >= count).then_some(mails)
        })
        .await
    }

    /// The code in the `nth` mail to `email`, counted from 1.
    pub async fn code_mailed_to(&self, email: &str, nth: usize) -> String {
        let mail = self.mails_to(email, nth).await.remove(nth - 1);
        let (_, code) = mail.text.split_once("code is ").unwrap_or_else(|| panic!("no code: {}", mail.text));
        let (code, _) = code.split_once('.').unwrap_or_else(|| panic!("no code: {}", mail.text));
        assert!(code.len() == 6 && code.bytes().all(|digit| digit.is_ascii_digit()), "{}", mail.text);
        code.to_owned()
    }

    /// Whoever comes without a token.
    pub fn anonymous(&self) -> Actor {
        Actor::new(self.address)
    }

    /// A new user, logged in.
    pub async fn user(&self, email: &str) -> Actor {
        self.anonymous().sign_up(email).await
    }

    /// A new superuser, logged in.
    pub async fn admin(&self, email: &str) -> Actor {
        let address = EmailAddress::parse(email).unwrap();
        Box::pin(self.app.create_superuser(address, Password::parse_new(PASSWORD, &[]).unwrap())).await.unwrap();
        self.login(email).await
    }

    /// A new session of a user who is there already.
    pub async fn login(&self, email: &str) -> Actor {
        let mut actor = self.anonymous();
        let login = json!({ "email": email, "password": PASSWORD });
        let answer = actor.call(Face::Rest, "AuthService.Login", login).await.expect(200);
        actor.take_tokens(&answer);
        actor
    }
}

#[expect(clippy::disallowed_methods, reason = "where the frozen clock begins")]
fn now() -> DateTime<Utc> {
    Utc::now()
}
