//! Commands that are run to their end, and how they ended.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its output; it must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert!(self.code == Some(0), "{self}");
        self.stdout
    }

    /// What it said on stderr; it must have failed.
    pub(crate) fn fails(self) -> String {
        assert!(self.code != Some(0), "it did not fail: {self}");
        self.stderr
    }

    /// All it said; it must have succeeded.
    pub(crate) fn said(self) -> String {
        self.fails_with(0)
    }

    /// All it said; it must have ended with `code`.
    pub(crate) fn fails_with(self, code: i32) -> String {
        assert!(self.code == Some(code), "not exit code {code}: {self}");
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            line,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "`{line}` ended with {code:?}\nstdout: {stdout}\nstderr: {stderr}"
        )
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Ran {
    run_with(command, "")
}

/// Runs a command to its end, with `input` on its standard input.
pub(crate) fn run_with(command: &mut Command, input: &str) -> Ran {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let output = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            let mut stdin = child.stdin.take().expect("a pipe");
            // One that ends without reading is told by its exit code.
            drop(stdin.write_all(input.as_bytes()));
            drop(stdin);
            child.wait_with_output()
        })
        .unwrap_or_else(|e| {
            panic!("cannot run `{line}`: {e}; scripts/test installs what the tests need")
        });
    Ran {
        line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
