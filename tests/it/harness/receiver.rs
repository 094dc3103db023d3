//! A service that receives events, and does as it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::IntoResponse};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use super::wait_for;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What it was answered; none if it was left without an answer.
    pub status: Option<u16>,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).to_str().unwrap()
    }
}

/// The status to answer an event with; `None` for no answer at all.
type Answers = Arc<Mutex<Box<dyn FnMut(&Value) -> Option<u16> + Send>>>;

pub struct Receiver {
    pub address: SocketAddr,
    shared: Shared,
    running: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    answers: Answers,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// One that takes every event.
    pub async fn start() -> Self {
        let shared = Shared { answers: Arc::new(Mutex::new(Box::new(|_| Some(204)))), received: Arc::default() };
        let mut receiver = Self { address: ([127, 0, 0, 1], 0).into(), shared, running: None };
        receiver.come_back().await;
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    pub fn answer(&self, by: impl FnMut(&Value) -> Option<u16> + Send + 'static) {
        *self.shared.answers.lock().unwrap() = Box::new(by);
    }

    /// Refuses connections, and cuts those there are.
    pub async fn go_away(&mut self) {
        let running = self.running.take().expect("it runs");
        running.abort();
        let _ = running.await;
    }

    /// Listens at its address again.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its address is free");
        self.address = listener.local_addr().unwrap();
        let router = Router::new().fallback(receive).with_state(self.shared.clone());
        self.running = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    /// Every request so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// The requests that were answered with success, once there are `count` of them.
    pub async fn take(&self, count: usize, bound: Duration) -> Vec<Received> {
        wait_for(bound, &format!("{count} events"), async || {
            let mut taken = self.received();
            taken.retain(|received| received.status.is_some_and(|status| status < 300));
            (taken.len() >= count).then_some(taken)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let status = (shared.answers.lock().unwrap())(&serde_json::from_slice(&body).unwrap_or_default());
    shared.received.lock().unwrap().push(Received { headers, body, status });
    match status {
        Some(status) => {
            // Where a redirect would lead: to this very server, so that it shows if it is followed.
            (StatusCode::from_u16(status).unwrap(), [("location", "/elsewhere")])
        }
        None => std::future::pending().await,
    }
}
