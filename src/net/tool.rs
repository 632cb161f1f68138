//! Runs the system's tools (`nft`, `conntrack`) with bounds on time and output. Shell.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// No tool of ours needs longer, even with 10,000 blocks.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a tool may print: 10,000 blocks are about half a megabyte.
const MAX_OUTPUT: u64 = 32 * 1024 * 1024;

/// A tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not there.
    #[error("the tool `{tool}` is missing: install the package `{package}`")]
    Missing {
        /// The command.
        tool: &'static str,
        /// The package of Debian that has it.
        package: &'static str,
    },
    /// It could not be run, or the pipe to it broke.
    #[error("could not run `{tool}`: {source}")]
    Run {
        /// The command.
        tool: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It took too long or said too much.
    #[error("`{tool}` did not end within {} s and {} MiB of output", PATIENCE.as_secs(), MAX_OUTPUT >> 20)]
    Bounds {
        /// The command.
        tool: &'static str,
    },
    /// It said no.
    #[error("`{tool}` failed: {stderr}")]
    Failed {
        /// The command with its arguments.
        tool: String,
        /// Its first words about it.
        stderr: String,
    },
}

/// A tool.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The command.
    pub name: &'static str,
    /// The package of Debian that has it.
    pub package: &'static str,
}

impl Tool {
    /// Runs it, feeds it `input`, and gives what it printed.
    ///
    /// # Errors
    /// Any [`ToolError`].
    pub async fn run(self, args: &[&str], input: &str) -> Result<String, ToolError> {
        let tool = self.name;
        tokio::time::timeout(PATIENCE, self.unbounded(args, input))
            .await
            .map_err(|_| ToolError::Bounds { tool })?
    }

    async fn unbounded(self, args: &[&str], input: &str) -> Result<String, ToolError> {
        let tool = self.name;
        let failed = |source| ToolError::Run { tool, source };
        let mut child = Command::new(tool)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| {
                if source.kind() == io::ErrorKind::NotFound {
                    let package = self.package;
                    ToolError::Missing { tool, package }
                } else {
                    failed(source)
                }
            })?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                match stdin.write_all(input.as_bytes()).await {
                    // It ended before it read all: its exit code and its words say why.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        };
        let (fed, out, err) = tokio::join!(feed, read(stdout), read(stderr));
        fed.map_err(failed)?;
        let (Some(out), Some(err)) = (out.map_err(failed)?, err.map_err(failed)?) else {
            return Err(ToolError::Bounds { tool });
        };
        if child.wait().await.map_err(failed)?.success() {
            return Ok(out);
        }
        let words = err
            .lines()
            .filter(|l| !l.trim().is_empty())
            .take(2)
            .collect::<Vec<_>>()
            .join("; ");
        let tool = std::iter::once(tool)
            .chain(args.iter().copied())
            .collect::<Vec<_>>()
            .join(" ");
        Err(ToolError::Failed {
            tool,
            stderr: words.chars().take(300).collect(),
        })
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
    }
    let whole = (bytes.len() as u64) < MAX_OUTPUT;
    Ok(whole.then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_tool_and_a_failing_one_are_named() {
        let missing = Tool {
            name: "subsea-no-such-tool",
            package: "nothing",
        };
        let error = missing.run(&[], "").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "the tool `subsea-no-such-tool` is missing: install the package `nothing`"
        );
        let failing = Tool {
            name: "ls",
            package: "coreutils",
        };
        let error = failing
            .run(&["/subsea/no/such"], "unread input")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("`ls /subsea/no/such` failed: ls: cannot access"),
            "{error}"
        );
    }
}
