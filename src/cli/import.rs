//! `identity import`: users in bulk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Failure, configured, migrated, say};
use crate::{
    app::App,
    clock::Clock,
    domain::import::{Imported, UserFile},
    error::{Cause, Chain},
    mail::Mailer,
    random,
};

/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Makes the users of the file, or of standard input.
///
/// # Errors
/// What to tell the operator, with the exit code.
pub(super) async fn import(file: Option<PathBuf>) -> Result<(), Failure> {
    let config = configured()?;
    let source = open(file.as_deref(), &config.data_dir)?;
    let file = UserFile::check(BufReader::new(source), Clock::System.now())?;
    let users = file.users();
    tell(&format!("{users} users are right; now they are written"))?;

    let db = migrated(&config).await?;
    let mailer = Mailer::new(&config.mail)?;
    let app = Arc::new(App::new(config, Clock::System, db, mailer).await?);
    let (begun, mut said_at, mut so_far) = (Instant::now(), Instant::now(), Imported::default());
    let imported = app.import(file, |now| {
        so_far = now;
        if said_at.elapsed() >= SAY_EVERY {
            said_at = Instant::now();
            let done = now.made + now.skipped;
            let per_second =
                done.saturating_mul(1000) / u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            // Who doesn't listen gets them imported all the same.
            let _ = tell(&format!("{done} of {users}, {per_second} a second"));
        }
    });
    let imported = Box::pin(imported).await;
    app.close().await;
    match imported {
        Ok(Imported { made, skipped }) => Ok(say(&format!("{made} imported, {skipped} skipped: they had an account"))?),
        Err(error) => Err(format!(
            "{}; {} were imported until then. Run it again: it goes on from there",
            Chain(&error),
            so_far.made
        )
        .into()),
    }
}

/// The file, or what standard input has, so that it can be read twice. What can't be is copied into the data folder first, into a file without
/// a name: it goes with the process.
fn open(file: Option<&Path>, data_dir: &Path) -> Result<File, Cause> {
    if let Some(path) = file {
        let named = |error: io::Error| format!("{}: {error}", path.display());
        let mut opened = File::open(path).map_err(named)?;
        if opened.metadata().map_err(named)?.is_file() {
            return Ok(opened);
        }
        return spool(&mut opened, data_dir);
    }
    spool(&mut io::stdin().lock(), data_dir)
}

fn spool(source: &mut impl io::Read, data_dir: &Path) -> Result<File, Cause> {
    let copied = (|| {
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
        let path = data_dir.join(format!("import-{}", hex::encode(random::bytes::<16>())));
        let mut spool = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        io::copy(source, &mut spool)?;
        spool.rewind()?;
        Ok::<_, io::Error>(spool)
    })();
    copied.map_err(|error| format!("what is to be imported can't be copied to {}: {error}", data_dir.display()).into())
}

/// A line on standard error, beside the log.
fn tell(line: &str) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{line}")
}
