//! The OpenAPI document: that it is well formed, that it tells of every route, and that answers are what it says.
//!
//! `docs/openapi.json` is what the service serves, laid out to be read. Accept a change of it by
//! `UPDATE_EXPECT=1 cargo test --test it openapi`.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use expect_test::expect_file;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Face, PASSWORD, Service, Store, actor::route, python},
    rest_parity::rpcs,
};

fn document() -> Value {
    serde_json::from_str(identity::api::OPENAPI).unwrap()
}

/// Every rpc that has a route, with its operation.
fn operations(document: &Value) -> Vec<(&'static str, &Value)> {
    let mut found = Vec::new();
    for rpc in rpcs() {
        if let Some((method, path, _)) = route(rpc) {
            let operation = &document["paths"][&path][method.as_str().to_lowercase()];
            assert!(operation.is_object(), "{method} {path} of {rpc} is not in the document");
            found.push((rpc.as_str(), operation));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_in_docs_is_the_one_that_is_served() {
    let service = Service::start(Store::Sqlite).await;
    let response = service.anonymous().request(Method::GET, "/api/openapi.json").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let served = response.text().await.unwrap();
    expect_file!["../../docs/openapi.json"].assert_eq(&laid_out(&served));
    service.stop().await;
}

/// JSON, laid out over lines, its keys in the order they have: serde's map would sort them.
fn laid_out(json: &str) -> String {
    let (mut out, mut depth, mut in_string, mut escaped) = (String::new(), 0, false, false);
    let mut before = ' ';
    for c in json.chars() {
        let closes = matches!(c, '}' | ']') && !in_string;
        if closes {
            depth -= 1;
        }
        let opened = matches!(before, '{' | '[') && !in_string;
        if !in_string && (closes != opened || (!closes && before == ',')) {
            out.push('\n');
            out.push_str(&"  ".repeat(depth));
        }
        out.push(c);
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '{' | '[' if !in_string => depth += 1,
            ':' if !in_string => out.push(' '),
            _ => {}
        }
        // What opens or parts within a text opens and parts nothing.
        before = if in_string { '"' } else { c };
    }
    out + "\n"
}

#[test]
fn laying_json_out_changes_nothing_of_it() {
    let text = r#"{"a":[1,{"b":"x,{[\"]}: y"},[],{}],"c":{}}"#;
    assert_eq!(serde_json::from_str::<Value>(&laid_out(text)).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(laid_out(r#"{"b":[],"a":["x, y",2]}"#), "{\n  \"b\": [],\n  \"a\": [\n    \"x, y\",\n    2\n  ]\n}\n");
}

#[test]
fn the_document_is_openapi_3_1() {
    let Some(python) = python() else { return };
    let script = "import json, sys, openapi_spec_validator as v; v.validate(json.load(sys.stdin), cls=v.OpenAPIV31SpecValidator)";
    let mut run =
        Command::new(python).args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(identity::api::OPENAPI.as_bytes()).unwrap();
    let run = run.wait_with_output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_referred_to() {
    let document = document();
    let mut referred = BTreeSet::new();
    each_object(&document, &mut |object| {
        if let Some(reference) = object.get("$ref") {
            let reference = reference.as_str().unwrap();
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference} leads nowhere");
            referred.insert(reference.to_owned());
        }
    });
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let reference = format!("#/components/{kind}/{name}");
            assert!(referred.contains(&reference), "nothing refers to {reference}");
        }
    }
}

#[test]
fn every_route_is_there_once_with_its_variables() {
    let document = document();
    let mut ids = BTreeSet::new();
    let mut count = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let variables: BTreeSet<_> =
            path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).map(str::to_owned).collect();
        for (verb, operation) in operations.as_object().unwrap() {
            count += 1;
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{verb} {path} has a name that is taken");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path = parameters.iter().filter(|p| p["in"] == "path");
            let declared: BTreeSet<_> = in_path.clone().map(|p| p["name"].as_str().unwrap().to_owned()).collect();
            assert_eq!(declared, variables, "{verb} {path}");
            assert!(in_path.clone().all(|p| p["required"] == true), "{verb} {path}");
            let tag = &operation["tags"][0];
            assert!(document["tags"].as_array().unwrap().iter().any(|t| t["name"] == *tag), "{verb} {path}: {tag}");
        }
    }
    // Those of the rpcs, health, and pictures.
    assert_eq!(count, operations(&document).len() + 2);
}

#[test]
fn everything_is_described() {
    let document = document();
    let described = |value: &Value, what: &str| {
        let text = value["description"].as_str().unwrap_or_default();
        assert!(!text.trim().is_empty(), "{what} is not described");
    };
    for (rpc, operation) in operations(&document) {
        described(operation, rpc);
        assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()), "{rpc} has no summary");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            described(parameter, &format!("{rpc}: {}", parameter["name"]));
        }
        for content in operation["requestBody"]["content"].as_object().into_iter().flat_map(|c| c.values()) {
            for (name, property) in content["schema"]["properties"].as_object().unwrap() {
                described(property, &format!("{rpc}: {name}"));
            }
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        described(schema, name);
        if !["Error", "FieldErrors"].contains(&name.as_str()) {
            for (field, property) in schema["properties"].as_object().unwrap() {
                described(property, &format!("{name}.{field}"));
            }
        }
    }
    for tag in document["tags"].as_array().unwrap() {
        described(tag, "a tag");
    }
}

