"""The pipelines of a repository: their steps in order, and which of them validate data or train."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import yaml

from promotion_gate.provenance.posture.deeds import trainings, validations
from promotion_gate.provenance.scan.files import DOCKERFILE, JENKINSFILE, MAKEFILE, NOTEBOOK, YAML, SourceFile
from promotion_gate.provenance.scan.pipeline import Document, Scalar, read_yaml
from promotion_gate.provenance.scan.recipes import JENKINS_STEP

VALIDATES, TRAINS = "validates", "trains"
_IMPORTING = re.compile(r"(?m)^[ \t]*(?:import|from)[ \t]")
_FORGIVEN = re.compile(r"\|\|\s*(?:true|:|exit\s+0|echo\b)|;\s*true\b")
_CALLED = re.compile(r"(?<![\w./-])(?:\./)?((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|bash|ipynb))\b")
_MODULE = re.compile(r"\bpython3?\s+-m\s+([A-Za-z_][\w.]*)")
_MAKE = re.compile(r"\bmake\s+(?:-\S+\s+)*([\w./-]+)")
_STEP_KEYS = frozenset(
    [
        "run",
        "script",
        "before_script",
        "after_script",
        "command",
        "commands",
        "args",
        "cmd",
        "entrypoint",
        "source",
        "sh",
        "bash",
        "inlinescript",
        "uses",
        "program",
    ]
)
_CI = re.compile(
    r"(?:.*/)?(?:\.github/workflows/[^/]+\.ya?ml|\.github/actions/.*action\.ya?ml|\.gitlab-ci\.ya?ml|\.gitlab/.*\.ya?ml"
    r"|\.circleci/config\.ya?ml|azure-pipelines[^/]*\.ya?ml|bitbucket-pipelines\.ya?ml|\.travis\.ya?ml|\.drone\.ya?ml"
    r"|cloudbuild[^/]*\.ya?ml|buildspec[^/]*\.ya?ml|appveyor\.ya?ml|\.buildkite/.*\.ya?ml|\.woodpecker.*\.ya?ml"
    r"|\.tekton/.*\.ya?ml|MLproject|dvc\.ya?ml)",
)
CI_WORKFLOW = "CI workflow"
_KINDS = {"MLproject": "MLflow project", "dvc.yaml": "DVC pipeline"}
_KUBE = re.compile(
    r"^kind:\s*(?:Workflow|CronWorkflow|WorkflowTemplate|Pipeline|PipelineRun|Task|Job|CronJob|PyTorchJob|TFJob"
    r"|ClusterWorkflowTemplate|RayJob|MPIJob)\b|^[ \t]*schemaVersion:\s*['\"]?2\."
    r"|^deploymentSpec:|^pipelineInfo:",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """Text that a pipeline runs: where it stands, its job, and whether its failure is let pass."""

    text: str
    path: str
    line: int
    job: str = ""
    forgiven: bool = False


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as far as its file tells: steps in order, and for each job those it waits for."""

    path: str
    kind: str
    steps: Sequence[Step]
    waits_for: dict[str, set[str]] = field(default_factory=dict)
    ordered: bool = True
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Mention:
    """A place that trains or validates: ``order`` of its step, file and line, and the words that tell."""

    order: int
    job: str
    path: str
    line: int
    words: str


