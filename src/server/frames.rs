//! How much a client of HTTP/2 asks that is no request. Each such frame costs it a few bytes, and us the work to answer it; the
//! library answers them one by one and keeps none, but for any length of time.
//!
//! Only heads of frames are read here (RFC 9113 §4.1); what they mean is the library's affair.

use std::time::Duration;

use tokio::time::Instant;

/// What every client of HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// Streams that a client may take back: so many at once, and so many a second from then on. Clients do that when a deadline
/// passes; who does it with each request only wants us to begin them (CVE-2023-44487).
const RESETS: Budget = Budget { most: 1000, each: Duration::from_millis(10) };
/// Frames beside requests and their data: settings, pings, priorities, windows.
const CHATTER: Budget = Budget { most: 1000, each: Duration::from_millis(10) };
/// How many clients a proxy may speak for, as far as budgets go.
const MANY: u32 = 100;
/// What a client may say more, as clients that measure the line do: with each request, and with each so many bytes of answers.
const CHATTER_PER_REQUEST: u32 = 20;
const BYTES_PER_CHATTER: usize = 1024;

/// What a client says, as it comes in.
pub enum Speech {
    /// It is not known yet which protocol it speaks: so much of the preface is there.
    Unknown {
        matched: usize,
        speaks_for_many: bool,
    },
    Http1,
    Http2(Frames),
}

/// It was too much.
#[derive(Debug)]
pub struct Flood;

impl Speech {
    /// Nothing is said yet. A client that speaks for many may say more.
    pub fn new(speaks_for_many: bool) -> Self {
        Self::Unknown { matched: 0, speaks_for_many }
    }

    /// Takes note of what came in.
    ///
    /// # Errors
    /// If it was too much.
    pub fn heard(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Self::Unknown { matched, speaks_for_many } = self
            && let Some((first, rest)) = bytes.split_first()
        {
            if *first != PREFACE[*matched] {
                *self = Self::Http1;
            } else if *matched + 1 == PREFACE.len() {
                *self = Self::Http2(Frames::new(*speaks_for_many));
                bytes = rest;
            } else {
                *matched += 1;
                bytes = rest;
            }
        }
        match self {
            Self::Http2(frames) => frames.heard(bytes),
            Self::Unknown { .. } | Self::Http1 => Ok(()),
        }
    }

    /// Takes note that so many bytes went out.
    pub fn said(&mut self, bytes: usize) {
        if let Self::Http2(frames) = self {
            frames.chatter.refund(u32::try_from(bytes / BYTES_PER_CHATTER).unwrap_or(u32::MAX));
        }
    }

    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    pub fn is_http1(&self) -> bool {
        matches!(self, Self::Http1)
    }
}

/// The frames of one client.
pub struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    read: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
    resets: Purse,
    chatter: Purse,
}

impl Frames {
    fn new(speaks_for_many: bool) -> Self {
        let purse = |budget: Budget| Purse::new(if speaks_for_many { budget.times(MANY) } else { budget });
        Self { head: [0; HEAD_BYTES], read: 0, payload: 0, resets: purse(RESETS), chatter: purse(CHATTER) }
    }

    fn heard(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.read).min(bytes.len());
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            if self.read == HEAD_BYTES {
                self.read = 0;
                let [a, b, c, kind, ..] = self.head;
                self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.count(kind)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, kind: u8) -> Result<(), Flood> {
        match kind {
            HEADERS => self.chatter.refund(CHATTER_PER_REQUEST),
            // The library counts empty ones, and bounds a head.
            DATA | CONTINUATION => {}
            RST_STREAM => self.resets.spend().ok_or(Flood)?,
            _ => self.chatter.spend().ok_or(Flood)?,
        }
        Ok(())
    }
}

/// So many at once, and one more after each while.
#[derive(Clone, Copy)]
struct Budget {
    most: u32,
    each: Duration,
}

impl Budget {
    fn times(self, count: u32) -> Self {
        Self { most: self.most * count, each: self.each / count }
    }
}

/// What is left of a budget.
struct Purse {
    budget: Budget,
    left: u32,
    filled_at: Instant,
}

impl Purse {
    fn new(budget: Budget) -> Self {
        Self { budget, left: budget.most, filled_at: Instant::now() }
    }

    /// `None` if nothing is left.
    fn spend(&mut self) -> Option<()> {
        if self.left == 0 {
            // The clock is asked only now, and not with each frame.
            let now = Instant::now();
            let earned = (now - self.filled_at).as_nanos() / self.budget.each.as_nanos();
            self.filled_at = now;
            self.refund(u32::try_from(earned).unwrap_or(u32::MAX));
        }
        self.left = self.left.checked_sub(1)?;
        Some(())
    }

    fn refund(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.budget.most);
    }
}
