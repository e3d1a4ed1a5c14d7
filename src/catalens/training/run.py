"""A run before its first step, and what it writes about itself into its folder and reads back when it goes on."""

import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.markup import escape

from catalens.catalog.storage import Catalog
from catalens.config import Part, Recipe, dump_recipe
from catalens.data import Encoder, Examples, load_examples
from catalens.errors import TrainingError
from catalens.examples import AnswerSchema, value_of
from catalens.features import FeatureCache
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.training.batches import Plan
from catalens.training.checkpoints import last_checkpoint, step_of
from catalens.training.modules import Coverage
from catalens.training.throughput import Meter

LIBRARIES = ("catalens", "torch", "transformers", "peft", "accelerate", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class RunSetup:
    """Decisions for the machine at the start of a run; one that goes on keeps to them, and computes the same.

    setup.json   {"processes": 2, "cached_features": true, "checkpointing": false, "passes": 1}
    """

    processes: int
    """Processes that it was begun with; they make the global batch."""
    cached_features: bool
    checkpointing: bool
    passes: int | None = None
    """Forward passes of a step, of each process; None in runs of before: the recipe's `gradient_accumulation`."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read that of a run that goes on; TrainingError where it cannot be read."""
        try:
            return cls(**json.loads((folder / "setup.json").read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{folder / 'setup.json'} cannot be read: train anew") from error


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step."""

    recipe: Recipe
    catalog: Catalog
    encoder: Encoder
    model: Any  # of any family, or one wrapped by PEFT
    data: Mapping[str, Examples]
    """Rows of train and validation."""
    schema: AnswerSchema
    """Of the training rows."""
    plans: tuple[Plan, Plan]
    """Of training, in micro-batches as the recipe has them, and of validation."""
    setup: RunSetup
    started: float
    """By `time.perf_counter`."""
    meter: Meter
    console: Console


def load_data(
    catalog: Catalog, encoder: Encoder, images: FeatureCache, number_smoothing: float, console: Console
) -> dict[str, Examples]:
    """Check every row of train, whose numbers are smoothed, and validation, pictures included.

    Raises CatalogError, TooManyBadRowsError, and TrainingError where a split has no row.
    """
    data: dict[str, Examples] = {}
    for split, width in (("train", number_smoothing), ("validation", 0.0)):
        data[split] = load_examples(catalog, encoder, split, images, width)
        if not data[split].rows:
            raise TrainingError(f"{catalog.folder} has no {split} rows: prepare it with other --splits")
    if bad := [reason for examples in data.values() for reason in examples.bad]:
        console.print(f"[yellow]left out {len(bad)} rows[/], such as {escape(bad[0])}")
    return data


def versions_of(catalog: Catalog) -> dict[str, str]:
    """Name libraries, machine and the catalogue's content hash: `versions.json`."""
    return {
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "catalog": catalog.card.content_hash,
    }


def write_metadata(
    folder: Path, run: PreparedRun, versions: Mapping[str, str], covered: Mapping[Part, Coverage]
) -> dict[str, Any]:
    """Write what the run is made of into its folder; the same for the tracker."""
    coverage = {part: asdict(entry) for part, entry in covered.items()}
    for name, values in (("setup", asdict(run.setup)), ("versions", versions), ("coverage", coverage)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    bad = [{"split": split, "reason": one} for split, rows in run.data.items() for one in rows.bad]
    if bad:
        _write_lines(folder / "left_out.jsonl", bad)
    text = dump_recipe(anchored(run.recipe))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")  # last: what has it can go on
    return {**run.recipe.model_dump(mode="json"), "versions": versions, "coverage": coverage}


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with its folders by their whole paths, so that the run is understood from any directory."""
    folders = {"catalog": str(Path(recipe.catalog).absolute())}
    if recipe.model != "tiny" and Path(recipe.model).is_dir():
        folders["model"] = str(Path(recipe.model).absolute())
    return recipe.model_copy(update=folders)


def report_unwritable(folder: Path, run: PreparedRun) -> None:
    """Name the rows whose answers constrained decoding cannot write, in `unwritable.jsonl`; no file without any.

    {"split": "validation", "id": "BAG-01", "field": "full_price", "value": 123456.0}

    They stay in training, and what `predict` and `serve` say of them is wrong: a category that no training row has, a
    number with more digits, a text far longer than those of the training.
    """
    prompt, roles, path = run.recipe.prompt, run.catalog.card.roles, folder / "unwritable.jsonl"
    tokenizer = run.encoder.tokenizer
    vocabulary = Vocabulary(tokenizer.backend_tokenizer, len(tokenizer), run.encoder.family)
    constraint = Constraint(vocabulary, prompt, run.schema)
    train, found = run.data["train"].rows, []
    some = {f.column: next(v for row in train if (v := value_of(f, row)) is not None) for f in prompt.fields}
    some |= {f.column: "x" for f in prompt.fields if f.kind == "text"}  # another row's might be refused
    for split, examples in run.data.items():
        for index, row in enumerate(examples.rows):
            answer_ids = examples.answer_ids(index)
            own = {f.column: value for f in prompt.fields if (value := value_of(f, row)) is not None}
            if len(own) < len(prompt.fields):  # with values of other rows in place of those that it lacks
                answer_ids = run.encoder.answer_ids(some | own)
            if column := constraint.refused(answer_ids[:-1]):
                found.append({"split": split, "id": row[roles.id], "field": column, "value": own.get(column)})
    path.unlink(missing_ok=True)
    if found:
        _write_lines(path, found)
        first = "{split} row {id}, field {field}: {value!r}".format(**found[0])
        run.console.print(
            f"[yellow]{len(found)} rows cannot be written under constraints[/], such as {escape(first)}; "
            f"what predict says of them is wrong ({escape(str(path))})",
            highlight=False,
            soft_wrap=True,
        )


def resume_from(folder: Path, versions: Mapping[str, str], sharded: bool) -> Path | None:
    """Find the checkpoint to go on from, None where none was written; TrainingError where the run cannot go on.

    `sharded` says whether FSDP is at work, whose optimizer state has a form of its own.
    """
    if (folder / "best" / "prompt.json").is_file():
        raise TrainingError(f"{folder} is finished: there is nothing to go on with")
    known = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    if known["catalog"] != versions["catalog"]:
        raise TrainingError(f"the catalogue has changed since {folder} was begun: train anew")
    if known.get("base") not in (None, versions.get("base")):
        raise TrainingError(f"the base model has changed since {folder} was begun: put that one back, or train anew")
    checkpoint = last_checkpoint(folder)
    if checkpoint and (checkpoint / "optimizer.bin").is_file() != sharded:
        begun, now = ("one process", "as one") if sharded else ("several processes", "under torchrun")
        raise TrainingError(f"{folder} was begun by {begun}, and fsdp shards the state of several: go on {now}")
    return checkpoint


def cut_log(log: Path, checkpoint: Path | None) -> None:
    """Forget what was logged after the checkpoint that a run goes on from."""
    if log.is_file():
        step = step_of(checkpoint) if checkpoint else 0
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        log.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def _write_lines(path: Path, rows: Any) -> None:
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def model_card(
    run: PreparedRun, name: str, figures: Mapping[str, float], steps: tuple[int, int], image_use: str
) -> str:
    """Write `README.md`: what was trained on what, how well, does it see. `steps`: of the best model, of the run."""
    recipe, catalog, rows = run.recipe, run.catalog, run.data["validation"].rows
    missing = Counter(f.column for row in rows for f in recipe.prompt.fields if value_of(f, row) is None)
    lacking = ", ".join(f"`{column}` {count} of {len(rows)}" for column, count in missing.items())
    tag = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[recipe.training.method]
    table = "\n".join(f"| {figure} | {value:.4g} |" for figure, value in figures.items())
    fields = ", ".join(f"`{field.column}` as `{field.label}`" for field in recipe.prompt.fields)
    table += f"\n\nValidation rows without a value: {lacking}." if lacking else ""
    return f"""---
base_model: {recipe.model}
pipeline_tag: image-text-to-text
tags: [catalens, phi-3-vision, product-pictures]
---

# {name}

{recipe.model} ({tag}) trained by catalens to read {fields} from a product picture.

Catalogue: `{catalog.card.name}`, {catalog.card.rows["train"]} training rows, {catalog.card.content_hash}.
Best checkpoint: step {steps[0]} of {steps[1]}, chosen by `{recipe.training.metric_for_best_model}`.

| validation | |
|---|---:|
{table}

{image_use}

Scores on rows that training never saw, beside baselines: `catalens evaluate {name}`.
Predictions: `catalens predict {name} photo.jpg`.
"""
