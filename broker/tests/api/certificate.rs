//! Certificates: expiry, renewal, clones, operators.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use subsea_api::Code;
use subsea_api::admin::{AuditEntry, BrokerStatus};
use subsea_api::member::RenewResponse;

use crate::common::{Broker, Client, Node};

/// How long a certificate lasts whose end is waited for; one says so in whole seconds, and so lasts up to one less.
const SHORT: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_can_be_renewed_and_nothing_else() {
    let broker = Broker::start_with(|config| config.certificate_lifetime = SHORT).await;
    let mut east = broker.member("east", "10.0.0.0/16").await;
    tokio::time::sleep(SHORT + Duration::from_millis(100)).await;
    let client = east.client(&broker);
    assert_eq!(
        client.watch("").await.err().unwrap().code,
        Code::CertificateExpired
    );
    let refused = client
        .post::<Value>("/v1/challenge", &())
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::CertificateExpired);
    let renewal = json!({"csr_pem": east.csr()});
    let renewed: RenewResponse = client.post("/v1/renew", &renewal).await.unwrap();
    east.certificate = Some(renewed.certificate_pem);
    assert!(east.client(&broker).watch("").await.is_ok());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_does_not_outlive_its_certificate() {
    let broker = Broker::start_with(|config| config.certificate_lifetime = SHORT).await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let mut watch = east.client(&broker).watch("").await.unwrap();
    let ended = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(SHORT * 4, ended).await.unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_holders_of_one_certificate_are_reported() {
    let broker = Broker::start().await;
    let mut east = broker.member("east", "10.0.0.0/16").await;
    let original = east.client(&broker);
    let renewed: RenewResponse = original
        .post("/v1/renew", &json!({"csr_pem": east.csr()}))
        .await
        .unwrap();
    let actions = || async {
        let log: Vec<AuditEntry> = broker
            .admin
            .get("/v1/admin/audit?after=0&limit=100")
            .await
            .unwrap();
        log.into_iter().map(|e| e.action).collect::<Vec<_>>()
    };
    assert!(
        !actions()
            .await
            .contains(&"certificate.clone-suspected".to_owned())
    );
    // The clone still has the first certificate.
    let again = original
        .post::<RenewResponse>("/v1/renew", &json!({"csr_pem": east.csr()}))
        .await;
    assert!(again.is_ok());
    assert!(
        actions()
            .await
            .contains(&"certificate.clone-suspected".to_owned())
    );
    east.certificate = Some(renewed.certificate_pem);
    assert!(east.client(&broker).watch("").await.is_ok());
    let stranger = Node::new("east", "gw-1");
    let refused = original
        .post::<Value>("/v1/renew", &json!({"csr_pem": stranger.csr()}))
        .await;
    assert_eq!(refused.unwrap_err().code, Code::Forbidden);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reissued_admin_file_replaces_the_earlier_one() {
    let broker = Broker::start().await;
    let _: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    let path = subsea_broker::reissue_admin(&broker.dir).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let refused = broker
        .admin
        .get::<BrokerStatus>("/v1/admin/status")
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated);
    let file: subsea_api::admin::AdminFile =
        serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(file.url, broker.url);
    let identity = (file.certificate_pem.clone(), file.key_pem.clone());
    let admin = Client::new(&broker.url, &file.ca_pem, Some(&identity));
    let log: Vec<AuditEntry> = admin.get("/v1/admin/audit").await.unwrap();
    assert!(log.iter().any(|e| e.action == "admin.reissue"));
    broker.stop().await;
}
