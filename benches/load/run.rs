//! How calls are compared with the least that they could cost: short rounds by turns, so that whatever else the machine does falls on
//! both, and medians of the rounds.

use std::{net::SocketAddr, path::Path, time::Duration};

use tonic::transport::Channel;

use crate::{
    Outcome,
    ceiling::{Ceiling, GrpcAnswer, Prepared, RestAnswer},
    grpc::{self, GrpcCaller, Message},
    measure::{Caller, Round, resident_mib, round, times},
    report::{Compared, Figures, Report, median},
    rest::{Request, RestCaller},
    service::Service,
    stores::Store,
};

/// How much is measured.
pub struct Plan {
    pub rounds: usize,
    pub length: Duration,
    /// How many call at once.
    pub at: Vec<usize>,
}

impl Plan {
    pub fn new(is_quick: bool, length: Duration) -> Self {
        let (rounds, at) = if is_quick { (3, vec![1, 16]) } else { (5, vec![1, 16, 64]) };
        Self { rounds, length, at }
    }
}

/// A service that runs, and where what is found goes.
pub struct Run<'a> {
    pub plan: &'a Plan,
    pub folder: &'a Path,
    pub store: Store,
    pub service: &'a Service,
    /// The same by the build that counts its allocations, if there is one.
    pub counted: Option<&'a mut Service>,
    pub report: &'a mut Report,
}

/// Callers, and the process that answers them, if its computing is looked at.
pub struct Side<C> {
    pub callers: Vec<C>,
    pub pid: Option<u32>,
}