class Repository:
    """The source files by path, and what a step calls among them."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.files = {file.path: file for file in files}
        self._texts: dict[str, str] = {}

    def text(self, path: str) -> str:
        if path not in self._texts:
            self._texts[path] = self.files[path].content.decode("utf-8", "replace")
        return self._texts[path]

    def called(self, text: str, base: str = "") -> list[str]:
        """The files of the repository that a command line names."""
        names = [m[1] for m in _CALLED.finditer(text)]
        for match in _MODULE.finditer(text):
            module = match[1].replace(".", "/")
            names += [f"{root}{module}{end}" for root in ("", "src/") for end in (".py", "/__main__.py")]
        near = [f"{base}{name}" for name in names] if base else []
        return list(dict.fromkeys(n for n in [*near, *names] if n in self.files))

    def make_recipes(self, text: str) -> Iterator[tuple[str, int, str]]:
        """The recipes of the targets that ``make`` is called for: file, line and text."""
        for target in dict.fromkeys(match[1] for match in _MAKE.finditer(text)):
            for path, file in self.files.items():
                if file.kind == MAKEFILE and "/" not in path:
                    yield from _recipe(self.text(path), path, target)


def _recipe(text: str, path: str, target: str) -> Iterator[tuple[str, int, str]]:
    inside = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("\t"):
            if inside:
                yield path, number, line.strip()
        elif line.strip() and not line.startswith("#"):
            inside = bool(re.match(rf"{re.escape(target)}\s*:(?!=)", line))


def find_pipelines(repository: Repository) -> list[Pipeline]:
    """Every pipeline: CI workflows, MLproject, Kubernetes and Kubeflow files, Jenkinsfiles."""
    found = []
    for path, file in repository.files.items():
        if file.kind == JENKINSFILE:
            steps = [
                Step(match[2], path, repository.text(path).count("\n", 0, match.start(2)) + 1)
                for match in JENKINS_STEP.finditer(repository.text(path))
            ]
            found.append(Pipeline(path, "Jenkins pipeline", steps))
        elif file.kind == YAML:
            text = repository.text(path)
            is_ci = bool(_CI.fullmatch(path))
            if is_ci or _KUBE.search(text):
                found.append(_yaml_pipeline(path, text, is_ci=is_ci))
    return found


def _yaml_pipeline(path: str, text: str, *, is_ci: bool) -> Pipeline:
    name = path.rpartition("/")[2]
    kind = _KINDS.get(name) or (CI_WORKFLOW if is_ci else "Kubernetes or Kubeflow pipeline")
    try:
        document = read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return Pipeline(path, kind, (), readable=False)
    forgiving = {
        s.owner
        for s in document.scalars
        if s.path
        and s.path[-1] in ("continue-on-error", "allow_failure", "continueOnError")
        and s.text == "true"
    }
    never = {
        s.owner for s in document.scalars if s.path and s.path[-1] == "if" and s.text.strip("${} ") == "false"
    }
    steps = [
        Step(
            s.text,
            path,
            s.line + s.block,
            _job(s),
            s.owner in forgiving or _job(s) in _jobs(document, forgiving),
        )
        for s in document.scalars
        if _is_step(s) and s.owner not in never
    ]
    jobs = list(dict.fromkeys(step.job for step in steps))
    waits = _waits(document, jobs)
    staged = _stages(document)
    if staged:
        steps.sort(key=lambda step: staged.get(step.job, len(staged)))
    ordered = bool(staged) or kind in ("MLflow project",) or len(jobs) <= 1
    return Pipeline(path, kind, steps, waits, ordered)


def _is_step(scalar: Scalar) -> bool:
    return any(key.lower() in _STEP_KEYS for key in scalar.path[-2:]) or any(
        at == 0 for at, _ in trainings(scalar.text)
    )


def _job(scalar: Scalar) -> str:
    path = scalar.path
    if path[:1] in (("jobs",), ("entry_points",), ("stages",)) and len(path) > 2:
        return path[1]
    if path[:2] == ("deploymentSpec", "executors") and len(path) > 3:
        return path[2].removeprefix("exec-")
    if len(path) >= 2 and path[0] not in ("spec", "steps", "apiVersion", "on"):
        return path[0]
    return ""


def _jobs(document: Document, owners: set[int]) -> set[str]:
    """Jobs that as a whole may fail."""
    return {
        _job(s)
        for s in document.scalars
        if s.owner in owners and _job(s) and "steps" not in s.path and s.path[-1:] != ()
    } - {""}


def _waits(document: Document, jobs: Sequence[str]) -> dict[str, set[str]]:
    """For each job those it waits for, directly or not."""
    direct: dict[str, set[str]] = {job: set() for job in jobs}
    for scalar in document.scalars:
        keys = scalar.path
        if keys[:1] == ("jobs",) and len(keys) == 3 and keys[2] == "needs":
            direct.setdefault(keys[1], set()).add(scalar.text)
        elif len(keys) >= 2 and keys[1] == "needs":
            direct.setdefault(keys[0], set()).add(scalar.text)
        elif "dependentTasks" in keys:
            direct.setdefault(keys[keys.index("dependentTasks") - 1], set()).add(scalar.text)
    for _ in jobs:
        before = sum(map(len, direct.values()))
        for waits in direct.values():
            waits |= {further for job in list(waits) for further in direct.get(job, ())}
        if sum(map(len, direct.values())) == before:
            break
    return direct


def _stages(document: Document) -> dict[str, int]:
    """GitLab's stage of each job, as a number."""
    order = {s.text: number for number, s in enumerate(s for s in document.scalars if s.path == ("stages",))}
    return {
        s.path[0]: order[s.text] for s in document.scalars if s.path[1:] == ("stage",) and s.text in order
    }


def mentions(pipeline: Pipeline, deed: str, repository: Repository) -> list[Mention]:
    """Where the steps of a pipeline, or the files they call, validate or train."""
    found = []
    for order, step in enumerate(pipeline.steps):
        if step.forgiven and deed == VALIDATES:
            continue
        for path, line, text in _texts(step, repository, called=deed == VALIDATES):
            place = next((p for p in _places(path, text, deed) if _counts(text, p[0], deed)), None)
            if place is not None:
                at = line + text.count("\n", 0, place[0])
                rank = min(place[0], 998) if path == step.path else 0  # a called file counts as its beginning
                found.append(Mention(order * 1000 + rank, step.job, path, at, place[1]))
    return found


def _places(path: str, text: str, deed: str) -> Iterator[tuple[int, str]]:
    if deed == TRAINS:
        yield from trainings(text)
        return
    if not path.endswith(".py"):
        yield from validations(text)
    if path.endswith(".py") or _IMPORTING.search(text):
        yield from validations(text, python=True)


def _texts(step: Step, repository: Repository, *, called: bool) -> Iterator[tuple[str, int, str]]:
    yield step.path, step.line, step.text
    base = step.path.rpartition("/")[0]
    for path, line, text in repository.make_recipes(step.text):
        yield path, line, text
    if called:
        for path in repository.called(step.text, f"{base}/" if base else ""):
            if repository.files[path].kind not in (DOCKERFILE, NOTEBOOK):
                yield path, 1, repository.text(path)


def _counts(text: str, at: int, deed: str) -> bool:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : end if end >= 0 else len(text)]
    return not (deed == VALIDATES and _FORGIVEN.search(line))
