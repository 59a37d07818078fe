//! Hosts in network namespaces, joined by a switch whose cables can be pulled.
//!
//! A process keeps each namespace alive: it reads from a pipe and exits with the test, however that ends, and the
//! namespace and its interfaces vanish with it. Pulling a cable takes the host's port out of the bridge: its interface
//! stays up, and packets are silently dropped in both directions, as when a switch dies. This needs the right to create
//! namespaces.

use super::command::command;
use std::process::{Child, Stdio};

/// A host of the network.
pub struct Host {
    anchor: Child,
    address: String,
}

/// The hosts, and the switch between them.
pub struct Network {
    switch: Host,
    hosts: u8,
}

impl Network {
    /// Creates a switch without hosts. Returns `None`, with a message, if namespaces are not permitted; in CI that is a
    /// failure.
    pub fn new() -> Option<Network> {
        if !can_unshare("-n") {
            return None;
        }
        let switch = Host::new("-");
        switch.ip("link add bridge type bridge");
        switch.ip("link set bridge up");
        Some(Network { switch, hosts: 0 })
    }

    /// Creates a host with its cable plugged in.
    pub fn host(&mut self) -> Host {
        self.hosts += 1;
        let host = Host::new(&format!("10.77.0.{}", self.hosts));
        let (port, pid) = (self.hosts, host.anchor.id());
        self.switch
            .ip(&format!("link add port{port} type veth peer name eth0 netns {pid}"));
        self.switch.ip(&format!("link set port{port} master bridge up"));
        host.ip(&format!("address add {}/24 dev eth0", host.address));
        host.ip("link set eth0 up");
        host.ip("link set lo up");
        host
    }

    /// Pulls the host's cable.
    pub fn cut(&self, host: &Host) {
        self.switch.ip(&format!("link set port{} nomaster", host.number()));
    }

    /// Plugs the host's cable in again.
    pub fn heal(&self, host: &Host) {
        self.switch.ip(&format!("link set port{} master bridge", host.number()));
    }

    /// Makes the host's line slow in both directions: what is sent queues for 50 ms per 100 bytes before it. Returns
    /// whether the kernel can do that.
    pub fn slow_down(&self, host: &Host) -> bool {
        self.ends(host).into_iter().all(|(end, device)| {
            end.tc(&format!(
                "qdisc replace dev {device} root tbf rate 16kbit burst 1600 latency 3s"
            ))
        })
    }

    /// Makes the host's line fast again; it need not have been slow.
    pub fn speed_up(&self, host: &Host) {
        for (end, device) in self.ends(host) {
            end.tc(&format!("qdisc delete dev {device} root"));
        }
    }

    fn ends<'a>(&'a self, host: &'a Host) -> [(&'a Host, String); 2] {
        let port = format!("port{}", host.number());
        [(&self.switch, port), (host, "eth0".into())]
    }
}

/// Returns whether a namespace of this kind (an option of unshare(1)) can be created. If not, the caller's test is
/// skipped with a message; in CI that is a failure.
pub fn can_unshare(kind: &str) -> bool {
    let output = command("unshare").args([kind, "true"]).output();
    let can = output.is_ok_and(|output| output.status.success());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to create namespaces");
        println!("SKIPPED: unshare {kind} is not permitted; run the tests as root");
    }
    can
}

impl Host {
    fn new(address: &str) -> Host {
        let mut anchor = command("unshare")
            .args(["-n", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut up = [0; 3];
        std::io::Read::read_exact(anchor.stdout.as_mut().expect("piped"), &mut up).expect("a namespace");
        Host {
            anchor,
            address: address.into(),
        }
    }

    /// Returns the address at which other hosts reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the arguments of nsenter(1) that run a command on this host.
    pub fn entrance(&self) -> Vec<String> {
        vec![format!("--net={}", self.namespace())]
    }

    /// Returns the file of its network namespace.
    pub fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.anchor.id())
    }

    fn number(&self) -> &str {
        self.address.rsplit('.').next().expect("an address")
    }

    fn tc(&self, arguments: &str) -> bool {
        let mut tc = command("nsenter");
        tc.args(self.entrance()).args(["--", "tc"]);
        tc.args(arguments.split(' ')).stderr(Stdio::null());
        tc.status().expect("nsenter").success()
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        let status = command("nsenter")
            .args(self.entrance())
            .args(["--", "ip"])
            .args(arguments.split(' '))
            .status()
            .expect("nsenter");
        assert!(status.success(), "ip {arguments}: {status}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}
