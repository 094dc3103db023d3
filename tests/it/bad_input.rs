//! Bad input, on every route and every rpc there is: a clear error in our own words, and nothing changes.
//!
//! Routes, rpcs and fields come from the descriptors, so that a new one is tried without being named here. All that is
//! ever answered stands in `tests/it/bad_input.txt`, to be read by people:
//! `UPDATE_EXPECT=1 scripts/test integration bad_input` writes it anew.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value as Reflected};
use reqwest::{Method, header};
use serde_json::{Map, Value, json};

use crate::{
    harness::{
        Actor, PASSWORD, Service, Store,
        actor::{method, outcome_of_status, route},
    },
    rest_parity::{rpcs, state},
};

/// Values that JSON can hold, most of which no field takes.
pub fn bad_values() -> Vec<Value> {
    let huge = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        huge("9223372036854775808"),
        huge("100000000000000000000"),
        huge("1e300"),
        json!(""),
        json!(" \t\n"),
        json!("true"),
        json!("\u{0}"),
        json!("a\u{0}b"),
        json!("\u{1b}[31m"),
        json!("\u{202e}\u{feff}\u{10ffff}"),
        json!("%_\\'\";--"),
        json!("x".repeat(151)),
        json!("ж".repeat(1001)),
        json!("x".repeat(20_000)),
        json!([]),
        json!(["x"]),
        json!({}),
        json!({ "x": [1] }),
    ]
}

