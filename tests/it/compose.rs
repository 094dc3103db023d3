//! The image and the compose file, read: what they promise, and that the very command and environment in them make a service
//! that is well. It takes no engine for containers: nothing is built.

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path, time::Duration};

use identity::config::VARIABLES;
use image::ImageFormat;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use url::Url;

use crate::avatar::{encoded, picture, upload};
use crate::harness::{
    Actor, Face, PASSWORD, has_postgres,
    postgres::{self, PrivatePostgres},
    process::Installation,
    redis::PrivateRedis,
    skip,
    smtp::MailServer,
    wait_until,
};

const KEY: &str = "a-key-for-tests-that-is-long-enough-0123456789";

/// What stands in `.env`, and nothing else.
fn dotenv(postgres_password: &str) -> BTreeMap<&'static str, &str> {
    BTreeMap::from([("JWT_SECRET_KEY", KEY), ("POSTGRES_PASSWORD", postgres_password)])
}

fn compose() -> Value {
    serde_saphyr::from_str(&fs::read_to_string("docker-compose.yml").unwrap()).unwrap()
}

/// An instruction of the Dockerfile's last stage: what follows its name.
fn instruction(name: &str) -> Vec<String> {
    let text = fs::read_to_string("Dockerfile").unwrap();
    let (_, last) = text.rsplit_once("\nFROM ").unwrap();
    let last = format!("FROM {last}").replace("\\\n", " ");
    let lines = last.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    lines.collect()
}

/// The variables that the image sets.
fn image_environment() -> Vec<(String, String)> {
    let lines = instruction("ENV");
    let pairs = lines.iter().flat_map(|line| line.split(' ')).map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `["a", "b"]`, which no shell reads.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_else(|_| panic!("{json:?} would need a shell"))
}

/// `text` with its variables replaced, as compose does it; the error is what compose would say.
fn resolved(text: &str, set: &BTreeMap<&str, &str>) -> Result<String, String> {
    let Some((before, rest)) = text.split_once("${") else { return Ok(text.to_owned()) };
    let (variable, after) = rest.split_once('}').expect("a brace that closes");
    let (name, fallback) = variable.split_once(':').unwrap_or((variable, "-"));
    let value = match set.get(name).filter(|value| !value.is_empty()) {
        Some(value) => (*value).to_owned(),
        None => match fallback.split_at(1) {
            ("-", default) => default.to_owned(),
            ("?", why) => return Err(format!("{name}: {why}")),
            other => panic!("{other:?}"),
        },
    };
    Ok(before.to_owned() + &value + &resolved(after, set)?)
}

/// The environment of the service, unresolved.
fn environment(service: &str) -> BTreeMap<String, String> {
    serde_json::from_value(compose()["services"][service]["environment"].clone()).unwrap()
}

#[test]
fn the_image_runs_one_program_as_nobody_without_a_shell() {
    assert_eq!(instruction("USER"), ["65532:65532"]);
    assert_eq!(words(&instruction("ENTRYPOINT")[0]), ["identity"]);
    assert_eq!(words(&instruction("CMD")[0]), ["serve"]);
    let health = &instruction("HEALTHCHECK")[0];
    assert_eq!(words(health.split_once("CMD ").unwrap().1), ["identity", "healthcheck"]);
    assert!(instruction("RUN").is_empty() && instruction("FROM")[0].starts_with("gcr.io/distroless/"));
    // What it writes lies on the volume, which is made for that user.
    assert_eq!(instruction("ENV"), ["DATA_DIR=/data SQLITE_TMPDIR=/data"]);
    assert_eq!(instruction("VOLUME"), ["/data"]);
    assert!(instruction("COPY").contains(&"--from=build --chown=65532:65532 /volume/ /".to_owned()));
}

