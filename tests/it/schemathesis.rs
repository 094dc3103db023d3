//! The OpenAPI document against the service, by Schemathesis: what it allows is taken, what it doesn't is refused, and all
//! answers are as it says. What is left out, and why, stands in `tests/schemathesis`.

use std::{path::Path, time::Duration};

use crate::harness::{
    process::{Installation, run_within},
    python,
};

/// So many requests are made up for each operation.
const EXAMPLES: &str = "200";
/// How long that may take.
const BOUND: Duration = Duration::from_mins(9);

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_as_its_openapi_document_says() {
    let Some(python) = python() else { return };
    let mut installation = Installation::new();
    for limit in ["RATE_LIMIT_API", "RATE_LIMIT_LOGIN", "RATE_LIMIT_REGISTER", "RATE_LIMIT_VERIFICATION"] {
        installation.set(limit, "off");
    }
    installation.set("SUPERUSER_PASSWORD", crate::harness::PASSWORD);
    installation.run(&["createsuperuser", "--email", "admin@example.com"]).await.expect(0);
    let service = installation.serve().await;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let mut command = installation.command(&python);
    // One worker: in Python 3.11 before 3.11.8 two threads that read code at once fail (python/cpython issue 106905).
    command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(rules.join("schemathesis.toml"))
        .args(["run", "--max-examples", EXAMPLES, "--continue-on-failure", "--no-color", "--workers", "1"])
        .arg(format!("http://{}/api/openapi.json", service.address))
        .env("PYTHONPATH", &rules);
    let ended = run_within(BOUND, command, "").await;
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("Test cases"), "{}", ended.stdout);
    service.stop().await;
}