/// Bodies that are no JSON object, and what makes of them the right one.
fn broken_bodies(right: &Value) -> Vec<(&'static str, Vec<u8>)> {
    let text = right.to_string();
    vec![
        ("a beginning", b"{".to_vec()),
        ("text", b"hello".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("a number", b"1".to_vec()),
        ("null", b"null".to_vec()),
        ("a key twice", b"{\"x\": 1, \"x\": 2}".to_vec()),
        ("too deep", format!("{{\"x\": {}{}}}", "[".repeat(40), "]".repeat(40)).into_bytes()),
        ("more after the end", format!("{text}{text}").into_bytes()),
        ("a mark before it", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
        ("no UTF-8", b"{\"x\": \"\xff\xfe\"}".to_vec()),
        ("half a pair", b"{\"email\": \"\\ud800\", \"first_name\": \"\\udc00\"}".to_vec()),
        ("XML", b"<?xml version=\"1.0\"?><x/>".to_vec()),
        ("a number beyond numbers", b"{\"x\": 1e999999}".to_vec()),
    ]
}

/// What a call of the rpc that is right would say: numbers and names that fit, of things that are there.
pub fn right_fields(rpc: &str, at: usize) -> Value {
    match rpc {
        "AuthService.Register" | "UserService.CreateUser" => {
            json!({ "email": format!("new{at}@example.com"), "password": PASSWORD })
        }
        "AuthService.Login" => json!({ "email": "user@example.com", "password": PASSWORD }),
        "AuthService.ChangePassword" => json!({ "old_password": PASSWORD, "new_password": "wr0ng-passw0rd" }),
        "AuthService.VerifyEmail" => json!({ "email": "user@example.com", "code": "000000" }),
        "RoleService.AddUserRole" => json!({ "id": 2, "role": "seller" }),
        "RoleService.AddGroupMember" => json!({ "id": 1, "user_id": 2 }),
        _ => json!({}),
    }
}

fn path_of(path: &str, variable: Option<(&str, &str)>) -> String {
    let fill = |segment: &str| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
        None => segment.to_owned(),
        Some(name) => match variable {
            Some((bad, value)) if bad == name => value.to_owned(),
            _ if name == "permission" => "shop.refund".to_owned(),
            _ if name == "role" => "seller".to_owned(),
            _ => "2".to_owned(),
        },
    };
    path.split('/').map(fill).collect::<Vec<_>>().join("/")
}

/// All that is answered, by status.
#[derive(Default)]
struct Told(BTreeMap<String, BTreeSet<String>>);

impl Told {
    /// Notes what a REST answer says, and what is wrong with it as an answer.
    fn rest(&mut self, request: &str, status: u16, headers: &header::HeaderMap, body: &str) -> Result<(), String> {
        if status < 400 {
            return Ok(());
        }
        let wrong = |why: &str| Err(format!("{request}: {why}: {status} {body}"));
        if status >= 500 {
            return wrong("a fault");
        }
        if headers.get("cache-control").is_none_or(|v| v != "no-store") || !headers.contains_key("x-request-id") {
            return wrong("without no-store or a request id");
        }
        if status == 405 && !headers.contains_key("allow") {
            return wrong("without Allow");
        }
        let Ok(Value::Object(keys)) = serde_json::from_str(body) else { return wrong("no JSON object") };
        for (key, value) in &keys {
            match value {
                Value::String(text) if key == "error" || key == "detail" => self.note(status, text),
                Value::Array(texts) if !texts.is_empty() && texts.iter().all(Value::is_string) => {
                    for text in texts {
                        self.note(status, text.as_str().unwrap());
                    }
                }
                _ => return wrong("not in the form of the contract"),
            }
        }
        if keys.is_empty() || (keys.contains_key("detail") && !keys.contains_key("error")) {
            return wrong("not in the form of the contract");
        }
        Ok(())
    }

    fn note(&mut self, status: u16, text: &str) {
        // Where in a body the parser stopped is told, and differs.
        let steady: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        self.0.entry(status.to_string()).or_default().insert(steady);
    }
}

/// A service with a superuser, a user and a group, and no limits.
async fn cast(store: Store) -> (Service, Actor) {
    let service = Service::start_with(store, &[("RATE_LIMIT_API", "off"), ("RATE_LIMIT_VERIFICATION", "off")]).await;
    let admin = service.admin("admin@example.com").await;
    service.user("user@example.com").await;
    let group = json!({ "name": "Support" });
    admin.call(crate::harness::Face::Rest, "RoleService.CreateGroup", group).await.expect(201);
    (service, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_answers_bad_input_with_a_fault_or_in_foreign_words() {
    let mut told = Told::default();
    for store in Store::all() {
        let (service, admin) = cast(store).await;
        let mut wrong = Vec::new();
        for rpc in rpcs() {
            let Some((verb, path, has_body)) = route(rpc) else { continue };
            let trial = Trial { service: &service, admin: &admin, rpc, verb: verb.clone(), path: path.clone() };
            let good = path_of(&path, None);
            for (at, value) in bad_values().into_iter().enumerate() {
                for field in method(rpc).input().fields() {
                    let name = field.name();
                    if path.contains(&format!("{{{name}}}")) {
                        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        let text: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
                        let bad = path_of(&path, Some((name, &text.replace('+', "%20"))));
                        if value != json!("") {
                            trial
                                .send(&verb, &bad, has_body.then(|| right_fields(rpc, at)), &mut told, &mut wrong)
                                .await;
                        }
                    } else if has_body {
                        let mut fields = right_fields(rpc, at);
                        fields[name] = value.clone();
                        trial.send(&verb, &good, Some(fields), &mut told, &mut wrong).await;
                    } else {
                        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        let query: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
                        trial.send(&verb, &format!("{good}?{name}={query}"), None, &mut told, &mut wrong).await;
                    }
                }
            }
            if has_body {
                trial.send_bodies(&good, &mut told, &mut wrong).await;
            }
            for other in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::TRACE] {
                let is_route = rpcs().iter().filter_map(|rpc| route(rpc)).any(|(v, p, _)| v == other && p == path);
                if !is_route {
                    let status = trial.send(&other, &good, None, &mut told, &mut wrong).await;
                    assert_eq!(status, 405, "{other} {good}");
                }
            }
        }
        service.stop().await;
        assert!(wrong.is_empty(), "{} on {store:?}, such as\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    }
    let section = |(status, texts): (&String, &BTreeSet<String>)| {
        let texts: String = texts
            .iter()
            .map(|text| {
                [
                    "  ", text, "
",
                ]
                .concat()
            })
            .collect();
        [
            status, "
", &texts,
        ]
        .concat()
    };
    let listed: String = told.0.iter().map(section).collect();
    expect_test::expect_file!["./bad_input.txt"].assert_eq(&listed);
}

/// One route, and who tries it.
struct Trial<'a> {
    service: &'a Service,
    admin: &'a Actor,
    rpc: &'a str,
    verb: Method,
    path: String,
}

impl Trial<'_> {
    /// Whoever may be logged out or change the password does so once.
    async fn actor(&self) -> Actor {
        match self.rpc {
            "AuthService.Logout" => self.service.login("user@example.com").await,
            _ => self.admin.clone(),
        }
    }

    async fn send(
        &self,
        verb: &Method,
        path: &str,
        fields: Option<Value>,
        told: &mut Told,
        wrong: &mut Vec<String>,
    ) -> u16 {
        let request = self.actor().await.request(verb.clone(), path);
        let request = match &fields {
            Some(fields) => request.json(fields),
            None => request,
        };
        let path_shown: String = path.chars().take(120).collect();
        let shown = fields.map(|fields| fields.to_string().chars().take(120).collect::<String>());
        self.judge(request, &format!("{verb} {path_shown} {shown:?}"), told, wrong).await
    }

    async fn send_bodies(&self, path: &str, told: &mut Told, wrong: &mut Vec<String>) {
        let actor = self.actor().await;
        let right = right_fields(self.rpc, 0);
        for (name, body) in broken_bodies(&right) {
            let request = actor.request(self.verb.clone(), path).header(header::CONTENT_TYPE, "application/json");
            let status =
                self.judge(request.body(body), &format!("{} {path} with {name}", self.verb), told, wrong).await;
            let reads_none = method(self.rpc).input().fields().len() == 0;
            assert!(reads_none || matches!(status, 400 | 401 | 422 | 200 | 404), "{} with {name}: {status}", self.rpc);
        }
        let types = [
            "text/plain",
            "application/xml",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "x",
            "application/json; charset=\"",
            "application/jsonp",
        ];
        for kind in types {
            let request = actor.request(self.verb.clone(), path).header(header::CONTENT_TYPE, kind);
            self.judge(request.body(right.to_string()), &format!("{} {path} as {kind}", self.verb), told, wrong).await;
        }
        let large = json!({ "x": "y".repeat(70_000) }).to_string();
        let request = actor.request(self.verb.clone(), path).header(header::CONTENT_TYPE, "application/json");
        let status = self.judge(request.body(large), &format!("{} {path} too large", self.verb), told, wrong).await;
        if method(self.rpc).input().fields().len() > 0 {
            assert_eq!(status, 413, "{}", self.rpc);
        }
    }

    async fn judge(
        &self,
        request: reqwest::RequestBuilder,
        name: &str,
        told: &mut Told,
        wrong: &mut Vec<String>,
    ) -> u16 {
        let before = state(self.service).await;
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await.unwrap();
        if let Err(why) = told.rest(name, status, &headers, &body) {
            wrong.push(format!("{} ({}): {why}", self.rpc, self.path));
        }
        if status >= 400 && self.rpc != "AuthService.Logout" && state(self.service).await != before {
            wrong.push(format!("{}: {name} was refused with {status}, and changed something", self.rpc));
        }
        status
    }
}

/// Values of a field's own type that are seldom right.
fn bad_reflected(field: &FieldDescriptor) -> Vec<Reflected> {
    match field.kind() {
        Kind::String => {
            bad_values().into_iter().filter_map(|v| v.as_str().map(|s| Reflected::String(s.into()))).collect()
        }
        Kind::Int64 => [0, -1, i64::MIN, i64::MAX, 3_000_000_000].map(Reflected::I64).to_vec(),
        Kind::Bool => vec![Reflected::Bool(false), Reflected::Bool(true)],
        Kind::Bytes => vec![Reflected::Bytes(vec![].into()), Reflected::Bytes(vec![0xff; 100].into())],
        _ => Vec::new(),
    }
}

fn message(method: &MethodDescriptor, fields: &Value) -> DynamicMessage {
    let mut fields = fields.clone();
    for field in method.input().fields() {
        if !field.supports_presence() && !field.is_list() && fields.get(field.name()).is_none() {
            let value = if field.name() == "permission" { json!("shop.refund") } else { json!(2) };
            let value = if field.name() == "role" { json!("seller") } else { value };
            fields[field.name()] = value;
        }
    }
    DynamicMessage::deserialize(method.input(), Value::Object(fields.as_object().cloned().unwrap_or_else(Map::new)))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rpc_answers_bad_input_with_a_fault_or_without_a_reason() {
    use prost::Message;
    for store in Store::all() {
        let (service, admin) = cast(store).await;
        let mut wrong = Vec::new();
        for rpc in rpcs() {
            let descriptor = method(rpc);
            let path = format!("/{}/{}", descriptor.parent_service().full_name(), descriptor.name());
            let mut requests: Vec<Vec<u8>> = Vec::new();
            for field in descriptor.input().fields() {
                for (at, value) in bad_reflected(&field).into_iter().enumerate() {
                    let mut request = message(&descriptor, &right_fields(rpc, 1000 + at));
                    if field.is_list() {
                        request.set_field(&field, Reflected::List(vec![value; 101]));
                    } else {
                        request.set_field(&field, value);
                    }
                    requests.push(request.encode_to_vec());
                }
                // The field as another wire type than its own, and cut short.
                let tag = u8::try_from(field.number() << 3).unwrap();
                requests.extend([vec![tag | 5, 1, 2, 3, 4], vec![tag | 2, 0x7f, 1], vec![tag | 3], vec![tag | 7, 0]]);
                requests.push(vec![tag | 2, 2, 0xff, 0xfe]);
            }
            let mask = descriptor.input().get_field_by_name("update_mask");
            for paths in mask.iter().flat_map(|_| ["nonsense", "id", "bio.x", "*", ""]) {
                let mut request = message(&descriptor, &right_fields(rpc, 0));
                let mask = json!({ "paths": [paths] });
                let kind = mask_kind(&descriptor);
                let mask = prost_types::FieldMask { paths: vec![mask["paths"][0].as_str().unwrap().to_owned()] };
                let mask = DynamicMessage::decode(kind, mask.encode_to_vec().as_slice()).unwrap();
                request.set_field_by_name("update_mask", Reflected::Message(mask));
                requests.push(request.encode_to_vec());
            }
            requests.push(vec![0xff; 32]);
            for request in requests {
                let actor =
                    if rpc == "AuthService.Logout" { service.login("user@example.com").await } else { admin.clone() };
                let before = state(&service).await;
                let Err(status) = actor.call_grpc_raw(&path, request.clone()).await else { continue };
                let shown = request.iter().take(40).collect::<Vec<_>>();
                let outcome = outcome_of_status(&status);
                if outcome.status >= 500 || outcome.reason.is_none() || status.message().is_empty() {
                    wrong.push(format!("{rpc} {shown:?}: {status:?}"));
                }
                if rpc != "AuthService.Logout" && state(&service).await != before {
                    wrong.push(format!("{rpc} {shown:?} was refused, and changed something"));
                }
            }
        }
        service.stop().await;
        assert!(wrong.is_empty(), "{} on {store:?}, such as\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    }
}

fn mask_kind(method: &MethodDescriptor) -> prost_reflect::MessageDescriptor {
    let field = method.input().get_field_by_name("update_mask").unwrap();
    field.kind().as_message().unwrap().clone()
}
