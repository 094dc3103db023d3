//! What nothing can be faster than here: a bare axum router with the answers of the service, byte by byte, and bare tonic with its
//! messages, on a listener of the same kind in a process of its own. It looks at nothing and asks nobody.

use std::{
    convert::Infallible,
    fs,
    future::{Ready, ready},
    io::{BufRead, BufReader, Read, Write},
    marker::PhantomData,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    process::{Child, ChildStdin, Command, Stdio},
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::{MethodFilter, on},
    serve::ListenerExt,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use identity::pb;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tonic::{metadata::MetadataMap, server::UnaryService};
use tonic_prost::ProstCodec;
use tonic_web::GrpcWebLayer;
use tower::{Layer, Service};

use crate::{Outcome, grpc::Message};

/// The answers that the service gave, which the ceiling gives again.
#[derive(Default, Serialize, Deserialize)]
pub struct Prepared {
    pub rest: Vec<RestAnswer>,
    pub grpc: Vec<GrpcAnswer>,
}

#[derive(Serialize, Deserialize)]
pub struct RestAnswer {
    pub method: String,
    pub path: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct GrpcAnswer {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub message: Vec<u8>,
}

impl RestAnswer {
    /// An answer as it came: its head and its body.
    pub fn of(method: &str, path: &str, (head, body): (&[u8], &[u8])) -> Outcome<Self> {
        let head = std::str::from_utf8(head)?;
        let status = head.get(9..12).ok_or("an answer without a status")?.parse()?;
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        // Those that every server of hyper writes by itself.
        let fields = fields.filter(|(name, _)| !["date", "content-length"].contains(name));
        Ok(Self {
            method: method.to_owned(),
            path: path.split('?').next().unwrap_or(path).to_owned(),
            status,
            headers: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            body: std::str::from_utf8(body)?.to_owned(),
        })
    }

    fn route(self, router: Router) -> Outcome<Router> {
        let (status, body) = (StatusCode::from_u16(self.status)?, Bytes::from(self.body));
        let headers = fields(&self.headers)?;
        let answer = move || {
            let mut response = Response::new(Body::from(body.clone()));
            *response.status_mut() = status;
            response.headers_mut().extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            response
        };
        let method = MethodFilter::try_from(http::Method::from_bytes(self.method.as_bytes())?)?;
        Ok(if self.method == "GET" {
            router.route(&self.path, on(method, async move || answer()))
        } else {
            router.route(&self.path, on(method, async move |_: Bytes| answer()))
        })
    }
}

fn fields(pairs: &[(String, String)]) -> Outcome<Vec<(HeaderName, HeaderValue)>> {
    pairs.iter().map(|(name, value)| Ok((name.parse()?, value.parse()?))).collect()
}

impl GrpcAnswer {
    pub fn of(path: &str, (metadata, answer): &(MetadataMap, impl Message)) -> Self {
        let fields = metadata.clone().into_headers();
        let fields =
            fields.iter().filter(|(name, _)| !["date", "content-type", "grpc-status"].contains(&name.as_str()));
        let headers = fields.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        Self { path: path.to_owned(), headers: headers.collect(), message: answer.encode_to_vec() }
    }

    fn route(&self, router: Router) -> Outcome<Router> {
        match self.path.as_str() {
            GET_MY_PROFILE => self.echo::<pb::GetMyProfileRequest, pb::Profile>(router),
            VERIFY_TOKEN => self.echo::<pb::VerifyTokenRequest, pb::VerifyTokenResponse>(router),
            GET_USER => self.echo::<pb::GetUserRequest, pb::User>(router),
            LIST_USERS => self.echo::<pb::ListUsersRequest, pb::ListUsersResponse>(router),
            other => Err(format!("no ceiling for {other}").into()),
        }
    }

    /// What tonic generates for an rpc, with a handler that has its answer ready.
    fn echo<Q: Message, A: Message + Sync>(&self, router: Router) -> Outcome<Router> {
        let metadata = MetadataMap::from_headers(fields(&self.headers)?.into_iter().collect::<HeaderMap>());
        let echo = Echo { metadata, answer: A::decode(self.message.as_slice())? };
        let service = EchoService(echo, PhantomData::<fn(Q)>);
        let web = GrpcWebLayer::new().layer(service.clone());
        Ok(router.route_service(&self.path, service).route_service(&format!("/web{}", self.path), web))
    }
}

#[derive(Clone)]
struct Echo<A> {
    metadata: MetadataMap,
    answer: A,
}

/// The same as a service of HTTP, as tonic generates one.
struct EchoService<Q, A>(Echo<A>, PhantomData<fn(Q)>);

impl<Q, A: Clone> Clone for EchoService<Q, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<Q: Message, A: Message + Sync, B> Service<http::Request<B>> for EchoService<Q, A>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
            Ok(grpc.unary(echo, request).await)
        })
    }
}

impl<Q: Message, A: Message + Sync> UnaryService<Q> for Echo<A> {
    type Response = A;
    type Future = Ready<Result<tonic::Response<A>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<Q>) -> Self::Future {
        let Self { metadata, answer } = self.clone();
        ready(Ok(tonic::Response::from_parts(metadata, answer, http::Extensions::new())))
    }
}

pub const GET_MY_PROFILE: &str = "/identity.v1.ProfileService/GetMyProfile";
pub const VERIFY_TOKEN: &str = "/identity.v1.AuthService/VerifyToken";
pub const GET_USER: &str = "/identity.v1.UserService/GetUser";
pub const LIST_USERS: &str = "/identity.v1.UserService/ListUsers";

/// Serves what is prepared in this file until standard input ends, as it does with the process at its other end.
pub async fn serve(prepared: &Path) -> Outcome<()> {
    let prepared: Prepared = serde_json::from_slice(&fs::read(prepared)?)?;
    let mut router = Router::new();
    for answer in prepared.rest {
        router = answer.route(router)?;
    }
    for answer in prepared.grpc {
        router = answer.route(router)?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    writeln!(std::io::stdout().lock(), "{}", listener.local_addr()?)?;
    let listener = listener.tap_io(|stream| {
        // Where that fails the connection is gone, which shows soon enough.
        let _ = stream.set_nodelay(true);
    });
    let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served?,
        ended = parent => drop(ended?),
    }
    Ok(())
}

/// The process that serves the ceiling.
pub struct Ceiling {
    pub address: SocketAddr,
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Ceiling {
    /// Starts this program again.
    pub fn start(folder: &Path, prepared: &Prepared) -> Outcome<Self> {
        let file = folder.join("prepared.json");
        fs::write(&file, serde_json::to_vec(prepared)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--ceiling").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let stdin = child.stdin.take();
        Ok(Self { address: line.trim().parse()?, child, _stdin: stdin })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        // One that has ended already can't be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
