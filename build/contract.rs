//! The contract, read from the descriptors: services, rpcs, routes, policies. Whatever the generator can't honour is
//! refused here, by the name of the rpc, so that an annotation never counts for less than it says.

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, ServiceDescriptor, Value,
};

pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Milliseconds a call may take where the rpc does not say.
const DEFAULT_DEADLINE_MS: u32 = 15_000;
/// Bytes a request may have where the rpc does not say.
const DEFAULT_MAX_REQUEST_BYTES: u32 = 65_536;

pub struct Contract {
    pub services: Vec<Service>,
    /// Every message of the package: requests, answers, and what they hold.
    pub messages: Vec<MessageDescriptor>,
}

pub struct Service {
    pub descriptor: ServiceDescriptor,
    pub rpcs: Vec<Rpc>,
}

pub struct Rpc {
    pub descriptor: MethodDescriptor,
    pub policy: Policy,
    pub route: Option<Route>,
}

pub struct Policy {
    /// `Anyone`, `User` or `Admin`.
    pub access: String,
    /// `Api`, `ByRule` or `None`.
    pub limit: String,
    pub deadline_ms: u32,
    pub max_request_bytes: u32,
}

pub struct Route {
    /// Lower case, as axum's and OpenAPI's names for it.
    pub verb: &'static str,
    pub path: String,
    pub status: u16,
    pub body: Body,
    /// The fields that the path names.
    pub path_fields: Vec<String>,
    /// The statuses of failure that don't follow from the rest.
    pub also_answers: Vec<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// The fields come from the query.
    None,
    Json,
    JsonOrForm,
}

impl Contract {
    /// Reads the services of `package` out of an encoded `FileDescriptorSet`.
    pub fn read(descriptors: &[u8], package: &str) -> Result<Self> {
        let pool = DescriptorPool::decode(descriptors)?;
        let options = Options { pool: &pool };
        let services = pool
            .services()
            .filter(|s| s.package_name() == package)
            .map(|descriptor| {
                let rpcs = descriptor.methods().map(|m| options.rpc(m)).collect::<Result<_>>()?;
                Ok(Service { descriptor, rpcs })
            })
            .collect::<Result<Vec<_>>>()?;
        let messages = pool.all_messages().filter(|m| m.package_name() == package).collect();
        let contract = Self { services, messages };
        contract.refuse_clashing_routes()?;
        Ok(contract)
    }

    /// The messages that a REST route answers with, and those inside them: what is written as JSON.
    pub fn answers(&self) -> Vec<MessageDescriptor> {
        let mut found: Vec<MessageDescriptor> = Vec::new();
        let mut open: Vec<_> =
            self.rpcs().filter(|rpc| rpc.route.is_some()).map(|rpc| rpc.descriptor.output()).collect();
        while let Some(message) = open.pop() {
            if found.contains(&message) || !self.messages.contains(&message) {
                continue;
            }
            open.extend(message.fields().filter_map(|f| f.kind().as_message().cloned()));
            found.push(message);
        }
        found.sort_by(|a, b| a.full_name().cmp(b.full_name()));
        found
    }

    /// The messages that a REST route reads, without those that have no fields to read.
    pub fn requests(&self) -> Vec<MessageDescriptor> {
        let mut found: Vec<_> =
            self.rpcs().filter(|rpc| rpc.route.is_some()).map(|rpc| rpc.descriptor.input()).collect();
        found.sort_by(|a, b| a.full_name().cmp(b.full_name()));
        found.dedup();
        found
    }

    pub fn rpcs(&self) -> impl Iterator<Item = &Rpc> {
        self.services.iter().flat_map(|s| &s.rpcs)
    }

    /// Two routes that the router would take for one, and two operations of one name in the OpenAPI document.
    fn refuse_clashing_routes(&self) -> Result<()> {
        let mut seen: Vec<(&Rpc, &Route)> = Vec::new();
        for rpc in self.rpcs() {
            let Some(route) = &rpc.route else { continue };
            for (other, taken) in &seen {
                let name = other.descriptor.full_name();
                if taken.shape() == route.shape() && taken.verb == route.verb {
                    return Err(refusal(&rpc.descriptor, &format!("its route is that of {name} already")));
                }
                if taken.shape() == route.shape() && taken.path != route.path {
                    return Err(refusal(&rpc.descriptor, &format!("its path is that of {name}, spelled otherwise")));
                }
                if other.descriptor.name() == rpc.descriptor.name() {
                    return Err(refusal(&rpc.descriptor, &format!("{name} has the same name, and a route too")));
                }
            }
            seen.push((rpc, route));
        }
        Ok(())
    }
}

