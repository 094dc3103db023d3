//! The contract, to read and to try: `/api/openapi.json`, and Swagger UI over it at `/api/docs/`. All of it is in the
//! binary, so it works without internet.

use axum::{Router, body::Body, extract::Request, response::Response, routing};
use http::{HeaderValue, header};

use super::gate::{Face, Gate, Limit, Policy};

static DOCS: Policy = Policy::open("Docs", Limit::Api);

/// The OpenAPI document of the REST face.
pub const OPENAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>identity: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/api/docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="/api/docs/swagger-ui-bundle.js"></script>
<script src="/api/docs/start.js"></script>
</html>
"#;

const START: &str = r##"SwaggerUIBundle({
  url: "/api/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
});
"##;

/// The page may load what is ours and nothing else. Swagger UI sets styles from its script, and draws with data: images.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    path: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    is_gzip: bool,
}

const FILES: [File; 5] = [
    File { path: "/api/openapi.json", content_type: "application/json", content: OPENAPI.as_bytes(), is_gzip: false },
    File { path: "/api/docs/", content_type: "text/html; charset=utf-8", content: PAGE.as_bytes(), is_gzip: false },
    File { path: "/api/docs/start.js", content_type: "text/javascript", content: START.as_bytes(), is_gzip: false },
    File {
        path: "/api/docs/swagger-ui.css",
        content_type: "text/css",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz")),
        is_gzip: true,
    },
    File {
        path: "/api/docs/swagger-ui-bundle.js",
        content_type: "text/javascript",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz")),
        is_gzip: true,
    },
];

pub fn routes(gate: &Gate) -> Router {
    let mut router = Router::new();
    for file in &FILES {
        let gate = gate.clone();
        let serve = move |request: Request| {
            let gate = gate.clone();
            async move { gate.pass(Face::Rest, &DOCS, request, |_| async { file.response() }).await }
        };
        if let Some(bare) = file.path.strip_suffix('/') {
            router = router.route(bare, routing::get(serve.clone()));
        }
        router = router.route(file.path, routing::get(serve));
    }
    router
}

impl File {
    fn response(&self) -> Response {
        let mut response = Response::new(Body::from(self.content));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        if self.is_gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}
