"""`python -m jobs.rayjob FILE`: create the RayJob of this scheduled time, and wait for its end.

What the pod of `orbit schedule --target cronjob` runs. It needs the standard library and PyYAML
only, so it fits into a small pod. The exit code is the RayJob's: 0, or what its entrypoint gave.

The RayJob is named after the scheduled time, so that a pod that takes another's place (its node
was drained) finds the same RayJob and goes on waiting: no night is ever submitted twice. It belongs
to the Kubernetes Job, and is removed with it.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RAYJOBS = "/apis/ray.io/v1/namespaces/{}/rayjobs"
ENDED = ("Complete", "Failed")
STOPPED = 143
PATIENCE_S = 600.0
POLL_S = 10.0
TIMEOUT_S = 30.0
MAX_NAME = 47
FAR_MINUTE = 10_000_000
"""Minutes since 1970 are more than this since 1989; a suffix below it is no scheduled time."""
Document = dict[str, Any]


class Refused(Exception):
    """The API server says no; ``code`` is its HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {' '.join(message.split())[:300]}")
        self.code = code


@dataclass(frozen=True)
class Api:
    """The API server as a pod sees it. The token is read each time, as Kubernetes renews it."""

    url: str
    token: Path
    authority: Path | None = None

    @classmethod
    def of_this_pod(cls, environment: Mapping[str, str] = os.environ) -> Api:
        """From what Kubernetes puts into every pod."""
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt")

    def ask(self, method: str, path: str, body: Document | None = None) -> Document:
        """One request. Refused for an answer that is an error, OSError when there is none."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {self.token.read_text().strip()}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        context = ssl.create_default_context(cafile=self.authority) if self.authority else None
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
                found: Document = json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from error
        except ValueError as error:  # half an answer
            raise OSError(str(error)) from error
        return found


@dataclass(frozen=True)
class Owner:
    """The Kubernetes Job that this pod is of."""

    name: str
    uid: str


def run_name(job: str) -> str:
    """The RayJob's name, from the Job's: CronJob names it NAME-<minutes since 1970>.

    A Job that somebody made by hand (`kubectl create job --from=cronjob/...`) lends its name.
    """
    base, _, suffix = job.rpartition("-")
    if base and suffix.isdecimal() and int(suffix) > FAR_MINUTE:
        when = datetime.fromtimestamp(int(suffix) * 60, UTC)
        return f"{base}-{when:%Y%m%d-%H%M}"
    return job[:MAX_NAME].rstrip("-")


def owned(manifest: Document, owner: Owner) -> Document:
    """The RayJob to create: named after the scheduled time, owned by the Job."""
    metadata = manifest["metadata"] | {
        "name": run_name(owner.name),
        "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid}
        ],
    }
    return manifest | {"metadata": metadata}


def exit_code(status: Document) -> int:
    """The exit code that an ended RayJob stands for.

    Ray tells it in the message: "failed with exit code N". Without one, a RayJob that somebody or
    its deadline stopped gives 143, as orbit does, another 1.
    """
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    found = re.search(r"exit code (-?\d+)", status.get("message") or "")
    if found:
        code = int(found[1])
        return 128 - code if code < 0 else code or 1
    stopped = status.get("jobStatus") == "STOPPED" or status.get("reason") == "DeadlineExceeded"
    return STOPPED if stopped else 1


def run(
    api: Api,
    namespace: str,
    rayjob: Document,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Create the RayJob, or find it, and wait. Silence of the API server is borne for a while."""
    name, last, heard = rayjob["metadata"]["name"], "", clock()
    path = RAYJOBS.format(namespace)
    created = False
    while True:
        try:
            if not created:
                say(create(api, path, rayjob))
                created = True
            status = api.ask("GET", f"{path}/{name}").get("status") or {}
            heard = clock()
        except Refused as error:
            if error.code < 500 and error.code not in (401, 408, 429):
                say(f"RayJob {name}: {error}")
                return 1
            status = {}
        except OSError as error:
            say(f"the API server does not answer: {error}")
            status = {}
        state = status.get("jobDeploymentStatus") or last
        if state != last:
            say(f"RayJob {name}: {state} {status.get('jobStatus') or ''}".rstrip())
            last = state
        if status and state in ENDED:
            say(" ".join(str(status.get("message") or "").split())[:2_000])
            return exit_code(status)
        if clock() - heard > PATIENCE_S:
            say(f"nothing was heard from the API server for {PATIENCE_S:g} s; the RayJob goes on")
            return 1
        pause(POLL_S)


def create(api: Api, path: str, rayjob: Document) -> str:
    """Create the RayJob unless it is there already; says which."""
    name = rayjob["metadata"]["name"]
    try:
        api.ask("POST", path, rayjob)
    except Refused as error:
        if error.code != 409:
            raise
        return f"RayJob {name} is there already: waiting for it"
    return f"RayJob {name} created"


def say(text: str) -> None:
    """One line for `kubectl logs`."""
    if text:
        print(text, flush=True)


def main(arguments: list[str]) -> int:
    """The pod's command."""
    try:
        import yaml

        manifest = yaml.safe_load(Path(arguments[0]).read_text())
        owner = Owner(os.environ["JOB_NAME"], os.environ["JOB_UID"])
        return run(Api.of_this_pod(), os.environ["NAMESPACE"], owned(manifest, owner))
    except (IndexError, KeyError, OSError, TypeError) as error:
        say(f"orbit: {type(error).__name__}: {error}; this runs in the pod of a CronJob that "
            "`orbit schedule` wrote")  # fmt: skip
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