impl Route {
    /// The path as a router tells it from others: whatever its variables are called, with or without a slash at its end.
    fn shape(&self) -> String {
        let segments = self.path.trim_end_matches('/').split('/');
        segments.map(|s| if s.starts_with('{') { "{}" } else { s }).collect::<Vec<_>>().join("/")
    }
}

fn refusal(rpc: &MethodDescriptor, why: &str) -> Box<dyn std::error::Error> {
    format!("{}: {why}", rpc.full_name()).into()
}

struct Options<'a> {
    pool: &'a DescriptorPool,
}

impl Options<'_> {
    fn rpc(&self, descriptor: MethodDescriptor) -> Result<Rpc> {
        if descriptor.is_client_streaming() || descriptor.is_server_streaming() {
            return Err(refusal(&descriptor, "streaming rpcs are not supported"));
        }
        let options = self.extension(&descriptor.options(), "identity.v1.policy");
        let policy = self.policy(&descriptor, options.as_ref())?;
        let route = if let Some(rule) = self.extension(&descriptor.options(), "google.api.http") {
            let route = route(&descriptor, &rule, options.as_ref())?;
            refuse_what_follows_already(&descriptor, &policy, &route)?;
            Some(route)
        } else {
            let says = |name| options.as_ref().is_some_and(|o| o.has_field_by_name(name));
            if let Some(name) = ["success_status", "multipart", "also_answers"].into_iter().find(|name| says(name)) {
                return Err(refusal(&descriptor, &format!("{name} without a route")));
            }
            None
        };
        Ok(Rpc { descriptor, policy, route })
    }

    fn policy(&self, rpc: &MethodDescriptor, options: Option<&DynamicMessage>) -> Result<Policy> {
        let access = options.map_or(0, |o| number(o, "access"));
        if access == 0 {
            return Err(refusal(rpc, "it does not say who may call it: option (policy) = {access: …}"));
        }
        let limit = options.map_or(0, |o| number(o, "limit"));
        let positive = |name, default| match options.map_or(0, |o| number(o, name)) {
            0 => Ok(default),
            n => u32::try_from(n).map_err(|_| refusal(rpc, &format!("{name} can't be negative"))),
        };
        Ok(Policy {
            access: self.variant("identity.v1.Access", access)?,
            limit: if limit == 0 { "Api".into() } else { self.variant("identity.v1.Limit", limit)? },
            deadline_ms: positive("deadline_ms", DEFAULT_DEADLINE_MS)?,
            max_request_bytes: positive("max_request_bytes", DEFAULT_MAX_REQUEST_BYTES)?,
        })
    }

    /// `ACCESS_ANYONE` as `Anyone`.
    fn variant(&self, name: &str, number: i32) -> Result<String> {
        let descriptor: EnumDescriptor = self.pool.get_enum_by_name(name).ok_or_else(|| format!("no enum {name}"))?;
        let value = descriptor.get_value(number).ok_or_else(|| format!("{name} has no value {number}"))?;
        let prefix = format!("{}_", descriptor.name().to_uppercase());
        Ok(pascal_case(value.name().trim_start_matches(&prefix)))
    }

    fn extension(&self, options: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
        let extension = self.pool.get_extension_by_name(name)?;
        options.has_extension(&extension).then(|| options.get_extension(&extension).as_message().cloned())?
    }
}

