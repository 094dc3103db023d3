//! The disk under SQLite is full or may not be written to, and so is the one with the log.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, geteuid, prlimit};
use serde_json::{Value, json};

use crate::harness::{Actor, Face, PASSWORD, process::Installation, wait_until};

const EMAIL: &str = "user@example.com";
/// A thousand writes fill what is to be filled, and as many are let through in a minute.
const UNLIMITED: [(&str, &str); 4] =
    [("DEBUG", "true"), ("RATE_LIMIT_API", "off"), ("RATE_LIMIT_REGISTER", "off"), ("RATE_LIMIT_LOGIN", "off")];

async fn bio(actor: &Actor) -> Value {
    actor.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200)["bio"].take()
}

async fn write(actor: &Actor, face: Face, bio: &str) -> u16 {
    actor.call(face, "ProfileService.UpdateMyProfile", json!({ "bio": bio })).await.status
}

/// Every kind of change is refused, and what can be read still is.
async fn reads_go_on_and_writes_do_not(user: &Actor) {
    let before = bio(user).await;
    for face in Face::ALL {
        for (rpc, fields) in [
            ("ProfileService.UpdateMyProfile", json!({ "bio": "x".repeat(1000) })),
            ("AuthService.Register", json!({ "email": "new@example.com", "password": PASSWORD })),
            ("AuthService.Login", json!({ "email": EMAIL, "password": PASSWORD })),
            ("AuthService.RefreshToken", json!({ "refresh_token": user.refresh_token })),
            ("AuthService.Logout", json!({})),
        ] {
            let refused = user.call(face, rpc, fields).await;
            assert_eq!(refused.status, 503, "{rpc}: {refused:?}");
            assert!(refused.retry_after.is_some(), "{rpc}: {refused:?}");
        }
        let wrong = json!({ "email": EMAIL, "password": "wr0ng-Passw0rd" });
        user.call(face, "AuthService.Login", wrong).await.expect(401);
        user.call(face, "UserService.ListUsers", json!({})).await.expect(200);
        user.call(face, "AuthService.VerifyToken", json!({ "token": user.access_token })).await.expect(200);
    }
    assert_eq!(bio(user).await, before);
    assert_eq!(user.request(reqwest::Method::GET, "/api/health/").send().await.unwrap().status(), 200);
}

async fn writes_go_on(user: &Actor) {
    for face in Face::ALL {
        assert_eq!(write(user, face, &format!("by {face:?}")).await, 200);
        assert_eq!(bio(user).await, format!("by {face:?}"));
    }
    let new = user.register("new@example.com").await;
    assert!(new > 0);
    let login = json!({ "email": EMAIL, "password": PASSWORD });
    user.call(Face::Rest, "AuthService.Login", login).await.expect(200);
}

/// Writes until one is refused. Returns what was acknowledged last.
async fn write_until_it_is_full(user: &Actor) -> String {
    let mut last = String::new();
    for n in 0..3000 {
        let bio = format!("{n:0>1000}");
        match write(user, Face::ALL[n % 2], &bio).await {
            200 => last = bio,
            503 => return last,
            other => panic!("{other} for write {n}"),
        }
    }
    panic!("it is never full");
}

