//! How the lines of the log are written: one for each event, whatever comes in from outside and into an error's words. What
//! would begin another line, or order a terminal about, shows as what it is: `\u{1b}`.

use std::{
    fmt::{self, Write as _},
    io,
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, MakeWriter, format::Writer},
};

/// Whether it is no more than a character to whoever reads a line.
fn is_harmless(c: char) -> bool {
    // Beside the control characters, what Unicode calls the end of a line or of a paragraph.
    c == '\t' || !(c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// Fields of a line of text: `message name=value`.
pub struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor { escaping: Escaping(writer), is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'writer> {
    escaping: Escaping<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Those of the crate `log` say again where an event comes from.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        let space = if self.is_first { "" } else { " " };
        self.is_first = false;
        self.result = match field.name().trim_start_matches("r#") {
            "message" => write!(self.escaping, "{space}{value:?}"),
            name => write!(self.escaping, "{space}{name}={value:?}"),
        };
    }
}

struct Escaping<'writer>(Writer<'writer>);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| {
            if is_harmless(c) { self.0.write_char(c) } else { write!(self.0, "{}", c.escape_unicode()) }
        })
    }
}

/// Writes lines of JSON, which comes with most of this escaped, and escapes the rest.
pub struct JsonLines<M>(pub M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for JsonLines<M> {
    type Writer = JsonWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonWriter(self.0.make_writer())
    }
}

pub struct JsonWriter<W>(W);

impl<W: io::Write> io::Write for JsonWriter<W> {
    /// An event comes whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = event.strip_suffix(b"\n").map_or((event, &b""[..]), |line| (line, b"\n"));
        let Some(text) = std::str::from_utf8(line).ok().filter(|text| !text.chars().all(is_harmless)) else {
            self.0.write_all(event)?;
            return Ok(event.len());
        };
        let mut escaped = String::with_capacity(text.len());
        for c in text.chars() {
            if is_harmless(c) {
                escaped.push(c);
            } else {
                // It stands within a string: between strings JSON has none of these.
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
        }
        self.0.write_all(escaped.as_bytes())?;
        self.0.write_all(end)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
