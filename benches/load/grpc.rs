//! Load over gRPC, by tonic's own client.

use http::uri::PathAndQuery;
use tonic::{
    client::Grpc,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{Outcome, measure::Caller};

/// How many connections share the calls that are under way, at most.
pub const CONNECTIONS: usize = 4;

/// What a message has to be to be sent and received.
pub trait Message: prost::Message + Default + Clone + 'static {}
impl<M: prost::Message + Default + Clone + 'static> Message for M {}

/// Makes a request of the answer before it.
type Next<Q, A> = Box<dyn FnMut(Option<&A>) -> Q + Send>;

/// Calls one rpc, one call after the other. Several share a connection.
pub struct GrpcCaller<Q, A> {
    grpc: Grpc<Channel>,
    path: PathAndQuery,
    token: Option<MetadataValue<Ascii>>,
    /// Makes the next request of the last answer, if there was one.
    next: Next<Q, A>,
    pub last: Option<(MetadataMap, A)>,
}

/// So many connections to the server at this address.
pub async fn connections(address: std::net::SocketAddr, count: usize) -> Outcome<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..count.clamp(1, CONNECTIONS) {
        channels.push(Channel::from_shared(format!("http://{address}"))?.connect().await?);
    }
    Ok(channels)
}

impl<Q: Message, A: Message> GrpcCaller<Q, A> {
    pub fn new(
        channel: Channel,
        path: &'static str,
        token: Option<&str>,
        next: impl FnMut(Option<&A>) -> Q + Send + 'static,
    ) -> Outcome<Self> {
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose()?;
        let (grpc, path) = (Grpc::new(channel), PathAndQuery::from_static(path));
        Ok(Self { grpc, path, token, next: Box::new(next), last: None })
    }
}

impl<Q: Message, A: Message> Caller for GrpcCaller<Q, A> {
    async fn call(&mut self) -> Outcome<()> {
        let mut request = tonic::Request::new((self.next)(self.last.as_ref().map(|(_, answer)| answer)));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        self.grpc.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let (metadata, answer, _) = self.grpc.unary(request, self.path.clone(), codec).await?.into_parts();
        self.last = Some((metadata, answer));
        Ok(())
    }
}
