//! The guide in `docs/guide.md`: each of its examples is run, and answers what stands below it.

use std::path::Path;

use serde_json::Value;

use crate::{
    examples::{assert_shape, is_here},
    harness::{
        self,
        process::{Installation, run},
    },
};

const GUIDE: &str = include_str!("../../docs/guide.md");

/// An example, with the answer that stands below it.
struct Example {
    language: &'static str,
    code: String,
    answer: Option<(&'static str, String)>,
}

/// The fenced blocks of the guide in their order. JSON and text are the answer to the block before.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut blocks = GUIDE.split("\n```");
    blocks.next();
    while let Some(block) = blocks.next() {
        let (language, code) = block.split_once('\n').unwrap();
        match language {
            "sh" | "python" => examples.push(Example { language, code: code.to_owned(), answer: None }),
            "json" | "text" => examples.last_mut().unwrap().answer = Some((language, code.to_owned())),
            other => panic!("a block of {other:?}: say here how it is tested"),
        }
        blocks.next(); // what stands between two blocks
    }
    examples
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_guide_answers_what_it_shows() {
    let mut installation = Installation::with(&[("EMAIL_BACKEND", "file"), ("EMAIL_FILE_PATH", "mail")]);
    if !is_here(installation.command("bash").args(["-c", "curl --version"]), "bash with curl") {
        return;
    }
    installation.set("RATE_LIMIT_VERIFICATION", "off");
    let service = installation.serve().await;
    let here = |text: &str| text.replace("localhost:8000", &service.address.to_string());
    let program = Path::new(env!("CARGO_BIN_EXE_identity")).parent().unwrap();

    // One shell for all, so that a variable of one example is there in the next; each prints into a file of its own.
    let (shell, python): (Vec<_>, Vec<_>) = examples().into_iter().partition(|example| example.language == "sh");
    assert!(shell.len() > 15 && python.len() == 1, "{} and {}", shell.len(), python.len());
    let blocks = shell.iter().enumerate().map(|(n, example)| format!("{{\n{}\n}} > out.{n}\n", here(&example.code)));
    let path = format!("PATH={}:$PATH", program.display());
    let script = format!("set -eu\n{path}\nTOKEN=\n{}", blocks.collect::<String>());
    let mut bash = installation.command("bash");
    bash.args(["-c", &script]);
    run(bash, "").await.expect(0);
    for (n, example) in shell.iter().enumerate() {
        let printed = std::fs::read_to_string(installation.folder().join(format!("out.{n}"))).unwrap();
        let Some((_, answer)) = &example.answer else {
            assert_eq!(printed, "", "it prints something that the guide doesn't show:\n{}", example.code);
            continue;
        };
        let printed: Value = serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{}\nprints {printed}: {error}", example.code));
        let shown: Value = serde_json::from_str(answer).unwrap();
        assert_shape(&printed, &shown, &Value::Null);
        assert_eq!(steady(printed), steady(shown), "{}", example.code);
    }

    let Some(interpreter) = harness::python() else { return };
    for example in python {
        let mut command = installation.command(&interpreter);
        command.args(["-c", &here(&example.code)]);
        let printed = run(command, "").await.expect(0).stdout;
        assert_eq!(printed.trim_end(), example.answer.unwrap().1.trim_end());
    }
    service.stop().await;
}

/// What is different each time, or with each curl. Links to a page by its token are, too.
const CHANGING: [&str; 11] = [
    "access_token",
    "refresh_token",
    "next_page_token",
    "date_joined",
    "updated_at",
    "occurred_at",
    "sid",
    "exp",
    "avatar",
    "user_agent",
    "request_id",
];

/// Without that.
fn steady(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                let is_new =
                    CHANGING.contains(&key.as_str()) || value.as_str().is_some_and(|text| text.contains("page_token="));
                *value = if is_new { Value::Null } else { steady(value.take()) };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = steady(item.take())),
        _ => {}
    }
    value
}