#[test]
fn what_only_grpc_has_is_not_in_the_document() {
    for name in ["update_mask", "BatchGetUsers", "CheckPermission"] {
        assert!(!identity::api::OPENAPI.contains(&format!("\"{name}")), "{name}");
    }
    let document = document();
    let list = document["paths"]["/api/users/"]["get"]["parameters"].to_string();
    let page = document["components"]["schemas"]["ListUsersResponse"]["properties"].to_string();
    assert!(list.contains("\"page\"") && !list.contains("\"page_token\""), "{list}");
    assert!(page.contains("\"next\"") && !page.contains("\"next_page_token\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_a_token_says_so() {
    let service = Service::start(Store::Sqlite).await;
    let document = document();
    for (rpc, operation) in operations(&document) {
        let (method, path, _) = route(rpc).unwrap();
        let path = path.replace("{id}", "1").replace("{user_id}", "1").replace("{role}", "seller");
        let path = path.replace("{permission}", "shop.refund");
        let status = service.anonymous().request(method, &path).send().await.unwrap().status();
        assert_eq!(operation["security"].is_array(), status == 401, "{rpc}: {status}");
        assert!(operation["responses"][status.as_str()].is_object(), "{rpc} answers {status}, which isn't documented");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fields_that_are_required_are_those_that_are_missed() {
    let service = Service::start(Store::Sqlite).await;
    let admin = service.admin("admin@example.com").await;
    let document = document();
    for (rpc, operation) in operations(&document) {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let required: BTreeSet<_> =
            schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect();
        if !schema.is_object() {
            continue;
        }
        // Variables of the path come on their own.
        let (_, path, _) = route(rpc).unwrap();
        let variables =
            path.split('/').filter_map(|s| Some((s.strip_prefix('{')?.strip_suffix('}')?.to_owned(), json!(1))));
        let outcome = admin.call(Face::Rest, rpc, Value::Object(variables.collect())).await;
        let missed: BTreeSet<_> = outcome.fields.keys().cloned().collect();
        assert_eq!(missed, required, "{rpc}: {outcome:?}");
        assert_eq!(outcome.status == 422, !required.is_empty(), "{rpc}: {outcome:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_documented_keys_and_no_others() {
    let service = Service::start(Store::Sqlite).await;
    let (user, other) = (service.user("user@example.com").await, service.user("other@example.com").await);
    let admin = service.admin("admin@example.com").await;
    let document = document();
    let account = json!({ "email": "new@example.com", "password": PASSWORD });
    let code = service.code_mailed_to("user@example.com", 1).await;
    let calls = [
        ("AuthService.Register", &user, account.clone()),
        ("AuthService.Login", &user, account),
        ("AuthService.VerifyToken", &user, json!({ "token": user.access_token })),
        ("AuthService.VerifyToken", &user, json!({ "token": user.refresh_token })),
        ("AuthService.RefreshToken", &user, json!({ "refresh_token": user.refresh_token })),
        ("UserService.ListUsers", &user, json!({ "page_size": 1 })),
        ("UserService.GetUser", &user, json!({ "id": 1 })),
        ("UserService.GetUser", &user, json!({ "id": 2 })),
        ("ProfileService.GetMyProfile", &user, json!({})),
        ("ProfileService.GetProfile", &user, json!({ "user_id": 1 })),
        ("ProfileService.GetProfile", &user, json!({ "user_id": 2 })),
        ("ProfileService.UpdateMyProfile", &user, json!({ "bio": "x" })),
        ("AuthService.SendVerification", &other, json!({})),
        ("AuthService.VerifyEmail", &user, json!({ "email": "user@example.com", "code": code })),
        ("UserService.UpdateUser", &user, json!({ "id": 1, "first_name": "Joan" })),
        ("AuthService.ChangePassword", &user, json!({ "old_password": PASSWORD, "new_password": "An0ther-password" })),
        ("UserService.CreateUser", &admin, json!({ "email": "made@example.com", "password": PASSWORD })),
        ("RoleService.GetUserRoles", &user, json!({ "id": 1 })),
        ("RoleService.AddUserRole", &admin, json!({ "id": 1, "role": "seller" })),
        ("RoleService.RemoveUserRole", &admin, json!({ "id": 1, "role": "seller" })),
        ("RoleService.CreateGroup", &admin, json!({ "name": "Support" })),
        ("RoleService.AddGroupPermission", &admin, json!({ "id": 1, "permission": "shop.refund" })),
        ("RoleService.AddGroupMember", &admin, json!({ "id": 1, "user_id": 1 })),
        ("RoleService.GrantPermission", &admin, json!({ "id": 1, "permission": "shop.buy" })),
        ("RoleService.GetUserPermissions", &user, json!({ "id": 1 })),
        ("RoleService.ListGroups", &admin, json!({})),
        ("RoleService.GetGroup", &admin, json!({ "id": 1 })),
        ("RoleService.UpdateGroup", &admin, json!({ "id": 1, "name": "Helpers" })),
        ("RoleService.RevokePermission", &admin, json!({ "id": 1, "permission": "shop.buy" })),
        ("RoleService.RemoveGroupPermission", &admin, json!({ "id": 1, "permission": "shop.refund" })),
        ("RoleService.RemoveGroupMember", &admin, json!({ "id": 1, "user_id": 1 })),
        ("RoleService.DeleteGroup", &admin, json!({ "id": 1 })),
        ("AuthService.Logout", &other, json!({})),
        ("AuditService.ListAuditEvents", &admin, json!({ "page_size": 1 })),
        ("AuditService.ListUserActivity", &admin, json!({ "id": 1 })),
        ("UserService.ExportUser", &admin, json!({ "id": 1 })),
        ("UserService.ExportUser", &admin, json!({ "id": 3 })),
        ("UserService.DeleteUser", &user, json!({ "id": 1 })),
    ];
    for (rpc, actor, fields) in &calls {
        let (_, operation) = *operations(&document).iter().find(|(name, _)| name == rpc).unwrap();
        let outcome = actor.call(Face::Rest, rpc, fields.clone()).await;
        let status = outcome.status;
        assert!((200..300).contains(&status), "{rpc}: {outcome:?}");
        let documented = &operation["responses"][status.to_string()];
        assert!(documented.is_object(), "{rpc} answers {status}, which isn't documented");
        let schema = &documented["content"]["application/json"]["schema"];
        if status == 204 {
            assert!(schema.is_null() && outcome.answer.is_null(), "{rpc}: {outcome:?}");
        } else {
            assert_fits(&document, schema, &outcome.answer, rpc);
        }
    }
    for rpc in rpcs().iter().filter(|rpc| route(rpc).is_some()) {
        assert!(calls.iter().any(|(name, ..)| name == rpc), "{rpc} is built: call it here");
    }
    service.stop().await;
}

/// The value is what the schema says, to the last key.
fn assert_fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        return assert_fits(document, document.pointer(&reference[1..]).unwrap(), value, at);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed = &schema["type"];
    assert!(
        *allowed == kind || allowed.as_array().is_some_and(|kinds| kinds.contains(&json!(kind))),
        "{at}: {value} is no {allowed}"
    );
    if schema["format"] == "date-time" && !value.is_null() {
        let text = value.as_str().unwrap();
        assert!(text.ends_with('Z') && chrono::DateTime::parse_from_rfc3339(text).is_ok(), "{at}: {text}");
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        assert_fits(document, &schema["items"], item, &format!("{at}[{n}]"));
    }
    if let Value::Object(fields) = value {
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
        }
        for (name, value) in fields {
            let property = &schema["properties"][name];
            assert!(property.is_object(), "{at} has {name}, which isn't documented");
            assert_fits(document, property, value, &format!("{at}.{name}"));
        }
    }
}

fn each_object(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            visit(fields);
            fields.values().for_each(|value| each_object(value, visit));
        }
        Value::Array(items) => items.iter().for_each(|value| each_object(value, visit)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_to_try_it_loads_nothing_from_elsewhere() {
    let service = Service::start(Store::Sqlite).await;
    let anonymous = service.anonymous();
    let response = anonymous.request(Method::GET, "/api/docs/").send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    let page = response.text().await.unwrap();
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src=\"//"), "{page}");
    let links = page.split('"').filter(|text| text.starts_with("/api/"));
    let mut found = 0;
    for link in links {
        let response = anonymous.request(Method::GET, link).send().await.unwrap();
        assert_eq!(response.status(), 200, "{link}");
        assert!(!response.bytes().await.unwrap().is_empty(), "{link}");
        found += 1;
    }
    assert_eq!(found, 3, "{page}");
    service.stop().await;
}
