//! Rendering a model's chat template to the text of a prompt, as Hugging Face's `apply_chat_template` does it.
//! Tokens are not known here: encode the result with `parse_special`, and without `add_special` when the template
//! writes the begin token itself.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, StringInput, Value, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};
use serde::Serialize;

/// Instructions a template may execute; real ones need a few hundred per message.
const FUEL: u64 = 20_000_000;
/// Bytes a template may write.
const MOST_TEXT: usize = 64 << 20;
/// Widths and counts a filter may be asked for.
const MOST_WIDTH: usize = 999;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What a template sees besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// End with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Text of the begin token, empty when there is none.
    pub bos: String,
    /// Text of the end token, empty when there is none.
    pub eos: String,
    /// Further variables, such as `enable_thinking` or `tools`; they win over the ones above.
    pub variables: Vec<(String, serde_json::Value)>,
}

/// Why a template gave no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatError {
    /// The template is not valid Jinja.
    Syntax(String),
    /// The template itself refused the messages (`raise_exception`).
    Refused(String),
    /// The template ran too long.
    TooLong,
    /// The template wrote too much.
    TooLarge,
    /// Anything else that went wrong while it ran.
    Render(String),
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(reason) => write!(f, "chat template: not valid: {reason}"),
            Self::Refused(reason) => {
                let reason: Vec<&str> = reason.split_whitespace().collect();
                write!(
                    f,
                    "chat template: refuses these messages: {}",
                    reason.join(" ")
                )
            }
            Self::TooLong => write!(f, "chat template: stopped after {FUEL} instructions"),
            Self::TooLarge => write!(f, "chat template: stopped after {MOST_TEXT} bytes of text"),
            Self::Render(reason) => write!(f, "chat template: {reason}"),
        }
    }
}

impl std::error::Error for ChatError {}

/// Marks an error as the template's own words.
#[derive(Debug)]
struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raise_exception")
    }
}

impl std::error::Error for Raised {}

/// The text of a prompt. Time and output are bounded; memory and nesting inside a template are not, so a template is
/// to be trusted like the bundle it comes from.
///
/// # Errors
/// The template is invalid, refuses the messages, does not come to an end, or writes too much.
pub fn render(
    template: &str,
    messages: &[Message],
    options: &ChatOptions,
) -> Result<String, ChatError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|error| ChatError::Render(error.to_string()))?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", to_json);
    env.add_filter("indent", indent);
    env.add_filter("format", format);
    // Both make as many lists as they are told to, and no chat needs them.
    env.remove_filter("batch");
    env.remove_filter("slice");
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
        },
    );
    env.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        strftime(&format, now.map_or(0, |since| since.as_secs()))
    });

    let mut variables: Vec<(String, Value)> = vec![
        ("messages".to_owned(), Value::from(Serde(messages))),
        (
            "add_generation_prompt".to_owned(),
            Value::from(options.add_generation_prompt),
        ),
        ("bos_token".to_owned(), Value::from(options.bos.as_str())),
        ("eos_token".to_owned(), Value::from(options.eos.as_str())),
        ("tools".to_owned(), Value::from(())),
        ("documents".to_owned(), Value::from(())),
    ];
    for (name, value) in &options.variables {
        variables.retain(|(known, _)| known != name);
        variables.push((name.clone(), Value::from(Serde(value))));
    }
    let mut text = Text(Vec::new());
    env.template_from_str(template)
        .map_err(|error| ChatError::Syntax(one_line(&error)))?
        .render_captured_to(Value::from_pairs(variables), &mut text)
        .map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => ChatError::TooLong,
            ErrorKind::WriteFailure => ChatError::TooLarge,
            _ if is_raised(&error) => {
                ChatError::Refused(error.detail().unwrap_or_default().to_owned())
            }
            _ => ChatError::Render(one_line(&error)),
        })?;
    String::from_utf8(text.0).map_err(|error| ChatError::Render(error.to_string()))
}

/// What a template has written, at most `MOST_TEXT` bytes.
struct Text(Vec<u8>);

impl std::io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > MOST_TEXT - self.0.len() {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn too_wide() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("a width above {MOST_WIDTH}"),
    )
}

/// Jinja's `indent`, with a width in bounds.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named: Option<usize> = kwargs.get("width")?;
    if width.max(named) > Some(MOST_WIDTH) {
        return Err(too_wide());
    }
    filters::indent(text, width, first, blank, kwargs)
}

/// Jinja's `format`, with widths and precisions in bounds.
fn format(state: &mut State, text: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let pattern = text.as_str().unwrap_or_default();
    let longest = pattern.split(|c: char| !c.is_ascii_digit()).map(str::len);
    if longest.max() > Some(MOST_WIDTH.to_string().len()) {
        return Err(too_wide());
    }
    filters::format(state, text, args)
}

fn is_raised(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Raised>())
}

fn one_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// `tojson` as transformers defines it for templates: Python's `json.dumps` without HTML escapes.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<Value> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<Value> = kwargs.get("sort_keys")?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, pretty,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, Spaced,
        )),
    };
    written.map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "value has no JSON form").with_source(error)
    })?;
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// `{"a": 1, "b": 2}`, with Python's spaces.
struct Spaced;

/// What stands before an element or a key.
fn comma<W: ?Sized + std::io::Write>(writer: &mut W, first: bool) -> std::io::Result<()> {
    match first {
        true => Ok(()),
        false => writer.write_all(b", "),
    }
}

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        comma(writer, first)
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        comma(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// C's `strftime` for the fields templates use, in UTC; `seconds` since 1970.
fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    // Gregorian calendar in years that begin in March, so that the leap day comes last.
    // Source: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS[(days % 7) as usize];
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') | None => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
        }
    }
    out
}