fn route(rpc: &MethodDescriptor, rule: &DynamicMessage, options: Option<&DynamicMessage>) -> Result<Route> {
    for unsupported in ["selector", "custom", "additional_bindings", "response_body"] {
        if rule.has_field_by_name(unsupported) {
            return Err(refusal(rpc, &format!("google.api.http: `{unsupported}` is not supported")));
        }
    }
    let (verb, path) = ["get", "put", "post", "delete", "patch"]
        .into_iter()
        .map(|verb| (verb, text(rule, verb)))
        .find(|(_, path)| !path.is_empty())
        .ok_or_else(|| refusal(rpc, "google.api.http names neither verb nor path"))?;
    let path_fields = path_fields(rpc, &path)?;
    let multipart = options.is_some_and(|o| flag(o, "multipart"));
    let body = match (text(rule, "body").as_str(), multipart) {
        ("", false) => Body::None,
        ("*", false) => Body::Json,
        ("*", true) => Body::JsonOrForm,
        ("", true) => return Err(refusal(rpc, "multipart without a body")),
        (other, _) => {
            return Err(refusal(rpc, &format!("google.api.http: body: \"{other}\" is not supported, only \"*\"")));
        }
    };
    if matches!(verb, "get" | "delete") && body != Body::None {
        return Err(refusal(rpc, &format!("a {verb} can't have a body")));
    }
    if rpc.input().package_name() != rpc.parent_file().package_name() || rpc.input().parent_message().is_some() {
        return Err(refusal(rpc, &format!("its request {} is no message of its own package", rpc.input().full_name())));
    }
    for field in rpc.input().fields() {
        refuse_unreadable(rpc, &field, body, &path_fields)?;
    }
    let is_empty = rpc.output().full_name() == "google.protobuf.Empty";
    if !is_empty {
        refuse_unwritable(rpc, &rpc.output(), &mut Vec::new())?;
    }
    let status = match options.map_or(0, |o| number(o, "success_status")) {
        0 if is_empty => 204,
        0 => 200,
        n => u16::try_from(n)
            .ok()
            .filter(|n| (200..300).contains(n))
            .ok_or_else(|| refusal(rpc, &format!("success_status {n} is no success")))?,
    };
    if is_empty != (status == 204) {
        return Err(refusal(rpc, "204 is the success_status of google.protobuf.Empty, and of nothing else"));
    }
    Ok(Route { verb, path, status, body, path_fields, also_answers: also_answers(rpc, options)? })
}

fn also_answers(rpc: &MethodDescriptor, options: Option<&DynamicMessage>) -> Result<Vec<u16>> {
    let named = options.and_then(|o| o.get_field_by_name("also_answers"));
    let named = named.iter().flat_map(|list| list.as_list().unwrap_or_default()).filter_map(Value::as_i32);
    named
        .map(|n| {
            let status = u16::try_from(n).ok().filter(|n| [400, 401, 403, 404, 409].contains(n));
            status
                .ok_or_else(|| refusal(rpc, &format!("also_answers {n}: only 400, 401, 403, 404 and 409 need saying")))
        })
        .collect()
}

/// The failures of a route that follow from what is declared of it, save those that any route may have.
pub fn answers_that_follow(rpc: &MethodDescriptor, policy: &Policy, route: &Route) -> Vec<u16> {
    let has_fields_to_check =
        rpc.input().fields().any(|f| !is_grpc_only(&f) && !route.path_fields.iter().any(|name| name == f.name()));
    let follows = [
        (400, has_fields_to_check),
        (401, policy.access != "Anyone"),
        (403, policy.access == "Admin"),
        (404, !route.path_fields.is_empty()),
    ];
    follows.into_iter().filter_map(|(status, follows)| follows.then_some(status)).collect()
}

fn refuse_what_follows_already(rpc: &MethodDescriptor, policy: &Policy, route: &Route) -> Result<()> {
    let follows = answers_that_follow(rpc, policy, route);
    let mut said = route.also_answers.iter().enumerate();
    match said.find(|(at, status)| follows.contains(status) || route.also_answers[..*at].contains(status)) {
        Some((_, status)) => Err(refusal(rpc, &format!("also_answers {status}, which is said already"))),
        None => Ok(()),
    }
}