#[test]
fn the_image_is_built_with_the_toolchain_and_the_dependencies_of_the_project() {
    let text = fs::read_to_string("Dockerfile").unwrap();
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(text.contains(&format!("FROM rust:{version}-")), "{version}");
    let builds = text.matches("cargo build").count();
    assert_eq!((builds, text.matches("cargo build --locked --release").count()), (2, 2));
    // What the manifest names has to be there when the dependencies are built, be it empty; unless it says where.
    for bench in manifest.split("[[bench]]\nname = \"").skip(1) {
        let (name, rest) = bench.split_once('"').unwrap();
        let has_path = rest.trim_start().starts_with("path = ");
        assert!(has_path || text.contains(&format!(" benches/{name}.rs ")), "{name}");
    }
    // What it can be built for, by itself and by compose.
    let arguments: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("ARG ")).collect();
    assert_eq!(arguments, ["TARGET_CPU=\"\""]);
    assert_eq!(compose()["services"]["user-service"]["build"]["args"], json!({ "TARGET_CPU": "${TARGET_CPU:-}" }));
    // All that is copied is there, and nothing else gets near: no .env, and no history.
    let ignored = fs::read_to_string(".dockerignore").unwrap();
    let kept: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"));
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    for copy in copies {
        let mut sources: Vec<_> = copy.split(' ').collect();
        sources.pop();
        for source in sources {
            assert!(Path::new(source).exists(), "{source}");
            assert!(kept.contains(&source.split('/').next().unwrap()), "{source} is ignored");
        }
    }
    for kept in kept {
        assert!(Path::new(kept).exists() && !kept.starts_with('.'), "{kept}");
    }
}

#[test]
fn compose_has_the_names_of_the_original_and_keeps_the_service_in_bounds() {
    let compose = compose();
    let services = &compose["services"];
    for (service, container, image) in [
        ("user-service", "user_service", "identity"),
        ("postgres", "user_postgres", "postgres:16-alpine"),
        ("redis", "user_redis", "redis:7-alpine"),
        ("mailpit", "user_mailpit", "axllent/mailpit:v1."),
    ] {
        let of = &services[service];
        assert_eq!(of["container_name"], container);
        assert_eq!(of["restart"], "unless-stopped", "{service}");
        assert_eq!(of["networks"], json!(["microservices_network"]), "{service}");
        assert_eq!(of["security_opt"], json!(["no-new-privileges:true"]), "{service}");
        assert!(of["image"].as_str().unwrap().starts_with(image), "{service}");
        assert!(service == "user-service" || of["healthcheck"]["test"][0] == "CMD", "{service} has no healthcheck");
        assert!(of["privileged"].is_null() && of["network_mode"].is_null(), "{service}");
    }
    let service = &services["user-service"];
    assert_eq!((&service["read_only"], &service["cap_drop"]), (&json!(true), &json!(["ALL"])));
    assert_eq!(service["ports"], json!(["8000:8000"]));
    // What an operator is told of SIGTERM.
    assert_eq!(service["stop_grace_period"], "40s");
    assert_eq!(service["volumes"], json!(["user_media:/data"]));
    for store in ["postgres", "redis"] {
        assert_eq!(service["depends_on"][store]["condition"], "service_healthy");
        assert!(services[store]["ports"].is_null(), "{store} is nobody else's");
    }
    assert_eq!(services["redis"]["command"], json!(["redis-server", "--appendonly", "yes"]));
    assert_eq!(services["redis"]["volumes"], json!(["user_redis_data:/data"]));
    assert_eq!(services["postgres"]["volumes"], json!(["user_postgres_data:/var/lib/postgresql/data"]));
    for volume in ["user_postgres_data", "user_redis_data", "user_media"] {
        assert!(compose["volumes"].get(volume).is_some(), "{volume}");
    }
    assert_eq!(compose["networks"]["microservices_network"]["driver"], "bridge");
}

