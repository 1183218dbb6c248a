"""What a model may ask a server to install: packages by name, and PyTorch's own index."""

import pytest

from promotion_gate.evidence.environment import environment_violations


def told(name, text):
    return list(environment_violations(name, text.encode()))


@pytest.mark.parametrize(
    "line",
    [
        "mlflow==3.17.2",
        "torch==2.13.0+cpu",
        "numpy>=2,<3",
        "uvicorn[standard] ~= 0.30 ; python_version >= '3.11'",
        "# a comment",
        "",
        "-c constraints.txt",
        "--extra-index-url https://download.pytorch.org/whl/cpu",
    ],
)
def test_packages_by_name_are_accepted(line):
    assert told("requirements.txt", line) == []
    if not line.startswith(("#", "-c")) and line:
        assert told("python_env.yaml", f"dependencies:\n- {line!r}") == []


@pytest.mark.parametrize(
    "line",
    [
        "--extra-index-url https://evil.example/simple",
        "--extra-index-url https://download.pytorch.org.evil.example/whl",
        "--extra-index-url https://download.pytorch.org@evil.example/whl",
        "--extra-index-url https://download.pytorch.org/whl/../../evil",
        "--extra-index-url http://download.pytorch.org/whl/cpu",
        "--index-url https://download.pytorch.org/whl/cpu",
        "--extra-index-url https://download.pytorch.org/whl/cpu --trusted-host x",
        "-e .",
        "git+https://github.com/a/b",
        "x @ file:///tmp/x.whl",
        "./wheel.whl",
        "-r https://evil.example/requirements.txt",
        "x" * 2000,
    ],
)
def test_anything_else_is_named(line):
    (said,) = told("requirements.txt", line)
    assert "is no package by name" in said
    assert told("conda.yaml", f"dependencies:\n- pip:\n  - {line!r}") == [said]
