"""The whole pipeline from Python, on the table of `examples/shop`: `python examples/shop.py runs/shop`.

Forty rows teach nothing; what counts is that each stage is one call, and hands the next one a folder.
"""

import sys
from pathlib import Path

import catalens

SHOP = Path(__file__).parent / "shop"


def main(folder: str, *overrides: str) -> None:
    """Prepare, check, train, evaluate and predict, all below `folder`; overrides are those of `--set`."""
    catalog, run = Path(folder) / "catalog", Path(folder) / "run"
    fields = {"title": "text", "category": "category", "price": "number"}
    catalens.prepare(str(SHOP / "shop.csv"), catalog, catalens.Columns("photo", "code", fields))

    labels = {"title": "Product", "category": "Category", "price": "Price"}
    prompt = {"fields": [{"column": name, "label": labels[name], "kind": kind} for name, kind in fields.items()]}
    recipe = catalens.make_recipe({"catalog": str(catalog), "prompt": prompt, "tracking": {"to": "none"}}, overrides)
    for finding in catalens.check(catalog, recipe).findings:
        print(f"{finding.severity}: {finding.title}")

    trained = catalens.train(recipe, run)
    print(f"best checkpoint: step {trained.best_step} of {trained.steps}")
    print(f"parses: {catalens.evaluate(run).metrics['model']['parse_rate']['value']:.0%}")

    predictor = catalens.load_predictor(run, accept_error=0.05)
    photos = sorted((SHOP / "photos").iterdir())[:3]
    for photo, read in zip(photos, predictor.predict([photo.read_bytes() for photo in photos]), strict=True):
        print(photo.name, read.values, "look at:", ", ".join(read.needs_review) or "nothing")


if __name__ == "__main__":
    main(*sys.argv[1:])