fn path_fields(rpc: &MethodDescriptor, path: &str) -> Result<Vec<String>> {
    let unsupported = |segment: &str| {
        Err(refusal(rpc, &format!("google.api.http: the segment \"{segment}\" of \"{path}\" is not supported")))
    };
    let Some(rest) = path.strip_prefix('/') else {
        return Err(refusal(rpc, &format!("google.api.http: the path \"{path}\" does not begin with a slash")));
    };
    let mut found: Vec<String> = Vec::new();
    for segment in rest.strip_suffix('/').unwrap_or(rest).split('/') {
        let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) else {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if segment.is_empty() || !segment.bytes().all(is_plain) {
                return unsupported(segment);
            }
            continue;
        };
        if name.contains(['{', '}', '=', '*']) {
            return unsupported(segment);
        }
        if found.iter().any(|other| other == name) {
            return Err(refusal(rpc, &format!("{{{name}}} comes twice in the path")));
        }
        match rpc.input().get_field_by_name(name) {
            Some(f) if is_grpc_only(&f) => {
                return Err(refusal(rpc, &format!("{{{name}}} in the path is grpc_only")));
            }
            Some(f) if !f.supports_presence() && !f.is_list() && matches!(f.kind(), Kind::String | Kind::Int64) => {
                found.push(name.to_owned());
            }
            Some(_) => {
                return Err(refusal(
                    rpc,
                    &format!("{{{name}}} in the path must be a string or an int64, not optional"),
                ));
            }
            None => {
                let request = rpc.input();
                return Err(refusal(rpc, &format!("{{{name}}} in the path is no field of {}", request.name())));
            }
        }
    }
    Ok(found)
}

/// Refuses a field of a request that REST can't bind as it is declared.
fn refuse_unreadable(
    rpc: &MethodDescriptor,
    field: &FieldDescriptor,
    body: Body,
    path_fields: &[String],
) -> Result<()> {
    let refuse = |why: &str| Err(refusal(rpc, &format!("the field `{}` {why}", field.name())));
    if field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic()) {
        return refuse("is part of a oneof, which is not supported");
    }
    if let Some(other) = behaviors(field).into_iter().find(|n| *n != REQUIRED) {
        return refuse(&format!("has the field_behavior {other}, which is not supported; only REQUIRED is"));
    }
    if is_grpc_only(field) {
        return Ok(());
    }
    if is_omitted_when_unset(field) {
        return refuse("is omit_unset, which says nothing of a request");
    }
    if is_nullable(field) && rpc.input().get_field_by_name("update_mask").is_none() {
        return refuse("is nullable, which takes an update_mask: without one null and absent are the same");
    }
    let is_readable =
        matches!(field.kind(), Kind::String | Kind::Bool | Kind::Int64 | Kind::Bytes) || is_timestamp(field);
    if !is_readable || field.cardinality() == Cardinality::Repeated {
        return refuse("can't be read by REST: only single strings, booleans, int64, bytes and times");
    }
    if matches!(field.kind(), Kind::Bytes) && body != Body::JsonOrForm {
        return refuse("is a file, which only a route with `multipart` can take");
    }
    if !value_keywords(field).is_empty() && !matches!(field.kind(), Kind::String) {
        return refuse("has values, which only a text can have");
    }
    let in_path = path_fields.iter().any(|name| name == field.name());
    if is_secret(field) && (in_path || body == Body::None) {
        return refuse("is a secret, and would show in the URL");
    }
    if !in_path && !is_optional(field) {
        return refuse("must be `optional`, so that absent differs from empty");
    }
    Ok(())
}

/// Refuses a field of an answer that serde or the OpenAPI document would show otherwise than it is declared.
fn refuse_unwritable(
    rpc: &MethodDescriptor,
    message: &MessageDescriptor,
    seen: &mut Vec<MessageDescriptor>,
) -> Result<()> {
    if seen.contains(message) {
        return Ok(());
    }
    seen.push(message.clone());
    if message.package_name() != rpc.parent_file().package_name() || message.parent_message().is_some() {
        return Err(refusal(rpc, &format!("its answer holds {}, no message of its own package", message.full_name())));
    }
    for field in message.fields().filter(|f| !is_grpc_only(f)) {
        let refuse = |why: &str| Err(refusal(rpc, &format!("the field `{}` of its answer {why}", field.full_name())));
        if field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic()) {
            return refuse("is part of a oneof, which is not supported");
        }
        if is_nullable(&field) {
            return refuse("is nullable, which says nothing of an answer");
        }
        if !value_keywords(&field).is_empty() {
            return refuse("has values, which say nothing of an answer");
        }
        if is_omitted_when_unset(&field) && (!field.supports_presence() || is_timestamp(&field)) {
            return refuse("is omit_unset, but not `optional`");
        }
        match field.kind() {
            Kind::Message(_) if is_timestamp(&field) && !field.is_list() => {}
            Kind::Message(inner) if !field.is_map() => refuse_unwritable(rpc, &inner, seen)?,
            Kind::String | Kind::Bool | Kind::Int32 | Kind::Int64 => {}
            _ => return refuse("can't be written by REST: only strings, booleans, int32, int64, times and messages"),
        }
    }
    Ok(())
}

