//! What `build.rs` makes of a contract, and what it refuses to make anything of.
//!
//! `tests/golden/example.proto` uses all that the generator knows; beside it stands what comes out. Accept a change of it
//! by `UPDATE_EXPECT=1 cargo test --test it generator`.

use std::{fs, process::Command};

use expect_test::expect_file;
use tempfile::TempDir;

use contract::Contract;

#[path = "../../build/contract.rs"]
mod contract;
#[path = "../../build/openapi.rs"]
mod openapi;
#[path = "../../build/transcode.rs"]
mod transcode;

fn read(folder: &str, file: &str, package: &str) -> contract::Result<Contract> {
    let mut compiler = protox::Compiler::new([folder, "proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file(file)?;
    Contract::read(&compiler.encode_file_descriptor_set(), package)
}

fn example() -> Contract {
    read("tests/golden", "example.proto", "example.v1").unwrap()
}

#[test]
fn a_route_becomes_a_binder_and_a_handler() {
    expect_file!["../golden/rest.rs"].assert_eq(&transcode::rest(&example()).unwrap());
}

#[test]
fn an_rpc_becomes_a_policy() {
    expect_file!["../golden/policies.rs"].assert_eq(&transcode::policies(&example()).unwrap());
}

#[test]
fn a_message_with_a_secret_does_not_show_it() {
    expect_file!["../golden/debug.rs"].assert_eq(&transcode::redacted_debug(&example()).unwrap());
}

#[test]
fn comments_become_the_openapi_document() {
    let document = openapi::document(&example(), "1.2.3");
    expect_file!["../golden/openapi.json"].assert_eq(&format!("{document:#}\n"));
}

#[test]
fn the_generated_code_is_laid_out_as_rustfmt_would() {
    let (contract, folder) = (example(), TempDir::new().unwrap());
    for (file, code) in [
        ("rest.rs", transcode::rest(&contract)),
        ("policies.rs", transcode::policies(&contract)),
        ("debug.rs", transcode::redacted_debug(&contract)),
    ] {
        let path = folder.path().join(file);
        fs::write(&path, code.unwrap()).unwrap();
        let run = Command::new("rustfmt")
            .args(["--edition", "2024", "--check", "--config-path", env!("CARGO_MANIFEST_DIR")])
            .arg(&path)
            .output();
        let Ok(run) = run else { return crate::harness::skip("there is no rustfmt") };
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    }
}

/// Reads a contract of one service, `S`, whose rpcs and messages are `proto`. In it `$` stands for a policy that is right.
fn read_broken(proto: &str) -> contract::Result<Contract> {
    const IMPORTS: &str = "
        import \"google/api/annotations.proto\"; import \"google/api/field_behavior.proto\";
        import \"google/protobuf/any.proto\"; import \"google/protobuf/empty.proto\";
        import \"google/protobuf/timestamp.proto\"; import \"identity/v1/options.proto\";";
    let text = proto.replace('$', "option (identity.v1.policy) = {access: ACCESS_USER};");
    let folder = TempDir::new()?;
    fs::write(
        folder.path().join("broken.proto"),
        format!("syntax = \"proto3\";\npackage broken.v1;\n{IMPORTS}{text}"),
    )?;
    read(folder.path().to_str().unwrap(), "broken.proto", "broken.v1")
}

/// An rpc `Do` with this route, over a request of these fields.
fn route(http: &str, fields: &str) -> String {
    format!(
        "service S {{ rpc Do(Q) returns (A) {{ option (google.api.http) = {{{http}}}; $ }} }}
         message Q {{ {fields} }} message A {{}}"
    )
}

/// The same, with this policy.
fn policed(http: &str, policy: &str, answer: &str) -> String {
    format!(
        "service S {{ rpc Do(Q) returns ({answer}) {{
            {http} option (identity.v1.policy) = {{{policy}}};
         }} }}
         message Q {{}} message A {{}}"
    )
}

