//! `.env`, and the settings in it: taken or refused, and never shown where they are secret.
#![no_main]

use std::{fs, sync::LazyLock};

use identity::config::{Config, Environment, VARIABLES};
use libfuzzer_sys::{Corpus, fuzz_target};
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));
const SECRETS: [&str; 4] = ["JWT_SECRET_KEY", "SECRET_KEY", "POSTGRES_PASSWORD", "EMAIL_HOST_PASSWORD"];

fuzz_target!(|data: &[u8]| -> Corpus {
    let path = FOLDER.path().join(".env");
    fs::write(&path, data).expect("a file");
    let environment = match Environment::read(&path) {
        Ok(environment) => environment,
        Err(mistakes) => {
            assert!(!mistakes.to_string().is_empty());
            return Corpus::Keep;
        }
    };
    // What is planted is looked for, unless another variable, which may be shown, has it too.
    let others =
        || VARIABLES.iter().filter(|ours| !SECRETS.contains(&ours.name)).filter_map(|ours| environment.get(ours.name));
    let secrets = SECRETS.iter().filter_map(|name| environment.get(name)).filter(|secret| secret.contains("canary"));
    let secrets: Vec<_> = secrets.filter(|secret| others().all(|value| !value.contains(secret.as_str()))).collect();
    let is_shown = |text: &str| secrets.iter().any(|secret| text.contains(secret.as_str()));
    match Config::load(|name| environment.get(name)) {
        Ok(config) => assert!(!is_shown(&format!("{config:?} {:?}", config.warnings)), "a secret is shown"),
        Err(mistakes) => assert!(!is_shown(&mistakes.to_string()), "a secret is shown"),
    }
    Corpus::Keep
});
