//! A broker killed in the middle of joins: nothing half done, nothing committed lost.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use subsea_api::admin::{AdminFile, ClusterInfo, TokenInfo, TokenState};
use subsea_api::join_file::JoinFile;
use subsea_api::member::JoinResponse;

use crate::common::{Client, Node};

/// A broker in a process of its own; killed when dropped.
struct Process(Child);

impl Process {
    /// Starts it and finds its address.
    async fn start(dir: &Path) -> (Self, String) {
        let _ = std::fs::remove_file(dir.join("listen"));
        let child = Command::new(env!("CARGO_BIN_EXE_subsea-broker"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--fleet",
                "f1",
                "--data-dir",
            ])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self(child);
        for _ in 0..3000 {
            if let Ok(text) = std::fs::read_to_string(dir.join("listen")) {
                return (process, format!("https://{}", text.trim()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the broker did not start");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: the broker gets no chance to tidy up.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn admin(dir: &Path, url: &str) -> (Client, String) {
    let text = std::fs::read_to_string(dir.join("admin.yaml")).unwrap();
    let file: AdminFile = serde_saphyr::from_str(&text).unwrap();
    let identity = (file.certificate_pem.clone(), file.key_pem.clone());
    (
        Client::new(url, &file.ca_pem, Some(&identity)),
        file.ca_pem.clone(),
    )
}

async fn join(url: &str, ca: &str, node: &Node, file: &JoinFile) -> Option<JoinResponse> {
    let body = node.join_body(file, &json!({"pod": ["auto/20"], "service": ["auto/22"]}));
    Client::new(url, ca, None).try_post("/v1/join", &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_joins_leaves_whole_members_only() {
    let tmp = tempfile::tempdir().unwrap();
    for round in 0..5u64 {
        let (process, url) = Process::start(tmp.path()).await;
        let (operator, ca) = admin(tmp.path(), &url);
        let mut joining = tokio::task::JoinSet::new();
        for i in 0..12 {
            let cluster = format!("r{round}c{i}");
            let body = json!({"cluster": cluster, "role": "member", "ttl_seconds": 900});
            let file: JoinFile = operator.post("/v1/admin/tokens", &body).await.unwrap();
            let (url, ca) = (url.clone(), ca.clone());
            joining.spawn(async move {
                let node = Node::new(&cluster, "gw-1");
                let answer = join(&url, &ca, &node, &file).await;
                (node, file, answer)
            });
        }
        tokio::time::sleep(Duration::from_millis(10 + 12 * round)).await;
        drop(process);
        let outcomes = joining.join_all().await;

        let (process, url) = Process::start(tmp.path()).await;
        let (operator, ca) = admin(tmp.path(), &url);
        let members: Vec<ClusterInfo> = operator.get("/v1/admin/clusters").await.unwrap();
        let tokens: Vec<TokenInfo> = operator.get("/v1/admin/tokens").await.unwrap();
        for (node, file, answer) in &outcomes {
            let member = members.iter().find(|m| m.id.as_str() == node.cluster);
            let token = tokens.iter().find(|t| t.id == file.token.id()).unwrap();
            assert_eq!(
                member.is_some(),
                token.state == TokenState::Used,
                "{}",
                node.cluster
            );
            if let Some(answer) = answer {
                assert_eq!(
                    member.unwrap().record.allocations,
                    answer.allocations,
                    "a committed join is lost"
                );
            }
            // The same join again succeeds, and gives what was committed.
            let again = join(&url, &ca, node, file).await.unwrap();
            assert_eq!(again.allocations.len(), 2);
            if let Some(member) = member {
                assert_eq!(member.record.allocations, again.allocations);
            }
        }
        drop(process);
    }
}
