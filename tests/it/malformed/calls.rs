//! What can be wrong with a call. Each begins as one that is right, of an rpc of the contract; then something is done to it.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, Value as Reflected};
use serde_json::{Map, Value, json};

use crate::{
    bad_input::bad_values,
    harness::{
        PASSWORD,
        actor::{method, route},
        load::Dice,
    },
    rest_parity::rpcs,
};

/// A request of HTTP/1.1, byte by byte.
pub struct RestCall {
    pub method: String,
    pub bytes: Vec<u8>,
    /// Where it ends is not certain, so nothing comes after it.
    pub breaks_the_line: bool,
}

impl RestCall {
    /// Its beginning, for a message.
    pub fn shown(&self) -> String {
        self.bytes[..self.bytes.len().min(2000)].escape_ascii().to_string()
    }
}

/// A request of gRPC or gRPC-Web, but for HTTP/2's frames.
pub struct GrpcCall {
    pub is_web: bool,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl GrpcCall {
    pub fn face(&self) -> &'static str {
        if self.is_web { "gRPC-Web" } else { "gRPC" }
    }

    pub fn shown(&self) -> String {
        let body = self.body[..self.body.len().min(2000)].escape_ascii();
        format!("{} {} {:?} {body}", self.face(), self.path, self.headers)
    }

    pub fn has_deadline(&self) -> bool {
        self.headers.contains_key("grpc-timeout")
    }
}

/// Makes malformed calls.
pub struct Forger {
    dice: Dice,
    /// Of a user, and of an admin.
    tokens: [String; 2],
    host: SocketAddr,
    bad: Vec<Value>,
    /// Those with a route, and all.
    routed: Vec<&'static str>,
    all: Vec<&'static str>,
}

/// Calls that would end what the others need: the sessions, the accounts and the passwords of whoever calls.
const SPARED: [&str; 4] =
    ["AuthService.Logout", "UserService.DeleteUser", "UserService.UpdateUser", "AuthService.ChangePassword"];

impl Forger {
    pub fn new(dice: Dice, tokens: [String; 2], host: SocketAddr) -> Self {
        let all: Vec<_> = rpcs().iter().map(String::as_str).collect();
        let routed = all.iter().copied().filter(|rpc| route(rpc).is_some()).collect();
        Self { dice, tokens, host, bad: bad_values(), routed, all }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.dice.below(bound.max(1) as u64)).unwrap()
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// A token that is right, of either; where it could do harm, of nobody's.
    fn token(&mut self, rpc: &str) -> Option<String> {
        match self.below(4) {
            0 => None,
            _ if SPARED.contains(&rpc) => Some("x.y.z".into()),
            n => Some(self.tokens[n % 2].clone()),
        }
    }

    /// What fits into this field.
    fn right(&mut self, field: &FieldDescriptor) -> Value {
        match (field.name(), field.kind()) {
            ("email", _) => json!(format!("user{}@example.com", self.below(1000))),
            ("password" | "old_password" | "new_password", _) => json!(PASSWORD),
            ("role", _) => json!("seller"),
            ("permission", _) => json!("shop.refund"),
            ("timezone", _) => json!("Europe/Berlin"),
            ("ordering", _) => json!("-email"),
            ("update_mask", _) => json!("bio,first_name"),
            (_, Kind::String) => json!("some words"),
            (_, Kind::Bool) => json!(self.below(2) == 0),
            (_, Kind::Int64) if field.is_list() => json!([1, 2, 3]),
            (_, Kind::Int64) => json!(self.below(5)),
            _ => Value::Null,
        }
    }

    fn right_fields(&mut self, rpc: &str) -> Map<String, Value> {
        let fields = method(rpc).input().fields().collect::<Vec<_>>();
        fields.iter().map(|field| (field.name().to_owned(), self.right(field))).collect()
    }

