//! Makes a container: a root of its own, with what the specification of its pod gives it and nothing more.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Container, Place, Work, field, text};
use crate::daemon::Daemon;

/// The programs of the image are those that Cargo built.
pub(super) const PATH: &str =
    "PATH=/opt/subsea:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Work {
    pub(super) fn launch(&self, pod: &Value, place: &Place, container: &Container) -> Daemon {
        let spec = &pod["spec"]["containers"][0];
        assert!(
            pod["spec"]["initContainers"].is_null(),
            "this kubelet has no init containers"
        );
        std::fs::create_dir_all(container.root.join("root")).expect("a directory for the root");
        let script = container.root.join("start.sh");
        std::fs::write(&script, self.script(pod, place, container)).expect("a script");
        let environment = self.environment(pod, spec, place);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &place.namespace]);
        command.args(["unshare", "-m", "--propagation", "private", "sh"]);
        command.arg(&script);
        command.arg(environment.len().to_string());
        for (key, value) in &environment {
            command.arg(format!("{key}={value}"));
        }
        let words = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
        for word in words("command").iter().chain(&words("args")) {
            command.arg(expand(word.as_str().unwrap_or_default(), &environment));
        }
        Daemon::start(command, &container.log)
    }

    /// A script that makes the container's root and becomes the container.
    fn script(&self, pod: &Value, place: &Place, container: &Container) -> String {
        let spec = &pod["spec"]["containers"][0];
        let group = pod["spec"]["securityContext"]["fsGroup"].as_u64();
        let root = container.root.join("root");
        let root = root.display();
        let programs = Path::new(env!("CARGO_BIN_EXE_subsea"));
        let programs = programs.parent().expect("a directory").display();
        let mut script = format!(
            "set -eu\nR={root}\nmount -t tmpfs -o mode=755 tmpfs $R\n\
             for d in bin sbin lib lib64 usr; do\n\
               if [ -L /$d ]; then cp -P /$d $R/$d; elif [ -d /$d ]; then mkdir $R/$d; mount --bind -o ro /$d $R/$d; fi\n\
             done\n\
             mkdir -p $R/proc $R/dev $R/sys $R/etc $R/opt/subsea\n\
             cp /etc/passwd /etc/group /etc/protocols $R/etc/ 2>/dev/null || true\n\
             mount -t proc proc $R/proc\nmount -t tmpfs tmpfs $R/dev\n\
             for n in null zero urandom random; do : >$R/dev/$n; mount --bind /dev/$n $R/dev/$n; done\n\
             mount --rbind /sys $R/sys\nmount --bind -o ro {programs} $R/opt/subsea\n"
        );
        for mount in spec["volumeMounts"].as_array().into_iter().flatten() {
            let name = text(&mount["name"]);
            let at = text(&mount["mountPath"]);
            let volumes = pod["spec"]["volumes"].as_array();
            let volume = volumes.and_then(|all| all.iter().find(|v| v["name"] == name.as_str()));
            let volume = volume.unwrap_or_else(|| panic!("no volume {name}"));
            let source = self.source((volume, group), &name, place, container);
            let source = source.display();
            let options = if mount["readOnly"] == true {
                "-o ro"
            } else {
                ""
            };
            let _ = writeln!(
                script,
                "if [ -d {source} ]; then mkdir -p $R{at}; else mkdir -p $(dirname $R{at}); : >$R{at}; fi\nmount --bind {options} {source} $R{at}"
            );
        }
        // As container runtimes do: the parameters of the kernel cannot be written to.
        script.push_str(
            "mount --bind $R/proc/sys $R/proc/sys\nmount -o remount,bind,ro $R/proc/sys\n",
        );
        let security = &spec["securityContext"];
        assert_ne!(security["privileged"], true, "no container is privileged");
        if security["readOnlyRootFilesystem"] == true {
            script.push_str("mount -o remount,ro $R\n");
        }
        let added = security["capabilities"]["add"].as_array();
        let added = added.into_iter().flatten().filter_map(Value::as_str);
        let added = added.fold(String::new(), |all, name| all + ",+" + &name.to_lowercase());
        let user = security["runAsUser"]
            .as_u64()
            .or(pod["spec"]["securityContext"]["runAsUser"].as_u64())
            .unwrap_or(0);
        let groups = group.map_or("--clear-groups".to_owned(), |group| {
            format!("--groups {group}")
        });
        let more = if security["allowPrivilegeEscalation"] == false {
            "--no-new-privs"
        } else {
            ""
        };
        let _ = writeln!(
            script,
            "n=$1; shift\nexec chroot $R setpriv --reuid {user} --regid {user} {groups} --bounding-set=-all{added} --inh-caps=-all{added} {more} --pdeathsig KILL -- env -i \"$@\""
        );
        script
    }

    fn environment(&self, pod: &Value, spec: &Value, place: &Place) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = vec![
            split(PATH),
            ("NO_COLOR".to_owned(), "1".to_owned()),
            (
                "KUBERNETES_SERVICE_HOST".to_owned(),
                self.api.ip().to_string(),
            ),
            (
                "KUBERNETES_SERVICE_PORT".to_owned(),
                self.api.port().to_string(),
            ),
        ];
        for variable in spec["env"].as_array().into_iter().flatten() {
            let path = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = path.map_or_else(
                || text(&variable["value"]),
                |path| field(pod, path, Some(place)),
            );
            all.push((text(&variable["name"]), value));
        }
        all
    }
}

fn split(pair: &str) -> (String, String) {
    let (key, value) = pair.split_once('=').expect("KEY=VALUE");
    (key.to_owned(), value.to_owned())
}

/// Puts variables in, as `$(NAME)` asks for them.
fn expand(word: &str, environment: &[(String, String)]) -> String {
    environment
        .iter()
        .fold(word.to_owned(), |word, (key, value)| {
            word.replace(&format!("$({key})"), value)
        })
}
