"""The daemons of scripts/failover: a broker, gateways and agents in the namespaces that failover_world.sh has made.

Everything that depends on how a daemon is started, asked or told stands here, in one function each.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from failover_flows import CLUSTER_NUMBER, NODE_NUMBER, now

BROKER = "192.0.2.10:7443"
GATEWAYS = ["gw-1", "gw-2"]
# Where packets of pods are counted that must not be there, and the family of the table that does it.
WRONG_ROADS = [("internet", "bridge"), *((f"{cluster}-lan", "inet") for cluster in CLUSTER_NUMBER)]


class LabError(Exception):
    """The lab itself does not work: no measurement is possible."""


class Lab:
    def __init__(self, options):
        self.owner = options.owner
        self.work = options.work
        self.agents = not options.gateways_only
        self.subsea = str(options.bin / "subsea")
        self.subsea_broker = str(options.bin / "subsea-broker")
        self.traffic_program = str(options.traffic)
        self.interval = options.interval
        self.nodes = [*GATEWAYS, "n-1", "n-2"] if self.agents else GATEWAYS
        self.daemons = {}
        self.helps = {}
        self.gateways = [(cluster, node) for cluster in CLUSTER_NUMBER for node in GATEWAYS]

    # --- Namespaces and processes.

    def within(self, place, *command, stdin=None):
        """Runs a command in a namespace and returns what it says."""
        command = ["ip", "netns", "exec", f"subsea-{self.owner}-{place}", *map(str, command)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"{' '.join(command[3:])} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def spawn(self, place, command, log, stdin=subprocess.DEVNULL):
        command = ["ip", "netns", "exec", f"subsea-{self.owner}-{place}", *map(str, command)]
        with open(log, "ab") as out:
            # A session of its own: Ctrl-C is for this program, which then ends everything.
            return subprocess.Popen(command, stdin=stdin, stdout=out, stderr=out, start_new_session=True)

    def start(self, name, place, command):
        self.daemons[name] = self.spawn(place, command, self.work / f"{name}.log")

    def kill(self, name):
        """kill -9, and returns the moment before."""
        process = self.daemons.pop(name)
        if process.poll() is not None:
            raise LabError(f"{name} is not running any more: {self.tail(name)}")
        moment = now()
        process.send_signal(signal.SIGKILL)
        process.wait()
        return moment

    def wait_for_end(self, name, seconds):
        try:
            code = self.daemons.pop(name).wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{name} did not end within {seconds} s: {self.tail(name)}") from None
        if code != 0:
            raise LabError(f"{name} ended with code {code}: {self.tail(name)}")

    def check_running(self):
        for name, process in self.daemons.items():
            if process.poll() is not None:
                raise LabError(f"{name} ended with code {process.returncode}: {self.tail(name)}")

    def tail(self, name):
        lines = (self.work / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n  ".join(["", *lines[-8:]])

    def supports(self, program, verb, word):
        """Whether the help of a verb has a word: builds before a flag are measured without it, where that makes sense."""
        if (program, verb) not in self.helps:
            done = subprocess.run([program, verb, "--help"], capture_output=True, text=True)
            self.helps[program, verb] = done.stdout if done.returncode == 0 else ""
        return word in self.helps[program, verb]

    # --- How daemons are enrolled, started and stopped.

    def state(self, cluster, node, role):
        return self.work / f"{role}-{cluster}-{node}"

    def node_address(self, cluster, node):
        return f"172.20.{CLUSTER_NUMBER[cluster]}.{NODE_NUMBER[node]}"

    def pod_cidr(self, cluster, node):
        return f"10.{CLUSTER_NUMBER[cluster]}.{NODE_NUMBER[node]}.0/24"

    def start_broker(self):
        self.start("broker", "broker", [self.subsea_broker, "serve", "--data-dir", self.work / "broker", "--listen", BROKER, "--fleet", "failover"])
        self.eventually(20, "the broker answers", lambda: self.admin("status") is not None)

    def admin(self, *arguments):
        try:
            return self.within("broker", self.subsea_broker, "--admin", self.work / "broker" / "admin.yaml", *arguments)
        except LabError:
            if arguments == ("status",):
                return None
            raise

    def token(self, cluster, role):
        path = self.work / f"{cluster}-{role}.join"
        path.unlink(missing_ok=True)
        self.admin("token", "create", "--cluster", cluster, "--role", role, "-o", path)
        return path

    def join_gateway(self, cluster, node):
        number = CLUSTER_NUMBER[cluster]
        if node == GATEWAYS[0]:
            role, blocks = "member", ["--pod-cidr", f"10.{number}.0.0/16", "--service-cidr", f"10.{100 + number}.0.0/20"]
        else:
            role, blocks = "gateway", []
        self.join(cluster, node, role, self.state(cluster, node, "gateway"), blocks)

    def join_agent(self, cluster, node):
        self.join(cluster, node, "agent", self.state(cluster, node, "agent"), [])

    def join(self, cluster, node, role, state, more):
        file = self.token(cluster, role)
        self.within(f"{cluster}-{node}", self.subsea, "join", file, "--node", node, "--state-dir", state, *more)

    def start_gateway(self, cluster, node):
        endpoint = f"192.0.2.{CLUSTER_NUMBER[cluster]}{NODE_NUMBER[node]}:51820"
        command = [self.subsea, "gateway", "--state-dir", self.state(cluster, node, "gateway"), "--endpoint", endpoint, "--driver", "userspace"]
        if self.agents or self.supports(self.subsea, "gateway", "--node-address"):
            command += ["--node-address", self.node_address(cluster, node)]
        self.start(f"gateway-{cluster}-{node}", f"{cluster}-{node}", command + self.probe_flags("gateway"))

    def start_agent(self, cluster, node):
        command = [self.subsea, "agent", "--state-dir", self.state(cluster, node, "agent"), "--node", node]
        command += ["--pod-cidr", self.pod_cidr(cluster, node)]
        if node in GATEWAYS:
            command += ["--gateway-state-dir", self.state(cluster, node, "gateway")]
        self.start(f"agent-{cluster}-{node}", f"{cluster}-{node}", command + self.probe_flags("agent"))

    def probe_flags(self, verb):
        """The flags that set how often paths are probed; none for the default."""
        if self.interval == 250:
            return []
        if not self.supports(self.subsea, verb, "--probe-interval"):
            raise LabError(f"this build of `subsea {verb}` has no --probe-interval")
        return ["--probe-interval", f"{self.interval}ms"]

    def drain(self, cluster, node):
        """Withdraws a gateway and waits until its process has ended."""
        self.within(f"{cluster}-{node}", self.subsea, "drain", "--state-dir", self.state(cluster, node, "gateway"))
        self.wait_for_end(f"gateway-{cluster}-{node}", 30)

    def stop_gateway(self, cluster, node):
        name = f"gateway-{cluster}-{node}"
        self.daemons[name].send_signal(signal.SIGTERM)
        self.wait_for_end(name, 60)

    def set_up(self):
        if self.agents and not self.supports(self.subsea, "agent", "--state-dir"):
            raise LabError("this build has no `subsea agent`: measure it with --gateways-only")
        self.start_broker()
        for cluster in CLUSTER_NUMBER:
            for node in GATEWAYS:
                self.join_gateway(cluster, node)
                self.start_gateway(cluster, node)
            if self.agents:
                for node in self.nodes:
                    self.join_agent(cluster, node)
                    self.start_agent(cluster, node)

    def tear_down(self):
        """Ends all daemons, forgets what they knew, and mends every fault of the network.

        What they left in the kernels stays; those that follow take it over.
        """
        for process in self.daemons.values():
            process.kill()
            process.wait()
        self.daemons.clear()
        for path in [self.work / "broker", *self.work.glob("gateway-*-?"), *self.work.glob("agent-*-?")]:
            shutil.rmtree(path, ignore_errors=True)
        self.within("internet", "nft", "flush chain bridge lab fault")
        for cluster, node in self.gateways:
            self.within("internet", "ip", "link", "set", f"{cluster}-{node}", "up")
            self.within(f"{cluster}-lan", "ip", "link", "set", node, "up")

    def prove_leaks_are_seen(self):
        """Before any daemon runs, packets of pods do take the wrong road: a counter that never counts would prove nothing."""
        for place, family, source in (("internet", "bridge", "east-gw-1-pod"), ("east-lan", "inet", "east-n-1-pod")):
            subprocess.run(
                ["ip", "netns", "exec", f"subsea-{self.owner}-{source}", "ping", "-c", "1", "-W", "1", "10.2.1.10"], capture_output=True
            )
            if self.counter(place, family, "leaked")[0] == 0:
                raise LabError(f"{place} does not see packets of pods")
        self.forget_leaks()

    # --- What they say.

    def status(self, cluster, node, role="gateway"):
        """None while it does not answer."""
        command = [self.subsea, "status", "--state-dir", str(self.state(cluster, node, role)), "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return None

    def paths(self, status):
        """CLUSTER-NODE of a remote gateway -> what a gateway says of the path."""
        members = status["members"] if status else []
        return {f"{path['cluster']}-{path['gateway']}": path for member in members for path in member["gateways"]}

    def trouble(self):
        """Why it is not calm, or None: every gateway must have connected paths to all of the others' clusters, agents must be ready."""
        self.check_running()
        for cluster, node in self.gateways:
            status = self.status(cluster, node)
            paths = self.paths(status)
            down = [name for name, path in paths.items() if path["state"] != "connected"]
            if len(paths) != 4 or down:
                return f"{cluster}-{node} has {len(paths)} of 4 paths, not connected: {' '.join(down) or 'none'}"
            if not status["kernel"]["converged"]:
                return f"the kernel of {cluster}-{node} is not as wanted: {status['kernel']['problems']}"
        return self.agent_trouble() if self.agents else None

    def agent_trouble(self):
        """Every agent must have both gateways of its cluster, and one at least that reaches each other cluster."""
        for cluster in CLUSTER_NUMBER:
            for node in self.nodes:
                status = self.status(cluster, node, "agent")
                if status is None:
                    return f"the agent of {cluster}-{node} does not answer"
                states = {gateway["node"]: gateway["state"] for gateway in status["gateways"]}
                if states != dict.fromkeys(GATEWAYS, "connected"):
                    return f"the agent of {cluster}-{node} says of its gateways: {states}"
                used = {other["cluster"]: other["gateways"] for other in status["clusters"] if other["reached"]}
                few = [other for other in CLUSTER_NUMBER if other != cluster and not used.get(other)]
                if few:
                    return f"the agent of {cluster}-{node} does not reach {' '.join(few)}"
                if not status["kernel"]["converged"]:
                    return f"the kernel of {cluster}-{node} is not as its agent wants it: {status['kernel']['problems']}"
        return None

    def calm(self, seconds):
        """Waits until all is connected."""
        end = now() + seconds
        while trouble := self.trouble():
            if now() >= end:
                raise LabError(f"not calm after {seconds} s: {trouble}")
            time.sleep(0.2)

    def eventually(self, seconds, what, condition):
        end = now() + seconds
        while not condition():
            if now() >= end:
                raise LabError(f"not within {seconds} s: {what}")
            time.sleep(0.1)

    # --- What the network saw.

    def forget_carried(self, gateways):
        for cluster, node in gateways:
            self.within(f"{cluster}-{node}", "nft", "flush set inet lab from_tunnel; flush set inet lab into_tunnel")

    def carried(self, cluster, node, name):
        """The ways that a gateway has carried since `forget_carried`: `from_tunnel` or `into_tunnel`."""
        listing = json.loads(self.within(f"{cluster}-{node}", "nft", "-j", f"list set inet lab {name}"))
        elements = next(item["set"] for item in listing["nftables"] if "set" in item).get("elem", [])
        return {tuple(element["concat"]) for element in elements}

    def counter(self, place, family, name):
        listing = json.loads(self.within(place, "nft", "-j", f"list counter {family} lab {name}"))
        counter = next(item["counter"] for item in listing["nftables"] if "counter" in item)
        return counter["packets"], counter["bytes"]

    def leaked(self):
        """Packets of pods that went by a road that must not carry them."""
        return {place: found for place, family in WRONG_ROADS if (found := self.counter(place, family, "leaked")[0])}

    def forget_leaks(self):
        for place, family in WRONG_ROADS:
            self.within(place, "nft", f"reset counter {family} lab leaked")

    def probes(self, seconds):
        """What goes without any traffic: packets and bits a second, for each path between gateways and each node's echo."""

        def count():
            lans = [self.counter(f"{cluster}-lan", "bridge", "encapsulated") for cluster in CLUSTER_NUMBER]
            return [self.counter("internet", "bridge", "tunnels"), tuple(map(sum, zip(*lans)))]

        before = count()
        time.sleep(seconds)
        wide, local = ((a[0] - b[0], a[1] - b[1]) for a, b in zip(count(), before))
        # Each gateway has paths to the four of other clusters; every node but a gateway itself talks to two, a gateway to one.
        paths, roads = 12, 3 * (2 * 2 + 1)
        figures = {"path_packets_s": wide[0] / seconds / paths, "path_bit_s": wide[1] * 8 / seconds / paths}
        if self.agents:
            figures |= {"road_packets_s": local[0] / seconds / roads, "road_bit_s": local[1] * 8 / seconds / roads}
        return figures


class Machine:
    """How busy the machine was."""

    def __init__(self):
        self.before = self.ticks()

    @staticmethod
    def ticks():
        return [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    def since(self):
        """Percent of idle and of stolen time."""
        spent = [after - before for after, before in zip(self.ticks(), self.before)]
        total = sum(spent) or 1
        return 100 * spent[3] / total, 100 * spent[7] / total


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} x {model}, Linux {os.uname().release.split('-')[0]}"
