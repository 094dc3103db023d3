//! Where avatars are kept, and the key to it.

use std::path::Path;

use identity::config::{AvatarFolder, AvatarStore, Bucket, Config, Credentials};
use secrecy::ExposeSecret;

use super::{loaded, mistakes, refused, shown};

fn bucket(config: &Config) -> &Bucket {
    match &config.accounts.avatar_store {
        AvatarStore::Bucket(bucket) => bucket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_is_named_by_a_url() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("of 100 %/avatars");
    let url = url::Url::from_file_path(&path).unwrap();
    let config = loaded(&[("AVATAR_STORE", url.as_str())]);
    let AvatarStore::Folder(folder) = &config.accounts.avatar_store else { panic!("{config:?}") };
    assert_eq!(AvatarFolder::made(folder).unwrap().as_path(), path);
    assert!(Path::new(&path).is_dir());
}

#[test]
fn a_bucket_is_named_with_what_stands_before_its_pictures() {
    for (url, name, prefix) in [
        ("s3://pictures", "pictures", ""),
        ("s3://pictures/", "pictures", ""),
        ("s3://my.pictures-1/identity/avatars/", "my.pictures-1", "identity/avatars"),
    ] {
        let config = loaded(&[("AVATAR_STORE", url), ("AWS_REGION", "eu-central-1")]);
        let bucket = bucket(&config);
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_str()), (name, prefix), "{url}");
        assert_eq!((bucket.region.as_str(), &bucket.endpoint), ("eu-central-1", &None));
        assert!(matches!(&bucket.credentials, Credentials::Role(told) if told.is_empty()), "the role of the machine");
    }
}

#[test]
fn what_names_no_place_is_refused() {
    for (place, why) in [
        ("file:avatars", "not an absolute path"),
        ("file://avatars", "not an absolute path"),
        ("file:///", "no folder"),
        ("file:///avatars#1", "%23"),
        ("s3://", "no bucket"),
        ("s3://key:secret@bucket", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/../other", "prefix"),
        ("s3://bucket//avatars", "prefix"),
        ("S3", "unknown"),
    ] {
        refused(&[("AVATAR_STORE", place), ("AWS_REGION", "eu-central-1")], "AVATAR_STORE", why);
    }
    refused(&[("AWS_ENDPOINT_URL", "minio:9000")], "AWS_ENDPOINT_URL", "not an http URL");
}

#[test]
fn the_key_of_a_bucket_is_whole_and_never_shown() {
    let place = [("AVATAR_STORE", "s3://pictures"), ("AWS_ENDPOINT_URL", "http://minio:9000")];
    let with = |more: &[(&'static str, &'static str)]| [&place[..], more].concat();
    refused(&with(&[("AWS_ACCESS_KEY_ID", "AKIA1")]), "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID is");
    refused(&with(&[("AWS_SECRET_ACCESS_KEY", "hunter2")]), "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is");

    let key =
        with(&[("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_SESSION_TOKEN", "hunter3")]);
    let config = loaded(&key);
    let Credentials::Keys { id, secret, session_token } = &bucket(&config).credentials else { panic!("{config:?}") };
    let session_token = session_token.as_ref().map(ExposeSecret::expose_secret);
    assert_eq!((id.as_str(), secret.expose_secret(), session_token), ("AKIA1", "hunter2", Some("hunter3")));
    assert_eq!(bucket(&config).region, "us-east-1", "that of servers that are not of AWS");
    assert_eq!(shown(&config, "AWS_SECRET_ACCESS_KEY"), "(set)");
    assert!(!format!("{config:?}").contains("hunter"));
    // A secret in the place's URL is no form of ours, and not quoted.
    let mistakes = mistakes(&[("AVATAR_STORE", "s3://key:hunter2@pictures")]);
    assert!(!mistakes[0].to_string().contains("hunter2"), "{}", mistakes[0]);
}

#[test]
fn a_bucket_of_aws_needs_its_region() {
    refused(&[("AVATAR_STORE", "s3://pictures")], "AWS_REGION", "not set");
    // What other programs are told of AWS is nobody's mistake.
    loaded(&[("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x")]);
}

#[test]
fn a_workload_is_told_its_role() {
    let config = loaded(&[
        ("AVATAR_STORE", "s3://pictures"),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/identity"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
    ]);
    let Credentials::Role(told) = &bucket(&config).credentials else { panic!("{config:?}") };
    let expected =
        [("AWS_ROLE_ARN", "arn:aws:iam::1:role/identity"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")];
    assert_eq!(*told, expected.map(|(name, value)| (name, value.to_owned())));
}
