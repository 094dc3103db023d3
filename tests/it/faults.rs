//! Faults of what the service stands on, and what holds all the same: nothing is half done, nothing acknowledged is lost, and
//! what one replica did counts on the others. Outages as such are in `outages.rs`, those of mail in `outbox.rs`.

mod disk;
mod line;
mod replicas;

use std::time::Duration;

/// What a call may take while its store is away, and a little for a machine that is busy.
const REFUSED_WITHIN: Duration = Duration::from_millis(2200);
/// How soon a service is ready again once its store is back.
const READY_WITHIN: Duration = Duration::from_secs(2);
