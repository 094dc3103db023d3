//! Every face of the service in one router: gRPC, gRPC-Web, REST, documentation.

use std::sync::Arc;

use axum::{Router, extract::Request, middleware, response::Response};
use http::{StatusCode, header};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;

use super::{
    Api, cors, docs,
    gate::{self, Face, Gate, UNKNOWN},
    health, jwks, media, metrics, policies,
    rest::Rest,
    routes, status,
};
use crate::{
    app::App,
    error::Cause,
    pb::{
        DESCRIPTORS, audit_service_server::AuditServiceServer, auth_service_server::AuthServiceServer,
        profile_service_server::ProfileServiceServer, role_service_server::RoleServiceServer,
        user_service_server::UserServiceServer,
    },
};

/// What answers, and how it is told how the service is.
pub struct Routers {
    /// Every face.
    pub all: Router,
    /// gRPC and gRPC-Web, with health and reflection.
    pub grpc: Router,
    /// What gRPC's health says.
    pub health: HealthReporter,
}

/// Once `stop` is asked for, they say that the service is not ready.
///
/// # Errors
/// If the descriptors can't be served by reflection: a fault of the build.
pub async fn routers(app: &Arc<App>, stop: &CancellationToken) -> Result<Routers, Cause> {
    let api = Arc::new(Api { app: Arc::clone(app) });
    let gate = Gate::new(Arc::clone(app));
    let (grpc, health) = grpc(&api, &gate, app.config.server.reflection).await?;
    let of_others = gate.clone();
    let not_here = move |request: Request| {
        let gate = of_others.clone();
        async move { no_such_path(&gate, request, Some("This port is for gRPC alone")).await }
    };
    let grpc_only = grpc.clone().fallback(not_here);
    let rest = Router::new()
        .merge(routes::auth_service(Rest::new(Arc::clone(&api), gate.clone())))
        .merge(routes::user_service(Rest::new(Arc::clone(&api), gate.clone())))
        .merge(routes::profile_service(Rest::new(Arc::clone(&api), gate.clone())))
        .merge(routes::role_service(Rest::new(Arc::clone(&api), gate.clone())))
        .merge(routes::audit_service(Rest::new(api, gate.clone())))
        .merge(health::routes(app, &gate, stop))
        .merge(docs::routes(&gate))
        .merge(jwks::routes(app, &gate)?)
        .merge(media::routes(app, &gate));

    let refused = gate.clone();
    let not_allowed = move |request: Request| {
        let gate = refused.clone();
        async move {
            gate.turn_down(request, status::plain(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", None)).await
        }
    };
    let (app, outer) = (Arc::clone(app), gate.clone());
    let cors = cors::rules(&app.config);
    let unknown = move |request: Request| {
        let (app, gate) = (Arc::clone(&app), gate.clone());
        async move {
            if metrics::are_asked_for(&app, &request) {
                metrics::answer(&app, &gate, request).await
            } else {
                no_such_path(&gate, request, None).await
            }
        }
    };
    let all = grpc.merge(rest).method_not_allowed_fallback(not_allowed).fallback(unknown);
    let with_cors = |router: Router| match &cors {
        Some(rules) => router.layer(middleware::from_fn_with_state((rules.clone(), outer.clone()), cors::apply)),
        None => router,
    };
    Ok(Routers { all: with_cors(all), grpc: with_cors(grpc_only), health })
}

/// The gRPC services: gRPC-Web is translated outside of the gate, so that the gate sees one kind of call.
async fn grpc(api: &Arc<Api>, gate: &Gate, reflection: bool) -> Result<(Router, HealthReporter), Cause> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::begin(&reporter).await;

    let mut services = Routes::new(health_service);
    services = services
        .add_service(
            AuthServiceServer::from_arc(Arc::clone(api))
                .max_decoding_message_size(policies::AUTH_SERVICE_MAX_REQUEST_BYTES),
        )
        .add_service(
            UserServiceServer::from_arc(Arc::clone(api))
                .max_decoding_message_size(policies::USER_SERVICE_MAX_REQUEST_BYTES),
        )
        .add_service(
            ProfileServiceServer::from_arc(Arc::clone(api))
                .max_decoding_message_size(policies::PROFILE_SERVICE_MAX_REQUEST_BYTES),
        )
        .add_service(
            RoleServiceServer::from_arc(Arc::clone(api))
                .max_decoding_message_size(policies::ROLE_SERVICE_MAX_REQUEST_BYTES),
        )
        .add_service(
            AuditServiceServer::from_arc(Arc::clone(api))
                .max_decoding_message_size(policies::AUDIT_SERVICE_MAX_REQUEST_BYTES),
        );
    if reflection {
        let describe = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that clients can show the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        services = services.add_service(describe().build_v1()?).add_service(describe().build_v1alpha()?);
    }
    let router = services
        .prepare()
        .into_axum_router()
        .reset_fallback()
        .layer(middleware::from_fn_with_state(gate.clone(), gate::grpc))
        .layer(GrpcWebLayer::new())
        .layer(middleware::from_fn_with_state(gate.clone(), gate::grpc_only));
    Ok((router, reporter))
}

async fn no_such_path(gate: &Gate, request: Request, detail: Option<&'static str>) -> Response {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        gate.pass(Face::Grpc, &UNKNOWN, request, |_| async { status::unknown_rpc() }).await
    } else {
        gate.turn_down(request, status::plain(StatusCode::NOT_FOUND, "Not found", detail)).await
    }
}
