"""The card of an export: `README.md`, as the hub shows it.

    ---
    license: mit                                     the base's
    base_model: microsoft/Phi-3-vision-128k-instruct
    model-index: [...]                               every figure of metrics.json, with its interval and its rows
    ---
    # name                                           how well it reads, beside what; whether it looks; how to run it

A run that was not evaluated has a card without figures, which says so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from catalens.checkpoint import TINY
from catalens.config import FieldSpec, PromptSpec, Recipe, load_recipe
from catalens.errors import CheckpointError
from catalens.exporting.certificate import Certificate
from catalens.files import atomic
from catalens.metrics import share_right
from catalens.pages.format import label, listed, metric_text, percent, rows_of
from catalens.pages.scores import figure_of, image_use_in_words, score_columns, score_table, truths_in, verdict
from catalens.predictions import tolerance_of

CARD = "README.md"
PUBLISHED = "microsoft/Phi-3"
"""Beginning of the names of the models that Microsoft published under the MIT licence."""
NOT_EVALUATED = "It was not evaluated: `catalens evaluate` scores a run on rows that training never saw."


def write_card(run: Path, folder: Path, name: str | None = None) -> str:
    """Write the card of a run's export into its folder, under this name or the folder's own; gives its text."""
    recipe, metrics = load_recipe(run / "recipe.yaml"), read_metrics(run)
    name = name or folder.resolve().name.removeprefix(".").removesuffix(".partial")
    licence = licence_of(recipe.model)
    head = ModelCardData(
        base_model=recipe.model if _on_the_hub(recipe.model) else None,
        license=licence or "unknown",
        library_name="catalens",
        pipeline_tag="image-text-to-text",
        tags=["catalens", "product-pictures"],
        model_name=name,
        eval_results=list(results_of(metrics, recipe)) if metrics else None,
    )
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {name}\n",
        _introduction(recipe, licence),
        *(_scores(metrics, recipe.prompt.fields) if metrics else [NOT_EVALUATED]),
        _how_to_run(recipe.prompt, name),
        _equality(Certificate.load(folder)),
    ]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    with atomic(folder / CARD) as aside:
        aside.write_text(text, encoding="utf-8", errors="replace")
    return text


def renew_equality(folder: Path, old: Certificate, new: Certificate) -> None:
    """Tell of another certificate in an export's card."""
    with atomic(folder / CARD) as aside:
        text = (folder / CARD).read_text(encoding="utf-8")
        aside.write_text(text.replace(_equality(old), _equality(new)), encoding="utf-8")


def read_metrics(run: Path) -> Mapping[str, Any] | None:
    """Read `metrics.json` of a run's evaluation, None where there is none; CheckpointError where it is damaged."""
    path = run / "evaluation" / "metrics.json"
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: run `catalens evaluate {run}` again") from error


def results_of(metrics: Mapping[str, Any], recipe: Recipe) -> Iterator[EvalResult]:
    """Give every figure of the model, for the model-index."""
    for field, metric in score_columns(recipe.prompt.fields, None):
        if figure := figure_of(metrics["model"], field, metric):
            named = label(metric, tolerance_of(metrics))
            yield EvalResult(
                task_type="image-text-to-text",
                dataset_type="catalens-catalogue",
                dataset_name=Path(recipe.catalog).name,
                dataset_split=metrics["split"],
                metric_type=f"{field.column}.{metric}" if field else metric,
                metric_name=f"{field.label}, {named}" if field else named,
                metric_value=figure["value"],
                metric_args={
                    "n": (metrics.get("n") or {}).get(field.column if field else "", metrics["rows"]),
                    "products": metrics["products"],
                    "interval95": [figure["low"], figure["high"]],
                },
            )


def licence_of(model: str) -> str | None:
    """Find the licence of a base, by its card, through the runs that it was trained in; None where none is stated."""
    folder = TINY if model == "tiny" else Path(model)
    if (folder / "recipe.yaml").is_file():
        return licence_of(load_recipe(folder / "recipe.yaml").model)
    card: Any = folder / CARD if folder.is_dir() else None
    if card is None and _on_the_hub(model):
        card = try_to_load_from_cache(model, CARD)
    try:
        found = ModelCard(Path(card).read_text(encoding="utf-8")).data.to_dict().get("license") if card else None
    except (OSError, ValueError, TypeError):
        found = None
    return found or ("mit" if model.startswith(PUBLISHED) else None)


