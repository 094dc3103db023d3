//! Keys: the one that signs, the one that keys codes and events, and where a key is kept that nobody set.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use aws_lc_rs::{digest, hkdf};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::{error::Result, random};

/// Keys shorter than this many bytes are guessable: a hash's own length (RFC 7518 §3.2), for HS256.
pub(super) const MIN_BYTES: usize = 32;

/// A key for HMACs, and for further keys to be derived from it. Its `Debug` doesn't show it.
#[derive(Debug, Clone)]
pub struct SecretKey(SecretSlice<u8>);

impl SecretKey {
    /// A key of these very bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// A key of its own for one purpose, by HKDF-SHA256 (RFC 5869) without salt. Keys of different labels tell nothing
    /// about each other or about this one.
    pub fn derive(&self, label: &str) -> [u8; 32] {
        let info = [b"identity/v1/", label.as_bytes()];
        let mut key = [0; 32];
        #[expect(clippy::expect_used, reason = "HKDF-SHA256 fails only beyond 8160 bytes")]
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(self.expose())
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        key
    }
}

impl From<&SecretString> for SecretKey {
    fn from(secret: &SecretString) -> Self {
        Self::new(secret.expose_secret())
    }
}

/// The `SECRET_KEY` that goes with a signing key where none is set. A text, so that it can be set before the signing key changes.
pub(super) fn derived_secret(signing: &SecretString) -> SecretString {
    hex::encode(SecretKey::from(signing).derive("SECRET_KEY")).into()
}

/// The first 16 hexadecimal digits of the SHA-256. A shell computes the same by
/// `printf '%s' "$JWT_SECRET_KEY" | sha256sum | cut -c1-16`.
pub(super) fn fingerprint(bytes: &[u8]) -> String {
    hex::encode(&digest::digest(&digest::SHA256, bytes).as_ref()[..8])
}

/// Whether a key is one from the documentation, or from a template that says to change it.
pub(super) fn is_documented_example(key: &str) -> bool {
    const EXAMPLES: &[&str] = &[
        "your-jwt-secret-key",
        "dev-jwt-secret",
        "your-secret-key",
        "dev-secret-key",
        "change-me",
        "change-this",
        "changeme",
    ];
    // Templates append a word to these (`change-me-in-production`): the beginning is enough.
    let key = key.trim().to_ascii_lowercase().replace(['_', ' '], "-");
    EXAMPLES.iter().any(|example| key.starts_with(example))
}

/// The key kept at `path`, if there is one.
///
/// # Errors
/// The file can't be read, or doesn't hold a key.
pub(super) fn stored(path: &Path) -> io::Result<Option<SecretString>> {
    let text: SecretString = match fs::read_to_string(path) {
        Ok(text) => text.into(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // A final newline is an editor's doing.
    let key = text.expose_secret().trim();
    if key.len() < MIN_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no key of at least 32 bytes"));
    }
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "other users of this machine may read the signing key: chmod 600");
    }
    Ok(Some(key.into()))
}

/// The key kept at `path`; where there is none, one that `make` makes. However many processes ask at once, all get the same
/// key. The file's text is the key: `JWT_SECRET_KEY="$(cat …)"` shares it.
///
/// # Errors
/// The file can't be read or made, or doesn't hold a key.
pub(super) fn stored_or_made(path: &Path, make: impl FnOnce() -> Result<SecretString>) -> io::Result<SecretString> {
    if let Some(key) = stored(path)? {
        return Ok(key);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;

    // A complete file is linked into place: unlike a rename, a link never replaces one that another process made, and
    // nobody ever reads half a key, not even after a power cut.
    let draft = folder.join(format!(".jwt.key.{}", hex::encode(random::bytes::<8>())));
    let made = make().map_err(io::Error::other)?;
    let linked = write_durably(&draft, made.expose_secret()).and_then(|()| match fs::hard_link(&draft, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => fs::File::open(folder)?.sync_all(),
    });
    // The draft may not even exist, and is no harm if it stays.
    let _ = fs::remove_file(&draft);
    linked?;
    stored(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
