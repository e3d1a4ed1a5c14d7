"""Is B really better than A? Runs side by side on the same rows.

    comparison = compare([Evaluation.load(Path("runs/a")), Evaluation.load(Path("runs/b"))])
    comparison.differences[0].sentence   b is better than a in Product exact by 2.1 points (0.4 to 3.9).

Each run is held against the first. A difference is taken over resampled products, the same ones for both runs
(`metrics.differences`): what makes a row hard is hard for both, and falls out. The primary metric of each field is a
claim, and all claims of a comparison share an error of 5 % by Holm's correction (1979); the other figures come with
their interval only.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from catalens import metrics
from catalens.catalog.storage import Catalog
from catalens.config import FieldSpec
from catalens.errors import CatalogError, RecipeError
from catalens.intervals import holm
from catalens.metrics import METRICS
from catalens.pages.compare import RESAMPLES, Comparison, Difference
from catalens.pages.format import truths_of
from catalens.predictions import Evaluation, ScoredRow, rows_with, tolerance_of, truth_of


def compare(runs: Sequence[Evaluation], resamples: int = RESAMPLES) -> Comparison:
    """Hold runs against the first on the rows that all have; RecipeError where they cannot be compared.

    Raises CatalogError where they were evaluated on other rows, or on rows with other truths.
    """
    runs = _named(runs)
    if other := next((run for run in runs if run.metrics["split"] != runs[0].metrics["split"]), None):
        raise RecipeError(
            f"{runs[0].name} was evaluated on {runs[0].metrics['split']} rows and {other.name} on "
            f"{other.metrics['split']} rows: name one with --split"
        )
    within = tolerance_of(runs[0].metrics)
    fields = common_fields(runs)
    rows = common_rows(runs, fields)
    kinds = {field.column: field.kind for field in fields}
    truths = [row[0].truth for row in rows]
    predictions = [[row[n].values for row in rows] for n in range(len(runs))]
    products = [row[0].id for row in rows]
    counts = {field: truths_of(len(metrics.rows_with(field.column, truths)), len(truths)) for field in fields}
    differences = []
    for run, y_pred in zip(runs[1:], predictions[1:], strict=True):
        found = metrics.differences(kinds, truths, predictions[0], y_pred, products, resamples, within)
        differences += [
            Difference(
                run.name,
                runs[0].name,
                field,
                metric,
                figure,
                figure.pop("p"),
                METRICS[metric].primary,
                n=counts[field],
            )
            for field in fields
            for metric, figure in found[field.column].items()
        ]
    scores = [metrics.score(kinds, truths, y_pred, products, within=within) for y_pred in predictions]
    return Comparison(runs, fields, rows, scores, corrected(differences), _recipes(runs))


def _named(runs: Sequence[Evaluation]) -> list[Evaluation]:
    """Each run once, and called so that it can be told apart."""
    if len(runs) < 2 or len({run.folder.resolve() for run in runs}) < len(runs):
        raise RecipeError("give two runs or more, each of them once")
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Mark the claims that hold together, by Holm's correction."""
    held = iter(holm([one.p for one in differences if one.claim]))
    return [replace(one, shown=next(held)) if one.claim else one for one in differences]


def _recipes(runs: Sequence[Evaluation]) -> dict[str, list[object]]:
    """Keys of the recipe that differ, with the value of each run."""
    flat = [_flat(run.recipe.model_dump(mode="json")) for run in runs]
    values = {key: [one.get(key) for one in flat] for key in dict.fromkeys(key for one in flat for key in one)}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def common_fields(runs: Sequence[Evaluation]) -> list[FieldSpec]:
    """Select the fields of the first run that all have, of the same kind.

    CatalogError where there are none, or where runs state another word for what is absent.
    """
    known = [{(field.column, field.kind) for field in run.prompt.fields} for run in runs]
    fields = [field for field in runs[0].prompt.fields if all((field.column, field.kind) in one for one in known)]
    if not fields:
        raise CatalogError(
            f"{', '.join(run.name for run in runs)} have no field in common: compare runs of one table"
        )
    for run in runs[1:]:
        words = {field.column: field.absent for field in run.prompt.fields}
        if other := next((field for field in fields if field.absent != words[field.column]), None):
            raise CatalogError(
                f"the word for a missing {other.column} is {other.absent!r} in {runs[0].name} and "
                f"{words[other.column]!r} in {run.name}: compare runs with the same prompt.fields[].absent"
            )
    return fields


