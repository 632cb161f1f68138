//! The objects and the files that they come from.

use std::collections::BTreeMap;

use super::*;

fn find<'a>(objects: &'a [Object], kind: &str, name: &str) -> &'a Object {
    let found = objects.iter().find(|o| {
        o.types.as_ref().unwrap().kind == kind && o.metadata.name.as_deref() == Some(name)
    });
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The files of a base, in the order of its kustomization.
fn base(folder: &str) -> Vec<Object> {
    #[derive(serde::Deserialize)]
    struct Kustomization {
        resources: Vec<String>,
    }
    let read = |file: &str| std::fs::read_to_string(format!("manifests/{folder}/{file}")).unwrap();
    let list: Kustomization = serde_saphyr::from_str(&read("kustomization.yaml")).unwrap();
    let texts = list.resources.iter().map(|file| read(file));
    texts.flat_map(|text| parse("x", &text).unwrap()).collect()
}

fn everything() -> Vec<Object> {
    ["cluster", "broker", "components/admission"]
        .map(base)
        .concat()
}

#[test]
fn defaults_are_the_files_as_they_are() {
    assert_eq!(
        cluster(&ClusterOptions::default()).unwrap(),
        base("cluster")
    );
    assert_eq!(broker(&BrokerOptions::default()).unwrap(), base("broker"));
    assert_eq!(
        admission(&ClusterOptions::default()).unwrap(),
        base("components/admission")
    );
}

#[test]
fn what_is_printed_reads_as_what_it_was() {
    for objects in [
        cluster(&ClusterOptions::default()).unwrap(),
        broker(&BrokerOptions::default()).unwrap(),
    ] {
        let text = print(&objects).unwrap();
        assert!(!text.contains(": null"), "{text}");
        assert_eq!(parse("x", &text).unwrap(), objects);
        assert_eq!(print(&objects).unwrap(), text, "the order is stable");
    }
}

#[test]
fn everything_is_labelled_as_ours() {
    for object in everything() {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        for (key, value) in crate::kube::labels::ours() {
            assert_eq!(
                labels.get(key).map(String::as_str),
                Some(value),
                "{}",
                name(&object)
            );
        }
    }
}

#[test]
fn no_container_is_privileged_and_all_are_read_only() {
    for object in everything() {
        let Some(pod) = object.data.pointer("/spec/template/spec") else {
            continue;
        };
        assert_eq!(
            pod.pointer("/securityContext/seccompProfile/type").unwrap(),
            "RuntimeDefault"
        );
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["privileged"], false);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"][0], "ALL");
        }
        assert!(pod.get("hostPID").is_none() && pod.get("hostIPC").is_none());
    }
}

#[test]
fn what_was_chosen_about_a_cluster_stands_in_it() {
    let objects = cluster(&ClusterOptions {
        namespace: "sea".to_owned(),
        image: Image {
            pull_secrets: vec!["registry".to_owned()],
            ..Image::new("registry.example.net/subsea:9")
        },
        config: Some("log: debug\n".to_owned()),
        gateway_selector: BTreeMap::from([("role".to_owned(), "edge".to_owned())]),
    })
    .unwrap();
    assert_eq!(find(&objects, "Namespace", "sea").metadata.namespace, None);
    let gateway = find(&objects, "DaemonSet", "subsea-gateway");
    assert_eq!(gateway.metadata.namespace.as_deref(), Some("sea"));
    let pod = &gateway.data["spec"]["template"]["spec"];
    assert_eq!(
        pod["nodeSelector"],
        serde_json::json!({"kubernetes.io/os": "linux", "role": "edge"})
    );
    assert_eq!(
        pod["containers"][0]["image"],
        "registry.example.net/subsea:9"
    );
    let agent = find(&objects, "DaemonSet", "subsea-agent");
    let agent = &agent.data["spec"]["template"]["spec"];
    assert_eq!(
        agent["containers"][0]["image"],
        "registry.example.net/subsea:9"
    );
    for pod in [pod, agent] {
        let secrets = serde_json::json!([{"name": "registry"}]);
        assert_eq!(pod["imagePullSecrets"], secrets);
    }
    let config = find(&objects, "ConfigMap", "subsea-config");
    assert_eq!(config.data["data"]["config.yaml"], "log: debug\n");
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in objects
            .iter()
            .filter(|o| o.types.as_ref().unwrap().kind == kind)
        {
            assert_eq!(binding.data["subjects"][0]["namespace"], "sea");
        }
    }
    // Events of cluster-scoped objects stay where Kubernetes wants them.
    let events = find(&objects, "RoleBinding", "subsea-gateway-events");
    assert_eq!(events.metadata.namespace.as_deref(), Some("default"));
    let left = print(&objects).unwrap();
    assert!(!left.contains("namespace: subsea\n"), "{left}");
}

