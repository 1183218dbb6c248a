"""The rules for ``MLmodel``: read as data, every key on a list, before anything is loaded.

MLflow's own loader follows ``loader_module``, ``code`` and ``pickle_module_name`` into files that the model
brings along, and does so even where pickle is switched off; so these three may say one thing only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from promotion_gate.core.errors import ArtifactError

MAX_MANIFEST_BYTES = 1 << 20
MAX_SCALAR_CHARACTERS = 100_000
MAX_NODES = 50_000
STOCK_PICKLE_MODULE = "mlflow.pytorch.pickle_module"


def _anything(value: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    return not value


def _exactly(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def _environment(value: Any) -> bool:
    if isinstance(value, dict):
        return dict(value).items() <= {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}.items()
    return value in (None, "conda.yaml")


def _device_only(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and value.keys() <= {"device"} and isinstance(value.get("device"), str | None)
    )


_TOP: Mapping[str, Callable[[Any], bool]] = {
    "artifact_path": _anything,
    "auth_policy": _nothing,
    "databricks_runtime": _anything,
    "env_vars": _anything,
    "flavors": lambda value: isinstance(value, dict),
    "is_signature_from_type_hint": _nothing,
    "metadata": lambda value: value is None or isinstance(value, dict),
    "mlflow_version": _anything,
    "model_id": _anything,
    "model_size_bytes": _anything,
    "model_uuid": _anything,
    "prompts": _nothing,
    "resources": _nothing,
    "run_id": _anything,
    "saved_input_example_info": _anything,
    "signature": lambda value: value is None or isinstance(value, dict),
    "type_hint_from_example": _nothing,
    "utc_time_created": _anything,
}

_FLAVORS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "pytorch": {
        "code": _exactly(None),
        "extra_files": _anything,
        "model_data": _exactly("data"),
        "pytorch_version": lambda value: isinstance(value, str),
        "requirements_file": _anything,
    },
    "python_function": {
        "code": _exactly(None),
        "config": _device_only,
        "data": _exactly("data"),
        "env": _environment,
        "loader_module": _exactly("mlflow.pytorch"),
        "pickle_module_name": _exactly(STOCK_PICKLE_MODULE),
        "python_version": lambda value: isinstance(value, str),
        "streamable": _anything,
    },
}

_MUST_HAVE = {"pytorch": ("model_data",), "python_function": ("loader_module", "data")}


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Read ``MLmodel`` as plain YAML data; see :func:`parse_yaml`."""
    return parse_yaml(content, "MLmodel")


def parse_yaml(content: bytes, name: str) -> dict[str, Any]:
    """Read a YAML file called ``name`` as plain data.

    Raises
    ------
    ArtifactError: too large, not YAML, not a table, written with aliases (a few of which can unfold to
    gigabytes), or with a key twice (of which readers take one or the other).
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise yaml.YAMLError(f"it holds more than {MAX_NODES:,} values")
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not accepted")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) != len(keys):
                raise yaml.YAMLError("a key is there twice")
            return super().construct_mapping(node, deep)

        def construct_scalar(self, node: Any) -> Any:
            if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_SCALAR_CHARACTERS:
                raise yaml.YAMLError(f"a value is longer than {MAX_SCALAR_CHARACTERS:,} characters")
            return super().construct_scalar(node)

    if len(content) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{name} is larger than {MAX_MANIFEST_BYTES:,} bytes", "is it a manifest?")
    try:
        table = yaml.load(content.decode("utf-8"), Loader=PlainLoader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError) as error:
        what = "".join(char if char.isprintable() else " " for char in str(error))
        raise ArtifactError(f"{name} cannot be read: {what[:200]}", "log the model again") from None
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ArtifactError(f"{name} is not a table of keys", "log the model again")
    return table


def manifest_violations(manifest: Mapping[str, Any], *, needs_flavor: bool) -> Iterator[str]:
    """Every key of ``MLmodel`` that is not on the list or says something it may not."""
    yield from _table_violations("MLmodel", manifest, _TOP)
    flavors = manifest.get("flavors")
    if not isinstance(flavors, dict):
        return
    for name, flavor in flavors.items():
        where = f"MLmodel: flavors.{name}"
        if name not in _FLAVORS:
            yield f"{where}: only the flavors pytorch and python_function are accepted"
        elif not isinstance(flavor, dict):
            yield f"{where}: is not a table"
        else:
            yield from _table_violations(where, flavor, _FLAVORS[name])
            for key in _MUST_HAVE[name]:
                if key not in flavor:
                    yield f"{where}.{key}: missing"
    if needs_flavor and "pytorch" not in flavors:
        yield "MLmodel: flavors.pytorch is missing: only PyTorch models can be examined"


def _table_violations(
    where: str, table: Mapping[Any, Any], allowed: Mapping[str, Callable[[Any], bool]]
) -> Iterator[str]:
    for key, value in table.items():
        if key not in allowed:
            yield f"{where}: key {str(key)[:60]!r} is not accepted"
        elif not allowed[key](value):
            yield f"{where}.{key}: {str(value)[:80]!r} is not accepted"
