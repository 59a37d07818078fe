//! P95: the recipe for Kubernetes, checked by its schemas, and run as a kubelet runs it.

use super::desk::Desk;
use crate::support::journal::Journal;
use crate::support::pglock::{Pglock, python_tool};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::time::{Duration, SystemTime};

/// A path in the recipe that is replaced here.
const ALIVE: &str = "/tmp/alive";

fn validate(desk: &Desk, manifest: &str) -> crate::support::pglock::Output {
    let path = desk.file("manifest.yaml");
    fs::write(&path, manifest).unwrap();
    let validate = python_tool("kubernetes-validate");
    validate.args(["--strict", "--quiet"]).arg(path).output()
}

#[test]
fn kubernetes_accepts_the_manifest() {
    let desk = Desk::new();
    let manifest = desk.text("kubernetes.yaml");
    validate(&desk, &manifest).code(0).silent();
    for (right, wrong) in [
        ("terminationGracePeriodSeconds", "terminationGracePeriod"),
        ("replicas: 2", "replicas: two"),
        ("livenessProbe", "aliveProbe"),
    ] {
        let output = validate(&desk, &manifest.replace(right, wrong));
        assert!(!output.status.success(), "{wrong} is accepted: {output}");
    }
}

/// What the kubelet reads of a pod with one container.
struct Pod {
    spec: Value,
}

impl Pod {
    /// Returns the pods of the manifest: that of the job, and that of the service.
    fn read(desk: &Desk) -> [Pod; 2] {
        let to_json = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
        let python = python_tool("python3").args(["-c", to_json]);
        let manifest = desk.text("kubernetes.yaml");
        let alive = desk.file("alive");
        let manifest = manifest.replace(ALIVE, alive.to_str().unwrap());
        let json = python.output_with(manifest.as_bytes()).stdout();
        let documents: Vec<Value> = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&documents[0]["kind"], &documents[1]["kind"]),
            (&"CronJob".into(), &"Deployment".into())
        );
        [&documents[0]["spec"]["jobTemplate"], &documents[1]].map(|owner| Pod {
            spec: owner["spec"]["template"]["spec"].clone(),
        })
    }

    fn container(&self) -> &Value {
        &self.spec["containers"][0]
    }

    /// Returns the container's process, with its literal variables.
    fn run(&self) -> Pglock {
        self.exec(
            &[
                strings(&self.container()["command"]),
                strings(&self.container()["args"]),
            ]
            .concat(),
        )
    }

    /// Returns a program as a probe runs it in the container.
    fn exec(&self, command: &[String]) -> Pglock {
        let mut main = Pglock::for_program(&command[0]).args(&command[1..]);
        for variable in self.container()["env"].as_array().unwrap() {
            if let Some(value) = variable["value"].as_str() {
                main = main.env(variable["name"].as_str().unwrap(), value);
            }
        }
        main
    }

    fn probe(&self, kind: &str) -> Pglock {
        self.exec(&strings(&self.container()[kind]["exec"]["command"]))
    }

    /// Asserts that a termination that pglock has begun has the time that it needs when the kubelet stops the pod.
    #[track_caller]
    fn assert_longer_to_stop_than_kill_after(&self) {
        let command = strings(&self.container()["command"]);
        let place = command.iter().position(|word| word == "--kill-after").unwrap();
        let kill_after: u64 = command[place + 1].strip_suffix('s').unwrap().parse().unwrap();
        assert!(self.spec["terminationGracePeriodSeconds"].as_u64().unwrap() > kill_after);
    }
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[test]
fn two_clusters_run_the_job_once() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let job = format!("{}; note ran; while :; do sleep 0.05 & wait $!; done", journal.note());
    desk.program("invoices", &job);
    let [job, _] = Pod::read(&desk);
    let first = job.run().spawn();
    journal.await_count("ran", 1);
    job.run().output().code(0).silent();
    assert_eq!(journal.count("ran"), 1);
    // A job that is stopped keeps the lock no longer.
    first.signal(Signal::SIGTERM);
    first.finish().signal(Signal::SIGTERM);
    assert_eq!(desk.locks("invoices").granted, 0);
    job.assert_longer_to_stop_than_kill_after();
}

#[test]
fn a_deployment_has_a_hot_standby() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let job = format!(
        "{}; trap 'note TERM; exit 0' TERM; note lead; while :; do sleep 0.1 & wait $!; done",
        journal.note()
    );
    desk.program("dispatcher", &job);
    let [_, pod] = Pod::read(&desk);
    let first = pod.run().spawn();
    journal.await_count("lead", 1);
    let second = pod.run().spawn();
    desk.await_locks("dispatcher", 1, 1);
    first.signal(Signal::SIGTERM);
    first.finish().code(0).silent();
    journal.await_count("lead", 2);
    assert_eq!(journal.count("TERM"), 1);
    second.signal(Signal::SIGTERM);
    second.finish().code(0);
    pod.assert_longer_to_stop_than_kill_after();
}

/// Neither probe ends a standby; one ends a dispatcher that has hung.
#[test]
fn the_probes_leave_a_standby_alone() {
    let desk = Desk::new();
    let [_, pod] = Pod::read(&desk);
    assert!(pod.container().get("startupProbe").is_none());
    pod.probe("readinessProbe").output().code(0);
    pod.probe("livenessProbe").output().code(0).silent();
    let alive = fs::File::create(desk.file("alive")).unwrap();
    pod.probe("livenessProbe").output().code(0).silent();
    alive
        .set_modified(SystemTime::now() - Duration::from_secs(180))
        .unwrap();
    pod.probe("livenessProbe").output().code(1).silent();
}
