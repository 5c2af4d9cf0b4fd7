"""What infra/ says must fit the program: verbs, flags, package data, and no secret inside."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
MANIFESTS = sorted(INFRA.rglob("*.yaml"))


def commands() -> list[list[str]]:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    job = yaml.safe_load((INFRA / "kuberay" / "rayjob.yaml").read_text())
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    assert entrypoint[:2] == ["python", "-m"]
    verb = entrypoint[2].removeprefix("jobs.")
    cron = re.findall(r"orbit (run .*?) >>", (INFRA / "README.md").read_text())
    return [
        compose["services"]["nightly"]["command"],
        [verb, *entrypoint[3:]],
        shlex.split(cron[0]),
    ]


@pytest.mark.parametrize("command", commands(), ids=lambda c: c[0])
def test_commands_are_understood(command: list[str]) -> None:
    from typer.main import get_command

    from jobs.cli import app

    verb = get_command(app).commands[command[0]]  # type: ignore[attr-defined]
    known = {name for parameter in verb.params for name in parameter.opts}
    assert {part for part in command[1:] if part.startswith("--")} <= known


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda p: p.name)
def test_manifests_parse_and_hold_no_secret(manifest: Path) -> None:
    text = manifest.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET|TOKEN)\w*): (\S+)", text):
        assert value.startswith("${"), name


def test_the_ray_version_is_the_pinned_one() -> None:
    job = yaml.safe_load((INFRA / "kuberay" / "rayjob.yaml").read_text())
    constraints = (INFRA.parent / "constraints.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in constraints


def test_the_image_copies_every_package_and_drops_root() -> None:
    text = (INFRA / "Dockerfile").read_text()
    for package in ("eqmodel", "pipelines", "jobs"):
        assert f"COPY {package} {package}" in text
    assert "\nUSER orbit\n" in text
