//! Writes the Rust of the REST face: a policy for each rpc, a binder for each request, a route for each annotation.
//! What the code it writes calls is in `src/api/rest.rs`.

use std::{collections::BTreeMap, fmt::Write};

use super::contract::{Body, Contract, Result, Rpc, Service, is_grpc_only, is_secret, snake_case};
use prost_reflect::{FieldDescriptor, MessageDescriptor};

const HEADER: &str = "// Written by build.rs from proto/. Don't edit.\n";

/// Lines are broken where rustfmt breaks them, so that what comes out reads like the code around it.
const MAX_WIDTH: usize = 120;

/// `policies.rs`: what holds for each rpc, and where to find it by the path of a gRPC call.
pub fn policies(contract: &Contract) -> Result<String> {
    let mut out = String::from(HEADER);
    writeln!(out, "use std::time::Duration;\n\nuse crate::api::gate::{{Access, Limit, Policy}};\n")?;
    for rpc in contract.rpcs() {
        let policy = &rpc.policy;
        writeln!(out, "pub static {}: Policy = Policy {{", policy_name(rpc))?;
        writeln!(out, "    rpc: {:?},", rpc_name(rpc))?;
        writeln!(out, "    access: Access::{},", policy.access)?;
        writeln!(out, "    limit: Limit::{},", policy.limit)?;
        writeln!(out, "    deadline: Duration::from_millis({}),", policy.deadline_ms)?;
        writeln!(out, "    max_request_bytes: {},", policy.max_request_bytes)?;
        writeln!(out, "    is_probe: false,")?;
        writeln!(out, "}};\n")?;
    }
    writeln!(out, "/// The policy of the rpc that is called at `path`.")?;
    writeln!(out, "pub fn by_path(path: &str) -> Option<&'static Policy> {{\n    Some(match path {{")?;
    for rpc in contract.rpcs() {
        writeln!(out, "        {:?} => &{},", format!("/{}", grpc_path(rpc)), policy_name(rpc))?;
    }
    writeln!(out, "        _ => return None,\n    }})\n}}\n")?;
    for service in &contract.services {
        let most = service.rpcs.iter().map(|rpc| rpc.policy.max_request_bytes).max().unwrap_or_default();
        writeln!(out, "/// The largest request of `{}`, in bytes.", service.descriptor.name())?;
        writeln!(out, "pub const {}_MAX_REQUEST_BYTES: usize = {most};", shout(service.descriptor.name()))?;
    }
    Ok(ended(&out))
}

/// `rest.rs`: the binders of the requests, then a router for each service.
pub fn rest(contract: &Contract) -> Result<String> {
    let mut out = String::from(HEADER);
    writeln!(
        out,
        "use axum::{{\n    Router,\n    extract::{{Request, State}},\n    response::Response,\n    routing,\n}};\n\n\
         use crate::{{\n    api::{{\n        policies,\n        rest::{{Bind, Body, Fields, Rest, Route}},\n    }},\n    pb,\n}};\n"
    )?;
    for message in contract.requests() {
        binder(&mut out, &message)?;
    }
    for service in contract.services.iter().filter(|s| s.rpcs.iter().any(|rpc| rpc.route.is_some())) {
        router(&mut out, service)?;
    }
    Ok(ended(&out))
}

/// `debug.rs`: `Debug` for the messages that hold a secret, without it.
pub fn redacted_debug(contract: &Contract) -> Result<String> {
    let mut out = String::from(HEADER);
    for message in with_secrets(contract) {
        writeln!(out, "impl std::fmt::Debug for {} {{", message.name())?;
        writeln!(out, "    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{")?;
        let mut chain = vec![format!("f.debug_struct({:?})", message.name())];
        for field in message.fields() {
            let shown = if is_secret(&field) { "\"[redacted]\"".to_owned() } else { format!("self.{}", field.name()) };
            chain.push(format!(".field({:?}, &{shown})", field.name()));
        }
        chain.push(".finish()".into());
        let one_line = format!("        {}", chain.concat());
        let fits = one_line.len() <= MAX_WIDTH;
        writeln!(
            out,
            "{}\n    }}\n}}\n",
            if fits { one_line } else { format!("        {}", chain.join("\n            ")) }
        )?;
    }
    Ok(ended(&out))
}

