//! `bitnet chat`: a conversation in the terminal.

use super::args::{MachineArgs, SamplingArgs, SourceArgs};
use super::failure::Failure;
use super::generate::{drive, statistics};
use super::model::{Source, load};
use super::{interrupt, output};
use bitnet_rust::error::Error;
use bitnet_rust::session::{Generation, Request, Session};
use bitnet_rust::tokenizer::Message;
use clap::Args;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Editor, Helper, Highlighter, Hinter};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ChatArgs {
    /// Model to talk with (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default", hide_default_value = true)]
    model: Source,
    /// System message: how the model should behave
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Go on with a conversation written by /save
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    set the system message (without TEXT: remove it) and forget the conversation
/undo           forget the last question and its answer
/retry          another answer to the last question
/stats          speed of the last answer
/save FILE      write the conversation as JSON
/load FILE      go on with a conversation written by /save
/exit           leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one; \"\"\" opens and closes
a text of several lines.";

/// Largest conversation that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Tokens that an answer should have room for before old turns are forgotten.
const ROOM_TOKENS: usize = 128;

/// What the next line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Say(String),
    Command(&'a str, &'a str),
}

/// Reads a (possibly many-line) input.
fn parse(input: &str) -> Input<'_> {
    let trimmed = input.trim();
    if trimmed.is_empty() {
        return Input::Nothing;
    }
    if let Some(command) = trimmed.strip_prefix('/') {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        return Input::Command(name, rest.trim());
    }
    let text = trimmed.strip_prefix("\"\"\"").unwrap_or(trimmed);
    let text = text.strip_suffix("\"\"\"").unwrap_or(text);
    Input::Say(text.replace("\\\n", "\n").trim().to_string())
}

/// Asks for more lines where the text goes on.
#[derive(Helper, Completer, Hinter, Highlighter)]
struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

fn is_open(input: &str) -> bool {
    match input.trim_start().strip_prefix("\"\"\"") {
        Some(rest) => !rest.trim_end().ends_with("\"\"\""),
        None => input.ends_with('\\'),
    }
}

/// The conversation so far.
struct Chat {
    session: Session,
    request: Request,
    /// Another seed for each answer, unless the user chose one.
    reseed: bool,
    system: Option<String>,
    /// Questions and answers in turn.
    turns: Vec<Message>,
    statistics: Option<String>,
    quiet: bool,
}

pub fn chat(args: ChatArgs) -> Result<(), Failure> {
    interrupt::listen();
    let sampling = args.sampling.sampling()?;
    let mut request = Request::chat(Vec::new());
    request.sampling = sampling;
    request.max_tokens = args.sampling.max_tokens;
    request.stop = args.sampling.stop;
    let session = load(&args.model, &args.source, &args.machine)?;
    session.tokenizer()?;
    let mut chat = Chat {
        session,
        request,
        reseed: args.sampling.seed.is_none(),
        system: args.system,
        turns: Vec::new(),
        statistics: None,
        quiet: args.source.quiet,
    };
    if let Some(path) = &args.load {
        chat.read(path)?;
    }
    chat.talk()
}