/// What happens as the disk runs full, and once there is room again; three times.
async fn fills_up_and_has_room_again(user: &Actor, fill: impl Fn(), make_room: impl Fn()) {
    for _ in 0..3 {
        fill();
        let last = write_until_it_is_full(user).await;
        if !last.is_empty() {
            assert_eq!(bio(user).await, last);
        }
        reads_go_on_and_writes_do_not(user).await;
        make_room();
        let is_back = async || write(user, Face::Rest, "room").await == 200;
        wait_until(Duration::from_secs(1), "room to write", is_back).await;
    }
    writes_go_on(user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_reads_go_on_and_writes_are_refused_until_there_is_room() {
    // Files may not grow beyond so much, as where the quota is spent; the log doesn't either.
    let mut installation = Installation::with(&UNLIMITED);
    installation.start_by(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
    let service = installation.serve().await;
    let user = service.anonymous().sign_up(EMAIL).await;
    let limit = |current| {
        prlimit(Some(service.pid()), Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    };
    fills_up_and_has_room_again(&user, || limit(Some(4096)), || limit(None)).await;

    // A crash while it is full loses nothing either.
    let before = bio(&user).await;
    limit(Some(4096));
    let last = write_until_it_is_full(&user).await;
    service.kill();
    let service = installation.serve().await;
    let after = bio(&user.at(service.address)).await;
    assert_eq!(after, if last.is_empty() { before } else { last.into() });
    service.stop().await;
}

/// The command that gives what it starts a file system of four megabytes at `data`, if that can be had here.
fn small_disk() -> Option<Vec<&'static str>> {
    let mount = "mount -t tmpfs -o size=4m,mode=0700 tmpfs data && exec \"$@\"";
    let ways = [vec!["unshare", "-m"], vec!["unshare", "-U", "-r", "-m"]];
    ways.into_iter().find_map(|mut way| {
        way.extend(["sh", "-c", mount, "sh"]);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        let mut trial = Command::new(way[0]);
        trial.args(&way[1..]).arg("true").current_dir(&folder).stderr(Stdio::null());
        trial.status().is_ok_and(|status| status.success()).then_some(way)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_space_is_a_full_disk_where_one_can_be_mounted() {
    // Where nobody may mount, the test above says as much.
    let Some(small_disk) = small_disk() else { return eprintln!("nothing can be mounted") };
    let mut installation = Installation::with(&UNLIMITED);
    installation.set("DATA_DIR", "data");
    installation.start_by(&small_disk);
    fs::create_dir(installation.folder().join("data")).unwrap();
    let service = installation.serve().await;
    let user = service.anonymous().sign_up(EMAIL).await;
    let inside =
        format!("/proc/{}/root{}/data/ballast", service.pid().as_raw_nonzero(), installation.folder().display());
    let rest = format!("{inside}-rest");
    let fill = || {
        fs::write(&inside, vec![0; 1 << 20]).unwrap();
        // Not a byte is left.
        let _ = fs::write(&rest, vec![0; 1 << 22]);
    };
    let make_room = || {
        for file in [&inside, &rest] {
            fs::remove_file(file).unwrap();
        }
    };
    fills_up_and_has_room_again(&user, fill, make_room).await;
    service.stop().await;
}

/// Sets the permissions of every file in the folder.
fn permit(folder: &Path, mode: u32) {
    for file in fs::read_dir(folder).unwrap() {
        fs::set_permissions(file.unwrap().path(), Permissions::from_mode(mode)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_may_only_be_read_serves_what_can_be_read() {
    let mut installation = Installation::with(&UNLIMITED);
    if geteuid().is_root() {
        // Root may write to any file, but for this.
        installation.start_by(&["setpriv", "--bounding-set=-dac_override,-dac_read_search"]);
    }
    let service = installation.serve().await;
    let user = service.anonymous().sign_up(EMAIL).await;
    assert_eq!(write(&user, Face::Rest, "before").await, 200);
    service.stop().await;

    let data = installation.folder().join("data");
    permit(&data, 0o400);
    let service = installation.serve().await;
    let reader = user.at(service.address);
    assert_eq!(bio(&reader).await, "before");
    reads_go_on_and_writes_do_not(&reader).await;
    service.stop().await;

    permit(&data, 0o600);
    let service = installation.serve().await;
    let writer = user.at(service.address);
    assert_eq!(bio(&writer).await, "before");
    writes_go_on(&writer).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_can_not_be_written_stops_nothing() {
    for format in ["text", "json"] {
        let mut installation = Installation::with(&[("DEBUG", "true"), ("LOG_FORMAT", format), ("LOG_LEVEL", "debug")]);
        let full = File::options().write(true).open("/dev/full").unwrap();
        installation.log_to(full);
        let service = installation.serve().await;
        let user = service.anonymous().sign_up(EMAIL).await;
        for face in Face::ALL {
            assert_eq!(write(&user, face, "unheard").await, 200);
            user.call(face, "AuthService.Register", json!({})).await.expect(422);
        }
        service.stop().await;
    }
}
