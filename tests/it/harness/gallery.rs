//! Where a test's avatars are kept: in the table, in a folder, or in a bucket of an S3 server that runs in the test's process.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::pending,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use identity::entity::avatar;
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use sea_orm::{EntityTrait, QuerySelect};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Face, Service, Store};

/// A kind of place for avatars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Table,
    Folder,
    Bucket,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Table, Self::Folder, Self::Bucket];
    pub const OUTSIDE: [Self; 2] = [Self::Folder, Self::Bucket];
}

/// A place for avatars. What is in it goes with it.
pub struct Gallery {
    pub kind: Kind,
    files: TempDir,
    settings: Vec<(&'static str, String)>,
    server: Option<S3Server>,
}

/// The key to every bucket, and its secret.
pub const KEY: (&str, &str) = ("a-key-of-tests", "and-its-secret");
const BUCKET: &str = "pictures";
const PREFIX: &str = "of/users";

impl Gallery {
    pub async fn open(kind: Kind) -> Self {
        let files = tempfile::Builder::new().prefix("identity-test-").tempdir().expect("a folder for pictures");
        let (settings, server) = match kind {
            Kind::Table => (Vec::new(), None),
            Kind::Folder => {
                (vec![("AVATAR_STORE", format!("file://{}", files.path().join("avatars").display()))], None)
            }
            Kind::Bucket => {
                fs::create_dir(files.path().join(BUCKET)).expect("a bucket is a folder");
                let server = S3Server::start(&files).await;
                let settings = vec![
                    ("AVATAR_STORE", format!("s3://{BUCKET}/{PREFIX}")),
                    ("AWS_ENDPOINT_URL", format!("http://{}", server.address)),
                    ("AWS_ACCESS_KEY_ID", KEY.0.into()),
                    ("AWS_SECRET_ACCESS_KEY", KEY.1.into()),
                ];
                (settings, Some(server))
            }
        };
        Self { kind, files, settings, server }
    }

    /// What has the service keep its avatars here.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// Where the pictures lie as files.
    pub fn folder(&self) -> PathBuf {
        match self.kind {
            Kind::Table => panic!("a table has no folder"),
            Kind::Folder => self.files.path().join("avatars"),
            Kind::Bucket => self.files.path().join(BUCKET).join(PREFIX),
        }
    }

    /// The names of all that is kept.
    pub async fn names(&self, service: &Service) -> BTreeSet<String> {
        if self.kind == Kind::Table {
            let names = avatar::Entity::find().select_only().column(avatar::Column::Name).into_tuple();
            return names.all(service.app.db.reader()).await.unwrap().into_iter().collect();
        }
        let entries = fs::read_dir(self.folder());
        entries.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Puts a file there, behind the service's back.
    pub fn put(&self, name: &str) {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "a picture").unwrap();
    }

    /// Makes all that is kept outside of the database older.
    pub fn age(&self, by: Duration) {
        for entry in fs::read_dir(self.folder()).unwrap() {
            let file = File::open(entry.unwrap().path()).unwrap();
            file.set_modified(file.metadata().unwrap().modified().unwrap() - by).unwrap();
        }
    }

    /// What the bucket's server does from now on.
    pub fn set_mood(&self, mood: Mood) {
        self.server.as_ref().expect("a bucket").mood.store(mood as u8, Ordering::SeqCst);
    }
}

/// Runs the test with each kind of place, on each store, through each face.
pub async fn in_every_gallery(test: impl AsyncFn(&Gallery, &Service, Face)) {
    for kind in Kind::ALL {
        for store in Store::all() {
            for face in Face::ALL {
                in_gallery(kind, store, face, &test).await;
            }
        }
    }
}

/// Runs the test with each kind of place outside of the database, on each store.
pub async fn in_every_gallery_outside(test: impl AsyncFn(&Gallery, &Service)) {
    for kind in Kind::OUTSIDE {
        for store in Store::all() {
            let test = async |gallery: &Gallery, service: &Service, _| test(gallery, service).await;
            in_gallery(kind, store, Face::Rest, &test).await;
        }
    }
}

async fn in_gallery(kind: Kind, store: Store, face: Face, test: &impl AsyncFn(&Gallery, &Service, Face)) {
    let gallery = Gallery::open(kind).await;
    let service = Service::start_with(store, &gallery.settings()).await;
    eprintln!("avatars in a {kind:?}, on {store:?}, through {face:?}");
    test(&gallery, &service, face).await;
    service.stop().await;
}

/// What a server of S3 is in the mood for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    Serve,
    /// It takes a request, and never answers.
    Hang,
    /// It takes a request, and breaks the connection.
    Break,
    /// It says 503 to everything.
    Refuse,
}

/// A server that speaks S3's protocol over a folder, and checks signatures.
struct S3Server {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
    running: JoinHandle<()>,
}

impl S3Server {
    async fn start(files: &TempDir) -> Self {
        let mut s3 = S3ServiceBuilder::new(FileSystem::new(files.path()).unwrap());
        s3.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        let s3 = s3.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mood = Arc::new(AtomicU8::new(Mood::Serve as u8));
        let running = tokio::spawn({
            let mood = Arc::clone(&mood);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (s3, mood) = (s3.clone(), Arc::clone(&mood));
                    let service = service_fn(move |request| answer(s3.clone(), Arc::clone(&mood), request));
                    tokio::spawn(async move {
                        // Whoever breaks the connection means to.
                        let _ = auto::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            }
        });
        Self { address, mood, running }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn answer(
    s3: S3Service,
    mood: Arc<AtomicU8>,
    request: Request<Incoming>,
) -> io::Result<hyper::Response<s3s::Body>> {
    let mood = mood.load(Ordering::SeqCst);
    if mood == Mood::Hang as u8 {
        pending::<()>().await;
    }
    if mood == Mood::Break as u8 {
        return Err(io::Error::other("in no mood"));
    }
    if mood == Mood::Refuse as u8 {
        let mut refusal = hyper::Response::new(s3s::Body::from("SlowDown".to_owned()));
        *refusal.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
        return Ok(refusal);
    }
    s3.call(request.map(s3s::Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))
}
