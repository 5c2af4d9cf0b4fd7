"""A Ray cluster on this machine, with a token: its nodes are processes of `ray start`."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).with_name("ray")
STARTED_S = 120.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class RayCluster:
    """A head and, when asked, more nodes, on loopback; ended with ``close``."""

    def __init__(self, place: Path, cpus: int = 2) -> None:
        self.token = secrets.token_hex(32)
        self.token_file = place / "token"
        self.token_file.write_text(self.token + "\n")
        self._place, self._nodes = place, list[subprocess.Popen[bytes]]()
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets want a short path
        gcs, dashboard = free_port(), free_port()
        self.gcs, self.address = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.add_node(
            cpus, "--head", f"--port={gcs}", f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1", "--include-dashboard=true",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={self.folder}",
        )  # fmt: skip
        self._until_it_answers()

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the token is known, and nothing else of Ray's."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return clean | {
            "RAY_AUTH_TOKEN": self.token,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def add_node(self, cpus: int, *flags: str) -> subprocess.Popen[bytes]:
        """Start a node; returns its process."""
        where = flags or (f"--address={self.gcs}",)
        command = [
            str(RAY), "start", *where, "--block", "--node-ip-address=127.0.0.1",
            f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        log = (self._place / f"node-{len(self._nodes)}.log").open("wb")
        node = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        self._nodes.append(node)
        return node

    def end_node(self, node: subprocess.Popen[bytes]) -> None:
        """Take a machine away: everything of it at once, without a word."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def workers(self) -> list[str]:
        """Ids of the nodes that live, without the head."""
        found = self._ask("/api/v0/nodes")["data"]["result"]["result"]
        return [n["node_id"] for n in found if n["state"] == "ALIVE" and not n["is_head_node"]]

    def drain(self, node_id: str, seconds: int) -> None:
        """Say of a node what a cloud says of a spot machine: it is gone in so many seconds."""
        command = [
            str(RAY), "drain-node", f"--address={self.gcs}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
            f"--deadline-remaining-seconds={seconds}",
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, timeout=120)

    def until_gone(self, node_id: str, seconds: float) -> None:
        """Wait until a node is no longer of the cluster. (The process of `ray start --block` stays
        when its node ends well.)"""
        end = time.monotonic() + seconds
        while node_id in self.workers():
            if time.monotonic() > end:
                raise TimeoutError(f"node {node_id} is still there after {seconds:g} s")
            time.sleep(0.5)

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(
            f"{self.address}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def close(self) -> None:
        for node in reversed(self._nodes):
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                self.end_node(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _until_it_answers(self) -> None:
        for _ in range(int(STARTED_S * 2)):
            try:
                self._ask("/api/version")
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        self.close()
        log = (self._place / "node-0.log").read_text()[-2000:]
        raise RuntimeError(f"the Ray head did not start: {log}")
