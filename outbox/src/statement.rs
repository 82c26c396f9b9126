//! The business statement of a merged write, as far as it must be understood.
//!
//! A merged write puts the caller's statement into `WITH business AS (…)`. Postgres judges the
//! statement; here is only what must be known before: where it ends, whether it changes data,
//! whether it returns rows, and how many parameters it has, because the message comes after them.
//! Text in quotes, in dollar quotes and in comments is passed over as Postgres' scanner does it
//! (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>).

use crate::Error;

/// The verbs of statements that change data.
const MODIFYING: [&str; 4] = ["insert", "update", "delete", "merge"];

/// What is known of a statement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement<'a> {
    /// From the first to the last token, without what follows: blanks, comments, a semicolon.
    text: &'a str,
    has_returning: bool,
    /// The highest `$n`.
    parameters: usize,
}

impl<'a> Statement<'a> {
    /// Reads a statement.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](crate::Kind::Invalid) for a text that is not one statement which inserts,
    /// updates, deletes or merges. What passes may still be refused by Postgres; what Postgres
    /// takes is refused here only if no message belongs to it.
    pub(crate) fn read(text: &'a str) -> Result<Self, Error> {
        let mut scanner = Scanner { text, at: 0 };
        let mut seen = Seen::default();
        let mut end = 0;
        loop {
            scanner.skip_blanks()?;
            let Some(token) = scanner.token()? else { break };
            if token != Token::Semicolon {
                end = scanner.at;
            }
            seen.take(token)?;
        }
        seen.finish()?;
        let start = text.len() - text.trim_start().len();
        Ok(Statement {
            text: text.get(start..end).unwrap_or_default(),
            has_returning: seen.has_returning,
            parameters: seen.parameters,
        })
    }

    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    pub(crate) fn has_returning(&self) -> bool {
        self.has_returning
    }

    pub(crate) fn parameters(&self) -> usize {
        self.parameters
    }
}

/// Fails unless the statement returns rows.
pub(crate) fn must_return(has_returning: bool) -> Result<(), Error> {
    if has_returning {
        return Ok(());
    }
    Err(invalid("has no RETURNING".to_owned())
        .mended_by("say what the rows are, or run it with execute"))
}

/// Fails unless so many values are bound as the statement has parameters.
///
/// The message is the parameter after them: with one value too few it would take the place of
/// the last one, and a column of type bytea would hold it without a word.
pub(crate) fn must_take(parameters: usize, values: usize) -> Result<(), Error> {
    if values == parameters {
        return Ok(());
    }
    Err(invalid(format!("has {parameters} parameters, and {values} values are bound")))
}

/// Postgres takes so many parameters: their number has 16 bits in the protocol.
const PARAMETERS_MAX: usize = 65_535;

/// Fails unless the parameters leave room for those of the message.
pub(crate) fn must_have_room(parameters: usize, of_message: usize) -> Result<(), Error> {
    if parameters + of_message <= PARAMETERS_MAX {
        return Ok(());
    }
    Err(invalid(format!(
        "has {parameters} parameters, and with {of_message} of the message Postgres takes \
         {PARAMETERS_MAX}"
    ))
    .mended_by("bind arrays and unnest them, or write in parts"))
}

