"""The data file of known loaders: read, checked, and made quick to ask."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from promotion_gate.core.errors import UsageError

Kind = Literal["data set", "download", "request", "object store", "table", "verified load"]
UNNAMED = "?"
"""The last part of a dotted name that is only known at run time: ``getattr(module, name)``."""
_MAX_BYTES = 1 << 20


def _compilable(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Regex = Annotated[str, AfterValidator(_compilable)]
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    match: Names
    kind: Kind = "data set"
    pin: Sequence[str] = ()
    hash: Sequence[str] = ()
    pinned_by: str = ""
    hash_by: str = ""
    home: str = ""


class Loader(_Rule):
    """A Python function or class that brings data in."""

    except_: Sequence[str] = Field((), alias="except")
    when: Literal["always", "url", "context", "sink"] = "always"
    name: Sequence[str] = ()
    strip: str = ""
    url: str = ""
    version_in_name: Regex = ""
    floating: Sequence[str] = ()
    packaged: Sequence[str] = ()
    files: Sequence[str] = ()
    local_option: str = ""
    optional: bool = False


class CommandRule(_Rule):
    """A command of a shell that brings data in."""

    when: Literal["always", "remote", "http", "host"] = "always"
    operand: Literal["first", "any", "none"] = "first"
    value: Sequence[str] = ()
    input: Sequence[str] = ()
    unless: Sequence[str] = ()
    sends: Sequence[str] = ()
    query: Sequence[str] = ()
    kept_as: Sequence[str] = ()
    keep: Sequence[str] = ()
    address: str = ""
    address_has: Sequence[str] = ()


class Context(BaseModel):
    """What tells data from other traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_suffixes: Sequence[str] = ()
    sinks: Sequence[str] = ()
    installers: Sequence[str] = ()
    installing: Sequence[str] = ()
    shell_calls: Sequence[str] = ()


class DockerAdd(BaseModel):
    """Docker's ADD."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "docker ADD"
    hash: Sequence[str] = ()


class YamlInput(BaseModel):
    """Addresses that stand in a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "pipeline input"
    outputs: Sequence[str] = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1] = Field(1, alias="schema")
    canonical: Mapping[str, str] = {}
    context: Context = Context()
    python: Sequence[Loader] = ()
    command: Sequence[CommandRule] = ()
    dockerfile: DockerAdd = DockerAdd()
    yaml: YamlInput = YamlInput()


class Sources:
    """Every known loader. Of two rules for one name the first holds, and a user's file comes first."""

    def __init__(self, parts: Sequence[_File]) -> None:
        self.loaders = [rule for part in parts for rule in part.python]
        self.commands = [rule for part in parts for rule in part.command]
        self.dockerfile = parts[-1].dockerfile
        self._canonical = {old: new for part in reversed(parts) for old, new in part.canonical.items()}
        contexts = [part.context for part in parts]
        self.data_suffixes = tuple({s.lower() for c in contexts for s in c.data_suffixes})
        self.sinks = frozenset(s for c in contexts for s in c.sinks)
        self.installers = tuple({s for c in contexts for s in c.installers})
        self.installing = frozenset(s for c in contexts for s in c.installing)
        self.shell_calls = frozenset(s for c in contexts for s in c.shell_calls)
        self.yaml_family = parts[-1].yaml.family
        self.yaml_outputs = frozenset(key for part in parts for key in part.yaml.outputs)
        self._known: dict[str, Loader | None] = {}
        self._by_root: dict[str, list[tuple[re.Pattern[str], str, Loader]]] = {}
        for rule in self.loaders:
            for pattern in rule.match:
                root = pattern.partition(".")[0]
                parent = pattern.rpartition(".")[0]
                self._by_root.setdefault(root, []).append((_dotted(pattern), parent, rule))
        self._command_words: dict[str, list[tuple[tuple[str, ...], CommandRule]]] = {}
        for command in self.commands:
            for pattern in command.match:
                words = tuple(pattern.split())
                self._command_words.setdefault(words[0], []).append((words, command))

    def canonical(self, dotted: str) -> str:
        """The one spelling of a dotted name that rules are written for."""
        for old, new in self._canonical.items():
            if dotted.startswith(old) and (len(dotted) == len(old) or dotted[len(old)] in ".("):
                return new + dotted[len(old) :]
        return dotted

    def loader(self, dotted: str) -> Loader | None:
        """The rule for a dotted name, if it brings data in."""
        try:
            return self._known[dotted]
        except KeyError:
            found = self._known[dotted] = self._find(dotted)
            return found

    def _find(self, dotted: str) -> Loader | None:
        parent, _, last = dotted.rpartition(".")
        if not parent:
            return None
        for pattern, of, rule in self._by_root.get(dotted.partition(".")[0], ()):
            if last == UNNAMED:
                if of == parent and (rule.when != "always" or "*" in "".join(rule.match)):
                    return rule
            elif pattern.fullmatch(dotted):
                return None if last in rule.except_ else rule
        return None

    def command(self, words: Sequence[str]) -> tuple[tuple[str, ...], CommandRule] | None:
        """The rule for a command line, its words without options, and the words that matched."""
        for pattern, rule in self._command_words.get(words[0] if words else "", ()):
            rest = iter(words[: len(pattern) + 4])
            if all(any(word == want for word in rest) for want in pattern):
                return pattern, rule
        return None

    @property
    def command_names(self) -> frozenset[str]:
        return frozenset(self._command_words)

    @cached_property
    def python_triggers(self) -> re.Pattern[bytes]:
        """What the bytes of a Python file must hold for anything to be found in it."""
        roots = {root.encode() for root in self._by_root} | {
            n.partition(".")[0].encode() for n in self._canonical
        }
        calls = {name.partition(".")[0].encode() for name in self.shell_calls}
        words = b"|".join(map(re.escape, sorted(roots | calls)))
        return re.compile(
            rb"\b(?:" + words + rb")\b|get_ipython|__import__|import_module|\bexec\b|\beval\b|sys\.modules"
        )

    @cached_property
    def command_triggers(self) -> re.Pattern[str]:
        """What a shell text must hold for anything to be found in it."""
        words = "|".join(map(re.escape, sorted(self.command_names)))
        return re.compile(rf"(?<![\w.-])(?:{words})3?\b")


def _dotted(pattern: str) -> re.Pattern[str]:
    """A dotted pattern as a regular expression: ``*`` within a part, ``**`` across parts."""
    out = ""
    for piece in re.split(r"(\*\*|\*|\[A-Z\])", pattern):
        out += {"**": ".*", "*": r"[^.()\[\]]*", "[A-Z]": "[A-Z]"}.get(piece, re.escape(piece))
    return re.compile(out.replace(r".*\.", r".*\.?"))


def load_sources(extra: Sequence[Path] = ()) -> Sources:
    """The loaders that ship with the program, those of ``extra`` files before them.

    Raises
    ------
    UsageError: a file is missing, no TOML, or says something that means nothing.
    """
    shipped = Path(str(files("promotion_gate.provenance.scan"))) / "sources.toml"
    return Sources([*(_read(path) for path in extra), _read(shipped)])


def _read(path: Path) -> _File:
    try:
        if path.stat().st_size > _MAX_BYTES or not path.is_file():
            raise UsageError(f"{path} is no file of data sources", "it is a TOML file of at most 1 MiB")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return _File.model_validate(table)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {where}: {first['msg']}") from None
