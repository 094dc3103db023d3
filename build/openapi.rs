//! Writes the OpenAPI 3.1 document of the REST face. Its texts are the comments of the protos.

use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::contract::{
    Body, Contract, Route, Rpc, answers_that_follow, comment, is_grpc_only, is_nullable, is_omitted_when_unset,
    is_optional, is_required, is_timestamp, value_keywords,
};

pub fn document(contract: &Contract, version: &str) -> Value {
    let mut paths = Map::new();
    for rpc in contract.rpcs() {
        if let Some(route) = &rpc.route {
            entry(&mut paths, &route.path)[route.verb] = operation(rpc, route);
        }
    }
    entry(&mut paths, "/api/health/")["get"] = health();
    entry(&mut paths, "/media/avatars/{file}")["get"] = avatar();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "identity",
            "version": version,
            "description": "Users, sessions, profiles, roles. Every route reaches the handler of the gRPC call of the same name. \
                A path may be written without its trailing slash.",
        },
        "servers": [{ "url": "/" }],
        "tags": tags(contract),
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "An access token.",
            } },
            "schemas": schemas(contract),
            "responses": error_responses(),
        },
    })
}

fn entry<'a>(paths: &'a mut Map<String, Value>, path: &str) -> &'a mut Value {
    paths.entry(path).or_insert_with(|| json!({}))
}

fn tags(contract: &Contract) -> Value {
    let tag = |service: &super::contract::Service| {
        let d = &service.descriptor;
        json!({ "name": d.name(), "description": comment(&d.parent_file(), d.path()) })
    };
    contract
        .services
        .iter()
        .map(tag)
        .chain([
            json!({ "name": "Health", "description": "Whether the service is well." }),
            json!({ "name": "Media", "description": "The pictures that profiles name." }),
        ])
        .collect()
}