    /// Something that happens to bytes on the way.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let (at, size) = (self.below(bytes.len()), self.below(8) + 1);
            let end = (at + size).min(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.extend_from_within(at..end),
                3 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                4 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                5 => drop(bytes.splice(at..at, [0xff, 0xfe, 0xc0, 0x80])),
                6 => drop(bytes.splice(at..at, vec![self.pick(b"\0{}[]\",:\\%\r\n0e-."); size])),
                _ => bytes.extend(vec![self.pick(b" \0{a\xf0"); self.below(200)]),
            }
        }
    }

    // REST.

    pub fn rest(&mut self) -> RestCall {
        let rpc = self.pick(&self.routed.clone());
        let (verb, path, has_body) = route(rpc).expect("it has a route");
        let mut fields = self.right_fields(rpc);
        let wrong = self.below(6);
        if wrong == 0 && !fields.is_empty() {
            let name = self.pick(&fields.keys().cloned().collect::<Vec<_>>());
            fields[&name] = self.pick(&self.bad.clone());
        }
        let mut target = self.target(&path, &mut fields, has_body, wrong == 1);
        let mut headers: Vec<Vec<u8>> = vec![format!("host: {}", self.host).into_bytes()];
        if let Some(token) = self.token(rpc) {
            headers.push(format!("authorization: Bearer {token}").into_bytes());
        }
        let mut body = Vec::new();
        if has_body {
            let content_type;
            (content_type, body) = self.body(&Value::Object(fields), wrong == 2, wrong == 3);
            headers.extend(content_type.map(|kind| [b"content-type: ", kind.as_bytes()].concat()));
        }
        if wrong == 4 {
            headers.push(self.odd_header());
        }
        let mut verb = verb.to_string();
        if wrong == 5 {
            match self.below(3) {
                0 => {
                    // But DELETE, which might take the callers' accounts.
                    let others =
                        ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "post", "PROPFIND", "M-SEARCH", "X"];
                    self.pick(&others).clone_into(&mut verb);
                }
                1 => target
                    .splice(0..0, self.pick(&["//", "/.", "/..", "/%2e%2e", "/%2f", "/api//", "/;"]).bytes())
                    .for_each(drop),
                _ => {
                    let tail = self.pick(&[
                        "?",
                        "/",
                        "%00",
                        "%",
                        "#x",
                        "?page=1&page=2",
                        "?%ff=%ff&&==",
                        "//",
                        ";x=y",
                        "?page_token=AAAA",
                    ]);
                    target.extend(tail.bytes());
                }
            }
        }
        self.written(verb, &target, headers, body)
    }

    /// Path and query.
    fn target(&mut self, path: &str, fields: &mut Map<String, Value>, has_body: bool, is_wrong: bool) -> Vec<u8> {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let encoded = |value: &Value| percent_encode(plain(value).as_bytes(), NON_ALPHANUMERIC).to_string();
        let bad = self.pick(&self.bad.clone());
        let segments =
            path.split('/').map(|segment| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                Some(name) => {
                    let right = fields.remove(name).unwrap_or_default();
                    encoded(if is_wrong { &bad } else { &right })
                }
                None => segment.to_owned(),
            });
        let mut target = segments.collect::<Vec<_>>().join("/");
        if !has_body {
            let query: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
            target = format!("{target}?{}", query.join("&"));
        }
        target.truncate(20_000);
        let mut target = target.into_bytes();
        if is_wrong && self.below(3) == 0 {
            self.damage(&mut target);
            // What ends a line is the affair of `odd_header`.
            target.retain(|byte| *byte > b' ' && *byte != 0x7f);
        }
        target
    }

    /// A body, and what it is said to be.
    fn body(&mut self, fields: &Value, is_damaged: bool, is_odd: bool) -> (Option<String>, Vec<u8>) {
        let right = fields.to_string();
        let json = Some("application/json".to_owned());
        if is_damaged {
            let mut bytes = right.into_bytes();
            self.damage(&mut bytes);
            return (json, bytes);
        }
        if !is_odd {
            return (json, right.into_bytes());
        }
        let form = format!(
            "--b\r\ncontent-disposition: form-data; name=\"bio\"\r\n\r\nHello\r\n--b\r\ncontent-disposition: form-data; \
             name=\"avatar\"; filename=\"x.png\"\r\n\r\n\u{89}PNG\r\n{}\r\n--b--\r\n",
            "x".repeat(self.below(300))
        );
        match self.below(14) {
            0 => (json, format!("{{\"email\": 1, {}", &right[1..]).into_bytes()),
            1 => {
                let depth = self.below(100);
                (json, format!("{{\"x\": {}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes())
            }
            2 => (json, format!("{{\"x\": {}}}", "{\"x\":".repeat(10_000)).into_bytes()),
            3 => (json, format!("{{\"id\": {}}}", "9".repeat(self.below(5000))).into_bytes()),
            4 => (json, [b"\xef\xbb\xbf", right.as_bytes()].concat()),
            5 => (json, right.encode_utf16().flat_map(u16::to_be_bytes).collect()),
            6 => (
                json,
                format!("{{{}}}", (0..300).map(|n| format!("\"k{n}\":0")).collect::<Vec<_>>().join(",")).into_bytes(),
            ),
            7 => (json, vec![b' '; 65_537]),
            8 => {
                let kinds = [
                    "text/plain",
                    "application/xml",
                    "application/x-www-form-urlencoded",
                    "json",
                    "",
                    "application/json;charset=\"",
                    "*/*",
                    "multipart/form-data",
                    "multipart/form-data; boundary=",
                    "application/grpc",
                    "application/json, text/html",
                ];
                (Some(self.pick(&kinds).to_owned()), right.into_bytes())
            }
            9 => (None, right.into_bytes()),
            10 => {
                let boundary = self.pick(&[
                    "c",
                    "\"b",
                    "b b",
                    "",
                    "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
                ]);
                (Some(format!("multipart/form-data; boundary={boundary}")), form.into_bytes())
            }
            11 => {
                let twice = form.replace("name=\"avatar\"", "name=\"bio\"");
                (Some("multipart/form-data; boundary=b".into()), twice.into_bytes())
            }
            _ => {
                let mut bytes = form.into_bytes();
                self.damage(&mut bytes);
                (Some("multipart/form-data; boundary=b".into()), bytes)
            }
        }
    }

    /// A header that nobody should send.
    fn odd_header(&mut self) -> Vec<u8> {
        let mut token = self.tokens[0].clone().into_bytes();
        self.damage(&mut token);
        token.retain(|byte| *byte > b' ' && *byte != 0x7f);
        let long = "x".repeat(self.below(20_000));
        match self.below(20) {
            0 => [b"authorization: Bearer ", &token[..]].concat(),
            1 => b"authorization: Basic dXNlcjpwYXNz".to_vec(),
            2 => b"authorization: Bearer".to_vec(),
            3 => b"authorization: \xff\xfe \x80".to_vec(),
            4 => [b"x-request-id: ", long.as_bytes()].concat(),
            5 => b"x-request-id: \x1b[31m".to_vec(),
            6 => b"x-forwarded-for: 127.0.0.1, ::, 300.1.1.1, \xff".to_vec(),
            7 => b"host: evil.example".to_vec(),
            8 => b"host: ".to_vec(),
            9 => b"traceparent: 00-00000000000000000000000000000000-0000000000000000-zz".to_vec(),
            10 => b"content-encoding: gzip".to_vec(),
            11 => b"expect: 100-continue".to_vec(),
            12 => b"expect: the worst".to_vec(),
            13 => [b"cookie: ", long.as_bytes()].concat(),
            14 => b"bad name: x".to_vec(),
            15 => b"folded: x\r\n y".to_vec(),
            16 => b"nul: \0".to_vec(),
            17 => b"no colon".to_vec(),
            18 => b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAAA".to_vec(),
            _ => (0..200).map(|n| format!("x-{n}: y")).collect::<Vec<_>>().join("\r\n").into_bytes(),
        }
    }

    /// The whole request; now and then its frame is broken, too.
    fn written(&mut self, verb: String, target: &[u8], headers: Vec<Vec<u8>>, body: Vec<u8>) -> RestCall {
        let is_broken = self.below(8) == 0;
        let (mut version, mut end, mut length) = ("HTTP/1.1", &b"\r\n"[..], format!("content-length: {}", body.len()));
        let mut body = body;
        if is_broken {
            match self.below(9) {
                0 => {
                    version =
                        self.pick(&["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTPP/1.1", "", "HTTP/1.1 x"]);
                }
                1 => end = b"\n",
                2 => length = format!("content-length: {}", body.len() + 1 + self.below(100)),
                3 => {
                    length = format!(
                        "content-length: {}",
                        self.pick(&["-1", "+1", "0x10", "1, 2", "99999999999999999999", "", "1e3"])
                    );
                }
                4 => length = format!("{length}\r\ncontent-length: {}", self.below(100)),
                5 => length = format!("{length}\r\ntransfer-encoding: chunked"),
                6 => {
                    length = self
                        .pick(&[
                            "transfer-encoding: chunked",
                            "transfer-encoding: gzip, chunked",
                            "transfer-encoding: x",
                        ])
                        .into();
                    let size = self.pick(&["5", "ffffffffffffffff", "-1", "zz", "0", "5;x=y", "00000000000000000001"]);
                    body = [size.as_bytes(), b"\r\n", &body[..], b"\r\n0\r\n\r\n"].concat();
                }
                7 => body.extend(b"GET / HTTP/1.1\r\n\r\n"),
                _ => {}
            }
        }
        let mut bytes = [verb.as_bytes(), b" ", target, b" ", version.as_bytes(), end].concat();
        for line in headers.into_iter().chain([length.into_bytes()]) {
            bytes.extend(line);
            bytes.extend(end);
        }
        bytes.extend(end);
        bytes.extend(body);
        if is_broken && self.below(3) == 0 {
            self.damage(&mut bytes);
        }
        // Whatever stands in the head may end the line.
        let breaks_the_line = is_broken || !has_plain_head(&bytes);
        RestCall { method: verb, bytes, breaks_the_line }
    }

    // gRPC.

    pub fn grpc(&mut self) -> GrpcCall {
        let rpc = self.pick(&self.all.clone());
        let wrong = self.below(5);
        let mut message = self.message(rpc, wrong == 0);
        if wrong == 1 {
            self.damage(&mut message);
        }
        if wrong == 2 {
            message = self.odd_message(message);
        }
        let mut body = if wrong == 3 { self.odd_frame(&message) } else { frame(0, message.len(), &message) };
        let is_web = self.below(3) == 0;
        let mut headers = HeaderMap::new();
        let mut kind = if is_web { "application/grpc-web+proto" } else { "application/grpc" };
        if is_web && self.below(2) == 0 {
            kind = "application/grpc-web-text";
            body = BASE64_STANDARD.encode(body).into_bytes();
            if wrong == 3 {
                self.damage(&mut body);
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if let Some(token) = self.token(rpc) {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let descriptor = method(rpc);
        let mut path = format!("/{}/{}", descriptor.parent_service().full_name(), descriptor.name());
        if wrong == 4 {
            if self.below(3) == 0 {
                path = self
                    .pick(&[
                        "/",
                        "/identity.v1.AuthService",
                        "/identity.v1.AuthService/",
                        "/identity.v1.AuthService/Nothing",
                        "/identity.v1.Nothing/Login",
                        "//identity.v1.AuthService/Login",
                        "/identity.v1.AuthService/Login/",
                        "/identity.v1.AuthService/login",
                        "/identity.v1.AuthService%2FLogin",
                        "/identity.v1.AuthService/Login?x=y",
                        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                        "/grpc.health.v1.Health/Check",
                        "/api/users/",
                    ])
                    .into();
            } else {
                self.odd_metadata(&mut headers);
            }
        }
        GrpcCall { is_web, path, headers, body }
    }

    /// A message of the rpc's type, now and then with values that are seldom right.
    fn message(&mut self, rpc: &str, is_bad: bool) -> Vec<u8> {
        let mut message = DynamicMessage::new(method(rpc).input());
        for field in method(rpc).input().fields() {
            let right = self.right(&field);
            let value = match field.kind() {
                Kind::String if is_bad => Reflected::String(self.pick(&self.bad.clone()).to_string()),
                Kind::String => Reflected::String(right.as_str().unwrap_or_default().into()),
                Kind::Bool => Reflected::Bool(right == json!(true)),
                Kind::Int64 if field.is_list() => {
                    let count = if is_bad { self.below(500) } else { 3 };
                    Reflected::List((0..count).map(|n| Reflected::I64(i64::try_from(n).unwrap())).collect())
                }
                Kind::Int64 if is_bad => Reflected::I64(self.pick(&[0, -1, i64::MIN, i64::MAX, 1 << 40])),
                Kind::Int64 => Reflected::I64(right.as_i64().unwrap_or_default()),
                Kind::Bytes => Reflected::Bytes(vec![0xff; self.below(300)].into()),
                _ => continue,
            };
            if !is_bad || self.below(3) > 0 {
                message.set_field(&field, value);
            }
        }
        message.encode_to_vec()
    }

    /// What no encoder of protobuf writes.
    fn odd_message(&mut self, right: Vec<u8>) -> Vec<u8> {
        let odd: Vec<u8> = match self.below(10) {
            0 => vec![0x0b; self.below(5000)],                      // groups that don't end
            1 => [vec![0x0b; 200], vec![0x0c; 200]].concat(),       // and that do
            2 => vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],          // longer than all
            3 => [vec![0x08], vec![0xff; 10], vec![0x01]].concat(), // a number of eleven bytes
            4 => vec![0x00, 0x00],                                  // field 0
            5 => vec![0x0f, 0x01],                                  // wire type 7
            6 => vec![0x0a, 0x02, 0xff, 0xfe],                      // no UTF-8
            7 => vec![0x0d, 1, 2, 3, 4],                            // another wire type
            8 => vec![0xfa, 0xff, 0xff, 0xff, 0x0f, 0x00],          // the highest field
            _ => [&[0x62, 0xff, 0x01][..], &[0x0a, 0x00].repeat(127), &[0x0a]].concat(), // an update mask of nothings
        };
        if self.below(2) == 0 { [right, odd].concat() } else { odd }
    }

    /// A message whose frame is wrong.
    fn odd_frame(&mut self, message: &[u8]) -> Vec<u8> {
        let length = message.len();
        match self.below(10) {
            0 => frame(1, length, message),
            1 => frame(self.pick(&[2, 0x7f, 0x80, 0xff]), length, message),
            2 => frame(0, length + 1 + self.below(1000), message),
            3 => frame(0, length.saturating_sub(1), message),
            4 => frame(0, u32::MAX as usize, message),
            5 => frame(0, length, message).repeat(2),
            6 => frame(0, length, message)[..self.below(5)].to_vec(),
            7 => Vec::new(),
            8 => frame(0, 70_000, &vec![0; 70_000]),
            _ => [frame(0, length, message), vec![0xff; self.below(100)]].concat(),
        }
    }

    fn odd_metadata(&mut self, headers: &mut HeaderMap) {
        let long = "x".repeat(self.below(8000));
        let (name, value): (&'static str, Vec<u8>) = match self.below(20) {
            0 => ("content-type", b"application/grpc+json".to_vec()),
            1 => ("content-type", b"application/json".to_vec()),
            2 => ("content-type", b"application/grpc-web-text+thrift;x".to_vec()),
            3 => ("content-type", b"\xff".to_vec()),
            4 => ("grpc-encoding", b"gzip".to_vec()),
            5 => ("grpc-encoding", b"\xff\xfe".to_vec()),
            6 => ("grpc-timeout", b"0n".to_vec()),
            7 => ("grpc-timeout", b"99999999H".to_vec()),
            8 => ("grpc-timeout", b"-1S".to_vec()),
            9 => ("grpc-timeout", "\u{436}S".into()),
            10 => ("authorization", b"Bearer x".to_vec()),
            11 => ("authorization", b"\xff".to_vec()),
            12 => ("x-user-id", b"1".to_vec()),
            13 => ("user_id-bin", b"AQ==".to_vec()),
            14 => ("trace-bin", b"%%%".to_vec()),
            15 => ("grpc-status", b"0".to_vec()),
            16 => ("x-request-id", long.into_bytes()),
            17 => ("x-forwarded-for", b"::1".to_vec()),
            18 => ("grpc-accept-encoding", b"gzip, deflate, x".to_vec()),
            _ => ("traceparent", b"00-ff".to_vec()),
        };
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_bytes(&value).expect("a header"));
        // A second beside the first, or in its place.
        if self.below(2) == 0 {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
}

/// A frame that says that its message has so many bytes.
fn frame(flag: u8, length: usize, message: &[u8]) -> Vec<u8> {
    [&[flag], &u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()[..], message].concat()
}

/// Where the request ends can be told by its head: of no header does HTTP/1.1 end a connection.
fn has_plain_head(request: &[u8]) -> bool {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(request.len());
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    !["\0", "\u{fffd}", "expect:", "upgrade:", "folded:", "no colon", "bad name:"].iter().any(|odd| head.contains(odd))
        && head.len() < 8000
        && head.lines().count() < 50
}