impl Run<'_> {
    /// Measures both by turns, and takes a note of it.
    pub async fn compare<S: Caller, C: Caller>(
        &mut self,
        call: &str,
        beside: &str,
        mut service: Side<S>,
        mut ceiling: Side<C>,
    ) -> Outcome<&mut Compared> {
        let (at, length) = (service.callers.len(), self.plan.length);
        // Connections, caches and branches get warm.
        round(&mut service.callers, None, length / 2).await?;
        round(&mut ceiling.callers, None, length / 2).await?;
        let (mut of_service, mut of_ceiling) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.rounds {
            of_service.push(round(&mut service.callers, service.pid, length).await?);
            of_ceiling.push(round(&mut ceiling.callers, ceiling.pid, length).await?);
        }
        let ratio =
            |figure: fn(&Round) -> f64| median(of_service.iter().zip(&of_ceiling).map(|(s, c)| figure(s) / figure(c)));
        let compared = Compared {
            call: call.to_owned(),
            store: self.store.name().to_owned(),
            beside: beside.to_owned(),
            at,
            service: Figures::of(&of_service),
            ceiling: Figures::of(&of_ceiling),
            ratio_calls: ratio(Round::calls_per_sec),
            // How many calls of the ceiling one of the service's costs, the other way round: 1 is as good as it gets.
            ratio_cpu: ceiling.pid.map(|_| 1.0 / ratio(Round::cpu_us_per_call)),
            allocations: None,
            resident_mib: resident_mib(self.service.pid())?,
        };
        println!("{compared}");
        self.report.calls.push(compared);
        self.report.calls.last_mut().ok_or_else(|| "it was noted".into())
    }

    /// How often the service asks for memory in one call of this caller.
    async fn allocations<C: Caller>(&mut self, call: &str, caller: C) -> Outcome<Option<f64>> {
        const CALLS: usize = 2000;
        let Some(counted) = &mut self.counted else { return Ok(None) };
        let mut callers = vec![caller];
        times(&mut callers, CALLS / 4).await?;
        let before = counted.allocations()?;
        times(&mut callers, CALLS).await?;
        let each = (counted.allocations()? - before) as f64 / CALLS as f64;
        println!("{:<10} {call:<32} asks for memory {each:.1} times a call", self.store.name());
        Ok(Some(each))
    }

    /// Where the build that counts is, or else the one that is measured.
    fn counted_at(&self) -> SocketAddr {
        self.counted.as_ref().map_or(self.service.address, |counted| counted.address)
    }

    /// A request that changes nothing, beside a bare axum handler that gives the same answer.
    pub async fn rest(&mut self, call: &str, request: Request<'_>) -> Outcome<()> {
        let mut caller = RestCaller::same(self.service.address, request.bytes()).await?;
        caller.call().await?;
        let answer = RestAnswer::of(request.method, request.path, caller.last())?;
        drop(caller);
        let allocations = self.allocations(call, RestCaller::same(self.counted_at(), request.bytes()).await?).await?;
        let ceiling = Ceiling::start(self.folder, &Prepared { rest: vec![answer], grpc: Vec::new() })?;
        for at in self.plan.at.clone() {
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..at {
                ours.push(RestCaller::same(self.service.address, request.bytes()).await?);
                bare.push(RestCaller::same(ceiling.address, request.bytes()).await?);
            }
            let ours = Side { callers: ours, pid: Some(self.service.pid()) };
            self.compare(call, "bare axum", ours, Side { callers: bare, pid: Some(ceiling.pid()) })
                .await?
                .allocations = allocations;
        }
        Ok(())
    }

    /// An rpc that changes nothing, beside bare tonic with the same answer; and over gRPC-Web, beside tonic's own layer for it, where
    /// `web` says so.
    pub async fn grpc<Q: Message, A: Message>(
        &mut self,
        path: &'static str,
        token: Option<&str>,
        request: Q,
        web: bool,
    ) -> Outcome<()> {
        let call = path.rsplit('/').next().unwrap_or(path);
        let caller = |channel: &Channel| {
            let request = request.clone();
            GrpcCaller::<Q, A>::new(channel.clone(), path, token, move |_| request.clone())
        };
        let callers =
            |channels: &[Channel], at: usize| channels.iter().cycle().take(at).map(caller).collect::<Outcome<Vec<_>>>();
        let mut first = caller(&grpc::connections(self.service.address, 1).await?[0])?;
        first.call().await?;
        let answer = GrpcAnswer::of(path, first.last.as_ref().ok_or("no answer")?);
        let allocations = self.allocations(call, caller(&grpc::connections(self.counted_at(), 1).await?[0])?).await?;
        let ceiling = Ceiling::start(self.folder, &Prepared { rest: Vec::new(), grpc: vec![answer] })?;
        let (service_pid, ceiling_pid) = (Some(self.service.pid()), Some(ceiling.pid()));
        for at in self.plan.at.clone() {
            let ours = callers(&grpc::connections(self.service.address, at).await?, at)?;
            let bare = callers(&grpc::connections(ceiling.address, at).await?, at)?;
            let (ours, bare) = (Side { callers: ours, pid: service_pid }, Side { callers: bare, pid: ceiling_pid });
            self.compare(call, "bare tonic", ours, bare).await?.allocations = allocations;
        }
        if !web {
            return Ok(());
        }
        let mut framed = vec![0];
        let message = request.encode_to_vec();
        framed.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        framed.extend_from_slice(&message);
        let of_web = Request { method: "POST", path, token, media_type: "application/grpc-web+proto", body: &framed };
        let web_path = format!("/web{path}");
        let of_bare = Request { path: &web_path, ..of_web };
        for at in self.plan.at.clone() {
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..at {
                ours.push(RestCaller::same(self.service.address, of_web.bytes()).await?);
                bare.push(RestCaller::same(ceiling.address, of_bare.bytes()).await?);
            }
            let (ours, bare) = (Side { callers: ours, pid: service_pid }, Side { callers: bare, pid: ceiling_pid });
            self.compare(&format!("{call} (gRPC-Web)"), "bare tonic-web", ours, bare).await?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { call, store, beside, at, service, ceiling, ratio_calls, .. } = self;
        let (calls, bare) = (service.calls_per_sec, ceiling.calls_per_sec);
        write!(f, "{store:<10} {call:<32} at {at:>3}: {calls:>8.0}/s, {beside} {bare:>8.0}/s: {ratio_calls:.2}")?;
        if let (Some(cpu), Some(bare), Some(ratio)) = (service.cpu_us_per_call, ceiling.cpu_us_per_call, self.ratio_cpu)
        {
            write!(f, "; CPU {cpu:.2} us, {bare:.2} us: {ratio:.2}")?;
        }
        write!(f, "; ms {:.3} {:.3} {:.3}", service.p50_ms, service.p99_ms, service.p999_ms)
    }
}