/// The field is a time.
pub fn is_timestamp(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(m) if m.full_name() == "google.protobuf.Timestamp")
}

/// The field is declared `optional`. A message always tells unset from empty, but says only so that it may be unset.
pub fn is_optional(field: &FieldDescriptor) -> bool {
    field.field_descriptor_proto().proto3_optional()
}

/// The field is marked `(rest).grpc_only`.
pub fn is_grpc_only(field: &FieldDescriptor) -> bool {
    rest_option(field, "grpc_only")
}

/// The field is marked `(rest).omit_unset`.
pub fn is_omitted_when_unset(field: &FieldDescriptor) -> bool {
    rest_option(field, "omit_unset")
}

/// The field is marked `(rest).nullable`.
pub fn is_nullable(field: &FieldDescriptor) -> bool {
    rest_option(field, "nullable")
}

fn rest_option(field: &FieldDescriptor, name: &str) -> bool {
    let pool = field.parent_pool();
    let options = Options { pool };
    options.extension(&field.options(), "identity.v1.rest").is_some_and(|o| flag(&o, name))
}

/// What JSON Schema says of the values that a request may give, from `(rest).values`.
pub fn value_keywords(field: &FieldDescriptor) -> Vec<(&'static str, serde_json::Value)> {
    let options = Options { pool: field.parent_pool() };
    let Some(values) = options.extension(&field.options(), "identity.v1.rest").and_then(|rest| {
        rest.has_field_by_name("values").then(|| rest.get_field_by_name("values")?.as_message().cloned())?
    }) else {
        return Vec::new();
    };
    let lengths = [("minLength", "min_length"), ("maxLength", "max_length")];
    let lengths = lengths.into_iter().map(|(keyword, name)| (keyword, number(&values, name)));
    let texts = ["pattern", "format"].into_iter().map(|keyword| (keyword, text(&values, keyword)));
    let one_of: Vec<_> = values
        .get_field_by_name("one_of")
        .iter()
        .flat_map(|list| list.as_list().unwrap_or_default())
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect();
    let mut keywords = Vec::new();
    keywords.extend(lengths.filter(|(_, n)| *n != 0).map(|(keyword, n)| (keyword, n.into())));
    keywords.extend(texts.filter(|(_, text)| !text.is_empty()).map(|(keyword, text)| (keyword, text.into())));
    if !one_of.is_empty() {
        keywords.push(("enum", one_of.into()));
    }
    keywords
}

/// `google.api.FieldBehavior.REQUIRED`.
const REQUIRED: i32 = 2;

/// The field is marked `REQUIRED`.
pub fn is_required(field: &FieldDescriptor) -> bool {
    behaviors(field).contains(&REQUIRED)
}

/// The numbers of the field's `google.api.field_behavior`s.
fn behaviors(field: &FieldDescriptor) -> Vec<i32> {
    let Some(extension) = field.parent_pool().get_extension_by_name("google.api.field_behavior") else { return vec![] };
    let options = field.options();
    let values = options.get_extension(&extension);
    values.as_list().into_iter().flatten().filter_map(Value::as_enum_number).collect()
}

/// The field is marked `debug_redact`: it must not show in a log.
pub fn is_secret(field: &FieldDescriptor) -> bool {
    flag(&field.options(), "debug_redact")
}

/// The comment above a message, field, rpc or service, its lines joined.
pub fn comment(file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
    file.file_descriptor_proto()
        .source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .find(|location| location.path == path)
        .and_then(|location| location.leading_comments.as_deref())
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
        .unwrap_or_default()
}

fn number(message: &DynamicMessage, field: &str) -> i32 {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::I32(n) | Value::EnumNumber(n)) => *n,
        _ => 0,
    }
}

fn flag(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).and_then(|v| v.as_bool()).unwrap_or_default()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn pascal_case(shouted: &str) -> String {
    shouted
        .split('_')
        .flat_map(|word| word.chars().take(1).chain(word.chars().skip(1).flat_map(char::to_lowercase)))
        .collect()
}

/// `RefreshToken` as `refresh_token`: how tonic names a method, and prost a module.
pub fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for (at, c) in name.char_indices() {
        if c.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}
