//! What the service takes of the machine: the time to start, and memory.

use std::collections::BTreeMap;

use crate::{
    Outcome,
    measure::{resident_mib, times},
    people,
    report::{Footprint, Report, median},
    rest::{Request, RestCaller},
    service::Installation,
    stores::Store,
};

/// How often it is started.
const STARTS: usize = 7;
const READERS: u64 = 16;

/// Starts it over a database that has its schema, and has it read `reads` thousand times.
pub async fn measure(report: &mut Report, store: Store, installation: &Installation, reads: u64) -> Outcome<()> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(installation.start().await?.started_in.as_secs_f64() * 1000.0);
    }
    let service = installation.start().await?;
    let resident = resident_mib(service.pid())?;
    let person = people::log_in(service.address, 1).await?.remove(0);
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let read = Request::get("/api/profile/me/", &person.access).bytes();
        readers.push(RestCaller::same(service.address, read).await?);
    }
    let mut resident_after = BTreeMap::from([(0, resident_mib(service.pid())?)]);
    for quarter in 1..=4 {
        times(&mut readers, (reads * 1000 / 4 / READERS) as usize).await?;
        resident_after.insert(reads * quarter / 4, resident_mib(service.pid())?);
    }
    let footprint = Footprint {
        store: store.name().into(),
        cold_start_ms: median(starts),
        resident_mib: resident,
        resident_mib_after: resident_after,
    };
    println!("{footprint:?}");
    report.footprint.push(footprint);
    Ok(())
}
