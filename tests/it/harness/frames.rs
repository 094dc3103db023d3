//! HTTP/2 by hand (RFC 9113): what no client library would say.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Of settings (RFC 9113 §6.5.2).
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame that was received.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A frame as it goes over the line.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<_> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// The head of a GET, its fields written out (RFC 7541 §6.2.2).
pub fn get(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // The static table has `:method: GET`, `:scheme: http`, and the names `:path` and `:authority`.
    let mut block = [&[0x82, 0x86, 0x04][..], &text(path), &[0x01], &text("localhost")].concat();
    for (name, value) in fields {
        block.extend([&[0][..], &text(name), &text(value)].concat());
    }
    block
}

/// The head of a POST.
pub fn post(path: &str) -> Vec<u8> {
    [&[0x83], &get(path, &[])[1..]].concat()
}

/// A GET that is whole.
pub fn request(stream: u32, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get(path, fields))
}

/// A client that says what it is told to.
pub struct Speaker(pub TcpStream);

impl Speaker {
    /// Says hello, with these settings.
    pub async fn connect(address: SocketAddr, with: &[(u16, u32)]) -> Self {
        let mut speaker = Self(TcpStream::connect(address).await.unwrap());
        speaker.0.set_nodelay(true).unwrap();
        speaker.say(&[PREFACE, &settings(with)].concat()).await.unwrap();
        speaker
    }

    pub async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame; `None` at the end of the connection. Pings are answered.
    pub async fn hear(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.0.read_exact(&mut payload).await.ok()?;
        if kind == PING && flags == 0 {
            // The connection may have ended behind it.
            let _ = self.say(&frame(PING, ACK, 0, &payload)).await;
        }
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// The next frame of this kind.
    pub async fn hear_of(&mut self, kind: u8) -> Frame {
        loop {
            let heard = self.hear().await.unwrap_or_else(|| panic!("the connection ends, and no frame {kind} came"));
            if heard.kind == kind {
                return heard;
            }
        }
    }

    /// Says this over and over, and reads what comes back, until the connection ends: after how long that is.
    pub async fn flood(self, mut next: impl FnMut() -> Vec<u8>, bound: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let (mut from, mut to) = self.0.into_split();
        let talk = async { while to.write_all(&next()).await.is_ok() {} };
        let listen = async {
            let mut heard = vec![0; 16_384];
            while from.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        };
        let ended = async {
            tokio::select! {
                () = talk => {}
                () = listen => {}
            }
        };
        timeout(bound, ended).await.ok().map(|()| begun.elapsed())
    }

    /// How long it takes until the connection ends, with all that is said until then read.
    pub async fn end(mut self, bound: Duration) -> Option<(Duration, Vec<Frame>)> {
        let begun = Instant::now();
        let mut heard = Vec::new();
        let ended = async {
            while let Some(frame) = self.hear().await {
                heard.push(frame);
            }
        };
        timeout(bound, ended).await.ok()?;
        Some((begun.elapsed(), heard))
    }
}
