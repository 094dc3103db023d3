//! The pages for operators say what is so.

use std::{fmt::Write, net::TcpListener, time::Duration};

use expect_test::expect_file;
use identity::config::{NOT_YET, VARIABLES};
use rustix::process::Signal;

use crate::harness::process::Installation;

const COMMANDS: [&[&str]; 9] = [
    &["serve"],
    &["migrate"],
    &["createsuperuser", "--email", "admin@example.com"],
    &["outbox"],
    &["outbox", "requeue", "--all"],
    &["event-key"],
    &["healthcheck"],
    &["config"],
    &["openapi"],
];

/// `docs/settings.md` is written by this test: `UPDATE_EXPECT=1 scripts/test integration operations`.
#[test]
fn the_page_of_settings_lists_every_variable() {
    let mut page = String::from(
        "# Settings\n\nEvery environment variable that the service reads. `identity config` prints the values in force.\n\n\
         For the TLS of mail, events, buckets and Redis, `SSL_CERT_FILE` and `SSL_CERT_DIR` name other certificates than those of\n\
         the system. They are read from the environment alone, not from `.env`.\n",
    );
    let mut group = "";
    for variable in VARIABLES {
        if variable.group != group {
            group = variable.group;
            write!(page, "\n## {group}\n\n| variable | by default | value | what it does |\n|---|---|---|---|\n")
                .unwrap();
        }
        let later = if NOT_YET.contains(&variable.name) { " *Nothing acts upon it yet.*" } else { "" };
        let help = variable.help.split_whitespace().collect::<Vec<_>>().join(" ");
        writeln!(page, "| `{}` | {} | {} | {help}{later} |", variable.name, variable.default.text(), variable.form)
            .unwrap();
    }
    expect_file!["../../docs/settings.md"].assert_eq(&page);
}

/// The rows of the page's table of exit codes: the code, of what, and when.
fn exit_codes() -> Vec<(i32, &'static str, &'static str)> {
    let table = include_str!("../../docs/operations.md").split_once("| exit code | of | when |\n|---|---|---|\n");
    let rows = table.expect("the table").1.lines().take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].parse().unwrap(), cells[1], cells[2])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_ends_with_the_exit_codes_on_the_page() {
    let rows = exit_codes();
    assert_eq!(rows.len(), 6, "a row more: say below how it comes about");
    for (code, of, when) in rows {
        eprintln!("{code} of {of}: {when}");
        match (of, when.split([',', ' ']).next().unwrap()) {
            ("`serve`", "SIGTERM") => told_to_stop(code).await,
            ("`serve`", "it") => can_not_serve(code).await,
            ("any other command", "it") if when.starts_with("it did") => others_succeed(code).await,
            ("any other command", "it") if when.starts_with("it could not") => others_fail(code).await,
            ("any command but `openapi`", "mistakes") => {
                for command in COMMANDS.iter().filter(|command| **command != ["openapi"]) {
                    let installation = Installation::with(&[("LISTEN_ADDR", "here"), ("LOG_LEVEL", "loud")]);
                    let said = installation.run(command).await.expect(code).stderr;
                    assert!(said.contains("LISTEN_ADDR") && said.contains("LOG_LEVEL"), "{command:?}: {said}");
                }
            }
            ("any command", "a") => {
                for command in COMMANDS {
                    let said = Installation::new().run(&[command, &["--nonsense"]].concat()).await.expect(code).stderr;
                    assert!(said.contains("--nonsense"), "{command:?}: {said}");
                }
            }
            other => panic!("{other:?}: say here how it comes about"),
        }
    }
}

async fn told_to_stop(code: i32) {
    for signal in [Signal::TERM, Signal::INT] {
        let installation = Installation::new();
        let mut service = installation.serve().await;
        service.signal(signal);
        assert_eq!(service.exit_code(Duration::from_secs(20)).await, Some(code), "{signal:?}: {}", service.log());
    }
}

async fn can_not_serve(code: i32) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Nobody listens on port 1.
    let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
    let key = ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789");
    for (settings, reason) in [
        (vec![("LISTEN_ADDR", address.as_str())], address.as_str()),
        (vec![("DATABASE_URL", nowhere), key], "127.0.0.1:1"),
        (vec![("AUTO_MIGRATE", "false")], "identity migrate"),
    ] {
        let said = Installation::with(&settings).run(&["serve"]).await.expect(code).stderr;
        assert!(said.contains(reason), "{settings:?}: {said}");
    }
}

async fn others_succeed(code: i32) {
    let installation = Installation::with(&[("SUPERUSER_PASSWORD", crate::harness::PASSWORD)]);
    let service = installation.serve().await;
    let address = service.address.to_string();
    for command in COMMANDS.iter().filter(|command| **command != ["serve"] && **command != ["healthcheck"]) {
        installation.run(command).await.expect(code);
    }
    let beside = Installation::with(&[("LISTEN_ADDR", &address)]);
    beside.run(&["healthcheck"]).await.expect(code);
    service.stop().await;
}

async fn others_fail(code: i32) {
    let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
    let unreachable = Installation::with(&[
        ("LISTEN_ADDR", "127.0.0.1:1"),
        ("DATABASE_URL", nowhere),
        ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789"),
        ("SUPERUSER_PASSWORD", crate::harness::PASSWORD),
    ]);
    for command in
        [&["migrate"][..], &["createsuperuser", "--email", "admin@example.com"], &["outbox"], &["healthcheck"]]
    {
        let said = unreachable.run(command).await.expect(code).stderr;
        assert!(said.contains("127.0.0.1:1"), "{command:?}: {said}");
    }
    let installation = Installation::new();
    installation.run(&["migrate"]).await.expect(0);
    let said = installation.run(&["outbox", "requeue", "--id", "7"]).await.expect(code).stderr;
    assert!(said.contains("no message 7"), "{said}");
}
