//! The command line: serve, and what an operator does beside it.

mod import;
mod keys;

use std::{
    io::{IsTerminal, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use clap::{Parser, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use self::keys::KeysCommand;
use crate::{
    api,
    app::App,
    clock::Clock,
    config::{Config, ConfigErrors, MailTransport, Store},
    db::{Db, DbOptions},
    domain::{
        outbox::{self, GivenUp},
        user::EmailAddress,
    },
    entity::outbox::State,
    error::{Cause, Chain, Error},
    mail::Mailer,
    model::password::Password,
    server::{Server, tls},
    telemetry,
};

/// A user and identity service: gRPC and REST on one port.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Settings come from the environment and from .env; `identity config` shows them."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve gRPC and REST (the default).
    Serve,
    /// Bring the database's schema up to date, and exit.
    Migrate,
    /// Make a superuser. The password is asked for, or taken from `SUPERUSER_PASSWORD` or standard input.
    Createsuperuser {
        /// The e-mail address.
        #[arg(long, value_parser = EmailAddress::parse)]
        email: EmailAddress,
    },
    /// Make users in bulk, from lines of JSON.
    ///
    /// Each line is an object. `email` is required; `password_hash` is what the service or Django stored (without one nobody
    /// can log in until a password is set); `first_name`, `last_name`, `is_active`, `is_verified`, `is_freelancer`, `is_seller`,
    /// `is_moderator`, `is_staff`, `is_superuser`, `date_joined`, `bio`, `is_public`, `timezone` and `streak_visibility` are as
    /// in the REST API.
    ///
    /// All lines are checked before anything is written. Users whose address has an account are skipped, so a run that broke off is
    /// simply run again. Nobody is mailed, and no event is sent.
    Import {
        /// The file; standard input if not given.
        file: Option<PathBuf>,
    },
    /// Show the mails and events that wait or were given up; give those that were given up another try.
    Outbox {
        #[command(subcommand)]
        command: Option<OutboxCommand>,
    },
    /// Make keys for tokens, and show those in force.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Print the key that signs events, for the service that receives them. It is a secret.
    EventKey,
    /// Ask the service that runs here whether it is well; exit 0 if so, else 1.
    Healthcheck,
    /// Print the settings in force, secrets as fingerprints.
    Config,
    /// Print the `OpenAPI` document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// Send again what was given up.
    Requeue {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The message with this id.
    #[arg(long)]
    id: Option<i64>,
    /// All that were given up.
    #[arg(long)]
    all: bool,
}

/// Why a command ended without success.
pub enum Failure {
    /// The configuration, all its mistakes at once: exit 2.
    Config(ConfigErrors),
    /// Anything else: exit 1.
    Other(Cause),
}

impl<E: Into<Cause>> From<E> for Failure {
    fn from(error: E) -> Self {
        let cause: Cause = error.into();
        match cause.downcast::<ConfigErrors>() {
            Ok(errors) => Self::Config(*errors),
            Err(cause) => Self::Other(cause),
        }
    }
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What to tell the operator, with the exit code.
    pub async fn run(self) -> Result<(), Failure> {
        match self.command.unwrap_or(Command::Serve) {
            // Boxed, as futures of this size weigh on every command.
            Command::Serve => Box::pin(serve()).await,
            Command::Migrate => migrate().await,
            Command::Createsuperuser { email } => Box::pin(create_superuser(email)).await,
            Command::Import { file } => Box::pin(import::import(file)).await,
            Command::Outbox { command: None } => show_outbox().await,
            Command::Outbox { command: Some(OutboxCommand::Requeue { which }) } => requeue(&which).await,
            Command::Keys { command } => command.run(),
            Command::EventKey => Ok(say(Config::from_environment()?.keys()?.of_events().expose_secret())?),
            Command::Healthcheck => healthcheck().await,
            Command::Config => show_config(),
            Command::Openapi => Ok(say(api::OPENAPI)?),
        }
    }
}

async fn serve() -> Result<(), Failure> {
    let config = Config::from_environment()?;
    let telemetry = telemetry::serve(&config.log, config.telemetry.traces.as_ref())?;
    warn(&config);
    let db = migrated(&config).await?;
    let (address, store) = (config.server.listen_addr, config.database.store.to_string());
    let mail = match &config.mail.transport {
        MailTransport::Console => "printed here".to_owned(),
        MailTransport::File(folder) => format!("into {}", folder.display()),
        MailTransport::Smtp(server) => format!("by {}:{}", server.host, server.port),
    };
    let mailer = Mailer::new(&config.mail)?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let app = Arc::new(App::new(config, Clock::System, db, mailer).await?);
    let server = Server::bind(app, address).await?;
    let address = server.local_addr()?;
    let grpc = server.grpc_addr()?.map(|address| format!("  gRPC   alone on {address}\n")).unwrap_or_default();
    let stop = stop_on_signal()?;
    say(&format!(
        "identity {} serves gRPC and REST on {address}\n{grpc}  store  {store}\n  limits counted in process\n  mail   {mail}\n  docs   {scheme}://{}/api/docs/",
        env!("CARGO_PKG_VERSION"),
        reachable(address),
    ))?;
    let ended = server.run(stop).await;
    telemetry.finish().await;
    Ok(ended?)
}

/// What SIGTERM and SIGINT cancel. They are heard from here on, and no longer end the process by themselves.
fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: no new calls, those under way may finish");
        stopped.cancel();
    });
    Ok(stop)
}

