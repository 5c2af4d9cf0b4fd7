"""What infra/ says must fit the program, and be what Kubernetes, KubeRay and Docker would take."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.schemas import assert_hardened, pod_templates, pods, validate

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
OVERLAYS = [INFRA / "kuberay" / "overlays" / name for name in ("cpu", "gpu")]
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
RAY_PORTS = {6379, 8265, 10001}


def documents(file: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]


def manifests() -> list[Path]:
    found = sorted((INFRA / "kuberay").rglob("*.yaml"))
    return [file for file in found if file.name != "kustomization.yaml"]


def rendered(overlay: Path) -> list[dict[str, Any]]:
    program = shutil.which("kustomize")
    command = [program, "build"] if program else [shutil.which("kubectl") or "", "kustomize"]
    if not command[0]:
        pytest.skip("neither kustomize nor kubectl is here to render an overlay")
    told = subprocess.run([*command, str(overlay)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return [found for found in yaml.safe_load_all(told.stdout) if found]


def known_flags(words: list[str]) -> None:
    """A command line, verb first, parses. `submit` and the like hand the rest on."""
    from typer.main import get_command

    from jobs.cli import app

    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], list(words[1:]))
    rest = next((v for v in context.params.values() if isinstance(v, list) and v), None)
    if words[0] in ("submit", "schedule") and rest:
        known_flags(rest)


def commands() -> list[list[str]]:
    texts = [file.read_text() for file in [*INFRA.glob("*.md"), ROOT / "README.md"]]
    texts += [(overlay / "kustomization.yaml").read_text() for overlay in OVERLAYS]
    found = [
        services["command"]
        for services in COMPOSE["services"].values()
        if str(services.get("image", "")).startswith("orbit") and "entrypoint" not in services
    ]
    for text in texts:
        text = text.replace("\\\n#", "").replace("\\\n", "")
        for line in re.findall(r"^(?:#\s+|\s{4}|\$ )?(?:\.venv/bin/)?orbit ([a-z].*)$", text, re.M):
            words = shlex.split(line.split("> ")[0].split(" && ")[0], comments=True)
            if not any("..." in word for word in words):
                found.append(words)
    return found


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_are_understood(words: list[str]) -> None:
    known_flags(words)


@pytest.mark.parametrize("file", manifests(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_manifests_are_valid(file: Path) -> None:
    for document in documents(file):
        validate(document)
        for text in document.get("data", {}).values():
            validate(yaml.safe_load(text))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_render_to_valid_hardened_pods(overlay: Path) -> None:
    found = rendered(overlay)
    for document in found:
        validate(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "orbit"
    for where, pod in pods(found):
        assert_hardened(where, pod)
    images = {c["image"] for _, pod in pods(found) for c in pod["containers"]}
    gpus = [
        container["resources"]["limits"].get("nvidia.com/gpu")
        for _, pod in pods(found)
        for container in pod["containers"]
    ]
    if overlay.name == "gpu":
        assert images == {"orbit:cuda"}
        assert gpus.count(1) == 1
    else:
        assert images == {"orbit:cpu"}
        assert set(gpus) == {None}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_nightly_manifest_is_what_schedule_prints(
    overlay: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import app
    from jobs.console import run

    text = (overlay / "kustomization.yaml").read_text()
    (told,) = re.findall(r"orbit (schedule .*?) > nightly.yaml", text, re.S)
    assert run(app, "orbit", shlex.split(told.replace("\\\n#", " "))) == 0
    assert capsys.readouterr().out == (overlay / "nightly.yaml").read_text(), "print it again"


def test_every_pod_is_reached_by_a_policy_and_rays_ports_by_few() -> None:
    policies = documents(INFRA / "kuberay" / "base" / "network-policies.yaml")
    default = next(p for p in policies if p["metadata"]["name"] == "nobody-by-default")
    assert default["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    selected = {
        p["spec"]["podSelector"]["matchLabels"]["orbit/part"]: p["spec"]
        for p in policies
        if "matchLabels" in p["spec"]["podSelector"]
    }
    labels = set()
    for file in manifests():
        for document in documents(file):
            bodies = [document, *(yaml.safe_load(t) for t in document.get("data", {}).values())]
            for template in pod_templates(bodies):
                labels.add(template["metadata"]["labels"]["orbit/part"])
    assert labels == set(selected) == {"ray", "runner", "server"}
    assert "ingress" not in selected["runner"]
    for rule in selected["ray"]["ingress"]:
        peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in rule["from"]]
        if {"orbit/part": "ray"} in peers:
            continue
        open_ports = {port["port"] for port in rule["ports"]}
        allowed = {8265} if {"app.kubernetes.io/name": "kuberay-operator"} in peers else set()
        assert not (open_ports & RAY_PORTS) - allowed
    for spec in selected.values():
        for rule in spec.get("ingress", []):
            assert rule["from"]


def test_no_file_holds_a_secret() -> None:
    for file in [*INFRA.rglob("*.yaml"), INFRA / "Dockerfile"]:
        text = file.read_text()
        for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET|TOKEN)\w*)[:=] *(\S+)", text):
            assert value.startswith(("${", "/run/secrets/")), (file, name)


def test_versions_are_the_pinned_ones() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    for overlay in OVERLAYS:
        text = (overlay / "nightly.yaml").read_text()
        assert f"ray=={re.findall(r'rayVersion: (.*)', text)[0]}\n" in constraints


def test_everything_that_is_asked_for_is_pinned() -> None:
    """`make audit` and `make sbom` tell of what is installed: one exact version of everything."""
    import tomllib

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==\d[\w.]*", pin, re.I) for pin in pins)
    pinned = {re.sub(r"[._]", "-", pin.partition("==")[0]).lower() for pin in pins}
    assert len(pinned) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(words for extra in extras.values() for words in extra)]
    names = {re.match(r"[\w.-]+", words)[0].lower() for words in asked}  # type: ignore[index]
    missing = {re.sub(r"[._]", "-", name) for name in names} - pinned
    assert missing <= {"faiss-gpu"}, missing  # it takes the place of faiss-cpu


def test_nothing_is_installed_that_keeps_ray_waiting() -> None:
    """jsonschema, which Ray imports, compiles this package's grammar at once: 2.4 s in each of the
    eight processes of a Ray. It comes with the tool of `make sbom`, which has a place of its own.
    """
    assert importlib.util.find_spec("rfc3987_syntax") is None


def test_compose_closes_what_it_can() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if str(service["image"]).startswith("orbit"):
            assert service["read_only"] is True, name
            assert service["environment"]["RAY_AUTH_MODE"] == "token", name
        else:
            assert re.search(r":[\w.\-]+@sha256:[0-9a-f]{64}$", service["image"]), name
        networks = set(service["networks"])
        assert networks == {"inside"} or name in ("store", "server"), name
        for needed in service.get("depends_on", {}):
            assert needed in COMPOSE["services"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    used = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    used |= {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert used == set(re.findall(r'echo "(\w+)=', (INFRA / "up").read_text()))
    assert "infra/.env\n" in (ROOT / ".gitignore").read_text()


def test_compose_variables_are_made_once(tmp_path: Path) -> None:
    """infra/up with a stand-in for docker."""
    shutil.copy(INFRA / "up", tmp_path / "up")
    (tmp_path / "docker").write_text("#!/bin/sh\necho docker $@\n")
    (tmp_path / "docker").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for _ in range(2):
        told = subprocess.run([tmp_path / "up"], env=environment, capture_output=True, text=True,
                              check=True)  # fmt: skip
        assert told.stdout.startswith("docker compose -f compose.yaml --env-file .env up")
        made = (tmp_path / ".env").read_text()
    lines = dict(line.split("=") for line in made.splitlines())
    assert all(len(value) == 64 for name, value in lines.items() if name != "S3_USER")
    assert (tmp_path / ".env").stat().st_mode & 0o77 == 0
    (tmp_path / "up").touch()
    assert (tmp_path / ".env").read_text() == made


def dockerfile() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (INFRA / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] not in "# "]


def stages() -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    name = ""
    for word, rest in dockerfile():
        if word == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = [[word, rest.split(" AS ")[0]]]
        elif name:
            found[name].append([word, rest])
    return found


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint") or Path(sys.executable).with_name("hadolint")
    told = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert told.returncode == 0, told.stdout


def test_the_image_copies_every_package_and_drops_root() -> None:
    found = stages()
    copied = {rest.split()[0] for word, rest in found["source"] if word == "COPY"}
    assert {"eqmodel", "pipelines", "jobs"} <= copied
    kept = (ROOT / ".dockerignore").read_text()
    for name in copied - {"constraints.txt"}:
        assert f"!{name}\n" in kept
    for target in ("cpu", "cuda"):
        chain = [target]
        while chain[-1] in found and found[chain[-1]][0][1] in found:
            chain.append(found[chain[-1]][0][1])
        assert chain == [target, "runtime", "base"]
        words = [line for stage in chain for line in found[stage]]
        assert ["USER", "10001:10001"] in words
        assert any(word == "HEALTHCHECK" for word, _ in words)
        installed = " ".join(rest for word, rest in words if word == "RUN")
        assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|make|cargo)\b", installed)
        assert "--from=build-" + target in " ".join(rest for _, rest in words)
    (base,) = [rest for word, rest in dockerfile() if word == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=python:[\w.\-]+@sha256:[0-9a-f]{64}", base)


def test_a_login_shell_finds_the_programs(tmp_path: Path) -> None:
    """The line that the image puts into /etc/profile.d, after a profile that sets PATH anew."""
    text = (INFRA / "Dockerfile").read_text()
    (line,) = re.findall(r"echo '(.+)' > /etc/profile.d/\w+.sh", text)
    (tmp_path / "profile").write_text(f"PATH=/usr/bin:/bin\n{line}\n")
    told = subprocess.run(["sh", "-c", '. "$0"; echo "$PATH"', tmp_path / "profile"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    (path,) = re.findall(r"PATH=(/\S+?):\$PATH \\\n", text)
    assert told.stdout == f"{path}:/usr/bin:/bin\n"


def test_extras_of_the_image_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for asked in re.findall(r"\.\[([\w,]+)\]", (INFRA / "Dockerfile").read_text()):
        assert set(asked.split(",")) <= set(extras)


@pytest.mark.parametrize("file", sorted((INFRA / "iam").glob("aws-*.json")), ids=lambda f: f.name)
def test_policies_give_what_is_needed_below_a_prefix(file: Path) -> None:
    allowed = {
        "aws-reader": {"s3:ListBucket", "s3:GetObject"},
        "aws-writer": {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"},
    }
    allowed["aws-cleaner"] = allowed["aws-writer"] | {"s3:DeleteObject"}
    document = json.loads(file.read_text())
    actions = set()
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        actions |= set(statement["Action"])
        for resource in statement["Resource"]:
            if statement["Action"] == ["s3:ListBucket"]:
                assert "PREFIX" in json.dumps(statement["Condition"])
            else:
                assert re.fullmatch(r"arn:aws:s3:::[A-Z]+-BUCKET/[A-Z]+-PREFIX/\*", resource)
    assert actions == allowed[file.stem]


def test_the_health_check_asks_servers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from jobs import health

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    serving = ["/opt/orbit/bin/python", "/opt/orbit/bin/orbit", "serve", "s3://x"]
    assert health.healthy([*serving, "--port", str(server.server_port)])
    assert health.healthy([*serving, f"--port={server.server_port}"])
    assert health.port_served(serving) == 8000
    server.shutdown()
    server.server_close()
    assert not health.healthy([*serving, "--port", str(server.server_port)])
    assert health.healthy(["/opt/orbit/bin/ray", "start", "--head"])


def test_seed_fills_a_fresh_store(s3_url: str) -> None:
    from jobs.seed import seed
    from pipelines.storage import Folder

    bucket = f"{s3_url}-seed"
    assert seed(f"{bucket}/sample", f"{s3_url}-other") == 5
    assert seed(f"{bucket}/sample", f"{s3_url}-other") == 0
    assert len(Folder(f"{bucket}/sample").entries()) == 5
    assert Folder(f"{s3_url}-other").exists()
