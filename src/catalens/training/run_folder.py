"""What a run writes about itself, and what it reads back when it goes on."""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from catalens.catalog.storage import Catalog
from catalens.config import Part, Recipe, dump_recipe
from catalens.errors import TrainingError
from catalens.training.checkpoints import last_checkpoint, step_of
from catalens.training.parts import Coverage, as_json

LIBRARIES = ("catalens", "torch", "transformers", "peft", "accelerate", "tokenizers", "pillow", "numpy")


def versions_of(catalog: Catalog) -> dict[str, str]:
    """Libraries, machine and the catalogue's content hash: `versions.json`."""
    return {
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "catalog": catalog.card.content_hash,
    }


def explain(
    folder: Path,
    recipe: Recipe,
    versions: Mapping[str, str],
    covered: Mapping[Part, Coverage],
    left_out: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Write what the run is made of into its folder; the same for the tracker."""
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    (folder / "coverage.json").write_text(json.dumps(as_json(covered), indent=2) + "\n", encoding="utf-8")
    if left_out:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in left_out)
        (folder / "left_out.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        dump_recipe(_anchored(recipe)), encoding="utf-8"
    )  # last: what has it can go on
    return {**recipe.model_dump(mode="json"), "versions": versions, "coverage": as_json(covered)}


def _anchored(recipe: Recipe) -> Recipe:
    """The recipe with its folders by their whole paths, so that the run is understood from any directory."""
    folders = {"catalog": str(Path(recipe.catalog).absolute())}
    if recipe.model != "tiny" and Path(recipe.model).is_dir():
        folders["model"] = str(Path(recipe.model).absolute())
    return recipe.model_copy(update=folders)


def take_back(folder: Path, versions: Mapping[str, str], sharded: bool) -> Path | None:
    """The checkpoint to go on from, None where none was written; TrainingError where the run cannot go on.

    `sharded` says whether FSDP is at work, whose optimizer state has a form of its own.
    """
    if (folder / "best" / "prompt.json").is_file():
        raise TrainingError(f"{folder} is finished: there is nothing to go on with")
    known = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    if known["catalog"] != versions["catalog"]:
        raise TrainingError(f"the catalogue has changed since {folder} was begun: train anew")
    checkpoint = last_checkpoint(folder)
    if checkpoint and (checkpoint / "optimizer.bin").is_file() != sharded:
        begun, now = ("one process", "as one") if sharded else ("several processes", "under torchrun")
        raise TrainingError(f"{folder} was begun by {begun}, and fsdp shards the state of several: go on {now}")
    return checkpoint


def take_back_log(log: Path, checkpoint: Path | None) -> None:
    """Forget what was logged after the checkpoint that a run goes on from."""
    if log.is_file():
        step = step_of(checkpoint) if checkpoint else 0
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        log.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def model_card(
    recipe: Recipe, catalog: Catalog, name: str, figures: Mapping[str, float], steps: tuple[int, int], image_use: str
) -> str:
    """`README.md`: what was trained on what, how well, does it see. `steps`: of the best model, of the run."""
    tag = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[recipe.training.method]
    table = "\n".join(f"| {figure} | {value:.4g} |" for figure, value in figures.items())
    fields = ", ".join(f"`{field.column}` as `{field.label}`" for field in recipe.prompt.fields)
    return f"""---
base_model: {recipe.model}
pipeline_tag: image-text-to-text
tags: [catalens, phi-3-vision, product-pictures]
---

# {name}

{recipe.model} ({tag}) trained by catalens to read {fields} from a product picture.

Catalogue: `{catalog.card.name}`, {catalog.card.rows["train"]} training rows, {catalog.card.content_hash}.
Best checkpoint: step {steps[0]} of {steps[1]}, chosen by `{recipe.training.best_by}`.

| validation | |
|---|---:|
{table}

{image_use}

Scores on rows that training never saw, beside baselines: `catalens evaluate {name}`.
Predictions: `catalens predict {name} photo.jpg`.
"""
