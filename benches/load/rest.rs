//! Load over HTTP/1.1: requests are written as they stand, answers are read up to their end and no further, so that the load
//! takes as little of the machine as it can from those that are measured.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Outcome, measure::Caller};

/// Makes the next request of the last answer's body, which is empty before the first.
pub type Next = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// One connection, kept open.
pub struct RestCaller {
    stream: TcpStream,
    next: Option<Next>,
    request: Vec<u8>,
    expected: u16,
    answer: Vec<u8>,
    /// Where the last answer's body lies.
    body: std::ops::Range<usize>,
}

/// What a request is made of.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub token: Option<&'a str>,
    pub media_type: &'a str,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn get(path: &'a str, token: &'a str) -> Self {
        Self { method: "GET", path, token: Some(token), media_type: "", body: b"" }
    }

    pub fn json(method: &'a str, path: &'a str, token: Option<&'a str>, body: &'a str) -> Self {
        Self { method, path, token, media_type: "application/json", body: body.as_bytes() }
    }

    pub fn bytes(self) -> Vec<u8> {
        let Self { method, path, token, media_type, body } = self;
        let mut lines = vec![format!("{method} {path} HTTP/1.1")];
        lines.extend(["host: localhost", "user-agent: load", "accept: */*"].map(str::to_owned));
        lines.extend(token.map(|token| format!("authorization: Bearer {token}")));
        if !media_type.is_empty() {
            lines.extend([format!("content-type: {media_type}"), format!("content-length: {}", body.len())]);
        }
        let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

impl RestCaller {
    /// Calls with the same request each time.
    pub async fn same(address: SocketAddr, request: Vec<u8>) -> Outcome<Self> {
        Self::new(address, request, None, 200).await
    }

    /// Calls with what `next` makes of the last answer; `expected` is the status of a good one.
    pub async fn following(address: SocketAddr, mut next: Next, expected: u16) -> Outcome<Self> {
        Self::new(address, next(b""), Some(next), expected).await
    }

    async fn new(address: SocketAddr, request: Vec<u8>, next: Option<Next>, expected: u16) -> Outcome<Self> {
        Self::over(TcpStream::connect(address).await?, request, next, expected)
    }

    pub fn over(stream: TcpStream, request: Vec<u8>, next: Option<Next>, expected: u16) -> Outcome<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, next, request, expected, answer: Vec::with_capacity(16_384), body: 0..0 })
    }

    /// The last answer's head and body.
    pub fn last(&self) -> (&[u8], &[u8]) {
        (&self.answer[..self.body.start], &self.answer[self.body.clone()])
    }

    /// Makes the call, and returns the answer's status.
    pub async fn exchange(&mut self) -> Outcome<u16> {
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        let head = loop {
            self.read().await?;
            if let Some(end) = find(&self.answer, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let status = std::str::from_utf8(self.answer.get(9..12).unwrap_or_default())?.parse()?;
        let end = match find(&self.answer[..head], b"content-length: ") {
            Some(at) => {
                let digits = self.answer[at + 16..head].iter().take_while(|byte| byte.is_ascii_digit());
                let end = head + digits.fold(0, |length, byte| length * 10 + usize::from(byte - b'0'));
                while self.answer.len() < end {
                    self.read().await?;
                }
                end
            }
            // In chunks then, the last of which is empty.
            None if status != 204 => {
                while !self.answer.ends_with(b"0\r\n\r\n") {
                    self.read().await?;
                }
                self.answer.len()
            }
            None => head,
        };
        self.body = head..end;
        Ok(status)
    }

    async fn read(&mut self) -> Outcome<()> {
        match self.stream.read_buf(&mut self.answer).await? {
            0 => Err("the connection was closed in the middle of an answer".into()),
            _ => Ok(()),
        }
    }
}

impl Caller for RestCaller {
    async fn call(&mut self) -> Outcome<()> {
        let status = self.exchange().await?;
        if status != self.expected {
            let (head, body) = self.last();
            let said = [head, body].map(String::from_utf8_lossy).concat();
            let asked = String::from_utf8_lossy(&self.request).into_owned();
            return Err(format!("{} was expected: {said}\nof {asked}", self.expected).into());
        }
        if let Some(next) = &mut self.next {
            self.request = next(&self.answer[self.body.clone()]);
        }
        Ok(())
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
