//! Clients that speak TLS with the service.

use std::{fs, io, net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::{Actor, authority::Authority};

/// How a client shakes hands.
#[derive(Clone)]
pub struct Client(ClientConfig);

impl Client {
    /// One that trusts this authority and has no certificate.
    pub fn trusting(authority: &Authority) -> Self {
        Self::new(authority, &[&TLS13, &TLS12], None)
    }

    /// One that speaks this version alone.
    pub fn speaking(authority: &Authority, version: &'static SupportedProtocolVersion) -> Self {
        Self::new(authority, &[version], None)
    }

    /// One with this certificate and key, in PEM.
    pub fn showing(authority: &Authority, (certificate, key): (String, String)) -> Self {
        Self::new(authority, &[&TLS13, &TLS12], Some((certificate, key)))
    }

    fn new(
        authority: &Authority,
        versions: &[&'static SupportedProtocolVersion],
        shown: Option<(String, String)>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&fs::read(authority.file()).unwrap()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Self(match shown {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        })
    }

    /// Shakes hands, offering this protocol.
    pub async fn connect(&self, address: SocketAddr, protocol: &str) -> io::Result<TlsStream<TcpStream>> {
        let mut config = self.0.clone();
        config.alpn_protocols = vec![protocol.into()];
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
    }

    /// The answer to a GET by HTTP/1.1, head and all.
    pub async fn get(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        get_over(&mut self.connect(address, "http/1.1").await?, path, true).await
    }

    /// An actor who calls by gRPC over TLS. By REST it can't.
    pub fn actor(&self, address: SocketAddr) -> Actor {
        let mut actor = Actor::new(address);
        actor.channel = self.channel(address);
        actor
    }

    fn channel(&self, address: SocketAddr) -> Channel {
        let client = self.clone();
        let connect = move |_| {
            let client = client.clone();
            async move { client.connect(address, "h2").await.map(TokioIo::new) }
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect_with_connector_lazy(tower::service_fn(connect))
    }
}

/// The answer to a GET over this connection: all that comes, if the connection is then to be closed, else what comes up to the end
/// of some JSON.
pub async fn get_over(stream: &mut TlsStream<TcpStream>, path: &str, is_last: bool) -> io::Result<String> {
    let close = if is_last { "connection: close\r\n" } else { "" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{close}\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await? > 0 {
        if !is_last && answer.ends_with(b"}") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
