//! `identity keys`: making keys, and looking at those in force.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use clap::Subcommand;
use secrecy::ExposeSecret;

use super::{Failure, say};
use crate::{
    config::Config,
    jws::{Algorithm, Key},
};

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key for tokens and print it: a shared secret, or a private key as PEM. It is a secret.
    Generate {
        /// HS256, HS384, HS512, RS256, ES256 or `EdDSA`; what `JWT_ALGORITHM` says if not given.
        #[arg(long, value_parser = algorithm)]
        algorithm: Option<Algorithm>,
        /// Write it into a new file, which only its owner may read, instead of printing it.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// List the keys in force: the one that signs first, then those that verify beside it.
    List,
    /// Print the `SECRET_KEY` in force: set it to that before the signing key changes, if it isn't set. It is a secret.
    SecretKey,
}

impl KeysCommand {
    /// # Errors
    /// What to tell the operator, with the exit code.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Generate { algorithm, out } => generate(algorithm, out),
            Self::List => list(),
            Self::SecretKey => Ok(say(Config::from_environment()?.secret_key()?.expose_secret())?),
        }
    }
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(name).ok_or_else(|| "HS256, HS384, HS512, RS256, ES256 and EdDSA are known".into())
}

fn generate(algorithm: Option<Algorithm>, out: Option<PathBuf>) -> Result<(), Failure> {
    let algorithm = match algorithm {
        Some(algorithm) => algorithm,
        None => Config::from_environment()?.jwt.algorithm,
    };
    let key = Key::generate(algorithm)?;
    let text = key.expose_secret().trim_end();
    let Some(path) = out else { return Ok(say(text)?) };
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let written = opened.and_then(|mut file| {
        writeln!(file, "{text}")?;
        file.sync_all()
    });
    written.map_err(|error| format!("the key can't be written to {}: {error}", path.display()).into())
}

fn list() -> Result<(), Failure> {
    let keys = Config::from_environment()?.keys()?.tokens;
    for (index, key) in keys.keys().iter().enumerate() {
        let role = if index == 0 { "signs" } else { "verifies" };
        say(&format!("{role:<8}  {:<5}  kid {}", key.algorithm().name(), key.id()))?;
    }
    Ok(())
}