/// A GET of `A`, which has these fields.
fn answering(fields: &str) -> String {
    format!(
        "service S {{ rpc Do(Q) returns (A) {{ option (google.api.http) = {{get: \"/a/\"}}; $ }} }}
         message Q {{}} message A {{ {fields} }}"
    )
}

/// Two rpcs, `One` and `Do`.
fn twice(one: &str, other: &str) -> String {
    let rpc =
        |name: &str, http: &str| format!("rpc {name}(Q) returns (A) {{ option (google.api.http) = {{{http}}}; $ }}");
    format!(
        "service S {{ {} {} }} message Q {{ int64 id = 1; int64 user = 2; }} message A {{}}",
        rpc("One", one),
        rpc("Do", other)
    )
}

#[test]
fn what_the_generator_can_not_honour_fails_the_build_by_the_name_of_the_rpc() {
    const GET: &str = "option (google.api.http) = {get: \"/a/\"};";
    let plain = |method: &str| format!("service S {{ rpc Do{method} }} message Q {{}} message A {{}}");
    let refused = [
        // Policies.
        (plain("(Q) returns (A);"), "does not say who may call it"),
        (policed("", "limit: LIMIT_NONE", "A"), "does not say who may call it"),
        (policed("", "access: ACCESS_UNSPECIFIED", "A"), "does not say who may call it"),
        (policed("", "access: ACCESS_USER deadline_ms: -1", "A"), "deadline_ms can't be negative"),
        (policed("", "access: ACCESS_USER max_request_bytes: -1", "A"), "max_request_bytes can't be negative"),
        (policed("", "access: ACCESS_USER success_status: 201", "A"), "success_status without a route"),
        (policed("", "access: ACCESS_USER multipart: true", "A"), "multipart without a route"),
        (policed("", "access: ACCESS_USER also_answers: 409", "A"), "also_answers without a route"),
        (policed(GET, "access: ACCESS_USER also_answers: 418", "A"), "also_answers 418: only"),
        (policed(GET, "access: ACCESS_USER also_answers: 401", "A"), "also_answers 401, which is said already"),
        (policed(GET, "access: ACCESS_USER also_answers: [409, 409]", "A"), "also_answers 409, which is said already"),
        (policed(GET, "access: ACCESS_USER success_status: 404", "A"), "success_status 404 is no success"),
        (policed(GET, "access: ACCESS_USER success_status: 70000", "A"), "success_status 70000 is no success"),
        (policed(GET, "access: ACCESS_USER success_status: 204", "A"), "204 is the success_status of"),
        (
            policed(GET, "access: ACCESS_USER success_status: 200", "google.protobuf.Empty"),
            "204 is the success_status of",
        ),
        (policed(GET, "access: ACCESS_USER multipart: true", "A"), "multipart without a body"),
        // Streams.
        (plain("(stream Q) returns (A) { $ }"), "streaming"),
        (plain("(Q) returns (stream A) { $ }"), "streaming"),
        // Of google.api.http, what isn't supported.
        (route("get: \"/a/\" selector: \"b\"", ""), "`selector` is not supported"),
        (route("get: \"/a/\" additional_bindings: {get: \"/b/\"}", ""), "`additional_bindings` is not supported"),
        (route("get: \"/a/\" response_body: \"b\"", ""), "`response_body` is not supported"),
        (route("custom: {kind: \"LIST\" path: \"/a/\"}", ""), "`custom` is not supported"),
        (route("", ""), "names neither verb nor path"),
        (route("post: \"/a/\" body: \"name\"", "optional string name = 1;"), "body: \"name\" is not supported"),
        (route("get: \"/a/\" body: \"*\"", ""), "a get can't have a body"),
        (route("delete: \"/a/\" body: \"*\"", ""), "a delete can't have a body"),
        // Paths.
        (route("get: \"a/\"", ""), "does not begin with a slash"),
        (route("get: \"/a//b/\"", ""), "is not supported"),
        (route("get: \"/a?b=c\"", ""), "is not supported"),
        (route("get: \"/a b/\"", ""), "is not supported"),
        (route("get: \"/%61/\"", ""), "is not supported"),
        (route("get: \"/*\"", ""), "is not supported"),
        (route("get: \"/**\"", ""), "is not supported"),
        (route("get: \"/a:cancel\"", ""), "is not supported"),
        (route("get: \"/a/{id}:cancel\"", "int64 id = 1;"), "is not supported"),
        (route("get: \"/a/{id=*}/\"", "int64 id = 1;"), "is not supported"),
        (route("get: \"/{name=a/*}/\"", "string name = 1;"), "is not supported"),
        (route("get: \"/a/x{id}/\"", "int64 id = 1;"), "is not supported"),
        (route("get: \"/a/{id}/{id}/\"", "int64 id = 1;"), "{id} comes twice"),
        (route("get: \"/a/{nobody}/\"", "int64 id = 1;"), "{nobody} in the path is no field of Q"),
        (route("get: \"/a/{ids}/\"", "repeated int64 ids = 1;"), "{ids} in the path must be"),
        (route("get: \"/a/{on}/\"", "bool on = 1;"), "{on} in the path must be"),
        (route("get: \"/a/{id}/\"", "optional int64 id = 1;"), "{id} in the path must be"),
        (route("get: \"/a/{b.c}/\"", "B b = 1;} message B { string c = 1;"), "{b.c} in the path is no field of Q"),
        (
            route("get: \"/a/{id}/\"", "int64 id = 1 [(identity.v1.rest).grpc_only = true];"),
            "{id} in the path is grpc_only",
        ),
        (route("get: \"/a/{t}/\"", "string t = 1 [debug_redact = true];"), "`t` is a secret"),
        // Fields of a request.
        (route("post: \"/a/\" body: \"*\"", "string name = 1;"), "`name` must be `optional`"),
        (route("get: \"/a/\"", "int64 page = 1;"), "`page` must be `optional`"),
        (route("get: \"/a/\"", "repeated string names = 1;"), "`names` can't be read"),
        (route("get: \"/a/\"", "map<string, string> m = 1;"), "`m` can't be read"),
        (route("get: \"/a/\"", "google.protobuf.Timestamp t = 1;"), "`t` must be `optional`"),
        (route("get: \"/a/\"", "repeated google.protobuf.Timestamp t = 1;"), "`t` can't be read"),
        (route("get: \"/a/\"", "optional int32 n = 1;"), "`n` can't be read"),
        (route("get: \"/a/\"", "optional double n = 1;"), "`n` can't be read"),
        (route("get: \"/a/\"", "optional B b = 1;} message B {"), "`b` can't be read"),
        (route("get: \"/a/\"", "optional E e = 1;} enum E { NONE = 0;"), "`e` can't be read"),
        (route("get: \"/a/\"", "oneof which { string x = 1; string y = 2; }"), "`x` is part of a oneof"),
        (route("post: \"/a/\" body: \"*\"", "optional bytes file = 1;"), "`file` is a file"),
        (route("get: \"/a/\"", "optional string token = 1 [debug_redact = true];"), "`token` is a secret"),
        (
            route("post: \"/a/\" body: \"*\"", "optional string b = 1 [(identity.v1.rest).nullable = true];"),
            "`b` is nullable",
        ),
        (route("get: \"/a/\"", "optional string b = 1 [(identity.v1.rest).omit_unset = true];"), "`b` is omit_unset"),
        (route("get: \"/a/\"", "optional string b = 1 [(google.api.field_behavior) = IMMUTABLE];"), "field_behavior 5"),
        (
            "service S { rpc Do(google.protobuf.Empty) returns (A) { option (google.api.http) = {get: \"/a/\"}; $ } }
             message A {}"
                .into(),
            "is no message of its own package",
        ),
        (
            "service S { rpc Do(Q.Inner) returns (A) { option (google.api.http) = {get: \"/a/\"}; $ } }
             message A {} message Q { message Inner {} }"
                .into(),
            "is no message of its own package",
        ),
        // Fields of an answer.
        (answering("bytes file = 1;"), "`broken.v1.A.file` of its answer can't be written"),
        (answering("double n = 1;"), "`broken.v1.A.n` of its answer can't be written"),
        (answering("map<string, int64> m = 1;"), "`broken.v1.A.m` of its answer can't be written"),
        (answering("E e = 1;} enum E { NONE = 0;"), "`broken.v1.A.e` of its answer can't be written"),
        (answering("repeated google.protobuf.Timestamp t = 1;"), "google.protobuf.Timestamp"),
        (answering("google.protobuf.Any any = 1;"), "google.protobuf.Any"),
        (answering("message Inner {} Inner inner = 1;"), "broken.v1.A.Inner"),
        (answering("B b = 1;} message B { uint64 deep = 1;"), "`broken.v1.B.deep` of its answer can't be written"),
        (answering("oneof which { string x = 1; string y = 2; }"), "`broken.v1.A.x` of its answer is part of a oneof"),
        (answering("string s = 1 [(identity.v1.rest).omit_unset = true];"), "is omit_unset, but not `optional`"),
        (answering("optional string s = 1 [(identity.v1.rest).nullable = true];"), "is nullable"),
        (answering("string s = 1 [(identity.v1.rest).values.max_length = 3];"), "has values"),
        (
            route("get: \"/a/\"", "optional int64 n = 1 [(identity.v1.rest).values.max_length = 3];"),
            "has values, which only a text can have",
        ),
        // Two rpcs.
        (twice("get: \"/{id}/{user}/\"", "get: \"/{id}/{user}/\""), "its route is that of broken.v1.S.One already"),
        (twice("get: \"/{id}/{user}/\"", "get: \"/{user}/{id}/\""), "its route is that of broken.v1.S.One already"),
        (twice("get: \"/{id}/{user}/\"", "get: \"/{id}/{user}\""), "its route is that of broken.v1.S.One already"),
        (
            twice("get: \"/{id}/{user}/\"", "delete: \"/{user}/{id}/\""),
            "its path is that of broken.v1.S.One, spelled otherwise",
        ),
    ];
    for (proto, why) in refused {
        let Err(refusal) = read_broken(&proto) else { panic!("this is let through, though {why}: {proto}") };
        let refusal = refusal.to_string();
        assert!(refusal.starts_with("broken.v1.S.Do: "), "{proto}\nis refused without the rpc's name: {refusal}");
        assert!(refusal.contains(why), "{proto}\nis refused because {refusal}, not because {why}");
    }
}

#[test]
fn two_routes_of_one_name_fail_the_build() {
    let service = |name: &str| {
        let path = name.to_lowercase();
        format!("service {name} {{ rpc Do(Q) returns (A) {{ option (google.api.http) = {{get: \"/{path}/\"}}; $ }} }}")
    };
    let refusal = read_broken(&format!("{}{} message Q {{}} message A {{}}", service("S"), service("T")));
    let refusal = refusal.err().unwrap().to_string();
    assert_eq!(refusal, "broken.v1.T.Do: broken.v1.S.Do has the same name, and a route too");
}

#[test]
fn what_only_looks_like_a_clash_is_read() {
    let verbs = twice("get: \"/{id}/{user}/\"", "delete: \"/{id}/{user}/\"");
    let words = twice("get: \"/{id}/{user}/\"", "get: \"/a/{id}/{user}/\"");
    for proto in [verbs, words] {
        assert_eq!(read_broken(&proto).unwrap().rpcs().count(), 2, "{proto}");
    }
}