#[test]
fn what_was_chosen_about_the_broker_stands_in_it() {
    let objects = broker(&BrokerOptions {
        namespace: "hub".to_owned(),
        image: Image::new("i"),
        expose: Some(Expose::NodePort),
        advertise: vec!["https://192.0.2.1:30001".into(), "https://b:1".into()],
        storage_class: Some("fast".to_owned()),
        storage_size: Some("2Gi".to_owned()),
        api_ports: [443, 16443].into(),
    })
    .unwrap();
    let set = find(&objects, "StatefulSet", "subsea-broker");
    let spec = &set.data["spec"];
    let args: Vec<&str> = spec["template"]["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .filter(|a| a.starts_with("--advertise"))
        .collect();
    assert_eq!(
        args,
        [
            "--advertise=https://192.0.2.1:30001",
            "--advertise=https://b:1",
            "--advertise=https://subsea-broker.$(POD_NAMESPACE).svc:8443",
        ]
    );
    let claim = &spec["volumeClaimTemplates"][0]["spec"];
    assert_eq!(claim["storageClassName"], "fast");
    assert_eq!(claim["resources"]["requests"]["storage"], "2Gi");
    let service = find(&objects, "Service", "subsea-broker");
    assert_eq!(service.data["spec"]["type"], "NodePort");
    let policy = find(&objects, "NetworkPolicy", "subsea-broker");
    let ports = policy.data["spec"]["egress"][0]["ports"]
        .as_array()
        .unwrap();
    assert_eq!(ports.len(), 5, "{ports:?}");
    assert_eq!(objects.last().unwrap(), set);
}

#[test]
fn ways_to_the_broker_are_three() {
    assert_eq!("loadbalancer".parse(), Ok(Expose::LoadBalancer));
    assert_eq!("nodeport".parse(), Ok(Expose::NodePort));
    for (given, url) in [
        ("https://b.example.net", "https://b.example.net:443"),
        ("https://[fd00::1]:8443/", "https://[fd00::1]:8443"),
    ] {
        assert_eq!(given.parse(), Ok(Expose::Url(url.to_owned())));
    }
    for bad in ["", "ingress", "http://a:1", "https://a:0", "https://a/x"] {
        assert!(bad.parse::<Expose>().is_err(), "{bad}");
    }
}

#[test]
fn the_image_is_that_of_this_version() {
    let objects = base("cluster");
    let gateway = find(&objects, "DaemonSet", "subsea-gateway");
    assert_eq!(
        gateway.data["spec"]["template"]["spec"]["containers"][0]["image"],
        IMAGE
    );
}

#[test]
fn the_sweeper_is_pulled_as_the_daemons_are() {
    let image = Image {
        name: "r/subsea:2".to_owned(),
        pull_policy: Some("Always".to_owned()),
        pull_secrets: vec!["registry".to_owned()],
    };
    let of = ("fleet".parse().unwrap(), "east".parse().unwrap());
    let objects = sweeper("sea", &image, Some((&of.0, &of.1))).unwrap();
    let daemon = find(&objects, "DaemonSet", "subsea-sweeper");
    assert_eq!(daemon.metadata.namespace.as_deref(), Some("sea"));
    let pod = &daemon.data["spec"]["template"]["spec"];
    assert_eq!(
        pod["imagePullSecrets"],
        serde_json::json!([{"name": "registry"}])
    );
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "r/subsea:2");
    assert_eq!(container["imagePullPolicy"], "Always");
    let args = container["args"].as_array().unwrap();
    assert!(args.contains(&"--cluster=east".into()), "{args:?}");
    // As the file is, where nothing is known.
    let objects = sweeper("subsea", &Image::new(IMAGE), None).unwrap();
    let text = std::fs::read_to_string("manifests/leave/sweeper.yaml").unwrap();
    assert_eq!(objects, parse("x", &text).unwrap());
}

#[test]
fn one_node_is_swept_as_all_are() {
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("manifests/leave/{file}")).unwrap();
        parse("x", &text).unwrap().remove(0).data
    };
    let (daemon, mut pod) = (read("sweeper.yaml"), read("node.yaml"));
    let mut wanted = daemon["spec"]["template"]["spec"].clone();
    assert_eq!(pod["spec"]["nodeName"], "NODE");
    let container = &mut pod["spec"]["containers"][0];
    assert_eq!(container["image"], "IMAGE");
    container["image"] = IMAGE.into();
    let args = container["args"].as_array_mut().unwrap();
    let of = args.split_off(args.len() - 2);
    assert_eq!(of, ["--fleet=FLEET", "--cluster=CLUSTER"]);
    // What else the one has and the other has not, for the one ends and no scheduler chooses its node.
    for (spec, fields) in [
        (&mut wanted, ["nodeSelector", "priorityClassName"]),
        (&mut pod["spec"], ["nodeName", "restartPolicy"]),
    ] {
        for field in fields {
            assert!(spec.as_object_mut().unwrap().remove(field).is_some());
        }
    }
    assert_eq!(pod["spec"], wanted);
}
