//! The examples of the Django service's documentation, run against the program: what worked there works here.
//!
//! `tests/examples` holds them to the letter, with the answers that the document shows. Put in their place are only the
//! host, the token and the picture's path, which nobody can know beforehand.

use std::{fs, net::SocketAddr, process::Command};

use serde_json::Value;

use crate::harness::{
    process::{Installation, run},
    python, skip,
};

/// A file of `tests/examples`.
macro_rules! example {
    ($name:literal) => {
        include_str!(concat!("../examples/", $name))
    };
}

/// An answer as the document shows it.
macro_rules! documented {
    ($name:literal) => {
        serde_json::from_str::<Value>(example!($name)).unwrap()
    };
}

/// What stands in the examples where a token goes.
const TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...";

fn at(address: SocketAddr, example: &str) -> String {
    let here = example.replace("http://localhost:8000", &format!("http://{address}"));
    assert_ne!(here, example, "the example calls somebody else");
    here
}

/// The example with its token in place.
fn with_token(token: &Value, example: &str) -> String {
    let with = example.replace(TOKEN, token.as_str().unwrap());
    assert_ne!(with, example, "the example has no token");
    with
}

/// The profile of somebody without a picture: `null` is where the document shows one.
pub fn without_avatar(mut profile: Value) -> Value {
    profile["avatar"] = Value::Null;
    profile
}

/// Whether `answer` has the keys that the document shows for it, of the same types, and no others than it shows for the
/// same thing `elsewhere`.
#[track_caller]
pub fn assert_shape(answer: &Value, documented: &Value, elsewhere: &Value) {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    assert_eq!(kind(answer), kind(documented), "{answer}\nis not like\n{documented}");
    match (answer, documented) {
        (Value::Object(answer), Value::Object(documented)) => {
            for (key, value) in documented {
                let given = answer.get(key).unwrap_or_else(|| panic!("{key} is missing from {answer:?}"));
                assert_shape(given, value, &elsewhere[key]);
            }
            for (key, value) in answer.iter().filter(|(key, _)| !documented.contains_key(*key)) {
                let known =
                    elsewhere.get(key).unwrap_or_else(|| panic!("{key} is nowhere in the document: {answer:?}"));
                assert_shape(value, known, known);
            }
        }
        (Value::Array(answer), Value::Array(documented)) => {
            for item in answer {
                assert_shape(item, &documented[0], &elsewhere[0]);
            }
        }
        _ => {}
    }
}

/// What the document shows of an account in its answer to a login holds for a registration as well.
fn assert_registered(answer: &Value) {
    assert_shape(answer, &documented!("register.json"), &documented!("login.json"));
}

fn assert_logged_in(answer: &Value) {
    assert_shape(answer, &documented!("login.json"), &Value::Null);
}

fn assert_profile(answer: &Value) {
    assert_shape(answer, &without_avatar(documented!("profile.json")), &Value::Null);
}

/// Of a changed profile the document shows less than of one that was read.
fn assert_changed_profile(answer: &Value) {
    let documented = without_avatar(documented!("profile-updated.json"));
    assert_shape(answer, &documented, &without_avatar(documented!("profile.json")));
}

/// Whether the command runs here. If not, says so: the test is left out.
pub fn is_here(command: &mut Command, name: &str) -> bool {
    let is_here = command.output().is_ok_and(|output| output.status.success());
    if !is_here {
        skip(&format!("there is no {name}"));
    }
    is_here
}

/// Runs a shell example, and returns what it printed.
async fn shell(installation: &Installation, script: &str) -> Value {
    let mut bash = installation.command("bash");
    bash.args(["-c", script]);
    let printed = run(bash, "").await.expect(0).stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"))
}