/// The text, with one line break at its end.
fn ended(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

/// The messages that hold a secret.
pub fn with_secrets(contract: &Contract) -> impl Iterator<Item = &MessageDescriptor> {
    contract.messages.iter().filter(|m| m.fields().any(|f| is_secret(&f)))
}

fn binder(out: &mut String, message: &MessageDescriptor) -> Result<()> {
    let used = if message.fields().next().is_some() { "fields" } else { "_" };
    writeln!(out, "impl Bind for pb::{} {{", message.name())?;
    let is_patch = message.get_field_by_name("update_mask").is_some();
    writeln!(out, "    const IS_PATCH: bool = {is_patch};\n")?;
    writeln!(out, "    fn bind({used}: &mut Fields<'_>) -> Self {{")?;
    let fields: Vec<_> = message.fields().map(|field| format!("{}: {}", field.name(), binding(&field))).collect();
    writeln!(out, "{}\n    }}\n}}\n", list("        Self {", &fields, "}"))?;
    Ok(())
}

fn binding(field: &FieldDescriptor) -> String {
    if field.name() == "update_mask" {
        // Without the path's variables: a body may repeat them, and changes nothing by it.
        let may_change = |f: &FieldDescriptor| !is_grpc_only(f) && f.supports_presence();
        let names: Vec<_> = field.parent_message().fields().filter(may_change).map(|f| f.name().to_owned()).collect();
        return format!("Some(fields.update_mask(&{names:?}))");
    }
    if is_grpc_only(field) {
        return "Option::default()".into();
    }
    // Only a path's variable is read without presence: the route would not match without it.
    let read = if field.supports_presence() { "optional" } else { "variable" };
    format!("fields.{read}({:?})", field.name())
}

fn router(out: &mut String, service: &Service) -> Result<()> {
    let name = service.descriptor.name();
    let (function, bound) = (snake_case(name), format!("pb::{}_server::{name}", snake_case(name)));
    let mut paths: BTreeMap<&str, Vec<(&'static str, String)>> = BTreeMap::new();
    for rpc in &service.rpcs {
        let Some(route) = &rpc.route else { continue };
        paths.entry(&route.path).or_default().push((route.verb, handler_name(rpc)));
    }
    writeln!(
        out,
        "/// The REST routes of `{}`, each with and without its trailing slash.",
        service.descriptor.full_name()
    )?;
    writeln!(out, "pub fn {function}<S: {bound}>(rest: Rest<S>) -> Router {{\n    Router::new()")?;
    for (path, handlers) in paths {
        let chain: Vec<_> = handlers.iter().map(|(verb, handler)| format!("{verb}({handler}::<S>)")).collect();
        let methods = format!("routing::{}", chain.join("."));
        let bare = path.trim_end_matches('/');
        for path in [format!("{bare}/"), bare.to_owned()].into_iter().filter(|path| !path.is_empty()) {
            writeln!(out, "{}", list("        .route(", &[format!("{path:?}"), methods.clone()], ")"))?;
        }
    }
    writeln!(out, "        .with_state(rest)\n}}\n")?;
    for rpc in &service.rpcs {
        if rpc.route.is_some() {
            handler(out, rpc, &bound)?;
        }
    }
    Ok(())
}

fn handler(out: &mut String, rpc: &Rpc, bound: &str) -> Result<()> {
    let Some(route) = &rpc.route else { return Ok(()) };
    let body = match route.body {
        // Without a field to read, body and media type are nobody's business.
        Body::Json if rpc.descriptor.input().fields().len() == 0 => "None",
        Body::None => "None",
        Body::Json => "Json",
        Body::JsonOrForm => "JsonOrForm",
    };
    let head = format!("async fn {}<S: {bound}>(", handler_name(rpc));
    let arguments = ["State(rest): State<Rest<S>>", "request: Request"].map(str::to_owned);
    writeln!(out, "{}", list(&head, &arguments, ") -> Response {"))?;
    let value =
        format!("Route {{ policy: &policies::{}, status: {}, body: Body::{body} }};", policy_name(rpc), route.status);
    let one_line = format!("    const ROUTE: Route = {value}");
    let fits = one_line.len() <= MAX_WIDTH;
    writeln!(out, "{}", if fits { one_line } else { format!("    const ROUTE: Route =\n        {value}") })?;
    writeln!(
        out,
        "    rest.call(&ROUTE, request, |service, request| async move {{ service.{}(request).await }}).await\n}}\n",
        snake_case(rpc.descriptor.name())
    )?;
    Ok(())
}

/// `items` between `head` and `tail`, on one line where there is room, else each on its own.
fn list(head: &str, items: &[String], tail: &str) -> String {
    let space = if head.ends_with('{') && !items.is_empty() { " " } else { "" };
    let one_line = format!("{head}{space}{}{space}{tail}", items.join(", "));
    if one_line.len() <= MAX_WIDTH {
        return one_line;
    }
    let indent = " ".repeat(head.len() - head.trim_start().len());
    format!("{head}\n{indent}    {},\n{indent}{tail}", items.join(&format!(",\n{indent}    ")))
}

/// `AuthService.Register`.
fn rpc_name(rpc: &Rpc) -> String {
    format!("{}.{}", rpc.descriptor.parent_service().name(), rpc.descriptor.name())
}

/// `identity.v1.AuthService/Register`.
fn grpc_path(rpc: &Rpc) -> String {
    format!("{}/{}", rpc.descriptor.parent_service().full_name(), rpc.descriptor.name())
}

/// `AUTH_SERVICE_REGISTER`.
fn policy_name(rpc: &Rpc) -> String {
    format!("{}_{}", shout(rpc.descriptor.parent_service().name()), shout(rpc.descriptor.name()))
}

/// `auth_service_register`.
fn handler_name(rpc: &Rpc) -> String {
    policy_name(rpc).to_lowercase()
}

fn shout(name: &str) -> String {
    snake_case(name).to_uppercase()
}