fn operation(rpc: &Rpc, route: &Route) -> Value {
    let descriptor = &rpc.descriptor;
    let text = comment(&descriptor.parent_file(), descriptor.path());
    let summary = text.split_inclusive(['.', ':']).next().unwrap_or_default().trim_end_matches(['.', ':']);
    let mut operation = json!({
        "operationId": descriptor.name(),
        "tags": [descriptor.parent_service().name()],
        "summary": summary,
        "description": text,
    });
    if rpc.policy.access != "Anyone" {
        operation["security"] = json!([{ "bearer": [] }]);
    }
    let parameters = parameters(rpc, route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if has_body(rpc, route) {
        operation["requestBody"] = request_body(&descriptor.input(), route);
    }
    operation["responses"] = responses(rpc, route);
    operation
}

fn has_body(rpc: &Rpc, route: &Route) -> bool {
    route.body != Body::None && rpc.descriptor.input().fields().len() > 0
}

fn parameters(rpc: &Rpc, route: &Route) -> Vec<Value> {
    let fields = rpc.descriptor.input();
    fields
        .fields()
        .filter(|f| !is_grpc_only(f))
        .filter_map(|field| {
            let in_path = route.path_fields.iter().any(|name| name == field.name());
            let place = match (in_path, route.body) {
                (true, _) => "path",
                (false, Body::None) => "query",
                (false, _) => return None,
            };
            Some(json!({
                "name": field.name(),
                "in": place,
                "required": in_path || is_required(&field),
                "description": comment(&field.parent_message().parent_file(), field.path()),
                "schema": request_type(&field),
            }))
        })
        .collect()
}

fn request_body(message: &MessageDescriptor, route: &Route) -> Value {
    let fields =
        || message.fields().filter(|f| !is_grpc_only(f) && !route.path_fields.iter().any(|name| name == f.name()));
    let schema = |as_form: bool| {
        let properties: Map<_, _> = fields().map(|f| (f.name().to_owned(), request_field(&f, as_form))).collect();
        let required: Vec<_> = fields().filter(is_required).map(|f| f.name().to_owned()).collect();
        let mut schema = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    };
    let mut content = json!({ "application/json": { "schema": schema(false) } });
    if route.body == Body::JsonOrForm {
        content["multipart/form-data"] = json!({ "schema": schema(true) });
    }
    // Even where no field is required: the body's type says how to read it.
    json!({ "required": true, "content": content })
}

fn request_field(field: &FieldDescriptor, as_form: bool) -> Value {
    let mut schema = match (field.kind(), as_form) {
        // A file can't travel in JSON; there it can only be cleared.
        (Kind::Bytes, false) => json!({ "type": "null" }),
        (Kind::Bytes, true) => json!({ "type": "string", "contentMediaType": "application/octet-stream" }),
        (_, false) if is_nullable(field) => or_null(request_type(field)),
        _ => request_type(field),
    };
    schema["description"] = comment(&field.parent_message().parent_file(), field.path()).into();
    schema
}

fn responses(rpc: &Rpc, route: &Route) -> Value {
    let success = match route.status {
        204 => json!({ "description": "Done; there is no content." }),
        _ => json!({
            "description": "Done.",
            "content": { "application/json": { "schema": reference("schemas", rpc.descriptor.output().name()) } },
        }),
    };
    let mut responses = Map::from_iter([(route.status.to_string(), success)]);
    let mut may_answer = |status: u16, name: &str| {
        responses.insert(status.to_string(), reference("responses", name));
    };
    let follows = answers_that_follow(&rpc.descriptor, &rpc.policy, route);
    let failures =
        [(400, "Invalid"), (401, "Unauthenticated"), (403, "PermissionDenied"), (404, "NotFound"), (409, "Conflict")];
    for (status, name) in failures {
        if follows.contains(&status) || route.also_answers.contains(&status) {
            may_answer(status, name);
        }
    }
    if has_body(rpc, route) {
        may_answer(413, "TooLarge");
        may_answer(415, "UnsupportedMediaType");
    }
    if rpc.descriptor.input().fields().any(|f| is_required(&f)) {
        may_answer(422, "Missing");
    }
    may_answer(429, "Throttled");
    may_answer(500, "Internal");
    may_answer(503, "Unavailable");
    may_answer(504, "DeadlineExceeded");
    responses.into()
}

fn health() -> Value {
    let states = |values: &[&str]| json!({ "type": "string", "enum": values });
    let content = json!({ "application/json": { "schema": {
        "type": "object",
        "properties": {
            "status": states(&["ok", "unavailable"]),
            "database": states(&["ok", "unavailable"]),
            "cache": states(&["ok", "degraded"]),
        },
        "required": ["status", "database", "cache"],
    } } });
    json!({
        "operationId": "Health",
        "tags": ["Health"],
        "summary": "Says whether the service can do its work",
        "responses": {
            "200": { "description": "It can.", "content": content },
            "503": { "description": "It can't: the database is away.", "content": content },
        },
    })
}

fn avatar() -> Value {
    let picture = json!({ "schema": { "type": "string", "format": "binary" } });
    json!({
        "operationId": "GetAvatar",
        "tags": ["Media"],
        "summary": "Gets a picture",
        "description": "Gets a picture, for anyone who knows its name. Profiles have its whole address. A picture never \
            changes under its name.",
        "parameters": [{
            "name": "file",
            "in": "path",
            "required": true,
            "description": "The name of the picture.",
            "schema": { "type": "string" },
        }],
        "responses": {
            "200": { "description": "The picture.", "content": { "image/jpeg": picture, "image/png": picture } },
            "304": { "description": "The picture is the one that If-None-Match names." },
            "404": reference("responses", "NotFound"),
            "429": reference("responses", "Throttled"),
            "500": reference("responses", "Internal"),
            "503": reference("responses", "Unavailable"),
            "504": reference("responses", "DeadlineExceeded"),
        },
    })
}

fn schemas(contract: &Contract) -> Value {
    let mut schemas: Map<String, Value> =
        contract.answers().iter().map(|message| (message.name().to_owned(), answer(message))).collect();
    schemas.insert(
        "Error".into(),
        json!({
            "type": "object",
            "description": "Why the call failed.",
            "properties": { "error": { "type": "string" }, "detail": { "type": "string" } },
            "required": ["error"],
        }),
    );
    schemas.insert(
        "FieldErrors".into(),
        json!({
            "type": "object",
            "description": "Every bad field, each with what is wrong.",
            "additionalProperties": { "type": "array", "items": { "type": "string" } },
        }),
    );
    schemas.into()
}

fn answer(message: &MessageDescriptor) -> Value {
    let fields = || message.fields().filter(|f| !is_grpc_only(f));
    let properties: Map<_, _> = fields()
        .map(|field| {
            let is_message = matches!(field.kind(), Kind::Message(m) if m.package_name() == message.package_name());
            let nullable = is_optional(&field) && !is_message && !is_omitted_when_unset(&field);
            let mut schema = if nullable { or_null(plain_type(&field)) } else { plain_type(&field) };
            schema["description"] = comment(&message.parent_file(), field.path()).into();
            (field.name().to_owned(), schema)
        })
        .collect();
    let required: Vec<_> = fields().filter(|f| !is_omitted_when_unset(f)).map(|f| f.name().to_owned()).collect();
    json!({
        "type": "object",
        "description": comment(&message.parent_file(), message.path()),
        "properties": properties,
        "required": required,
    })
}

/// The type, and the values that a request may give.
fn request_type(field: &FieldDescriptor) -> Value {
    let mut schema = plain_type(field);
    for (keyword, value) in value_keywords(field) {
        schema[keyword] = value;
    }
    schema
}

fn plain_type(field: &FieldDescriptor) -> Value {
    let one = match field.kind() {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int32 => json!({ "type": "integer", "format": "int32" }),
        Kind::Int64 => json!({ "type": "integer", "format": "int64" }),
        Kind::Message(_) if is_timestamp(field) => json!({ "type": "string", "format": "date-time" }),
        Kind::Message(message) => reference("schemas", message.name()),
        _ => json!({ "type": "string" }),
    };
    if field.cardinality() == Cardinality::Repeated { json!({ "type": "array", "items": one }) } else { one }
}

fn or_null(mut schema: Value) -> Value {
    let plain = schema["type"].take();
    schema["type"] = json!([plain, "null"]);
    schema
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn error_responses() -> Value {
    let error = |description: &str| json!({ "description": description, "content": { "application/json": { "schema": reference("schemas", "Error") } } });
    let fields = |description: &str| json!({ "description": description, "content": { "application/json": { "schema": reference("schemas", "FieldErrors") } } });
    let later = |description: &str| {
        let mut response = error(description);
        response["headers"] =
            json!({ "Retry-After": { "description": "Seconds until the next try.", "schema": { "type": "integer" } } });
        response
    };
    let mut unauthenticated = error("No good token came with the call, or the credentials are wrong.");
    unauthenticated["headers"] =
        json!({ "WWW-Authenticate": { "description": "Bearer.", "schema": { "type": "string" } } });
    let mut invalid = fields("A field's value is wrong, or the body is not JSON.");
    invalid["content"]["application/json"]["schema"] =
        json!({ "anyOf": [reference("schemas", "FieldErrors"), reference("schemas", "Error")] });
    json!({
        "Invalid": invalid,
        "Missing": fields("A required field is missing."),
        "Unauthenticated": unauthenticated,
        "PermissionDenied": error("The caller may not do this."),
        "NotFound": error("There is no such thing, or the caller may not see it."),
        "Conflict": error("The state forbids it."),
        "TooLarge": error("The request is too large."),
        "UnsupportedMediaType": error("The body is of a type that the route doesn't take."),
        "Throttled": later("More calls than the limit allows."),
        "Internal": error("A fault of the service."),
        "Unavailable": later("Overloaded, or a store is away."),
        "DeadlineExceeded": error("It took too long."),
    })
}
