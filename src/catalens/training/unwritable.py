"""Rows that are learned from, or chosen by, but whose answers constrained decoding cannot write.

    runs/demo/unwritable.jsonl   {"split": "validation", "id": "BAG-01", "field": "full_price", "value": 123456.0}

They stay in training, and what `predict` and `serve` say of them is wrong: a category that no training row has, a
number with more digits, a text far longer than those of the training.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from catalens.collation import ProductDataset
from catalens.config import PromptSpec
from catalens.examples import answer_space, render_answer
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.model import Phi3VProcessor

FILE = "unwritable.jsonl"


def report_unwritable(
    folder: Path,
    prompt: PromptSpec,
    processor: Phi3VProcessor,
    splits: Mapping[str, ProductDataset],
    id_column: str,
    console: Console,
) -> None:
    """Write such rows into a run's folder and say how many there are; no file where there are none."""
    vocabulary = Vocabulary(processor, len(processor.tokenizer))
    constraint = Constraint(vocabulary, prompt, answer_space(prompt, splits["train"].rows))
    found = [
        {"split": split, "id": row[id_column], "field": column, "value": row[column]}
        for split, data in splits.items()
        for row in data.rows
        if (column := constraint.refused(render_answer(prompt, row)))
    ]
    (folder / FILE).unlink(missing_ok=True)
    if found:
        lines = (json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in found)
        (folder / FILE).write_text("".join(lines), encoding="utf-8")
        first = "{split} row {id}, field {field}: {value!r}".format(**found[0])
        console.print(
            f"[yellow]{len(found)} rows cannot be written under constraints[/], such as {escape(first)}; "
            f"what predict says of them is wrong ({escape(str(folder / FILE))})",
            highlight=False,
            soft_wrap=True,
        )