fn has_curl(installation: &Installation) -> bool {
    is_here(installation.command("bash").args(["-c", "curl --version"]), "bash with curl")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_examples_print_what_the_document_shows() {
    let installation = Installation::new();
    if !has_curl(&installation) {
        return;
    }
    let service = installation.serve().await;
    let registered = shell(&installation, &at(service.address, example!("register.sh"))).await;
    assert_registered(&registered);
    let logged_in = shell(&installation, &at(service.address, example!("login.sh"))).await;
    assert_logged_in(&logged_in);
    let example = with_token(&logged_in["access_token"], example!("profile.sh"));
    let profile = shell(&installation, &at(service.address, &example)).await;
    assert_profile(&profile);
    assert_eq!(profile["user"]["email"], "user@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_example_of_an_avatar_prints_what_the_document_shows() {
    let installation = Installation::new();
    if !has_curl(&installation) {
        return;
    }
    let picture = installation.folder().join("avatar.jpg");
    fs::write(&picture, grey_jpeg()).unwrap();
    let service = installation.serve().await;
    let registered = shell(&installation, &at(service.address, example!("register.sh"))).await;
    let example = with_token(&registered["access_token"], example!("avatar.sh"));
    let example = example.replace("/path/to/avatar.jpg", picture.to_str().unwrap());
    let changed = shell(&installation, &at(service.address, &example)).await;
    assert_shape(&changed, &documented!("profile-updated.json"), &documented!("profile.json"));
    assert_eq!(changed["bio"], "My new bio");
    let avatar = service.anonymous().http.get(changed["avatar"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(avatar.status(), 200);
    assert!(avatar.headers()["content-type"].to_str().unwrap().starts_with("image/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_prints_what_the_document_shows() {
    let Some(python) = python() else { return };
    let installation = Installation::new();
    let service = installation.serve().await;
    let mut command = installation.command(&python);
    command.args(["-c", &at(service.address, example!("example.py"))]);
    let printed = run(command, "").await.expect(0).stdout;
    // John is no freelancer.
    let printed = printed.trim_end().strip_suffix("Found users: 0").unwrap_or_else(|| panic!("{printed}"));
    // It prints dictionaries as Python writes them, a line each.
    let mut reader = installation.command(&python);
    reader.args(["-c", "import ast, json, sys\nfor line in sys.stdin: print(json.dumps(ast.literal_eval(line)))"]);
    let read = run(reader, &printed.replace("Profile: ", "")).await.expect(0).stdout;
    let answers: Vec<Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [registered, profile, changed] = &answers[..] else { panic!("{printed}") };
    assert_registered(registered);
    assert_profile(profile);
    assert_changed_profile(changed);
    assert_eq!((&changed["bio"], &changed["timezone"]), (&"Updated bio".into(), &"Europe/Moscow".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_example_prints_what_the_document_shows() {
    let installation = Installation::new();
    let node = |script: &str| {
        let mut node = installation.command("node");
        node.args(["--eval", script]);
        node
    };
    if !is_here(&mut node("process.exit(typeof fetch === 'function' ? 0 : 1)"), "Node.js with `fetch`, as 18 has it") {
        return;
    }
    let service = installation.serve().await;
    let printed = run(node(&at(service.address, example!("example.js"))), "").await.expect(0).stdout;
    // It prints objects as JavaScript writes them, over several lines.
    let objects = ["Register result: ", "Profile: ", "Updated profile: "].map(|label| {
        let (_, rest) = printed.split_once(label).unwrap_or_else(|| panic!("no {label}in {printed}"));
        rest.split_inclusive("\n}").next().unwrap().to_owned()
    });
    let read = run(node(&format!("console.log(JSON.stringify([{}]))", objects.join(","))), "").await.expect(0).stdout;
    let [registered, profile, changed]: [Value; 3] = serde_json::from_str(&read).unwrap();
    assert_registered(&registered);
    assert_profile(&profile);
    assert_changed_profile(&changed);
    assert_eq!((&changed["bio"], &changed["timezone"]), (&"Updated bio".into(), &"Europe/Moscow".into()));
}

/// A grey square of 8 × 8 pixels, as the plainest JPEG (ITU-T T.81): one component, all coefficients zero.
pub fn grey_jpeg() -> Vec<u8> {
    let mut jpeg = vec![0xff, 0xd8];
    let mut segment = |marker: u8, content: &[u8]| {
        jpeg.extend([0xff, marker]);
        jpeg.extend(u16::try_from(content.len() + 2).unwrap().to_be_bytes());
        jpeg.extend(content);
    };
    segment(0xdb, &[&[0][..], &[1; 64]].concat()); // quantisation: none
    segment(0xc0, &[8, 0, 8, 0, 8, 1, 1, 0x11, 0]); // baseline, 8 bits, 8 × 8, one component
    for class in [0x00, 0x10] {
        // Huffman codes, for DC and for AC: the one code `0`, for "no more".
        segment(0xc4, &[&[class, 1][..], &[0; 15], &[0]].concat());
    }
    segment(0xda, &[1, 1, 0, 0, 63, 0]); // the scan
    jpeg.extend([0b0011_1111, 0xff, 0xd9]); // `0`, `0`, padding
    jpeg
}
