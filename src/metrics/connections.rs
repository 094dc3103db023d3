//! Connections of clients, and the certificate that they see.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::Registrar;

#[derive(Clone, Default)]
pub struct Connections {
    pub open: Gauge,
    ended: Family<WhyLabel, Counter>,
    certificate_left: Family<[(&'static str, &'static str); 0], Gauge>,
    /// In seconds of Unix time; 0 without a certificate.
    certificate_ends: Arc<AtomicI64>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
}

/// Why a connection ended before its client ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its client has as many as it may.
    TooMany,
    /// The handshake of TLS failed.
    Handshake,
    /// No request came.
    Silent,
    /// The head of a request didn't end.
    Head,
    /// An answer was not taken.
    Answer,
    /// Nothing was under way for long, and a good-bye wasn't heard.
    Idle,
    /// Too many frames that ask for nothing.
    Flood,
    /// The protocol, or the way there.
    Broken,
}

impl Ended {
    const ALL: [Self; 8] =
        [Self::TooMany, Self::Handshake, Self::Silent, Self::Head, Self::Answer, Self::Idle, Self::Flood, Self::Broken];

    fn label(self) -> WhyLabel {
        let why = match self {
            Self::TooMany => "too_many",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Head => "head",
            Self::Answer => "answer",
            Self::Idle => "idle",
            Self::Flood => "flood",
            Self::Broken => "broken",
        };
        WhyLabel { why }
    }
}

impl Connections {
    pub(super) fn register(&self, all: &mut Registrar) {
        for why in Ended::ALL {
            drop(self.ended.get_or_create(&why.label()));
        }
        all.add(&self.open, "identity_connections", "", "Open connections of clients");
        all.add(
            &self.ended,
            "identity_connections_cut_total",
            "why",
            "Connections that did not end in good order: one more than its client may have (too_many), no handshake of TLS \
             (handshake), no request (silent), a head without an end (head), an answer not taken (answer), nothing under way and \
             no good-bye (idle), too many frames that ask for nothing (flood), a breach of the protocol or a line that broke \
             (broken)",
        );
        all.add(
            &self.certificate_left,
            "identity_tls_certificate_left_seconds",
            "",
            "Time until the certificate of the listener ends; absent without TLS",
        );
    }

    pub fn ended(&self, why: Ended) {
        self.ended.get_or_create(&why.label()).inc();
    }

    /// The listener has a certificate that ends then, in seconds of Unix time.
    pub fn set_certificate_end(&self, at: i64) {
        self.certificate_ends.store(at, Ordering::Relaxed);
    }

    /// Works out what depends on the time of day, in seconds of Unix time.
    pub fn read(&self, now: i64) {
        match self.certificate_ends.load(Ordering::Relaxed) {
            0 => {}
            at => drop(self.certificate_left.get_or_create(&[]).set(at - now)),
        }
    }
}
