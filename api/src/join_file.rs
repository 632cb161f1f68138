//! The join file: what an operator carries from the broker to a cluster. PURE.

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, FleetName, Role};
use crate::secret::Token;
use crate::snapshot::BrokerInfo;
use crate::time::UnixMillis;

/// Broker URLs, CA and a one-time token; YAML, mode 0600. It is a secret until it is used.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinFile {
    /// The format: 1.
    pub version: u32,
    /// The fleet to join.
    pub fleet: FleetName,
    /// The cluster that the token admits or enrols into.
    pub cluster: ClusterId,
    /// What the token entitles to.
    pub role: Role,
    /// When the token expires.
    pub expires: UnixMillis,
    /// Where the broker is and how it is known.
    pub broker: BrokerInfo,
    /// The one-time token.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub token: Token,
}

/// The text is no join file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinFileError {
    /// Not YAML of the expected shape.
    #[error(
        "it is not a complete join file ({0}): was it cut or edited? Create a new one with `subsea-broker token create`"
    )]
    Syntax(String),
    /// A later format.
    #[error("its format is version {0}, this program reads version 1: use a newer `subsea`")]
    Version(u32),
}

impl JoinFile {
    /// Reads the YAML form, of at most 64 KiB.
    ///
    /// # Errors
    /// [`JoinFileError`] for anything that is not a whole join file; the message never repeats the text.
    pub fn parse(text: &str) -> Result<Self, JoinFileError> {
        if text.len() > 64 * 1024 {
            return Err(JoinFileError::Syntax("larger than 64 KiB".into()));
        }
        // A later format may have fields that this one refuses: the version decides before they are read.
        if let Ok(Version { version }) = serde_saphyr::from_str(text)
            && version != 1
        {
            return Err(JoinFileError::Version(version));
        }
        let file: Self = serde_saphyr::from_str(text)
            .map_err(|e| JoinFileError::Syntax(without_secrets(&e.to_string(), text)))?;
        let pem = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];
        if file.broker.urls.is_empty() || !pem.iter().all(|m| file.broker.ca_pem.contains(m)) {
            return Err(JoinFileError::Syntax(
                "no broker URL or CA certificate in it".into(),
            ));
        }
        Ok(file)
    }

    /// The YAML form, with the token in it.
    ///
    /// # Errors
    /// When the values cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, JoinFileError> {
        serde_saphyr::to_string(self).map_err(|e| JoinFileError::Syntax(e.to_string()))
    }
}

/// The one field that every version of the format has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// What a parser's message may show of the source. All else in a join file may be, or be near, the token.
const FIELDS: [&str; 9] = [
    "version", "fleet", "cluster", "role", "expires", "broker", "urls", "ca_pem", "token",
];

/// The first line of a parser's message, with every word of eight or more letters that stands in the source
/// left out, the names of fields excepted. (Below the first line parsers show a piece of the source.)
fn without_secrets(message: &str, source: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(", expected").next().unwrap_or_default();
    let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut shown = String::new();
    for piece in line.split_inclusive(|c| !in_word(c)) {
        let word = piece.trim_end_matches(|c| !in_word(c));
        if word.len() >= 8 && source.contains(word) && !FIELDS.contains(&word) {
            shown.push('\u{2026}');
            shown.push_str(&piece[word.len()..]);
        } else {
            shown.push_str(piece);
        }
    }
    shown.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk";

    fn file() -> JoinFile {
        JoinFile {
            version: 1,
            fleet: "fleet".parse().unwrap(),
            cluster: "east".parse().unwrap(),
            role: Role::Member,
            expires: UnixMillis(1_700_000_000_000),
            broker: BrokerInfo {
                urls: vec!["https://10.0.0.1:7443".into()],
                ca_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            },
            token: Token::from_parts(7, [9; 32]),
        }
    }

    fn text() -> String {
        file().to_yaml().unwrap()
    }

    fn refused(text: &str) -> String {
        let error = JoinFile::parse(text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(!shown.contains(&SECRET[..20]), "{shown}");
        assert!(!shown.contains('\n'), "{shown}");
        error.to_string()
    }

    #[test]
    fn a_join_file_survives_its_text_form() {
        assert!(text().contains(SECRET));
        let again = JoinFile::parse(&text()).unwrap();
        assert_eq!(again.token.expose(), file().token.expose());
        assert_eq!(again.broker, file().broker);
        assert_eq!(again.expires, file().expires);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_without_showing_the_token() {
        let text = text();
        let whole = text.trim_end().len();
        for end in 0..whole {
            let error = refused(&text[..end]);
            assert!(error.contains("complete join file"), "{end}: {error}");
        }
    }

    #[test]
    fn a_file_with_a_line_missing_or_twice_is_refused() {
        let text = text();
        let lines: Vec<&str> = text.lines().collect();
        for skipped in 0..lines.len() {
            let mut left = lines.clone();
            left.remove(skipped);
            // What the certificate says is TLS's to judge.
            if lines[skipped].trim() != "AAAA" {
                refused(&left.join("\n"));
            }
        }
        for doubled in ["version: 1\n", "role: member\n"] {
            assert!(text.contains(doubled), "{text}");
            refused(&format!("{text}{doubled}"));
        }
    }

    #[test]
    fn another_version_is_named() {
        let later = text().replace("version: 1", "version: 2");
        assert_eq!(
            refused(&later),
            "its format is version 2, this program reads version 1: use a newer `subsea`"
        );
    }

    #[test]
    fn a_later_version_is_named_whatever_else_is_in_it() {
        let later = text().replace("version: 1", "version: 3") + "colour: blue\n";
        assert!(refused(&later).contains("version 3"));
    }

    #[test]
    fn extra_fields_are_refused_without_their_text() {
        refused(&format!("{}colour: blue\n", text()));
        refused(&format!("{}00000007.{SECRET}: x\n", text()));
        refused(&format!("{}extra: 00000007.{SECRET}\n", text()));
    }

    #[test]
    fn a_token_in_the_wrong_place_is_not_shown() {
        let token = file().token.expose();
        for field in [
            "version: 1",
            "fleet: fleet",
            "cluster: east",
            "role: member",
            "expires: 1700000000000",
        ] {
            assert!(text().contains(field), "{}", text());
            let (name, _) = field.split_once(':').unwrap();
            refused(&text().replace(field, &format!("{name}: {token}")));
            refused(&text().replace(field, &format!("{name}: \"{token}")));
            refused(&text().replace(field, &format!("{token}: {name}")));
            refused(&text().replace(field, &format!("{name}: !{token} {token}")));
            refused(&text().replace(field, &format!("{name}: *{token}")));
        }
        refused(&token);
        refused(&format!("[{token}"));
    }

    #[test]
    fn a_huge_or_bombing_file_is_refused() {
        refused(&"a".repeat(65 * 1024));
        let level = |i: u32| {
            let before = [format!("*a{}", i - 1), format!("*a{}", i - 1)].join(", ");
            format!(
                "a{i}: &a{i} [{before}, {before}, {before}]
"
            )
        };
        let bomb: String = (1..12).map(level).collect();
        refused(&format!(
            "a0: &a0 [x, x, x, x]
{bomb}"
        ));
    }
}
