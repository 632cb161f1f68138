//! What the daemons have asked their API servers for, held against what their roles let them ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::bed::Plane;
use crate::ground::{Ground, objects};

const MEMBERS: [(&str, &str); 2] = [("subsea", "subsea-gateway"), ("subsea", "subsea-agent")];
const BROKER: (&str, &str) = ("subsea-broker", "subsea-broker");

/// What the daemons are allowed, read before a leave removes the roles.
pub(super) struct Rights {
    members: [BTreeSet<Right>; 2],
    broker: BTreeSet<Right>,
}

impl Rights {
    pub(super) fn read(ground: &Ground) -> Self {
        let members = MEMBERS.map(|account| {
            let allowed = allowed(&ground.east, account);
            assert_eq!(allowed, self::allowed(&ground.west, account));
            allowed
        });
        let broker = allowed(&ground.manager, BROKER);
        Self { members, broker }
    }

    /// In the whole life of the clusters all of it was needed, and nothing else was asked for. What both members did counts
    /// together, since each sees a part of what can happen.
    pub(super) fn assert_needed(&self, ground: &Ground) {
        let events = [ground.east.audit(), ground.west.audit()].concat();
        for (account, allowed) in MEMBERS.iter().zip(&self.members) {
            assert_needed(*account, allowed, &events);
        }
        let of_manager = ground.manager.audit();
        assert_needed(BROKER, &self.broker, &of_manager);
        // What the operator's tokens are for is asked of the broker, and the sweeper asks nobody.
        let known = [MEMBERS[0], MEMBERS[1], BROKER].map(user);
        let strange = events.iter().chain(&of_manager);
        let strange: BTreeSet<&str> = strange
            .filter_map(|event| event["user"]["username"].as_str())
            .filter(|user| user.contains(":subsea") && !known.iter().any(|known| known == user))
            .collect();
        assert!(strange.is_empty(), "{strange:?} asked an API server");
    }
}

/// A service account as the API server calls it.
fn user((namespace, name): (&str, &str)) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// What is allowed, or was done: a verb, a resource or a path, and the namespace or the name where it is bound to one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    what: String,
    namespace: String,
    name: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            what,
            namespace,
            name,
        } = self;
        write!(f, "{verb} {what} {name} in `{namespace}`")
    }
}

impl Right {
    /// Whether who has this may do that.
    fn covers(&self, done: &Self) -> bool {
        let within = |mine: &String, theirs: &String| mine.is_empty() || mine == theirs;
        self.verb == done.verb
            && self.what == done.what
            && within(&self.namespace, &done.namespace)
            && within(&self.name, &done.name)
    }
}

/// What the roles that are bound to a service account say, before these are removed.
fn allowed(plane: &Plane, account: (&str, &str)) -> BTreeSet<Right> {
    let mut all = BTreeSet::new();
    for (bindings, roles) in [
        ("clusterrolebindings", "clusterroles"),
        ("rolebindings -A", "roles -A"),
    ] {
        let roles = objects(plane, roles);
        for binding in objects(plane, bindings) {
            let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
            let is_bound = |subject: &Value| {
                subject["kind"] == "ServiceAccount"
                    && subject["namespace"] == account.0
                    && subject["name"] == account.1
            };
            if !subjects.iter().any(is_bound) {
                continue;
            }
            let namespace = &binding["metadata"]["namespace"];
            let named = |role: &&Value| {
                role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == *namespace
            };
            let role = roles.iter().find(named).expect("the role of a binding");
            let namespace = namespace.as_str().unwrap_or_default();
            for rule in role["rules"].as_array().into_iter().flatten() {
                all.extend(of_rule(rule, namespace));
            }
        }
    }
    assert!(!all.is_empty(), "no role is bound to {account:?}");
    all
}

fn of_rule(rule: &Value, namespace: &str) -> Vec<Right> {
    let texts = |key: &str| -> Vec<String> {
        let all = rule[key].as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut what = texts("nonResourceURLs");
    for group in texts("apiGroups") {
        what.extend(texts("resources").iter().map(|r| format!("{group}/{r}")));
    }
    let mut names = texts("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    let mut rights = Vec::new();
    for verb in texts("verbs") {
        for what in &what {
            rights.extend(names.iter().map(|name| Right {
                verb: verb.clone(),
                what: what.clone(),
                namespace: namespace.to_owned(),
                name: name.clone(),
            }));
        }
    }
    rights
}

/// What an event of the audit log says was done. A patch that made its object was a create as well: the API server asks for
/// the right to both then.
fn done(event: &Value) -> Vec<Right> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let about = &event["objectRef"];
    let path = text(&event["requestURI"]);
    let what = if about.is_null() {
        path.split('?').next().unwrap_or_default().to_owned()
    } else {
        let subresource = about["subresource"].as_str();
        let subresource = subresource.map_or(String::new(), |sub| format!("/{sub}"));
        let (group, resource) = (text(&about["apiGroup"]), text(&about["resource"]));
        format!("{group}/{resource}{subresource}")
    };
    let right = |verb: &str| Right {
        verb: verb.to_owned(),
        what: what.clone(),
        namespace: text(&about["namespace"]),
        name: text(&about["name"]),
    };
    let verb = text(&event["verb"]);
    let made = verb == "patch" && event["responseStatus"]["code"] == 201;
    let mut all = vec![right(&verb)];
    all.extend(made.then(|| right("create")));
    all
}

/// Whether an API server that has just started refused it: it answers before it has read the roles, and says that there is none of a
/// name that a binding has.
fn knows_no_roles(event: &Value) -> bool {
    let why = event["responseStatus"]["message"].as_str();
    why.is_some_and(|why| why.contains("RBAC: ") && why.contains("not found"))
}

/// Asserts that a service account was refused nothing, did nothing but by its own roles, and needed all that these give.
fn assert_needed(account: (&str, &str), allowed: &BTreeSet<Right>, events: &[Value]) {
    let user = user(account);
    let mut used = BTreeSet::new();
    let mut strange: BTreeMap<String, usize> = BTreeMap::new();
    for event in events
        .iter()
        .filter(|event| event["user"]["username"] == user.as_str())
    {
        let decision = event["annotations"]["authorization.k8s.io/decision"].as_str();
        for done in done(event) {
            let by = allowed.iter().filter(|right| right.covers(&done));
            let by: Vec<&Right> = by.collect();
            used.extend(by.iter().copied().cloned());
            if by.is_empty() || (decision != Some("allow") && !knows_no_roles(event)) {
                let line = format!("{done}: {decision:?}, {}", event["responseStatus"]["code"]);
                *strange.entry(line).or_default() += 1;
            }
        }
    }
    let unused: Vec<String> = allowed.difference(&used).map(Right::to_string).collect();
    assert!(
        strange.is_empty() && unused.is_empty(),
        "{user}: refused, or not by a role of its own: {strange:#?}; never needed: {unused:#?}"
    );
}
