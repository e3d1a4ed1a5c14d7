"""Recipes on disk and settings from flags -> checked objects, or one sentence about what is wrong."""

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from catalens.config.prompt import Frozen
from catalens.config.recipe import Recipe, suggestion
from catalens.errors import RecipeError

RENAMED = {
    "training.evaluations": "training.num_evals",
    "training.checkpoints": "training.num_checkpoints",
    "training.best_by": "training.metric_for_best_model",
}
"""Keys of version 0.1 that are read as their new names."""
RETIRED = {
    "training.liger": "left out: the layers are compiled instead, by training.compile",
    "training.picture_cache_gb": "left out: decoded pictures are kept as far as memory allows",
}
"""Keys of version 0.1 that are read over, and why."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.key=value` overrides, whose values are read as YAML.

    Raises RecipeError with one sentence that names the file, the key and the fix.
    """
    return make_recipe(_mapping(path), overrides, source=str(path))


def load_resolved(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe of a run, which says everything; RecipeError as in `load_recipe`.

    One that does not is of an earlier version, whose numbers were read by their mode.
    """
    return make_recipe({"number": {"estimate": "mode"}} | _mapping(path), overrides, source=str(path))


def _mapping(path: Path | str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8; give the path of a recipe") from error
    data = _read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping such as `catalog: catalogs/demo`")
    return data


def make_recipe(data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe, after overrides; RecipeError as in `load_recipe`.

    Keys of earlier versions are read as what they are called now, with a FutureWarning.
    """
    merged = _renamed(data, source)
    for override in overrides:
        merged = _renamed(_override(merged, override), f"--set {override}")
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from error


SettingsT = TypeVar("SettingsT", bound=Frozen)


def from_flags(settings: type[SettingsT], flags: Mapping[str, Any]) -> SettingsT:
    """Settings out of a command's flags, each that of its name, also within nested settings; None is the default.

    What no setting is called is left out. Raises RecipeError that names the flag.
    """

    def named(kind: type[Frozen]) -> dict[str, Any]:
        nested = {name: field.annotation for name, field in kind.model_fields.items()}
        values = {name: flags[name] for name in nested if flags.get(name) is not None}
        inner = {name: own for name, own in nested.items() if isinstance(own, type) and issubclass(own, Frozen)}
        return {name: named(own) for name, own in inner.items()} | values

    try:
        return settings.model_validate(named(settings))
    except ValidationError as error:
        raise RecipeError(f"flags: {_explain(error)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load_recipe` reads back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _renamed(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Copy a recipe's mapping with the keys of earlier versions under their names of today."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    for old, now in (RENAMED | RETIRED).items():
        group, key = old.split(".")
        if not isinstance(keys := merged.get(group), dict) or key not in keys:
            continue
        value = keys.pop(key)
        if old in RENAMED:
            keys[now.removeprefix(f"{group}.")] = value
        warnings.warn(f"{source}: {old} is {'now ' if old in RENAMED else ''}{now}", FutureWarning, stacklevel=3)
    return merged


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error; PyYAML would keep the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # besides YAMLError: all that int(), datetime() and deep nesting raise
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and mark.line else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{source}{line}: not valid YAML ({reason})") from error


def _override(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as key.key=value, such as training.epochs=3")
    parsed = _read_yaml(value, f"--set {override}")
    if isinstance(parsed, str) and (number := _scientific(parsed)) is not None:
        parsed = number
    result = dict(data)
    node = result
    for part in parts[:-1]:
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, Mapping):
            raise RecipeError(f"--set {override}: {part!r} is a value, not a group of keys")
        node[part] = dict(child)
        node = node[part]
    node[parts[-1]] = parsed
    return result


def _scientific(text: str) -> float | None:
    """YAML 1.1 reads `1e-4` as a string; people mean a number."""
    try:
        return float(text) if "e" in text.lower() else None
    except ValueError:
        return None


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    places = [problem["loc"] for problem in problems]
    # a list whose item is wrong is reported a second time, as too short
    problems = [p for p in problems if not any(len(o) > len(n := p["loc"]) and o[: len(n)] == n for o in places)]
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelt key is missing, too
    sentences = [_explain_one(problem) for problem in problems[:3]]
    if len(problems) > 3:
        sentences.append(f"and {len(problems) - 3} more")
    return "; ".join(sentences)


def _explain_one(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        return f"unknown key {place!r}{suggestion(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"key {place!r} is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    message = (message[:1].lower() + message[1:]).replace("tuple", "list")
    if problem["type"] == "model_type":
        message = "should be a group of keys"
    where = f"{place}: " if place else ""
    return where + message + ("" if problem["type"] == "value_error" else f", not {_BRIEF.repr(problem['input'])}")


_BRIEF = reprlib.Repr()  # what stands in a recipe may be huge, or hold itself
_BRIEF.maxlevel, _BRIEF.maxstring = 2, 60


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys that are known at a place of the recipe, for suggestions."""
    schema = Recipe.model_json_schema()
    node: Any = schema
    for part in location:
        node = node["items"] if isinstance(part, int) else node.get("properties", {}).get(part, {})
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
