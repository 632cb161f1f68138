//! What becomes of a commit whose outcome the engine does not know.

use std::sync::atomic::{AtomicU8, Ordering};

use subsea_api::Code;

use super::sqlite::{Birth, Sqlite};
use super::*;

/// The commit goes through.
const WELL: u8 = 0;
/// It fails after it became durable.
const LATE: u8 = 1;
/// It fails, and somebody else writes a line to the audit log.
const OTHER: u8 = 2;

#[derive(Debug)]
struct Flaky {
    inner: Sqlite,
    how: Arc<AtomicU8>,
}

impl Engine for Flaky {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.inner.load()
    }
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), StoreError> {
        let failed = StoreError::io("write to", Path::new("store"), std::io::Error::other("no"));
        match self.how.load(Ordering::Relaxed) {
            WELL => self.inner.commit(commit),
            LATE => self.inner.commit(commit).and(Err(failed)),
            _ => {
                let note = Note::new("admin.reissue", "admin", "");
                let audit = Some(Line {
                    at: UnixMillis(2),
                    who: "local",
                    note: &note,
                });
                let other = Commit {
                    effects: &[],
                    revision: None,
                    audit,
                };
                self.inner.commit(&other).and(Err(failed))
            }
        }
    }
    fn audit_sequence(&self) -> Result<u64, StoreError> {
        self.inner.audit_sequence()
    }
    fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditEntry>, StoreError> {
        self.inner.audit(after, limit)
    }
    fn fleet(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.inner.fleet(name)
    }
    fn set_fleet(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        self.inner.set_fleet(name, value)
    }
    fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.inner.backup(to)
    }
    fn replace(&mut self, from: &Path) -> Result<(), StoreError> {
        self.inner.replace(from)
    }
}

fn address(url: &str) -> Decision<()> {
    let broker = subsea_api::snapshot::BrokerInfo {
        urls: vec![url.to_owned()],
        ca_pem: String::new(),
    };
    let note = Note::new("broker.address", url, "");
    Decision::changed((), vec![Effect::Broker(broker)], note)
}

#[test]
fn only_what_is_on_disk_is_acknowledged_and_all_of_that_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("store.db");
    let identity = Identity {
        fleet: "f1".parse().unwrap(),
        epoch: "e".into(),
        ula: "fd00::/48".parse().unwrap(),
        pools: Vec::new(),
    };
    let birth = Birth {
        identity: &identity,
        fleet: &[],
        at: UnixMillis(1),
    };
    Sqlite::create(&path, &birth).unwrap();
    let how = Arc::new(AtomicU8::new(WELL));
    let inner = Sqlite::open(&path).unwrap();
    let store = Store::open(Box::new(Flaky {
        inner,
        how: how.clone(),
    }))
    .unwrap();
    let mut revisions = store.revisions();
    let write = |url: &str| store.write("broker", UnixMillis(1), |_| Ok(address(url)));
    let shown = || store.read().state.broker.urls.clone();
    write("https://a:1").unwrap();
    revisions.mark_unchanged();

    how.store(OTHER, Ordering::Relaxed);
    assert_eq!(
        write("https://b:1").unwrap_err().code,
        Code::StoreUnavailable
    );
    assert_eq!(shown(), ["https://a:1"]);
    assert!(!revisions.has_changed().unwrap());

    how.store(LATE, Ordering::Relaxed);
    write("https://c:1").unwrap();
    assert_eq!(shown(), ["https://c:1"]);
    assert!(revisions.has_changed().unwrap());
    assert_eq!(*revisions.borrow(), 2);
}
