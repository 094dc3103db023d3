//! Ten times the logins that can be hashed, and reads beside them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    Outcome, data,
    measure::nanos,
    people,
    report::{Overload, percentile_ms},
    rest::{Request, RestCaller},
    run::Run,
};

/// How many times more than can be hashed.
const TIMES: f64 = 10.0;
/// Those who log in, over a connection each, beyond those who wait for a hash.
const CLIENTS: usize = 400;
/// How many wait for each thread that hashes, with the one whose turn it is.
const WAITING: usize = 65;
/// How many of them call from one address: fewer than one client may have connections.
const FROM_ONE: usize = 400;
const READERS: u32 = 8;
/// How often each of them reads: 400 times a second in all.
const READS_EVERY: Duration = Duration::from_millis(20);

/// How each call of a caller went: what it answered, and how long that took.
type Answers = Vec<(u16, u32)>;

/// `capacity`: how many logins a second the service can do.
pub async fn measure(run: &mut Run<'_>, capacity: f64, users: u64, length: Duration) -> Outcome<()> {
    let address = run.service.address;
    let person = people::log_in(address, 1).await?.remove(0);
    let read = Request::get("/api/profile/me/", &person.access).bytes();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(RestCaller::same(address, read.clone()).await?);
    }
    // Without the flood, and then with it. Whoever connects says something soon, or is cut off.
    let (idle, readers) = paced(readers, READS_EVERY, length, Late::Counts).await?;
    let mut clients = Vec::new();
    for n in 0..CLIENTS + WAITING * std::thread::available_parallelism()?.get() {
        let login = people::login(&data::email(n as u64 % (users - 1) + 1));
        // The readers are somebody else, at the first address.
        let from = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + n / FROM_ONE)?);
        clients.push(RestCaller::from(from, address, login).await?);
    }
    let each = Duration::from_secs_f64(CLIENTS as f64 / (capacity * TIMES));
    let reading = tokio::spawn(paced(readers, READS_EVERY, length, Late::Counts));
    let (logins, _) = paced(clients, each, length, Late::IsSkipped).await?;
    let secs = length.as_secs_f64();
    let (reads, _) = reading.await??;

    let with = |answers: &Answers, status| {
        let mut latencies: Vec<u32> =
            answers.iter().filter(|answer| answer.0 == status).map(|answer| answer.1).collect();
        latencies.sort_unstable();
        latencies
    };
    let (done, shed, idle, beside) = (with(&logins, 200), with(&logins, 503), with(&idle, 200), with(&reads, 200));
    if beside.len() < reads.len() || done.len() + shed.len() < logins.len() {
        return Err("under overload there were answers that are neither what was asked for nor 503".into());
    }
    let overload = Overload {
        store: run.store.name().into(),
        capacity_per_sec: capacity,
        offered_per_sec: logins.len() as f64 / secs,
        done_per_sec: done.len() as f64 / secs,
        shed_per_sec: shed.len() as f64 / secs,
        shed_p50_ms: percentile_ms(&shed, 0.5),
        shed_p99_ms: percentile_ms(&shed, 0.99),
        shed_max_ms: percentile_ms(&shed, 1.0),
        reads_per_sec: reads.len() as f64 / secs,
        reads_p99_idle_ms: percentile_ms(&idle, 0.99),
        reads_p99_ms: percentile_ms(&beside, 0.99),
    };
    println!("{overload:?}");
    run.report.overload.push(overload);
    Ok(())
}

/// What becomes of a call that was due while the caller still waited for the one before.
#[derive(Clone, Copy)]
enum Late {
    /// It is made as soon as it can be, and its time counts from when it was due: so nobody who is held up goes unseen.
    Counts,
    /// Another caller makes one. What is answered after the end doesn't count.
    IsSkipped,
}

/// Has each caller call at its times, so far from each other.
async fn paced(
    callers: Vec<RestCaller>,
    each: Duration,
    length: Duration,
    late: Late,
) -> Outcome<(Answers, Vec<RestCaller>)> {
    let (began, count) = (Instant::now(), callers.len() as f64);
    let mut tasks = JoinSet::new();
    for (n, mut caller) in callers.into_iter().enumerate() {
        let mut next = began + each.mul_f64(n as f64 / count);
        tasks.spawn(async move {
            let mut answers = Vec::new();
            while next < began + length {
                sleep_until(next).await;
                let asked = Instant::now();
                let status = caller.exchange().await?;
                let now = Instant::now();
                match late {
                    Late::Counts => {
                        answers.push((status, nanos(now - next)));
                        next += each;
                    }
                    Late::IsSkipped => {
                        if now <= began + length {
                            answers.push((status, nanos(now - asked)));
                        }
                        while next <= now {
                            next += each;
                        }
                    }
                }
            }
            Outcome::Ok((answers, caller))
        });
    }
    let (mut answers, mut callers) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (some, caller) = done??;
        answers.extend(some);
        callers.push(caller);
    }
    Ok((answers, callers))
}

impl RestCaller {
    async fn from(ip: Ipv4Addr, address: SocketAddr, request: Vec<u8>) -> Outcome<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((ip, 0).into())?;
        Self::over(socket.connect(address).await?, request, None, 200)
    }
}
