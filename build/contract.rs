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
    /// `Api`, `Login`, `Register`, `Verification`, `Token` or `None`.
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

    /// The messages that some rpc answers with, and those inside them: what is written as JSON.
    pub fn answers(&self) -> Vec<MessageDescriptor> {
        let mut found: Vec<MessageDescriptor> = Vec::new();
        let mut open: Vec<_> = self.rpcs().map(|rpc| rpc.descriptor.output()).collect();
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

    fn refuse_clashing_routes(&self) -> Result<()> {
        let mut seen: Vec<(&str, &str, &str)> = Vec::new();
        for rpc in self.rpcs() {
            let Some(route) = &rpc.route else { continue };
            if let Some((_, _, other)) = seen.iter().find(|(v, p, _)| *v == route.verb && *p == route.path) {
                return Err(refusal(&rpc.descriptor, &format!("its route is that of {other} already")));
            }
            seen.push((route.verb, &route.path, rpc.descriptor.full_name()));
        }
        Ok(())
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
        let route = match self.extension(&descriptor.options(), "google.api.http") {
            Some(rule) => Some(route(&descriptor, &rule, options.as_ref())?),
            None => None,
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
    for field in rpc.input().fields().filter(|f| !is_grpc_only(f)) {
        refuse_unreadable(rpc, &field, &path_fields)?;
    }
    let status = match options.map_or(0, |o| number(o, "success_status")) {
        0 if rpc.output().full_name() == "google.protobuf.Empty" => 204,
        0 => 200,
        n => u16::try_from(n)
            .ok()
            .filter(|n| (200..300).contains(n))
            .ok_or_else(|| refusal(rpc, &format!("success_status {n} is no success")))?,
    };
    Ok(Route { verb, path, status, body, path_fields })
}

fn path_fields(rpc: &MethodDescriptor, path: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for segment in path.split('/') {
        let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) else {
            if segment.contains(['{', '}', '*', ':']) {
                return Err(refusal(rpc, &format!("google.api.http: the segment \"{segment}\" is not supported")));
            }
            continue;
        };
        let field = rpc.input().get_field_by_name(name);
        match field {
            Some(f) if !f.is_list() && matches!(f.kind(), Kind::String | Kind::Int64) => {
                found.push(name.to_owned());
            }
            Some(_) => return Err(refusal(rpc, &format!("{{{name}}} in the path must be a string or an integer"))),
            None => {
                let request = rpc.input();
                return Err(refusal(rpc, &format!("{{{name}}} in the path is no field of {}", request.name())));
            }
        }
    }
    Ok(found)
}

fn refuse_unreadable(rpc: &MethodDescriptor, field: &FieldDescriptor, path_fields: &[String]) -> Result<()> {
    let readable = match field.kind() {
        Kind::String | Kind::Bool | Kind::Int64 | Kind::Bytes => field.cardinality() != Cardinality::Repeated,
        _ => false,
    };
    let in_path = path_fields.iter().any(|name| name == field.name());
    if readable && (in_path || field.supports_presence()) {
        return Ok(());
    }
    if readable {
        return Err(refusal(
            rpc,
            &format!("the field `{}` must be `optional`, so that absent differs from empty", field.name()),
        ));
    }
    Err(refusal(
        rpc,
        &format!("REST can't read the field `{}`: only single strings, booleans, int64 and bytes", field.name()),
    ))
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

/// The field is marked `REQUIRED`.
pub fn is_required(field: &FieldDescriptor) -> bool {
    const REQUIRED: i32 = 2;
    let Some(extension) = field.parent_pool().get_extension_by_name("google.api.field_behavior") else { return false };
    field
        .options()
        .get_extension(&extension)
        .as_list()
        .is_some_and(|values| values.iter().any(|v| v.as_enum_number() == Some(REQUIRED)))
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