def common_rows(runs: Sequence[Evaluation], fields: Sequence[FieldSpec]) -> list[tuple[ScoredRow, ...]]:
    """Match the rows that all runs have, one `ScoredRow` of each, in the order of the first.

    A row is known by its id and truths. Photographs of one product may share both: they are paired in their order,
    and only where every run has all of them. Raises CatalogError where a product's truths differ, or nothing is left.
    """

    def truth(row: ScoredRow) -> tuple[Any, ...]:
        return tuple(row.truth[field.column] for field in fields)

    by_id = [_grouped(run.rows, lambda row: row.id) for run in runs]
    pairs: list[tuple[ScoredRow, ...]] = []
    index = {id(row): n for n, row in enumerate(runs[0].rows)}
    for product, mine in by_id[0].items():
        groups = [rows.get(product, []) for rows in by_id]
        for run, group in zip(runs[1:], groups[1:], strict=True):
            if len(group) == len(mine) and Counter(map(truth, group)) != Counter(map(truth, mine)):
                raise CatalogError(_other_truth(product, fields, (runs[0], mine), (run, group)))
        by_truth = [_grouped(group, truth) for group in groups]
        for key, rows in by_truth[0].items():
            same = [group.get(key, []) for group in by_truth]
            if all(len(others) == len(rows) for others in same):
                pairs += zip(*same, strict=True)
    if not pairs:
        raise CatalogError(
            f"{' and '.join(run.name for run in runs)} were evaluated on different rows: none is in all"
        )
    return sorted(pairs, key=lambda pair: index[id(pair[0])])


def _grouped(rows: Sequence[ScoredRow], key: Callable[[ScoredRow], Any]) -> dict[Any, list[ScoredRow]]:
    groups: dict[Any, list[ScoredRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _other_truth(product: str, fields: Sequence[FieldSpec], *sides: tuple[Evaluation, list[ScoredRow]]) -> str:
    """Name the first truth of a product that two runs do not share."""
    (first, mine), (other, others) = sides
    for a, b in zip(mine, others, strict=True):
        for field in fields:
            if (x := a.truth[field.column]) != (y := b.truth[field.column]):
                return (
                    f"row {product}: the true {field.column} is {x!r} in {first.folder} and {y!r} in {other.folder}: "
                    "evaluate both on the same catalogue"
                )
    return f"row {product}: its variants come in another order: evaluate both on the same catalogue"


def with_pictures(rows: Sequence[tuple[ScoredRow, ...]], run: Evaluation) -> list[tuple[ScoredRow, ...]]:
    """Add the pictures of the catalogue of `run`, the first of those compared.

    A row stays without where the catalogue is not there or does not tell which of several photographs it is.
    """
    wanted = {_key(row[0].id, row[0].truth) for row in rows}
    pictures: dict[Any, list[bytes]] = defaultdict(list)
    try:
        catalog = Catalog(run.recipe.catalog)
        roles = catalog.card.roles
        for batch in catalog.batches(
            run.metrics["split"], [roles.image, roles.id, *(field.column for field in run.prompt.fields)]
        ):
            for record in batch:
                if (key := _key(record[roles.id], truth_of(run.prompt, record))) in wanted:
                    pictures[key].append(record[roles.image])
    except CatalogError:
        return list(rows)
    known: dict[int, bytes] = {}
    for key, same in _grouped(run.rows, lambda row: _key(row.id, row.truth)).items():
        if len(pictures.get(key, [])) == len(same):
            known |= {id(row): picture for row, picture in zip(same, pictures[key], strict=True)}
    return [tuple(replace(one, picture=known.get(id(row[0]), b"")) for one in row) for row in rows]


def _key(product: str, truth: Mapping[str, object]) -> tuple[object, ...]:
    return product, *truth.values()


def figures(comparison: Comparison) -> dict[str, Any]:
    """All figures as plain values, for `--json`."""
    return {
        "split": comparison.runs[0].metrics["split"],
        "rows": len(comparison.rows),
        "products": comparison.products,
        "n": {f.column: len(rows_with(f.column, [row[0] for row in comparison.rows])) for f in comparison.fields},
        "runs": [
            {"name": run.name, "evaluation": str(run.folder), "rows": len(run.rows), "scores": scores}
            | {"cost": run.metrics.get("cost")}
            for run, scores in zip(comparison.runs, comparison.scores, strict=True)
        ],
        "differences": [
            {"run": one.run, "against": one.against, "column": one.field.column, "metric": one.metric}
            | one.figure
            | {"p": one.p, "claim": one.claim, "shown": one.shown, "sentence": one.sentence}
            for one in comparison.differences
        ],
        "recipe": comparison.recipe,
    }