#[test]
fn every_variable_in_the_files_is_a_setting_and_no_secret_has_a_value_there() {
    let known = |name: &str| VARIABLES.iter().any(|variable| variable.name == name);
    for (name, _) in image_environment() {
        // Read by SQLite itself.
        assert!(known(&name) || name == "SQLITE_TMPDIR", "{name}");
    }
    let service = environment("user-service");
    for (name, value) in service.iter().chain(&environment("postgres")) {
        assert!(known(name), "{name}");
        let is_secret = name.contains("KEY") || name.contains("PASSWORD");
        if is_secret {
            let from_outside = [format!("${{{name}:?"), format!("${{{name}:-}}")];
            assert!(from_outside.iter().any(|begin| value.starts_with(begin)), "{name}={value}");
        }
    }
    // Without them nothing starts, and compose says which.
    for missing in ["JWT_SECRET_KEY", "POSTGRES_PASSWORD"] {
        let mut set = dotenv("secret");
        set.remove(missing);
        let said: Vec<_> = service.values().filter_map(|value| resolved(value, &set).err()).collect();
        assert!(matches!(said.as_slice(), [one] if one.starts_with(missing) && one.contains(".env")), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_and_the_environment_of_the_compose_file_make_a_service_that_is_well_and_mails() {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes a PostgreSQL server of its own, and there is no `initdb`");
    }
    let Some(redis) = PrivateRedis::start().await else { return };
    let mail = MailServer::start().await;
    let server = PrivatePostgres::start().await;
    let at = Url::parse(&server.url).unwrap();
    PgConnection::connect(&server.url).await.unwrap().execute("CREATE DATABASE user_service_db").await.unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    // As compose resolves it, but for where things are.
    let set = dotenv(at.password().unwrap());
    let mut installation = Installation::new();
    let data = installation.folder().join("data").display().to_string();
    let redis_at = redis.url().strip_prefix("redis://").unwrap().to_owned();
    for (name, value) in image_environment() {
        installation.set(&name, &value.replace("/data", &data));
    }
    for (name, value) in environment("user-service") {
        let value = resolved(&value, &set).unwrap();
        let value = value.replace("redis:6379", &redis_at).replace("/data", &data);
        let value = match (name.as_str(), value.as_str()) {
            ("POSTGRES_HOST", "postgres") | ("EMAIL_HOST", "mailpit") => "127.0.0.1".to_owned(),
            ("POSTGRES_PORT", "5432") => at.port().unwrap().to_string(),
            ("EMAIL_PORT", "1025") => mail.address.port().to_string(),
            _ => value,
        };
        installation.set(&name, &value);
    }
    installation.set("LISTEN_ADDR", &format!("127.0.0.1:{port}"));
    let health = words(instruction("HEALTHCHECK")[0].split_once("CMD ").unwrap().1);
    let health: Vec<_> = health[1..].iter().map(String::as_str).collect();
    installation.run(&health).await.expect(1);

    assert_eq!(words(&instruction("CMD")[0]), ["serve"]);
    let service = installation.serve().await;
    let well = r#"{"status":"ok","database":"ok","cache":"ok"}"#;
    wait_until(Duration::from_secs(5), "it is well", async || {
        installation.run(&health).await.expect(0).stdout.trim() == well
    })
    .await;
    assert!(service.greeting.contains("user_service_db"), "{}", service.greeting);
    let log = service.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("\"WARN\"") && !line.contains("slow statement")).collect();
    assert!(log.contains("\"INFO\"") && warnings.is_empty(), "{warnings:?}");

    let user: Actor = service.anonymous().sign_up("user@example.com").await;
    let mails = mail.take(1, Duration::from_secs(20)).await;
    assert!(mails[0].to == "user@example.com" && mails[0].text.contains("code is"), "{mails:?}");
    // Its pictures lie on the volume.
    upload(&user, Face::Rest, encoded(&picture(8, 8), ImageFormat::Png)).await.expect(200);
    assert_eq!(fs::read_dir(installation.folder().join("data/avatars")).unwrap().count(), 1);
    let login = json!({ "email": "user@example.com", "password": PASSWORD });
    service.anonymous().call(Face::Grpc, "AuthService.Login", login).await.expect(200);
    service.stop().await;
}
