"""The units, the manifest and the workflows: valid, confined, and calling commands that there are."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from promotion_gate import cli

GITHUB = Path(__file__).parents[1] / ".github"
EXAMPLES = GITHUB / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))
UNITS = sorted(EXAMPLES.glob("*.service"))
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
BROKEN_WITH_BUBBLEWRAP = {"ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "RestrictNamespaces"}


def understood(words):
    """What the command line makes of the words after the program's name; it exits on unknown ones."""
    return vars(cli._parser().parse_args(words))


def settings(unit):
    """The settings of a unit file, comments and continued lines aside."""
    lines = (line for line in unit.read_text().splitlines() if not line.startswith(("#", "[")))
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def documents(manifest):
    return [document for document in yaml.safe_load_all(manifest.read_text()) if document]


def pods(manifest):
    for document in documents(manifest):
        spec = document["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield document["metadata"]["name"], spec["template"]["spec"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_call_commands_that_there_are(unit):
    words = shlex.split(settings(unit)["ExecStart"].replace("${", "$(").replace("%I", "signs"))
    assert words[0] == "/opt/promotion-gate/bin/promotion-gate"
    assert understood(words[1:])["command"] == unit.stem.removeprefix("promotion-gate-").removesuffix("@")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_are_confined_and_leave_bubblewrap_its_namespaces(unit):
    told = settings(unit)
    needed = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes"}
    assert {key: told.get(key) for key in needed} == needed
    assert told["CapabilityBoundingSet"] == ""
    if "listen" in unit.stem:
        assert not BROKEN_WITH_BUBBLEWRAP & told.keys()
        assert "AF_NETLINK" in told["RestrictAddressFamilies"]  # bubblewrap brings the loopback up by it


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_units_are_valid_for_systemd(tmp_path):
    for file in (*UNITS, *EXAMPLES.glob("*.timer")):
        # The verifier insists on the program's being there.
        text = file.read_text().replace("/opt/promotion-gate/bin/promotion-gate", shutil.which("true"))
        (tmp_path / file.name.replace("@", "@signs")).write_text(text)
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "promotion-gate" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_valid_for_kubernetes(manifest):
    found = documents(manifest)
    assert found
    for document in found:
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_the_pods_are_confined_and_call_commands_that_there_are():
    found = dict(pods(EXAMPLES / "promotion-gate-kubernetes.yaml"))
    assert set(found) == {"promotion-gate-listen", "promotion-gate-monitor"}
    for name, pod in found.items():
        (container,) = pod["containers"]
        program, *words = container["command"]
        assert program == "promotion-gate"
        assert understood(words)["command"] == name.removeprefix("promotion-gate-")
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        context = container["securityContext"]
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for variable in container["env"]:  # no secret stands in the manifest
            assert "PASSWORD" not in variable["name"] or "secretKeyRef" in variable["valueFrom"]
    (listen,) = found["promotion-gate-listen"]["containers"]
    asked = understood(listen["command"][1:])
    assert listen["ports"] == [{"name": "http", "containerPort": asked["port"]}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert listen[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_commands_that_there_are(workflow):
    steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if "run" in step]
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "${{" not in script  # what others wrote reaches a shell by the environment alone
    calls = re.findall(r"\.venv/bin/promotion-gate (.*)", "\n".join(scripts).replace("\\\n", ""))
    assert calls
    for call in calls:
        words = shlex.split(call.partition(" || ")[0].replace("$version", "signs/1"))
        assert understood(words)["command"] in ("run", "approve", "scan", "posture", "drill")


@pytest.mark.parametrize("name", ["gate-candidate", "promote-on-merge"])
def test_proposed_versions_are_read_strictly(name):
    script = (GITHUB / "workflows" / f"{name}.yml").read_text()
    (pattern,) = re.findall(r"grep -qxE '([^']+)'", script)

    def taken(line):
        return subprocess.run(["grep", "-qxE", pattern], input=line + "\n", text=True).returncode == 0

    assert taken("traffic-signs/7")
    assert taken("Signs of 2026_v1.0/12")
    for line in (
        "",
        "signs",
        "signs/x",
        "signs/1/2",
        "signs@production",
        "$(id)/1",
        "a;b/1",
        "signs/1 ",
        "a\tb/1",
    ):
        assert not taken(line)
