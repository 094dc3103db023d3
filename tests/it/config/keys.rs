//! Keys: made, kept, derived, and refused where they are weak.

use std::{fs, os::unix::fs::PermissionsExt, sync::Barrier, thread};

use identity::config::SecretKey;

use super::{KEY, loaded, production, refused, shown};

#[test]
fn weak_signing_keys_are_refused_with_postgresql() {
    refused(&production(&[]), "JWT_SECRET_KEY", "not set");
    for example in [
        "your-jwt-secret-key",
        "Dev-JWT-Secret",
        "your-secret-key-here",
        "dev_secret_key",
        "CHANGE-ME",
        "change-me-in-production-please-0123456789",
    ] {
        refused(&production(&[("JWT_SECRET_KEY", example)]), "JWT_SECRET_KEY", "example");
        refused(&production(&[("JWT_SECRET_KEY", example), ("DEBUG", "False")]), "JWT_SECRET_KEY", "example");
    }
    refused(&production(&[("JWT_SECRET_KEY", &KEY[..31])]), "JWT_SECRET_KEY", "31 bytes");
    loaded(&production(&[("JWT_SECRET_KEY", KEY)]));
}

#[test]
fn longer_hashes_want_longer_keys() {
    let of_48 = KEY.repeat(2)[..48].to_owned();
    refused(&production(&[("JWT_SECRET_KEY", KEY), ("JWT_ALGORITHM", "HS384")]), "JWT_SECRET_KEY", "the 48");
    refused(&production(&[("JWT_SECRET_KEY", &of_48), ("JWT_ALGORITHM", "HS512")]), "JWT_SECRET_KEY", "the 64");
    loaded(&production(&[("JWT_SECRET_KEY", &of_48), ("JWT_ALGORITHM", "HS384")]));
    loaded(&production(&[("JWT_SECRET_KEY", &KEY.repeat(2)), ("JWT_ALGORITHM", "HS512")]));
}

#[test]
fn the_random_signing_key_is_made_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("not/there/yet");
    let config = loaded(&[("DATA_DIR", data_dir.to_str().unwrap())]);
    assert!(!data_dir.exists(), "loading touches nothing");
    assert!(shown(&config, "JWT_SECRET_KEY").contains("made by the first start"));
    assert!(!data_dir.exists(), "neither does describing");

    let key = config.keys().unwrap().signing;
    let path = data_dir.join("jwt.key");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(key.expose(), text.as_bytes());
    assert!(text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(config.keys().unwrap().signing.expose(), key.expose());
    assert!(shown(&config, "JWT_SECRET_KEY").contains(&key.fingerprint()));
    assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left");
}

#[test]
fn starters_at_once_agree_on_the_random_key() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let start = Barrier::new(8);
        let keys: Vec<Vec<u8>> = thread::scope(|scope| {
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let config = loaded(&[("DATA_DIR", folder.path().to_str().unwrap())]);
                        start.wait();
                        config.keys().unwrap().signing.expose().to_vec()
                    })
                })
                .collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }
}

#[test]
fn a_damaged_key_file_is_a_mistake_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwt.key");
    fs::write(&path, "half a k").unwrap();
    let config = loaded(&[("DATA_DIR", folder.path().to_str().unwrap())]);
    for errors in [config.keys().unwrap_err(), config.describe().unwrap_err()] {
        assert_eq!(errors.0[0].name, "DATA_DIR");
        assert!(!errors.to_string().contains("half a k"));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "half a k");
}

#[test]
fn keys_for_further_purposes_are_derived() {
    let config = loaded(&[("JWT_SECRET_KEY", KEY)]);
    let keys = config.keys().unwrap();
    assert_eq!(keys.signing.expose(), KEY.as_bytes());
    assert_ne!(keys.secret.expose(), keys.signing.expose());
    assert_eq!(keys.secret.expose(), config.keys().unwrap().secret.expose());
    assert_ne!(keys.signing.derive("a"), keys.signing.derive("b"));
    assert_ne!(keys.signing.derive("a"), SecretKey::new("another key").derive("a"));

    let of_its_own = loaded(&[("JWT_SECRET_KEY", KEY), ("SECRET_KEY", "codes-and-events-have-their-own-key")]);
    assert_eq!(of_its_own.keys().unwrap().secret.expose(), b"codes-and-events-have-their-own-key");

    let example = loaded(&[("JWT_SECRET_KEY", KEY), ("SECRET_KEY", "your-secret-key-here")]);
    assert_eq!(example.keys().unwrap().secret.expose(), keys.secret.expose());
    assert!(shown(&example, "SECRET_KEY").contains("ignored"));
}

#[test]
fn a_fingerprint_is_what_sha256sum_prints() {
    // printf '%s' 0123456789abcdef0123456789abcdef | sha256sum | cut -c1-16
    let config = loaded(&[("JWT_SECRET_KEY", KEY)]);
    assert_eq!(shown(&config, "JWT_SECRET_KEY"), "sha256 3eb1bd439947eb76");
}