def _on_the_hub(model: str) -> bool:
    return model.count("/") == 1 and not Path(model).is_dir() and not Path(model).is_absolute()


def _introduction(recipe: Recipe, licence: str | None) -> str:
    method = {"full": "full fine-tuning", "lora": "LoRA, merged", "qlora": "QLoRA, merged"}[recipe.training.method]
    base = recipe.model if _on_the_hub(recipe.model) or recipe.model == "tiny" else Path(recipe.model).name
    stated = f"The licence of the base is {licence}." if licence else "The licence of the base is stated nowhere."
    labels = listed(f"`{field.label}`" for field in recipe.prompt.fields)
    return f"Reads {labels} from a product picture. Trained by catalens from `{base}` ({method}). {stated}"


def _scores(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> Iterator[str]:
    """The evaluation in words, its table, the check of the pictures, and how far confidences hold."""
    rows = rows_of(metrics["rows"], metrics["products"], metrics["split"])
    yield f"## Scores\n\n**{verdict(metrics, fields)['headline']}**"
    yield f"Free generation on {rows}, which training never saw, unless it is said; 95 % intervals over products."
    table = score_table(metrics, fields)
    lines = [f"| | {' | '.join(row['name'] for row in table)} |", "|---|" + "---:|" * len(table)]
    for n, (field, metric) in enumerate(score_columns(fields)):
        cells = [row["cells"][n] for row in table]
        shown = [f"{one['value']} ({one['interval']})" if one["interval"] else one["value"] for one in cells]
        name = f"{_cell(field.label)}, " if field else ""
        lines.append(f"| {name}{label(metric, tolerance_of(metrics))} | {' | '.join(shown)} |")
    yield "\n".join(lines)
    if lacking := [f"{field.label} {n}" for field in fields if (n := truths_in(metrics, field.column))]:
        yield f"Rows that have a truth: {'; '.join(lacking)}."
    notes = [f"{row['name']}: {row['note']}." for row in table]
    yield " ".join(notes)
    yield f"## Does it look at the pictures?\n\n{image_use_in_words(metrics.get('image_use') or {}, fields)}"
    if "confidence" in metrics:
        yield _confidence(metrics, fields)


def _confidence(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> str:
    learned = metrics["confidence"]["calibrated_on"]
    lines = [
        f"## Confidence\n\nProbabilities are calibrated on {learned:,} validation products.\n",
        "| | right | calibration error | intervals hold |\n|---|---:|---:|---:|",
    ]
    for field in fields:
        if measured := metrics["confidence"]["fields"].get(field.column):
            right = figure_of(metrics["constrained"], field, share_right(field.kind))
            interval = measured["interval"]
            holds = f"{percent(interval['coverage']['value'])} of {percent(interval['nominal'])}" if interval else ""
            share = metric_text(share_right(field.kind), right["value"]) if right else ""
            lines.append(f"| {_cell(field.label)} | {share} | {percent(measured['ece']['value'])} | {holds} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _how_to_run(prompt: PromptSpec, name: str) -> str:
    folder = name.rpartition("/")[2]
    fetch = f"hf download {name} --local-dir {folder}\n" if "/" in name else ""
    return f"""## How to run it

```
pip install catalens
{fetch}catalens predict {folder} photo.jpg
catalens export --check {folder}
```

The last line repeats the proof below, where `reference.parquet` is there. Other runtimes read the official layout;
the question is `{prompt.question}`, the form of the answer is in `prompt.json`; greedy decoding was scored."""


def _equality(certificate: Certificate) -> str:
    shown = len(certificate.checks) + bool(certificate.unchecked) + len(certificate.accuracy)
    lines = "\n".join(certificate.lines()[:shown])
    return f"""## Equal to the run

The export against the run that it was made from, on {certificate.rows} validation rows (`equality.json`):

```
{lines}
```"""
