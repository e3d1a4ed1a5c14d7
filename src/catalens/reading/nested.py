"""Values inside nested cells, named by a path from their column.

    item_name[0].value                   of  {"item_name": [{"language_tag": "en_US", "value": "Rivet Sofa"}, ...]}
    item_name[language_tag=en_US].value  the first object whose `language_tag` is `en_US`
    dimensions.width.value               of  {"dimensions": {"width": {"value": 12.5, "unit": "cm"}}}
    item_group_id|id                     the first of several that holds something
    Parent|SKU|id:{ID}                   with words before it: the product that WooCommerce calls `id:10`

A column that is itself called like that is meant before a path. And a row that is a chat about a picture, as LLaVA
and OpenAI store them, has the fields of its answer:

    {"image": "a.jpg", "conversations": [..., {"from": "gpt", "value": "Product: Scarf, Price: 5"}]}
      ->  {"image": "a.jpg", ..., "Product": "Scarf", "Price": "5"}
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catalens.catalog.values import is_missing

STEP = re.compile(r"\.(?P<key>[^.|\[\]]+)|\[(?P<index>\d+)\]|\[(?P<name>[^\]=]+)=(?P<value>[^\]]*)\]")
PREFIXED = re.compile(r"([^{}]+)\{([^{}]+)\}")
MAX_DEPTH = 4
FIELD = re.compile(r"\s*([^\W\d_][^:,\n]{0,40}): (.*?)(?=,\s+[^\W\d_][^:,\n]{0,40}: |\n|$)\s*,?", re.DOTALL)
"""A label and its value in an answer."""


def paths_in(name: str, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Columns and the paths inside them that a name stands for, the first one first; empty where one is not there."""
    parts = [name] if root_of(name, columns) else name.split("|")
    found = [_path_in(part, columns) for part in parts]
    return [] if None in found else [one for one in found if one]


def value_of(row: Mapping[Any, Any], paths: Sequence[tuple[str, str]]) -> Any:
    """The first value at one of the paths in a row that is none of nothing."""
    for root, path in paths:
        before = path[1:] if path.startswith("=") else ""
        value = row.get(root) if before else value_at(row.get(root), path)
        if not is_missing(value):
            return f"{before}{value}" if before else value
    return None


def _path_in(part: str, columns: Sequence[str]) -> tuple[str, str] | None:
    """A column and the path in it, or `=` and the words before its value."""
    if root := root_of(part, columns):
        return root, part[len(root) :]
    prefixed = PREFIXED.fullmatch(part)
    return (prefixed[2], f"={prefixed[1]}") if prefixed and prefixed[2] in columns else None


def root_of(name: str, columns: Sequence[str]) -> str | None:
    """The column that a name or path begins with; None where there is none."""
    if name in columns:
        return name
    beginnings = (column for column in columns if name.startswith((f"{column}.", f"{column}[")))
    return max((one for one in beginnings if _is_path(name[len(one) :])), key=len, default=None)


def value_at(cell: Any, path: str) -> Any:
    """The value at a path in a cell; None where the cell has none."""
    for step in STEP.finditer(path):
        cell = parsed(cell)
        if step["key"] is not None:
            cell = cell.get(step["key"]) if isinstance(cell, Mapping) else None
        elif not isinstance(cell, Sequence) or isinstance(cell, str | bytes):
            return None
        elif step["index"] is not None:
            cell = cell[int(step["index"])] if int(step["index"]) < len(cell) else None
        else:
            name, value = step["name"], step["value"]
            cell = next((one for one in cell if isinstance(one, Mapping) and str(one.get(name)) == value), None)
    return cell


def parsed(cell: Any) -> Any:
    """A list or object that a cell holds as JSON, or as Python prints it; any other cell as it is."""
    text = cell.strip() if isinstance(cell, str) else ""
    if text[:1] + text[-1:] in ("[]", "{}"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return cell


def paths_of(column: str, cells: Iterable[Any]) -> list[str]:
    """Paths to the plain values that most nested cells of a column have; itself where its cells are plain."""
    some = [parsed(cell) for cell in cells if cell is not None]
    return [column + path for path in _paths(some, MAX_DEPTH)] if some else [column]


def _paths(cells: Sequence[Any], depth: int) -> list[str]:
    lists = [cell for cell in cells if isinstance(cell, list)]
    objects = [cell for cell in cells if isinstance(cell, Mapping)]
    if depth and len(lists) * 2 > len(cells):
        items = [item for cell in lists for item in cell]
        languages = [
            next((key for key in item if "lang" in key), None) if isinstance(item, Mapping) else None
            for item in items
        ]
        if items and all(languages) and len(set(languages)) == 1:
            key = languages[0]
            language = Counter(str(item[key]) for item in items).most_common(1)[0][0]
            spoken = [item for item in items if str(item[key]) == language]
            return [f"[{key}={language}]{path}" for path in _paths(spoken, depth - 1)]
        return [f"[0]{path}" for path in _paths([cell[0] for cell in lists if cell], depth - 1)] or [""]
    if depth and len(objects) * 2 > len(cells) and not any({"bytes", "path"} & set(cell) for cell in objects):
        keys = dict.fromkeys(key for cell in objects for key in cell if isinstance(key, str))
        return [
            f".{key}{path}"
            for key in keys
            if _is_path(f".{key}") and (inner := [cell[key] for cell in objects if cell.get(key) is not None])
            for path in _paths(inner, depth - 1)
        ]
    return [""]


def with_answer(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of a chat with the fields of its last answer, and its first picture, as columns; others as they are."""
    turns = row.get("conversations") or row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return row
    found: dict[str, Any] = {}
    for turn in turns:
        content = turn.get("value", turn.get("content"))
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in (part for part in parts if isinstance(part, Mapping)):
            if isinstance(image := part.get("image_url") or part.get("image"), str | Mapping):
                found.setdefault("image", image)
            elif turn.get("from", turn.get("role")) in ("gpt", "assistant") and isinstance(part.get("text"), str):
                found |= {label.strip(): value.strip() for label, value in FIELD.findall(part["text"])}
    return {**found, **row}


def _is_path(text: str) -> bool:
    return "".join(step.group() for step in STEP.finditer(text)) == text
