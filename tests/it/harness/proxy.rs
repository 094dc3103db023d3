//! A line between the service and a server, which breaks as it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use url::Url;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They pass.
    Pass,
    /// What the server says comes so much later.
    Delay(Duration),
    /// Every connection is closed, a new one at once.
    Cut,
    /// Connections stay open, new ones are taken, and nothing comes through. As on a line that loses its packets, what was sent
    /// meanwhile arrives later, should it pass again.
    BlackHole,
}

/// When a transaction of PostgreSQL loses its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// As it works: the statement arrives, its answer doesn't.
    Within,
    /// The commit doesn't arrive.
    BeforeCommit,
    /// The commit is done, and its answer doesn't arrive.
    AfterCommit,
}

/// A line to one server. It ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    snare: Snare,
    running: JoinHandle<()>,
}

/// Which transaction is cut next, by bytes that only it sends.
type Snare = Arc<Mutex<Option<(Vec<u8>, Moment)>>>;

impl Proxy {
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (way, snare) = (watch::Sender::new(Way::Pass), Snare::default());
        let (address, ways, snares) = (listener.local_addr().unwrap(), way.clone(), Arc::clone(&snare));
        let running = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *ways.borrow() != Way::Cut {
                    tokio::spawn(carry(client, server, ways.subscribe(), Arc::clone(&snares)));
                }
            }
        });
        Self { address, way, snare, running }
    }

    /// A line to the server of this URL.
    pub async fn to(url: &str) -> Self {
        let url = Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        Self::start(server.parse().expect("an IP address")).await
    }

    /// `url` over this line.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Cuts the connection of the next transaction that sends `mark`, and that one alone.
    pub fn cut_transaction(&self, mark: impl Into<Vec<u8>>, moment: Moment) {
        *self.snare.lock().unwrap() = Some((mark.into(), moment));
    }

    /// Whether the transaction came, and was cut.
    pub fn has_cut(&self) -> bool {
        self.snare.lock().unwrap().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
        // The connections go by this.
        self.set(Way::Cut);
    }
}

/// Serves one connection to its end.
async fn carry(client: TcpStream, server: SocketAddr, mut way: watch::Receiver<Way>, snare: Snare) {
    // Nobody gets through a black hole to connect either.
    if way.wait_for(|way| *way != Way::BlackHole).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut cut = way.clone();
    let (drop_answer, answer_dropped) = watch::channel(false);
    tokio::select! {
        () = ask(from_client, to_server, way.clone(), snare, drop_answer) => {}
        () = answer(from_server, to_client, way, answer_dropped) => {}
        _ = cut.wait_for(|way| *way == Way::Cut) => {}
    }
}

/// The name, with the zero at its end, of a statement that is prepared in these bytes and has others in its `WITH`.
fn prepared_script(said: &[u8]) -> Option<Vec<u8>> {
    let text = said.windows(6).position(|bytes| bytes == b"WITH \"")?;
    let name = said[..text].windows(7).rposition(|bytes| bytes == b"sqlx_s_")?;
    Some(said[name..text].to_vec())
}

/// From the client to the server, up to the end of either or up to the snare.
async fn ask(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    snare: Snare,
    drop_answer: watch::Sender<bool>,
) {
    // What the transaction under way has said so far.
    let (mut bytes, mut transaction, mut scripts) = (vec![0; 1 << 16], None, Vec::new());
    loop {
        let Ok(count @ 1..) = client.read(&mut bytes).await else { return };
        let said = &bytes[..count];
        if way.wait_for(|way| *way != Way::BlackHole).await.is_err() {
            return;
        }
        if find(said, b"BEGIN") {
            transaction = Some(Vec::new());
        }
        scripts.extend(prepared_script(said));
        // One that is a transaction by itself.
        let is_script = transaction.is_none() && scripts.iter().any(|name| find(said, name));
        if is_script {
            transaction = Some(Vec::new());
        }
        let commits = is_script || find(said, b"COMMIT");
        let caught = transaction.as_mut().and_then(|transaction: &mut Vec<u8>| {
            transaction.extend_from_slice(said);
            let is_due = |moment| moment == Moment::Within || commits;
            snare.lock().unwrap().take_if(|(mark, moment)| is_due(*moment) && find(transaction, mark))
        });
        if commits || find(said, b"ROLLBACK") {
            transaction = None;
        }
        if let Some((_, moment)) = caught {
            if moment == Moment::AfterCommit || (moment == Moment::Within && !is_script) {
                drop_answer.send_replace(true);
                let _ = server.write_all(said).await;
                // The other half ends the connection, at the answer.
                std::future::pending::<()>().await;
            }
            return;
        }
        if server.write_all(said).await.is_err() {
            return;
        }
    }
}

/// From the server to the client, each in its time, up to the end of either or up to an answer that is to be dropped.
async fn answer(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    dropped: watch::Receiver<bool>,
) {
    let (late, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let ways = way.clone();
    let read = async move {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = server.read(&mut bytes).await {
            if *dropped.borrow() {
                return;
            }
            let delay = if let Way::Delay(delay) = *ways.borrow() { delay } else { Duration::ZERO };
            if late.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            if way.wait_for(|way| *way != Way::BlackHole).await.is_err() || client.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

fn find(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
