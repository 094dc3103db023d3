// Written by build.rs from proto/. Don't edit.
use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing,
};

use crate::{
    api::{
        policies,
        rest::{Bind, Body, Fields, Rest, Route},
    },
    pb,
};

impl Bind for pb::AddBookRequest {
    const IS_PATCH: bool = false;

    fn bind(fields: &mut Fields<'_>) -> Self {
        Self { shelf: fields.variable("shelf"), title: fields.optional("title"), password: fields.optional("password") }
    }
}

impl Bind for pb::CloseRequest {
    const IS_PATCH: bool = false;

    fn bind(_: &mut Fields<'_>) -> Self {
        Self {}
    }
}

impl Bind for pb::ListBooksRequest {
    const IS_PATCH: bool = false;

    fn bind(fields: &mut Fields<'_>) -> Self {
        Self {
            shelf: fields.variable("shelf"),
            search: fields.optional("search"),
            is_on_loan: fields.optional("is_on_loan"),
            limit: fields.optional("limit"),
            page_token: Option::default(),
            bought_since: fields.optional("bought_since"),
        }
    }
}

impl Bind for pb::RemoveBookRequest {
    const IS_PATCH: bool = false;

    fn bind(fields: &mut Fields<'_>) -> Self {
        Self { shelf: fields.variable("shelf"), id: fields.variable("id") }
    }
}

impl Bind for pb::UpdateBookRequest {
    const IS_PATCH: bool = true;

    fn bind(fields: &mut Fields<'_>) -> Self {
        Self {
            shelf: fields.variable("shelf"),
            id: fields.variable("id"),
            title: fields.optional("title"),
            borrower: fields.optional("borrower"),
            cover: fields.optional("cover"),
            update_mask: Some(fields.update_mask(&["title", "borrower", "cover"])),
        }
    }
}

/// The REST routes of `example.v1.LibraryService`, each with and without its trailing slash.
pub fn library_service<S: pb::library_service_server::LibraryService>(rest: Rest<S>) -> Router {
    Router::new()
        .route("/close/", routing::post(library_service_close::<S>))
        .route("/close", routing::post(library_service_close::<S>))
        .route(
            "/shelves/{shelf}/books/",
            routing::get(library_service_list_books::<S>).post(library_service_add_book::<S>),
        )
        .route(
            "/shelves/{shelf}/books",
            routing::get(library_service_list_books::<S>).post(library_service_add_book::<S>),
        )
        .route(
            "/shelves/{shelf}/books/{id}/",
            routing::patch(library_service_update_book::<S>).delete(library_service_remove_book::<S>),
        )
        .route(
            "/shelves/{shelf}/books/{id}",
            routing::patch(library_service_update_book::<S>).delete(library_service_remove_book::<S>),
        )
        .with_state(rest)
}

async fn library_service_list_books<S: pb::library_service_server::LibraryService>(
    State(rest): State<Rest<S>>,
    request: Request,
) -> Response {
    const ROUTE: Route = Route { policy: &policies::LIBRARY_SERVICE_LIST_BOOKS, status: 200, body: Body::None };
    rest.call(&ROUTE, request, |service, request| async move { service.list_books(request).await }).await
}

async fn library_service_add_book<S: pb::library_service_server::LibraryService>(
    State(rest): State<Rest<S>>,
    request: Request,
) -> Response {
    const ROUTE: Route = Route { policy: &policies::LIBRARY_SERVICE_ADD_BOOK, status: 201, body: Body::Json };
    rest.call(&ROUTE, request, |service, request| async move { service.add_book(request).await }).await
}

async fn library_service_update_book<S: pb::library_service_server::LibraryService>(
    State(rest): State<Rest<S>>,
    request: Request,
) -> Response {
    const ROUTE: Route = Route { policy: &policies::LIBRARY_SERVICE_UPDATE_BOOK, status: 200, body: Body::JsonOrForm };
    rest.call(&ROUTE, request, |service, request| async move { service.update_book(request).await }).await
}

async fn library_service_remove_book<S: pb::library_service_server::LibraryService>(
    State(rest): State<Rest<S>>,
    request: Request,
) -> Response {
    const ROUTE: Route = Route { policy: &policies::LIBRARY_SERVICE_REMOVE_BOOK, status: 204, body: Body::None };
    rest.call(&ROUTE, request, |service, request| async move { service.remove_book(request).await }).await
}

async fn library_service_close<S: pb::library_service_server::LibraryService>(
    State(rest): State<Rest<S>>,
    request: Request,
) -> Response {
    const ROUTE: Route = Route { policy: &policies::LIBRARY_SERVICE_CLOSE, status: 200, body: Body::None };
    rest.call(&ROUTE, request, |service, request| async move { service.close(request).await }).await
}