async fn migrate() -> Result<(), Failure> {
    let config = configured()?;
    let db = connect(&config).await?;
    let applied = db.migrate().await.map_err(|error| at(&config, &error))?;
    db.close().await;
    match applied.as_slice() {
        [] => say("nothing to do: the schema is up to date")?,
        names => say(&format!("applied {}", names.join(", ")))?,
    }
    Ok(())
}

async fn create_superuser(email: EmailAddress) -> Result<(), Failure> {
    let mut config = configured()?;
    let password = match config.superuser_password.take() {
        Some(password) => password,
        None => ask_for_password()?,
    };
    let password =
        Password::parse_new(password.expose_secret(), &[email.as_str()]).map_err(|reasons| reasons.join("\n  "))?;
    let db = migrated(&config).await?;
    let mailer = Mailer::new(&config.mail)?;
    let app = Arc::new(App::new(config, Clock::System, db, mailer).await?);
    let made = app.create_superuser(email, password).await;
    app.close().await;
    match made {
        Ok(user) => Ok(say(&format!("superuser {} has id {}", user.email, user.id))?),
        Err(Error::EmailTaken) => Err("a user with this email already exists".into()),
        Err(error) => Err(error.into()),
    }
}

/// Typed twice on a terminal; elsewhere the first line of standard input.
fn ask_for_password() -> Result<SecretString, Cause> {
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().take(4096).read_to_string(&mut text)?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err("no password: set SUPERUSER_PASSWORD, or give it on standard input".into());
        }
        return Ok(line.into());
    }
    let password = SecretString::from(rpassword::prompt_password("Password: ")?);
    let again = SecretString::from(rpassword::prompt_password("Password (again): ")?);
    if password.expose_secret() == again.expose_secret() { Ok(password) } else { Err("the passwords differ".into()) }
}

/// What waits in the outbox and what was given up, a line each.
async fn show_outbox() -> Result<(), Failure> {
    /// More than anybody reads, and little enough to hold in memory.
    const SHOWN: u64 = 1000;
    let config = configured()?;
    let db = up_to_date(&config, connect(&config).await?).await?;
    let unsent = outbox::unsent(&db, SHOWN).await;
    db.close().await;
    let unsent = unsent?;
    if unsent.count == 0 {
        return Ok(say("nothing waits, and nothing was given up")?);
    }
    let now = Clock::System.now();
    say(&format!(
        "{:>8}  {:<18} {:>8}  {:<9} {:>6} {:>8}  {:>8}  last error",
        "id", "kind", "user", "state", "age", "attempts", "next"
    ))?;
    for row in &unsent.rows {
        let (state, next) = match row.state {
            State::Abandoned => ("given up", "-".to_owned()),
            _ if row.leased_until.is_some_and(|until| until > now) => ("sending", "-".to_owned()),
            _ => ("waits", in_short(row.next_attempt_at - now)),
        };
        say(&format!(
            "{:>8}  {:<18} {:>8}  {state:<9} {:>6} {:>8}  {next:>8}  {}",
            row.id,
            row.kind,
            row.user_id.map_or("-".to_owned(), |id| id.to_string()),
            in_short(now - row.created_at),
            row.attempts,
            row.last_error.as_deref().unwrap_or("-"),
        ))?;
    }
    let more = unsent.count.saturating_sub(unsent.rows.len() as u64);
    if more > 0 {
        say(&format!("and {more} more"))?;
    }
    Ok(())
}

