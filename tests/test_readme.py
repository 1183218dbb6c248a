"""README says what the program says: commands, exit codes, policy keys, checks, metrics and options."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from promotion_gate.checks.registry import installed_checks
from promotion_gate.cli import EXIT_CODES, main
from promotion_gate.core.policy import Bound, CheckPolicy, Policy
from promotion_gate.detect.accuracy import accuracy_markdown, accuracy_table
from promotion_gate.drill.attacks import AnyAttack

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITHOUT_REGISTRY = {"demo", "init", "validate", "audit-sample"}
EVERYWHERE = {"--tracking-uri", "--registry-uri"}


def rows(heading):
    """The cells of every table row under a heading, without the header rows."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert section, f"README has no heading {heading!r}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    ruled = [i for i, line in enumerate(lines) if set(line) <= set("|-: ")]
    heads = {i - 1 for i in ruled} | set(ruled)
    return [
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        for i, line in enumerate(lines)
        if i not in heads
    ]


def help_of(capsys, *command):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def commands(capsys, *group):
    """Every command with its one-line description; those of a group are called ``group command``."""
    listed = dict(re.findall(r"^    ([a-z-]+)\s+(\S.*)$", help_of(capsys, *group), re.MULTILINE))
    found = {}
    for name, what in listed.items():
        path = (*group, name)
        is_group = " ...\n" in help_of(capsys, *path).split("\n\n")[0] + "\n"
        found |= commands(capsys, *path) if is_group else {" ".join(path): what}
    return found


def test_the_command_table_is_that_of_help(capsys):
    told = {}
    for call, what, options in rows("Commands"):
        name = re.fullmatch(r"`promotion-gate ([a-z-]+(?: [a-z-]+)*)[^`]*`", call)[1]
        told[name] = (what, set(re.findall(r"--[a-z-]+", call + options)))
    expected = {}
    for name, what in commands(capsys).items():
        options = set(re.findall(r"--[a-z-]+", help_of(capsys, *name.split()))) - {"--help"}
        asks_the_registry = options >= EVERYWHERE
        expected[name] = (what, options - EVERYWHERE if asks_the_registry else options)
    assert len(expected) > 5
    assert told == expected


def test_every_command_shown_in_a_block_exists(capsys):
    known = commands(capsys)
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", README, re.DOTALL))
    shown = re.findall(r"\bpromotion-gate ((?:drill |dbom |vendor |alerts )?[a-z][a-z-]*)", blocks)
    assert shown
    assert set(shown) <= known.keys()
    options = set(re.findall(r"(?<!\S)(--[a-z-]+)", "\n".join(re.findall(r"promotion-gate .*", blocks))))
    every = {o for name in known for o in re.findall(r"--[a-z-]+", help_of(capsys, *name.split()))}
    assert options <= every


def test_every_attack_is_told():
    told = {kind.strip("`") for kind, *_ in rows("Attacks")}
    kinds = get_args(get_args(AnyAttack)[0])
    assert told == {kind.model_fields["kind"].default for kind in kinds}


def test_the_exit_codes_are_those_of_help():
    told = {int(code.strip("`")): what for code, what in rows("Exit codes")}
    listed = {int(code): what for code, what in re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE)}
    assert {code: what for code, what in told.items() if code != 1} == listed


def toml(value):
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def keys(model, prefix=""):
    """Every key of a policy table with its default, tables inside it followed."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if field.exclude:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        elif name == "checks":
            yield from keys(CheckPolicy, "checks.NAME.")
        elif name == "bounds":
            yield from keys(Bound, f"{prefix}bounds.METRIC.")
        elif name == "options":
            yield f"`{prefix}options`", "none"
        else:
            yield f"`{prefix}{name}`", "required" if field.is_required() else toml(field.default)


def test_every_policy_key_is_told_with_its_default():
    assert [row[:2] for row in rows("Policy keys")] == list(keys(Policy))


def test_every_metric_is_told():
    expected = [
        (f"`{name}`", f"`{metric}`", what)
        for name, check in installed_checks().items()
        for metric, what in check.metrics.items()
    ]
    assert rows("Checks and their metrics") == expected


def test_every_option_is_told_with_its_default():
    expected = [
        (f"`{name}`", f"`{option}`", toml(field.default))
        for name, check in installed_checks().items()
        for option, field in check.options_type.model_fields.items()
    ]
    assert rows("Options of the checks") == expected


def test_the_accuracy_shown_is_that_of_the_table():
    shown = re.search(r"<!-- accuracy -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert shown[1] == accuracy_markdown(accuracy_table())


def test_every_file_it_points_to_is_there():
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert ".github/card.webp" in targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "lint", "bench"} <= named <= targets
