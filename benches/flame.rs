//! Draws a flame graph (<https://www.brendangregg.com/flamegraphs.html>): reads what `perf script -F comm,ip,sym` says on standard
//! input, and writes an SVG to standard output. `scripts/flamegraph` makes the one in `docs/performance.md` with it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Read, Write as _},
};

const WIDTH: f64 = 1200.0;
const ROW: f64 = 15.0;
const TOP: f64 = 58.0;
/// What is narrower than this can't be seen.
const MIN_WIDTH: f64 = 0.7;
/// What of a character is wide in this font, at its size.
const CHARACTER: f64 = 5.9;

/// Calls below one another, and how many samples have each.
#[derive(Default)]
struct Node {
    samples: u64,
    below: BTreeMap<String, Self>,
}

impl Node {
    fn add<'a>(&mut self, mut stack: impl Iterator<Item = &'a str>) {
        self.samples += 1;
        if let Some(name) = stack.next() {
            self.below.entry(name.to_owned()).or_default().add(stack);
        }
    }

    fn depth(&self) -> usize {
        self.below.values().map(Self::depth).max().map_or(0, |depth| depth + 1)
    }
}

/// Whose code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Kernel,
    Http,
    Crypto,
    Tracing,
    Json,
    Memory,
    Ours,
    Other,
}

impl Owner {
    const ALL: [Self; 8] =
        [Self::Kernel, Self::Http, Self::Crypto, Self::Tracing, Self::Json, Self::Memory, Self::Ours, Self::Other];

    fn of(frame: &str) -> Self {
        // Without the types that it is made for, which say whose data it is and not whose code.
        let name = frame.trim_start_matches(['<', '&']);
        let name = name.split_once('<').map_or(name, |(name, _)| name);
        let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
        if frame.ends_with("_[k]") {
            Self::Kernel
        } else if has(&["aws_lc", "hmac", "sha256", "base64::"]) {
            Self::Crypto
        } else if has(&["tracing"]) {
            Self::Tracing
        } else if has(&["serde"]) {
            Self::Json
        } else if has(&["malloc", "free", "mi_", "memmove", "memcpy", "memset", "realloc", "calloc"]) {
            Self::Memory
        } else if name.starts_with("identity::") {
            Self::Ours
        } else if has(&["hyper", "h2::", "tokio", "tower", "axum", "http::", "httparse", "tonic", "mio::"]) {
            Self::Http
        } else {
            Self::Other
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Kernel => "#e8a33d",
            Self::Http => "#6fa8dc",
            Self::Crypto => "#76c893",
            Self::Tracing => "#c9a0dc",
            Self::Json => "#f4d35e",
            Self::Memory => "#b7b7a4",
            Self::Ours => "#e76f51",
            Self::Other => "#d9d9d9",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Http => "hyper, axum, tokio",
            Self::Crypto => "HMAC, base64",
            Self::Tracing => "log",
            Self::Json => "JSON",
            Self::Memory => "memory",
            Self::Ours => "identity",
            Self::Other => "other",
        }
    }
}

/// The stacks, each from the outside in.
fn stacks(text: &str) -> Vec<Vec<String>> {
    let samples = text.split("\n\n").map(|sample| {
        let mut frames: Vec<_> = sample.lines().skip(1).filter_map(frame).collect();
        frames.reverse();
        // The stacks of a thread begin in the runtime, alike: what is outside of its tasks says nothing.
        let begins = frames.iter().position(|frame| frame.contains("Context::run_task") || frame.contains("park"));
        frames.drain(..begins.unwrap_or(0));
        frames
    });
    samples.filter(|frames| !frames.is_empty()).collect()
}

/// `  ffffffff81 tcp_sendmsg` is in the kernel, and says so.
fn frame(line: &str) -> Option<String> {
    let (address, name) = line.trim().split_once(' ')?;
    let name = name.trim();
    let name = name.rsplit_once("+0x").map_or(name, |(name, _)| name);
    // `h` and 16 digits, by which the compiler tells instances apart.
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => name,
    };
    Some(if address.starts_with("ffff") { format!("{name}_[k]") } else { name.to_owned() })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Drawing {
    svg: String,
    per_sample: f64,
    all: u64,
    bottom: f64,
}

impl Drawing {
    fn draw(&mut self, node: &Node, left: f64, depth: usize) {
        let mut left = left;
        for (name, below) in &node.below {
            #[expect(clippy::cast_precision_loss, reason = "so many samples there are not")]
            let (width, share) =
                (below.samples as f64 * self.per_sample, 100.0 * below.samples as f64 / self.all as f64);
            if width >= MIN_WIDTH {
                #[expect(clippy::cast_precision_loss, reason = "nor rows")]
                let y = self.bottom - ROW * (depth + 1) as f64;
                let color = Owner::of(name).color();
                let shown = name.strip_suffix("_[k]").unwrap_or(name);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundred at most")]
                let fits = ((width - 4.0) / CHARACTER).max(0.0) as usize;
                let label = match shown.chars().count() {
                    _ if fits < 4 => String::new(),
                    length if length <= fits => escape(shown),
                    // The end of a path tells more than its beginning.
                    length => format!("…{}", escape(&shown.chars().skip(length - fits + 1).collect::<String>())),
                };
                let title = escape(shown);
                let _ = writeln!(
                    self.svg,
                    "<g><title>{title}: {share:.1} %</title><rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{h}\" \
                     fill=\"{color}\" stroke=\"#fff\" stroke-width=\"0.4\"/><text x=\"{tx:.1}\" y=\"{ty:.1}\">{label}</text></g>",
                    h = ROW - 1.0,
                    tx = left + 2.0,
                    ty = y + 11.0,
                );
                self.draw(below, left, depth + 1);
            }
            left += width;
        }
    }
}

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let stacks = stacks(&text);
    let mut root = Node::default();
    let mut by_owner = BTreeMap::<Owner, u64>::new();
    for stack in &stacks {
        root.add(stack.iter().map(String::as_str));
        if let Some(innermost) = stack.last() {
            *by_owner.entry(Owner::of(innermost)).or_default() += 1;
        }
    }
    if stacks.is_empty() {
        return Err(io::Error::other("no samples"));
    }
    let all = root.samples;
    #[expect(clippy::cast_precision_loss, reason = "so many samples there are not")]
    let (rows, per_sample) = (root.depth() as f64, WIDTH / all as f64);
    let bottom = TOP + ROW * rows;
    let mut drawing = Drawing { svg: String::new(), per_sample, all, bottom };
    drawing.draw(&root, 0.0, 0);
    let mut legend = String::new();
    let mut x = 4.0;
    for owner in Owner::ALL {
        let samples = by_owner.get(&owner).copied().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "so many samples there are not")]
        let said = format!("{} {:.0} %", owner.name(), 100.0 * samples as f64 / all as f64);
        let _ = write!(
            legend,
            "<rect x=\"{x}\" y=\"30\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"40\">{said}</text>",
            owner.color(),
            x + 16.0,
        );
        #[expect(clippy::cast_precision_loss, reason = "a word")]
        let width = said.len() as f64;
        x += 30.0 + CHARACTER * width;
    }
    writeln!(
        io::stdout(),
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"9.8\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"18\" font-size=\"14\">A warm read: where its time goes ({all} samples; by what ran, the innermost call)</text>\n\
         {legend}\n{body}</svg>",
        height = bottom + 6.0,
        body = drawing.svg,
    )
}