/// `40s`, `12m`, `5h`, `3d`; what is past is `now`.
fn in_short(time: TimeDelta) -> String {
    match time.num_seconds() {
        ..=0 => "now".into(),
        secs @ 1..=119 => format!("{secs}s"),
        secs @ 120..=7199 => format!("{}m", secs / 60),
        secs @ 7200..=172_799 => format!("{}h", secs / 3600),
        secs => format!("{}d", secs / 86_400),
    }
}

async fn requeue(which: &Which) -> Result<(), Failure> {
    let config = configured()?;
    let db = up_to_date(&config, connect(&config).await?).await?;
    let given_up = match which {
        Which { id: Some(id), .. } => GivenUp::One(*id),
        Which { all: _, id: None } => GivenUp::All,
    };
    let requeued = outbox::requeue(&db, given_up, Clock::System.now()).await;
    db.close().await;
    match (requeued?, given_up) {
        (0, GivenUp::One(id)) => Err(format!("no message {id} was given up: nothing changed").into()),
        (0, GivenUp::All) => Ok(say("nothing was given up")?),
        (1, _) => Ok(say("1 message will be tried again")?),
        (count, _) => Ok(say(&format!("{count} messages will be tried again"))?),
    }
}

/// One request by hand: an image without a shell has no curl either.
async fn healthcheck() -> Result<(), Failure> {
    let config = Config::from_environment()?;
    let address = reachable(config.server.listen_addr);
    let answer = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        match &config.tls {
            Some(tls) => ask_for_health(tls::connect(tls, stream).await?).await,
            None => ask_for_health(stream).await,
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), answer)
        .await
        .map_err(|_| format!("{address} did not answer within 5 seconds"))?
        .map_err(|error| format!("{address}: {error}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    say(body)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{address} is not well").into()) }
}

async fn ask_for_health(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<String, Cause> {
    let request = "GET /api/health/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(65_536).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn show_config() -> Result<(), Failure> {
    let config = Config::from_environment()?;
    for warning in &config.warnings {
        say(&format!("# {warning}"))?;
    }
    let mut group = "";
    for setting in config.describe()? {
        if setting.variable.group != group {
            group = setting.variable.group;
            say(&format!("\n# {group}"))?;
        }
        let mark = if setting.is_set { "" } else { "  # by default" };
        say(&format!("{}={}{mark}", setting.variable.name, setting.value))?;
    }
    Ok(())
}

/// The configuration, with the log started as it says.
fn configured() -> Result<Config, Failure> {
    let config = Config::from_environment()?;
    telemetry::start(&config.log)?;
    warn(&config);
    Ok(config)
}

fn warn(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// The database with its schema up to date; brought there, unless `AUTO_MIGRATE=false`.
async fn migrated(config: &Config) -> Result<Db, Cause> {
    let db = connect(config).await?;
    if config.database.auto_migrate {
        db.migrate().await.map_err(|error| at(config, &error))?;
    }
    up_to_date(config, db).await
}

/// The database, if it has the whole schema.
async fn up_to_date(config: &Config, db: Db) -> Result<Db, Cause> {
    let pending = db.pending_migrations().await.map_err(|error| at(config, &error))?;
    if pending.is_empty() {
        return Ok(db);
    }
    Err(format!("the database lacks {}: run `identity migrate`", pending.join(", ")).into())
}

async fn connect(config: &Config) -> Result<Db, Cause> {
    let database = &config.database;
    let url = match &database.store {
        // Encoded, since a folder may be called anything, `100%?` included.
        Store::Sqlite { path } => {
            format!("sqlite:{}", percent_encode(path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC))
        }
        Store::Postgres { url, .. } => url.expose_secret().to_owned(),
    };
    let options = DbOptions {
        url,
        read_url: database.read_url.as_ref().map(|url| url.expose_secret().to_owned()),
        max_connections: database.max_connections,
        max_age: database.connection_max_age,
        ..DbOptions::default()
    };
    Db::connect(&options).await.map_err(|error| at(config, &error))
}

/// An error of the database, with its place: an operator may have several.
fn at(config: &Config, error: &Error) -> Cause {
    format!("{}: {}", config.database.store, Chain(error)).into()
}

/// An address to call the service at that listens there.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// A line on standard output.
fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}
