//! Keys: made, kept, derived, and refused where they are weak.

use std::{fs, os::unix::fs::PermissionsExt, sync::Barrier, thread};

use identity::{
    config::{Environment, SecretKey},
    jws::{Algorithm, Key},
};
use secrecy::ExposeSecret;

use super::{KEY, loaded, production, refused, shown};

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

    let key = config.keys().unwrap().tokens.keys()[0].clone();
    let path = data_dir.join("jwt.key");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(key.id(), Key::read(Algorithm::Hs256, &text).unwrap().id());
    assert!(text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(config.keys().unwrap().tokens.keys()[0].id(), key.id());
    assert!(shown(&config, "JWT_SECRET_KEY").starts_with("sha256 "));
    assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left");
}

#[test]
fn starters_at_once_agree_on_the_random_key() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let start = Barrier::new(8);
        let keys: Vec<String> = thread::scope(|scope| {
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let config = loaded(&[("DATA_DIR", folder.path().to_str().unwrap())]);
                        start.wait();
                        config.keys().unwrap().tokens.keys()[0].id().to_owned()
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
    assert_ne!(keys.secret.expose(), KEY.as_bytes());
    assert_eq!(keys.secret.expose(), config.keys().unwrap().secret.expose());
    assert_ne!(keys.secret.derive("a"), keys.secret.derive("b"));
    assert_ne!(keys.secret.derive("a"), SecretKey::new("another key").derive("a"));
    // Set to what was derived, it is the same: the signing key can change then.
    let derived = config.secret_key().unwrap();
    let pinned =
        loaded(&[("JWT_SECRET_KEY", "another-key-another-key-another-key"), ("SECRET_KEY", derived.expose_secret())]);
    assert_eq!(pinned.keys().unwrap().secret.expose(), keys.secret.expose());

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

#[test]
fn a_key_pair_is_made_and_kept_where_none_is_set() {
    for (algorithm, file) in [("RS256", "jwt.rs256.pem"), ("es256", "jwt.es256.pem"), ("EdDSA", "jwt.eddsa.pem")] {
        let folder = tempfile::tempdir().unwrap();
        let config = loaded(&[("DATA_DIR", folder.path().to_str().unwrap()), ("JWT_ALGORITHM", algorithm)]);
        let [first, second] = [(), ()].map(|()| config.keys().unwrap().tokens.keys()[0].id().to_owned());
        assert_eq!(first, second);
        let path = folder.path().join(file);
        assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_key_of_another_kind_than_its_algorithm_is_refused() {
    let pem = |algorithm| Key::generate(algorithm).unwrap().expose_secret().to_owned();
    let (es256, ed25519) = (pem(Algorithm::Es256), pem(Algorithm::EdDsa));
    for (algorithm, key, words) in [
        ("HS256", es256.as_str(), "PEM"),
        ("ES256", KEY, "no PEM"),
        ("ES256", &ed25519, "ES256"),
        ("EdDSA", &es256, "EdDSA"),
        ("RS256", &es256, "RS256"),
        ("ES256", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "can be read"),
    ] {
        refused(&[("JWT_ALGORITHM", algorithm), ("JWT_SECRET_KEY", key)], "JWT_SECRET_KEY", words);
    }
    let public = serde_json::to_string(Key::read(Algorithm::Es256, &es256).unwrap().public().unwrap()).unwrap();
    refused(&[("JWT_ALGORITHM", "ES256"), ("JWT_SECRET_KEY", &public)], "JWT_SECRET_KEY", "can't sign");
    // An environment has no line ends: `\n` stands for them.
    loaded(&[("JWT_ALGORITHM", "ES256"), ("JWT_SECRET_KEY", &es256.replace('\n', "\\n"))]);
}

#[test]
fn keys_that_rotate_leave_the_secret_key_alone() {
    let next = Key::generate(Algorithm::Es256).unwrap();
    let mut variables = production(&[("JWT_SECRET_KEY", KEY), ("JWT_NEXT_KEY", next.expose_secret())]);
    variables.push(("JWT_NEXT_ALGORITHM", "ES256"));
    refused(&variables, "SECRET_KEY", "it is not set");
    variables.push(("SECRET_KEY", "codes-and-events-have-their-own-key"));
    let keys = loaded(&variables).keys().unwrap();
    assert_eq!(keys.tokens.keys().iter().map(|key| key.algorithm().name()).collect::<Vec<_>>(), ["HS256", "ES256"]);

    variables.retain(|(name, _)| *name != "JWT_NEXT_ALGORITHM");
    refused(&variables, "JWT_NEXT_KEY", "PEM");
    variables.retain(|(name, _)| *name != "JWT_NEXT_KEY");
    variables.push(("JWT_PREVIOUS_KEY", KEY));
    refused(&variables, "JWT_PREVIOUS_KEY", "the same key");
    variables.retain(|(name, _)| *name != "JWT_PREVIOUS_KEY");
    variables.push(("JWT_PREVIOUS_KEY", "short"));
    refused(&variables, "JWT_PREVIOUS_KEY", "5 bytes");
}

#[test]
fn any_secret_may_come_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    fs::write(&path, format!("{KEY}\n")).unwrap();
    let dotenv = folder.path().join(".env");
    fs::write(
        &dotenv,
        format!("JWT_SECRET_KEY_FILE={}\nPOSTGRES_PASSWORD_FILE={}/none\n", path.display(), folder.path().display()),
    )
    .unwrap();
    let Err(errors) = Environment::read(&dotenv) else { panic!("a file that isn't there was read") };
    assert_eq!((errors.0.len(), errors.0[0].name.as_str()), (1, "POSTGRES_PASSWORD_FILE"));

    fs::write(&dotenv, format!("JWT_SECRET_KEY_FILE={}\n", path.display())).unwrap();
    let environment = Environment::read(&dotenv).unwrap();
    assert_eq!(environment.get("JWT_SECRET_KEY").as_deref(), Some(KEY));
    assert!(environment.misspelt().iter().all(|warning| !warning.contains("JWT_SECRET_KEY_FILE")));

    fs::write(&dotenv, format!("JWT_SECRET_KEY_FILE={}\nJWT_SECRET_KEY={KEY}\n", path.display())).unwrap();
    let Err(errors) = Environment::read(&dotenv) else { panic!("which of two keys counts?") };
    assert!(errors.to_string().contains("JWT_SECRET_KEY is set too"), "{errors}");
}
