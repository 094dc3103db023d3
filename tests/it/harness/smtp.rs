//! A mail server that does as it is told: takes mail, says no at any stage, falls silent, hangs up, goes away and comes back.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::wait_for;

/// Where a conversation stands when the server has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage<'a> {
    Greeting,
    Hello,
    Login(&'a str),
    Sender(&'a str),
    Recipient(&'a str),
    /// The mail itself, after its final dot.
    Text(&'a str),
}

#[derive(Debug, Clone)]
pub enum Answer {
    Yes,
    /// A line: code and words.
    Say(String),
    /// Nothing, and the connection stays open.
    Silence,
    /// Nothing, and the connection is closed. Of a text: after it was taken.
    HangUp,
}

/// A mail that the server has taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub to: String,
    /// Headers and body, with line feeds.
    pub text: String,
}

impl Taken {
    pub fn message_id(&self) -> &str {
        let line = self.text.lines().find_map(|line| line.strip_prefix("Message-ID: "));
        line.unwrap_or_else(|| panic!("no Message-ID: {}", self.text))
    }
}

type Answers = Arc<Mutex<Box<dyn FnMut(Stage) -> Answer + Send>>>;

pub struct MailServer {
    pub address: SocketAddr,
    answers: Answers,
    taken: Arc<Mutex<Vec<Taken>>>,
    running: Option<JoinHandle<()>>,
}

impl MailServer {
    /// One that takes every mail.
    pub async fn start() -> Self {
        let mut server = Self {
            address: ([127, 0, 0, 1], 0).into(),
            answers: Arc::new(Mutex::new(Box::new(|_| Answer::Yes))),
            taken: Arc::default(),
            running: None,
        };
        server.come_back().await;
        server
    }

    /// The settings that send mail here.
    pub fn settings(&self) -> Vec<(String, String)> {
        let setting = |name: &str, value: String| (name.to_owned(), value);
        vec![
            setting("EMAIL_HOST", self.address.ip().to_string()),
            setting("EMAIL_PORT", self.address.port().to_string()),
            setting("EMAIL_BACKEND", "smtp".into()),
        ]
    }

    /// Answers by this from now on.
    pub fn answer(&self, by: impl FnMut(Stage) -> Answer + Send + 'static) {
        *self.answers.lock().unwrap() = Box::new(by);
    }

    /// Takes every mail from now on.
    pub fn answer_yes(&self) {
        self.answer(|_| Answer::Yes);
    }

    /// Refuses connections, and cuts those there are.
    pub async fn go_away(&mut self) {
        let running = self.running.take().expect("it runs");
        running.abort();
        // It has closed its socket once it has ended.
        let _ = running.await;
    }

    /// Listens at its address again.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its address is free");
        self.address = listener.local_addr().unwrap();
        let (answers, taken) = (Arc::clone(&self.answers), Arc::clone(&self.taken));
        self.running = Some(tokio::spawn(async move {
            let mut conversations = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answers, taken) = (Arc::clone(&answers), Arc::clone(&taken));
                conversations.spawn(async move {
                    // A client that goes away is none of our concern.
                    let _ = converse(stream, &answers, &taken).await;
                });
            }
        }));
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }

    /// What it has taken, once there are `count` of them; panics if they don't come within `bound`.
    pub async fn take(&self, count: usize, bound: Duration) -> Vec<Taken> {
        wait_for(bound, &format!("{count} mails"), async || Some(self.taken()).filter(|taken| taken.len() >= count))
            .await
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

async fn converse(stream: TcpStream, answers: &Answers, taken: &Mutex<Vec<Taken>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    // Whether the conversation goes on.
    let reply = async |stream: &mut BufReader<TcpStream>, stage: Stage<'_>, yes: &str| {
        let answer = (answers.lock().unwrap())(stage);
        let line = match &answer {
            Answer::Yes => yes,
            Answer::Say(line) => line,
            Answer::Silence => std::future::pending().await,
            Answer::HangUp => return std::io::Result::Ok((false, true)),
        };
        stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        Ok((true, line.starts_with('2')))
    };
    if !reply(&mut stream, Stage::Greeting, "220 test.example ESMTP").await?.0 {
        return Ok(());
    }
    let mut to = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let command = line.trim_end();
        let argument = |prefix: &str| command[prefix.len()..].split('>').next().unwrap().to_owned();
        let goes_on = match command.split([' ', ':']).next().unwrap().to_uppercase().as_str() {
            "EHLO" => reply(&mut stream, Stage::Hello, "250-test.example\r\n250-8BITMIME\r\n250 AUTH PLAIN").await?.0,
            "AUTH" => reply(&mut stream, Stage::Login(command), "235 2.7.0 welcome").await?.0,
            "MAIL" => reply(&mut stream, Stage::Sender(&argument("MAIL FROM:<")), "250 2.1.0 OK").await?.0,
            "RCPT" => {
                to = argument("RCPT TO:<");
                reply(&mut stream, Stage::Recipient(&to), "250 2.1.5 OK").await?.0
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                let text = read_text(&mut stream).await?;
                let (goes_on, is_taken) = reply(&mut stream, Stage::Text(&text), "250 2.0.0 taken").await?;
                if is_taken {
                    taken.lock().unwrap().push(Taken { to: to.clone(), text });
                }
                goes_on
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                false
            }
            other => panic!("{other} is no command of ours"),
        };
        if !goes_on {
            return Ok(());
        }
    }
}

async fn read_text(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end_matches(['\r', '\n']) {
            "." => return Ok(text),
            // RFC 5321 §4.5.2.
            line => {
                text += line.strip_prefix('.').unwrap_or(line);
                text += "\n";
            }
        }
    }
}