fn invalid(what: String) -> Error {
    Error::invalid(format!("the business statement {what}"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Parameter(usize),
    Open,
    Close,
    Dot,
    Semicolon,
    Other,
}

/// What the tokens so far have said.
#[derive(Default)]
struct Seen {
    first: bool,
    ended: bool,
    depth: usize,
    /// Inside `WITH x AS (…), y AS (…)`: the verb is the one that follows a bracket.
    awaits_verb: bool,
    after_dot: bool,
    after_as: bool,
    after_close: bool,
    has_returning: bool,
    parameters: usize,
}

impl Seen {
    fn take(&mut self, token: Token<'_>) -> Result<(), Error> {
        if self.ended && token != Token::Semicolon {
            return Err(invalid("is more than one".to_owned()));
        }
        if !self.first && token != Token::Semicolon {
            self.first = true;
            self.begin(token)?;
        }
        match token {
            Token::Word(word) if self.depth == 0 => self.word(word)?,
            Token::Parameter(number) => self.parameters = self.parameters.max(number),
            Token::Open => self.depth += 1,
            Token::Close => {
                self.depth = self
                    .depth
                    .checked_sub(1)
                    .ok_or_else(|| invalid("closes a bracket it never opened".to_owned()))?;
            }
            Token::Semicolon => self.ended = self.first,
            Token::Word(_) | Token::Dot | Token::Other => {}
        }
        self.after_dot = token == Token::Dot;
        self.after_as = matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("as"));
        self.after_close = token == Token::Close;
        Ok(())
    }

    fn begin(&mut self, token: Token<'_>) -> Result<(), Error> {
        let Token::Word(word) = token else { return Err(changes_nothing()) };
        self.awaits_verb = word.eq_ignore_ascii_case("with");
        let modifies = MODIFYING.into_iter().any(|verb| word.eq_ignore_ascii_case(verb));
        if modifies || self.awaits_verb { Ok(()) } else { Err(changes_nothing()) }
    }

    /// A word outside of brackets.
    fn word(&mut self, word: &str) -> Result<(), Error> {
        let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
        // A reserved word: only after a dot it names a column, and after AS it is a label.
        self.has_returning |= !self.after_dot && !self.after_as && is("returning");
        if self.awaits_verb && self.after_close {
            if ["select", "values", "table"].into_iter().any(is) {
                return Err(changes_nothing());
            }
            self.awaits_verb = !MODIFYING.into_iter().any(is);
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Error> {
        match self {
            Seen { first: false, .. } => Err(invalid("is empty".to_owned())),
            Seen { depth: 1.., .. } => Err(invalid("leaves a bracket open".to_owned())),
            _ => Ok(()),
        }
    }
}

fn changes_nothing() -> Error {
    invalid("changes no data".to_owned())
        .mended_by("begin it with INSERT, UPDATE, DELETE, MERGE or WITH; else call write")
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Passes over so many bytes and gives them.
    fn pass(&mut self, bytes: usize) -> &'a str {
        let passed = self.rest().get(..bytes).unwrap_or(self.rest());
        self.at += passed.len();
        passed
    }

    fn pass_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        self.pass(rest.find(|next: char| !belongs(next)).unwrap_or(rest.len()))
    }

    /// Blanks and comments.
    fn skip_blanks(&mut self) -> Result<(), Error> {
        loop {
            self.pass_while(is_blank);
            if self.rest().starts_with("--") {
                self.pass_while(|next| !is_line_end(next));
            } else if self.rest().starts_with("/*") {
                self.block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Block comments nest.
    fn block_comment(&mut self) -> Result<(), Error> {
        let mut depth = 0_usize;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.pass(2);
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.pass(2);
                if depth == 0 {
                    return Ok(());
                }
            } else if let Some(next) = rest.chars().next() {
                self.pass(next.len_utf8());
            } else {
                return Err(invalid("leaves a comment open".to_owned()));
            }
        }
    }

    fn token(&mut self) -> Result<Option<Token<'a>>, Error> {
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let token = match first {
            '\'' => self.quoted('\'', false)?,
            '"' => self.quoted('"', false)?,
            '$' => self.dollar()?,
            _ if begins_word(first) => {
                let word = self.pass_while(|next| begins_word(next) || is_dollar_or_digit(next));
                if word.eq_ignore_ascii_case("e") && self.rest().starts_with('\'') {
                    self.quoted('\'', true)?
                } else {
                    Token::Word(word)
                }
            }
            // A number takes its letters with it: 1e5, 0xff.
            '0'..='9' => {
                self.pass_while(|next| next.is_ascii_alphanumeric() || next == '_');
                Token::Other
            }
            _ => {
                self.pass(first.len_utf8());
                match first {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    '.' => Token::Dot,
                    ';' => Token::Semicolon,
                    _ => Token::Other,
                }
            }
        };
        Ok(Some(token))
    }

    /// A string or a quoted name. A doubled quote in it reads as the end of one and the begin of
    /// another, which comes to the same.
    fn quoted(&mut self, quote: char, escapes: bool) -> Result<Token<'a>, Error> {
        self.pass(quote.len_utf8());
        while let Some(next) = self.rest().chars().next() {
            self.pass(next.len_utf8());
            if next == quote {
                if escapes && self.rest().starts_with(quote) {
                    self.pass(quote.len_utf8());
                } else if escapes && let Some(blanks) = continuation(self.rest()) {
                    self.pass(blanks + quote.len_utf8());
                } else {
                    return Ok(Token::Other);
                }
            } else if escapes && next == '\\' {
                self.pass(self.rest().chars().next().map_or(0, char::len_utf8));
            }
        }
        Err(invalid("leaves a quote open".to_owned()))
    }

    /// `$1`, or `$tag$ … $tag$`.
    fn dollar(&mut self) -> Result<Token<'a>, Error> {
        self.pass(1);
        let digits = self.pass_while(|next| next.is_ascii_digit());
        if !digits.is_empty() {
            // Postgres takes 65,535 of them.
            let number: Result<u16, _> = digits.parse();
            return number
                .map(|number| Token::Parameter(number.into()))
                .map_err(|_| invalid("has a parameter out of range".to_owned()));
        }
        let tag = self.rest().find(|next: char| !(begins_word(next) || next.is_ascii_digit()));
        let Some(length) = tag.filter(|at| self.rest().get(*at..).is_some_and(starts_dollar))
        else {
            return Ok(Token::Other);
        };
        let close = format!("${}", self.pass(length + 1));
        let Some(body) = self.rest().find(&close) else {
            return Err(invalid("leaves a quote open".to_owned()));
        };
        self.pass(body + close.len());
        Ok(Token::Other)
    }
}

/// How far it is to a quote that continues a string: behind blanks and comments to the end of a
/// line, with a new line among them. What is continued keeps its escapes.
fn continuation(rest: &str) -> Option<usize> {
    let mut scanner = Scanner { text: rest, at: 0 };
    loop {
        scanner.pass_while(is_blank);
        if !scanner.rest().starts_with("--") {
            break;
        }
        scanner.pass_while(|next| !is_line_end(next));
    }
    let passed = rest.get(..scanner.at).unwrap_or_default();
    (scanner.rest().starts_with('\'') && passed.contains(is_line_end)).then_some(scanner.at)
}

fn is_blank(letter: char) -> bool {
    letter.is_ascii_whitespace() || letter == '\u{b}'
}

fn is_line_end(letter: char) -> bool {
    letter == '\n' || letter == '\r'
}

fn starts_dollar(text: &str) -> bool {
    text.starts_with('$')
}

fn begins_word(letter: char) -> bool {
    letter.is_ascii_alphabetic() || letter == '_' || !letter.is_ascii()
}

fn is_dollar_or_digit(letter: char) -> bool {
    letter == '$' || letter.is_ascii_digit()
}

#[cfg(test)]
mod tests;