impl Chat {
    fn talk(&mut self) -> Result<(), Failure> {
        let terminal = |e: ReadlineError| Failure::because("cannot read the terminal", &e);
        let mut editor: Editor<Lines, DefaultHistory> = Editor::new().map_err(terminal)?;
        editor.set_helper(Some(Lines));
        let history = history_file();
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        if std::io::stdin().is_terminal() && !self.quiet {
            output::note(format_args!("{}; /help for help", self.session.info().name));
        }
        let mut leaving = false;
        loop {
            let prompt = if output::decorate() { "\x1b[1m> \x1b[0m" } else { "> " };
            // Rustyline measures the plain form.
            let line = match editor.readline(&("> ", prompt)) {
                Ok(line) => line,
                Err(ReadlineError::Eof) => break,
                Err(ReadlineError::Interrupted) if leaving => break,
                Err(ReadlineError::Interrupted) => {
                    output::note("(Ctrl-C again, Ctrl-D or /exit to leave)");
                    leaving = true;
                    continue;
                }
                Err(e) => return Err(terminal(e)),
            };
            leaving = false;
            if !line.trim().is_empty() {
                let _ = editor.add_history_entry(&line);
            }
            match self.handle(&line) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
                // A bad command or a full context does not end the conversation.
                Err(failure) => {
                    if let Some(message) = failure.message() {
                        output::note(format_args!("error: {message}"));
                    }
                }
            }
        }
        if let Some(file) = &history {
            let saved = match file.parent().map(std::fs::create_dir_all) {
                Some(Ok(())) => editor.save_history(file),
                _ => Ok(()),
            };
            if let (Err(e), false) = (saved, self.quiet) {
                output::note(format_args!("the history is not kept: {e}"));
            }
        }
        Ok(())
    }

    /// Does what a line asks for; false ends the conversation.
    fn handle(&mut self, line: &str) -> Result<bool, Failure> {
        let usage = |text: &str| Err(Failure::Usage(text.to_string()));
        match parse(line) {
            Input::Nothing => {}
            Input::Say(text) => {
                self.turns.push(Message::new("user", text));
                self.answer()?;
            }
            Input::Command("exit" | "quit" | "bye", _) => return Ok(false),
            Input::Command("help" | "?", _) => output::note(HELP),
            Input::Command("reset" | "clear", _) => self.turns.clear(),
            Input::Command("system", text) => {
                self.system = (!text.is_empty()).then(|| text.to_string());
                self.turns.clear();
            }
            Input::Command("undo", _) => self.forget_last(),
            Input::Command("retry", _) => {
                if self.turns.last().is_some_and(|m| m.role == "assistant") {
                    self.turns.pop();
                }
                if self.turns.is_empty() {
                    return usage("there is no question yet");
                }
                self.answer()?;
            }
            Input::Command("stats", _) => {
                let text = self.statistics.as_deref().unwrap_or("there is no answer yet");
                output::note(text);
            }
            Input::Command("save", "") => return usage("/save FILE"),
            Input::Command("save", file) => self.write(Path::new(file))?,
            Input::Command("load", "") => return usage("/load FILE"),
            Input::Command("load", file) => self.read(Path::new(file))?,
            Input::Command(other, _) => {
                return usage(&format!("there is no /{other}; /help shows what there is"));
            }
        }
        Ok(true)
    }

    fn forget_last(&mut self) {
        let question = self.turns.iter().rposition(|m| m.role == "user");
        self.turns.truncate(question.unwrap_or(0));
    }

    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|s| Message::new("system", s.as_str()));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Answers the last question; forgets it if that fails.
    fn answer(&mut self) -> Result<(), Failure> {
        let result = self.try_answer();
        if result.is_err() {
            self.forget_last();
        }
        result
    }

    fn try_answer(&mut self) -> Result<(), Failure> {
        interrupt::clear();
        let mut generation = self.start()?;
        let on_terminal = std::io::stdout().is_terminal();
        let outcome = drive(&mut self.session, &mut generation, |piece| {
            let text = match on_terminal {
                true => output::harmless(&piece.text),
                false => piece.text.as_str().into(),
            };
            output::stdout(text.as_bytes())
        })?;
        output::stdout(b"\n")?;
        interrupt::clear();
        self.statistics = Some(statistics(&self.session, &outcome.completion));
        self.turns.push(Message::new("assistant", outcome.text));
        if self.reseed {
            self.request.sampling.seed = self.request.sampling.seed.wrapping_add(1);
        }
        Ok(())
    }

    /// Begins an answer, and forgets the oldest turns where there is no room for it.
    fn start(&mut self) -> Result<Generation, Failure> {
        let mut forgotten = 0;
        let generation = loop {
            let mut request = self.request.clone();
            request.prompt = bitnet_rust::session::Prompt::Chat(self.messages());
            let context = self.session.info().context as usize;
            let room = ROOM_TOKENS.min(context / 4);
            // The question itself stays, whatever happens.
            let can_forget = self.turns.len() > 2;
            match self.session.start(request) {
                Ok(g) if g.prompt_ids().len() + room <= context || !can_forget => break g,
                Err(Error::ContextFull { .. }) if can_forget => {}
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
            self.turns.drain(..2);
            forgotten += 1;
        };
        if forgotten > 0 && !self.quiet {
            output::note(format_args!(
                "(the context is full: forgot the {forgotten} oldest turns)"
            ));
        }
        Ok(generation)
    }

    fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(&self.messages())
            .map_err(|e| Failure::because("cannot write the conversation", &e))?;
        let mut file = output::new_file(path)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.finish());
        written.map_err(|e| output::cannot_write(path, &e))
    }

    fn read(&mut self, path: &Path) -> Result<(), Failure> {
        use std::io::Read;
        let cannot = |e: &dyn std::error::Error| {
            Failure::because(format!("cannot read {}", path.display()), e)
        };
        let file = std::fs::File::open(path).map_err(|e| cannot(&e))?;
        let messages: Vec<Message> =
            serde_json::from_reader(std::io::BufReader::new(file.take(MAX_FILE_BYTES)))
                .map_err(|e| cannot(&e))?;
        let (system, turns): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|m| m.role == "system");
        self.system = system.into_iter().next().map(|m| m.content);
        self.turns = turns;
        Ok(())
    }
}

/// Where the lines of earlier chats are kept.
fn history_file() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = var("XDG_STATE_HOME")
        .or_else(|| var("LOCALAPPDATA"))
        .or_else(|| std::env::home_dir().map(|h| h.join(".local/state")));
    state.map(|s| s.join("bitnet").join("chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        assert_eq!(parse("  "), Input::Nothing);
        assert_eq!(parse(" hi "), Input::Say("hi".into()));
        assert_eq!(parse("/exit"), Input::Command("exit", ""));
        assert_eq!(parse("/system  Be  brief. "), Input::Command("system", "Be  brief."));
        assert_eq!(parse("a\\\nb"), Input::Say("a\nb".into()));
        assert_eq!(parse("\"\"\"\na\n\nb\n\"\"\""), Input::Say("a\n\nb".into()));
    }

    #[test]
    fn open_texts_ask_for_more() {
        assert!(is_open("a\\") && is_open("\"\"\"a\nb") && is_open("\"\"\""));
        assert!(!is_open("a") && !is_open("\"\"\"a\nb\"\"\"") && !is_open("a\\\nb"));
    }
}
