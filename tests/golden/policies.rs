// Written by build.rs from proto/. Don't edit.
use std::time::Duration;

use crate::api::gate::{Access, Limit, Policy};

pub static LIBRARY_SERVICE_LIST_BOOKS: Policy = Policy {
    rpc: "LibraryService.ListBooks",
    access: Access::Anyone,
    limit: Limit::Api,
    deadline: Duration::from_millis(15000),
    max_request_bytes: 65536,
    is_probe: false,
};

pub static LIBRARY_SERVICE_ADD_BOOK: Policy = Policy {
    rpc: "LibraryService.AddBook",
    access: Access::Admin,
    limit: Limit::ByRule,
    deadline: Duration::from_millis(2500),
    max_request_bytes: 65536,
    is_probe: false,
};

pub static LIBRARY_SERVICE_UPDATE_BOOK: Policy = Policy {
    rpc: "LibraryService.UpdateBook",
    access: Access::User,
    limit: Limit::Api,
    deadline: Duration::from_millis(15000),
    max_request_bytes: 1000000,
    is_probe: false,
};

pub static LIBRARY_SERVICE_REMOVE_BOOK: Policy = Policy {
    rpc: "LibraryService.RemoveBook",
    access: Access::Admin,
    limit: Limit::Api,
    deadline: Duration::from_millis(15000),
    max_request_bytes: 65536,
    is_probe: false,
};

pub static LIBRARY_SERVICE_CLOSE: Policy = Policy {
    rpc: "LibraryService.Close",
    access: Access::Admin,
    limit: Limit::Api,
    deadline: Duration::from_millis(15000),
    max_request_bytes: 65536,
    is_probe: false,
};

pub static LIBRARY_SERVICE_COUNT_BOOKS: Policy = Policy {
    rpc: "LibraryService.CountBooks",
    access: Access::User,
    limit: Limit::None,
    deadline: Duration::from_millis(15000),
    max_request_bytes: 65536,
    is_probe: false,
};

/// The policy of the rpc that is called at `path`.
pub fn by_path(path: &str) -> Option<&'static Policy> {
    Some(match path {
        "/example.v1.LibraryService/ListBooks" => &LIBRARY_SERVICE_LIST_BOOKS,
        "/example.v1.LibraryService/AddBook" => &LIBRARY_SERVICE_ADD_BOOK,
        "/example.v1.LibraryService/UpdateBook" => &LIBRARY_SERVICE_UPDATE_BOOK,
        "/example.v1.LibraryService/RemoveBook" => &LIBRARY_SERVICE_REMOVE_BOOK,
        "/example.v1.LibraryService/Close" => &LIBRARY_SERVICE_CLOSE,
        "/example.v1.LibraryService/CountBooks" => &LIBRARY_SERVICE_COUNT_BOOKS,
        _ => return None,
    })
}

/// The largest request of `LibraryService`, in bytes.
pub const LIBRARY_SERVICE_MAX_REQUEST_BYTES: usize = 1000000;
