//! What was acknowledged holds: through kills at any moment, through an orderly end under load, and on every replica.
//!
//! Short here; `scripts/kill-cycles` and `scripts/agreement` run the same for longer.

mod agreement;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use identity::{
    db::{Db, DbOptions},
    entity::outbox,
};
use reqwest::Method;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{
    Store,
    load::{Crowd, Dice, Leniency, Whom, installation},
    process::{Installation, Serving},
    smtp::MailServer,
    stores::setting,
    wait_until,
};

/// How soon the service is ready after a kill.
pub const READY_WITHIN: Duration = Duration::from_secs(2);
/// On a machine that is busy with other tests it may take longer, now and then.
const PATIENCE: Duration = Duration::from_secs(10);
/// When the last mail has come: a sender that was killed is waited for.
const MAILS_WITHIN: Duration = Duration::from_secs(70);
/// The end of a service that nobody holds up.
pub const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Starts the service, and waits until it is well. Returns how long that took.
pub async fn ready(installation: &Installation) -> (Serving<'_>, Duration) {
    let begun = Instant::now();
    let service = installation.serve().await;
    let anyone = service.anonymous();
    let is_well =
        async || anyone.request(Method::GET, "/api/health/").send().await.is_ok_and(|answer| answer.status() == 200);
    wait_until(PATIENCE, "health", is_well).await;
    (service, begun.elapsed())
}

/// Where chance begins; said, so that a run can be repeated.
pub fn seed() -> u64 {
    let seed = setting("SEED").map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    seed
}

/// Kills the service so many times under load, and looks for what was lost. Returns how long it took each time until it was
/// ready again, the shortest first.
pub async fn kill_cycles(store: Store, cycles: usize, wait_for_mails: bool) -> Vec<Duration> {
    let seed = seed();
    let (mut dice, mails) = (Dice::new(seed), MailServer::start().await);
    let (database, installation) = installation(store, &mails).await;
    let (mut service, first) = ready(&installation).await;
    let (mut crowd, mut starts, mut refused) = (Crowd::new(service.address, seed).await, vec![first], 0);
    for cycle in 1..=cycles {
        let is_over = AtomicBool::new(false);
        let (address, moment) = (service.address, Duration::from_millis(100 + dice.below(600)));
        let kill = async {
            sleep(moment).await;
            is_over.store(true, Ordering::SeqCst);
            service.kill();
        };
        refused += tokio::join!(crowd.work(address, &is_over), kill).0;
        if dice.below(4) == 0 {
            // Once more, before it has begun.
            let _ = timeout(Duration::from_millis(dice.below(60)), installation.serve()).await;
        }
        let (again, took) = ready(&installation).await;
        service = again;
        starts.push(took);
        let whom = if cycle % 20 == 0 { Whom::All } else { Whom::TheTouched };
        crowd.look(service.address, Leniency::UnansweredMayBeDone, whom).await;
        assert!(crowd.losses.is_empty(), "in cycle {cycle}: {:#?}", crowd.losses);
    }
    crowd.look(service.address, Leniency::UnansweredMayBeDone, Whom::All).await;
    crowd.log_in(service.address).await;
    if wait_for_mails {
        let begun = Instant::now();
        while !crowd.missing_mails(&mails.taken()).is_empty() && begun.elapsed() < MAILS_WITHIN {
            sleep(Duration::from_millis(200)).await;
        }
        crowd.losses.extend(crowd.missing_mails(&mails.taken()));
    } else {
        // None is lost that has not come yet.
        let db = Db::connect(&DbOptions { url: database.url.clone(), ..DbOptions::default() }).await.unwrap();
        for person in crowd.people() {
            let posted = outbox::Entity::find().filter(outbox::Column::UserId.eq(person.id)).count(db.reader()).await;
            assert!(posted.unwrap() >= 1, "no mail to {}", person.email);
        }
        db.close().await;
    }
    crowd.look_through(&mails.taken());
    starts.sort_unstable();
    println!(
        "{store:?}: {cycles} kills; acknowledged {:?} of {} users; {} mails came; {} losses; {refused} calls refused \
         while it ran; ready after {:?}, {:?} at most",
        crowd.acknowledged(),
        crowd.people().count(),
        mails.taken().len(),
        crowd.losses.len(),
        starts[starts.len() / 2],
        starts[starts.len() - 1],
    );
    assert!(crowd.losses.is_empty(), "{:#?}", crowd.losses);
    assert_eq!(refused, 0);
    service.stop().await;
    starts
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/kill-cycles runs it"]
async fn as_many_kills_as_were_asked_for() {
    let cycles = setting("KILL_CYCLES").map_or(100, |cycles| cycles.parse().expect("a number"));
    for store in Store::all() {
        let starts = kill_cycles(store, cycles, true).await;
        assert!(starts.last().unwrap() < &READY_WITHIN, "{starts:?}");
    }
}
