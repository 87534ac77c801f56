"""Settings of a run out of a file: JSON, or YAML where PyYAML is installed (extra ``yaml``).

JSON needs no package and is what ``config.json`` is written in, so a run's own configuration is such a file. YAML is
what people write by hand, for its comments; that alone is no reason for every installation to have a package for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import types
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..optional import optional_module
from ..reading import parse_json, shown
from .config import TrainConfig

_JSON, _YAML = (".json",), (".yaml", ".yml")
_RUNS_OWN = "config.json"
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file, to be completed: ``TrainConfig(**{**read_settings("run.yaml"), "seed": 1})``.

    Args:
        path: a ``.json``, or a ``.yaml`` or ``.yml``: one object, of names of :class:`TrainConfig`'s fields (in which
            ``-`` and ``_`` are the same) and values. What is left out has the default, as has null
            where null is no value of the field (of ``out`` it means that nothing is written). Paths in it are, as on
            the command line, relative to the folder that the process runs in.

    Returns:
        Names and values, each of its field's type; of the ``config.json`` of a run all but its ``name``, for the run is
        there already.

    Raises:
        UserError: no such file, or not of these kinds; PyYAML is missing; a name that is no setting (the nearest are
            named) or is there twice; a value of another type. Their ranges are looked at by :class:`TrainConfig`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _JSON + _YAML:
        raise UserError(f"a configuration must be a .json, .yaml or .yml, got {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text in UTF-8") from error
    content = _from_json(text, path) if suffix in _JSON else _from_yaml(text, path)
    settings: dict[str, Any] = {}
    for given, value in content.items():
        name = _known_name(given, path)
        if name in settings:
            raise UserError(f"{path}: '{name}' is given twice")
        settings[name] = _checked(name, value, path)
    if path.name == _RUNS_OWN and settings.get("name") == path.absolute().parent.name:
        del settings["name"]
    return settings


def _from_json(text: str, path: Path) -> dict[Any, Any]:
    try:
        content = parse_json(text, object_pairs_hook=functools.partial(_unique, path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return _object(content, path)


def _unique(path: Path, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    content: dict[Any, Any] = {}
    for name, value in pairs:
        if name in content:
            raise UserError(f"{path}: '{name}' is given twice")
        content[name] = value
    return content


def _from_yaml(text: str, path: Path) -> dict[Any, Any]:
    yaml = optional_module("yaml", f"{path}: a configuration in YAML", "yaml", package="pyyaml")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
        """YAML 1.2's numbers, for 1.1's take 2e-4 for a text; no name twice."""

    def construct_unique(loader: Any, node: Any) -> dict[Any, Any]:
        pairs = loader.construct_pairs(node, deep=True)
        if not all(isinstance(name, Hashable) for name, _ in pairs):
            raise UserError(f"{path}: names of settings must be texts")
        return _unique(path, pairs)

    number = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:map", construct_unique)
    try:
        content = yaml.load(text, Loader)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} is not YAML: it is nested too deeply") from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: a date that is none, a number too long
        raise UserError(f"{path} is not YAML: {error}") from error
    return _object({} if content is None else content, path)


def _object(content: Any, path: Path) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold one object of names and values, got {type(content).__name__}"
        )
    return content


def _known_name(given: Any, path: Path) -> str:
    known = _types()
    name = str(given).replace("-", "_")
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"the settings are {', '.join(sorted(known))}"
    )
    raise UserError(f"{path}: unknown setting '{given}': {hint}")


@functools.cache
def _types() -> dict[str, tuple[type, ...]]:
    """Of each setting the types of its values, None's among them where that is one."""
    hints = typing.get_type_hints(TrainConfig)
    return {item.name: _members(hints[item.name]) for item in dataclasses.fields(TrainConfig)}


def _members(hint: Any) -> tuple[type, ...]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return tuple(kind for part in arguments for kind in _members(part))
    if origin is typing.Literal:
        return tuple(type(value) for value in arguments)
    return (origin or hint,)


def _checked(name: str, value: Any, path: Path) -> Any:
    allowed = _types()[name]
    if value is None and type(None) not in allowed:
        return TrainConfig.__dataclass_fields__[name].default
    if float in allowed and type(value) is int and abs(value) < 1 << 1000:
        return float(value)
    if type(value) in allowed:
        return value
    kind = " or ".join(_KINDS.get(kind, kind.__name__) for kind in allowed)
    raise UserError(f"{path}: '{name}' must be {kind}, got {_written(value)}")


def _written(value: Any) -> str:
    """As JSON has it, where it is short: aliases of YAML can make it longer than memory."""
    plain = value is None or isinstance(value, bool | float | str)
    return json.dumps(value)[:200] if plain else shown(value)
