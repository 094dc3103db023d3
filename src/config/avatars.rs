//! Where avatars are kept, and what opens a bucket of S3.

use std::{io, os::unix::fs::DirBuilderExt, path::PathBuf};

use rustix::fs::{Access, access};
use secrecy::SecretString;
use url::Url;

use super::{
    parse::{self, Wrong},
    read::{ConfigErrors, Mistake, Reader},
    variables::{self, Variable},
};

#[derive(Debug, Clone)]
pub enum AvatarStore {
    /// A table, in the transaction of the change.
    Database,
    Folder(AvatarFolder),
    Bucket(Bucket),
}

/// A folder, named by an absolute path. It may be missing still.
#[derive(Debug, Clone)]
pub struct AvatarFolder(PathBuf);

/// A place in a bucket of S3, or of what speaks its protocol.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: String,
    /// What stands before the names of the pictures, without a slash at either end; may be empty.
    pub prefix: String,
    pub region: String,
    /// A server other than that of AWS.
    pub endpoint: Option<Url>,
    pub credentials: Credentials,
}

#[derive(Debug, Clone)]
pub enum Credentials {
    Keys {
        id: String,
        secret: SecretString,
        session_token: Option<SecretString>,
    },
    /// What the platform tells its workloads of their role, by the names of the variables. None: the role of the machine.
    Role(Vec<(&'static str, String)>),
}

/// What `AVATAR_STORE` says by itself.
#[derive(PartialEq)]
enum Place {
    Database,
    Folder(PathBuf),
    Bucket { name: String, prefix: String },
}

const ROLE: [&Variable; 5] = [
    &variables::AWS_ROLE_ARN,
    &variables::AWS_WEB_IDENTITY_TOKEN_FILE,
    &variables::AWS_CONTAINER_CREDENTIALS_RELATIVE_URI,
    &variables::AWS_CONTAINER_CREDENTIALS_FULL_URI,
    &variables::AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE,
];

/// The variables of AWS mean something to other programs too: without a bucket they are nobody's mistake.
pub(super) fn avatar_store(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> AvatarStore {
    // Not a form of ours, and nothing to be quoted.
    if r.text(&variables::AVATAR_STORE).is_some_and(|text| text.contains('@')) {
        r.mistake(&variables::AVATAR_STORE, "it has a user or an @; the key to a bucket is AWS_ACCESS_KEY_ID");
        return AvatarStore::Database;
    }
    let place = r.value(&variables::AVATAR_STORE, place);
    let region = r.optional(&variables::AWS_REGION, parse::text);
    let endpoint = r.optional(&variables::AWS_ENDPOINT_URL, parse::http_url);
    let id = r.optional(&variables::AWS_ACCESS_KEY_ID, parse::text);
    let secret = r.secret(&variables::AWS_SECRET_ACCESS_KEY);
    let session_token = r.secret(&variables::AWS_SESSION_TOKEN);
    let role = ROLE.into_iter().filter_map(|variable| Some((variable.name, r.optional(variable, parse::text)?)));
    let role = role.collect();
    let (name, prefix) = match place {
        Place::Database => return AvatarStore::Database,
        Place::Folder(path) => return AvatarStore::Folder(AvatarFolder(path)),
        Place::Bucket { name, prefix } => (name, prefix),
    };
    if region.is_none() && endpoint.is_none() {
        r.mistake(&variables::AWS_REGION, "it is not set, though AVATAR_STORE is a bucket of AWS");
    }
    let credentials = match (id, secret) {
        (Some(id), Some(secret)) => Credentials::Keys { id, secret, session_token },
        (None, None) => Credentials::Role(role),
        (Some(_), None) => {
            r.mistake(&variables::AWS_SECRET_ACCESS_KEY, "it is not set, though AWS_ACCESS_KEY_ID is");
            Credentials::Role(role)
        }
        (None, Some(_)) => {
            r.mistake(&variables::AWS_ACCESS_KEY_ID, "it is not set, though AWS_SECRET_ACCESS_KEY is");
            Credentials::Role(role)
        }
    };
    // The servers that stand in for AWS have one region, and call it that.
    let region = region.unwrap_or_else(|| "us-east-1".into());
    AvatarStore::Bucket(Bucket { name, prefix, region, endpoint, credentials })
}

fn place(text: &str) -> Result<Place, Wrong> {
    if text == "db" {
        return Ok(Place::Database);
    }
    if let Some(bucket) = text.strip_prefix("s3://") {
        let (name, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !(3..=63).contains(&name.len()) || !name.bytes().all(is_plain) {
            return Err("names no bucket".into());
        }
        let prefix = prefix.trim_end_matches('/');
        let is_segment = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain);
        if !prefix.is_empty() && !prefix.split('/').all(is_segment) {
            return Err("has a prefix that is not made of letters, digits and -._".into());
        }
        return Ok(Place::Bucket { name: name.into(), prefix: prefix.into() });
    }
    if text.starts_with("file:///") {
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a ? or a #, which in a URL are written %3F and %23".into());
        }
        return match url.to_file_path() {
            Ok(path) if path.parent().is_some() => Ok(Place::Folder(path)),
            _ => Err("names no folder".into()),
        };
    }
    if text.starts_with("file:") { Err("is not an absolute path".into()) } else { Err("is unknown".into()) }
}

impl AvatarFolder {
    /// The folder, made for our eyes only if it was missing.
    ///
    /// # Errors
    /// It can't be made, or written to.
    pub fn made(&self) -> Result<&PathBuf, ConfigErrors> {
        let Self(path) = self;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.and_then(|()| Ok(access(path, Access::WRITE_OK | Access::EXEC_OK)?)).map_err(|e: io::Error| {
            let variable = &variables::AVATAR_STORE;
            ConfigErrors(vec![Mistake {
                name: variable.name.into(),
                wrong: format!("avatars can't be kept in {} ({e})", path.display()),
                right: variable.form.into(),
            }])
        })?;
        Ok(path)
    }
}
