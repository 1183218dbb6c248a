"""The pipelines of a repository: their steps in order, and which of them validate data or train."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import yaml

from promotion_gate.provenance.scan.files import DOCKERFILE, JENKINSFILE, MAKEFILE, NOTEBOOK, YAML, SourceFile
from promotion_gate.provenance.scan.pipeline import Document, Scalar, read_yaml

VALIDATES = re.compile(
    r"promotion-gate\s+(?:validate|dbom\s+(?:verify|coverage))|promotion_gate\.(?:open_dataset|verified_path)"
    r"|from\s+promotion_gate\s+import[^\n]*(?:open_dataset|verified_path)"
    r"|great_expectations|great-expectations|\bgx\s+checkpoint|\bimport\s+pandera|\bfrom\s+pandera|\bpandera\b"
    r"|tensorflow_data_validation|\btfdv\b|\bdeepchecks\b|\bcleanvision\b|\bsoda\s+scan|\bdbt\s+test"
    r"|frictionless\s+validate|\bevidently\b|\bpytest\b[^\n]*\bdata|\bsha(?:256|512)sum\b[^\n]*\s(?:-c|--check)\b"
    r"|(?:validate|verify|check)[-_]?(?:the[-_])?(?:data|dataset|input)s?\b|\bdata[-_](?:validation|check|quality|tests?)\b",
    re.IGNORECASE,
)
TRAINS = re.compile(
    r"\b(?:python3?|torchrun|accelerate\s+launch|deepspeed|horovodrun|uv\s+run|poetry\s+run|papermill|Rscript)\b"
    r"[^\n;&|]*(?:train|fit|finetun|fine[-_]tun)\w*"
    r"|\bmake\s+(?:\S+\s+)*(?:re)?train\b|\bdvc\s+(?:repro|exp\s+run)\b|\bmlflow\s+run\b|\blightning\s+fit\b"
    r"|\byolo\s+\w*\s*train\b|\b(?:\./)?[\w/.-]*train[\w-]*\.(?:sh|py)\b|\.fit\(",
    re.IGNORECASE,
)
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
    r"|ClusterWorkflowTemplate|RayJob|MPIJob)\b|^\s*schemaVersion:\s*['\"]?2\.|^deploymentSpec:|^pipelineInfo:",
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
        for match in _MAKE.finditer(text):
            for path, file in self.files.items():
                if file.kind == MAKEFILE and "/" not in path:
                    yield from _recipe(self.text(path), path, match[1])


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
                Step(match[2], path, repository.text(path).count("\n", 0, match.start()) + 1)
                for match in re.finditer(
                    r"\bsh\b[\s(]*('''|\"\"\"|'|\")(.*?)\1", repository.text(path), re.DOTALL
                )
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
    return any(key.lower() in _STEP_KEYS for key in scalar.path[-2:]) or bool(TRAINS.match(scalar.text))


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
        for waits in direct.values():
            waits |= {further for job in list(waits) for further in direct.get(job, ())}
    return direct


def _stages(document: Document) -> dict[str, int]:
    """GitLab's stage of each job, as a number."""
    order = {s.text: number for number, s in enumerate(s for s in document.scalars if s.path == ("stages",))}
    return {
        s.path[0]: order[s.text] for s in document.scalars if s.path[1:] == ("stage",) and s.text in order
    }


def mentions(pipeline: Pipeline, pattern: re.Pattern[str], repository: Repository) -> list[Mention]:
    """Where the steps of a pipeline, or the files they call, do what the pattern tells."""
    found = []
    for order, step in enumerate(pipeline.steps):
        if step.forgiven and pattern is VALIDATES:
            continue
        for path, line, text in _texts(step, repository, called=pattern is VALIDATES):
            match = next((m for m in pattern.finditer(text) if _counts(text, m, pattern)), None)
            if match is not None:
                at = line + text.count("\n", 0, match.start())
                found.append(
                    Mention(order * 1000 + _rank(step, match, path), step.job, path, at, match[0].strip())
                )
    return found


def _texts(step: Step, repository: Repository, *, called: bool) -> Iterator[tuple[str, int, str]]:
    yield step.path, step.line, step.text
    base = step.path.rpartition("/")[0]
    for path, line, text in repository.make_recipes(step.text):
        yield path, line, text
    if called:
        for path in repository.called(step.text, f"{base}/" if base else ""):
            if repository.files[path].kind not in (DOCKERFILE, NOTEBOOK):
                yield path, 1, repository.text(path)


def _rank(step: Step, match: re.Match[str], path: str) -> int:
    """Where within the step: by the position in its own text; a called file counts as its beginning."""
    return min(match.start(), 998) if path == step.path else 0


def _counts(text: str, match: re.Match[str], pattern: re.Pattern[str]) -> bool:
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    line = text[start : end if end >= 0 else len(text)]
    if line.lstrip().startswith(("#", "echo ", "//")):
        return False
    return not (pattern is VALIDATES and _FORGIVEN.search(line))
