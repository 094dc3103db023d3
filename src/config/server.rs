//! Where the service listens, and under which address it is known.

use std::net::SocketAddr;

use super::{parse, read::Reader, variables};

#[derive(Debug, Clone)]
pub struct Server {
    pub listen_addr: SocketAddr,
    pub grpc_addr: Option<SocketAddr>,
    /// Without a final slash.
    pub public_url: Option<String>,
    pub reflection: bool,
    /// Connections at once, on all listeners.
    pub max_connections: usize,
    /// Those of one client.
    pub max_connections_per_client: usize,
}

pub(super) fn server(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Server {
    let listen_addr = r.value(&variables::LISTEN_ADDR, parse::socket_address);
    let grpc_addr = r.optional(&variables::GRPC_ADDR, parse::socket_address);
    // Two ports that the system chooses are two.
    if grpc_addr == Some(listen_addr) && listen_addr.port() != 0 {
        r.mistake(&variables::GRPC_ADDR, "it is the address of LISTEN_ADDR, which serves gRPC already");
    }
    let public_url = r.optional(&variables::PUBLIC_URL, parse::http_url);
    Server {
        listen_addr,
        grpc_addr,
        public_url: public_url.map(|url| url.as_str().trim_end_matches('/').to_owned()),
        reflection: r.value(&variables::REFLECTION, parse::boolean),
        // One for each listener to wait with.
        max_connections: r.number(&variables::MAX_CONNECTIONS, 2..=1_000_000),
        max_connections_per_client: r.number(&variables::MAX_CONNECTIONS_PER_CLIENT, 1..=1_000_000),
    }
}
