"""Prices learned as words or as numbers: the errors that losses of the digits leave on test rows.

    python benchmarks/digit_losses.py --out /tmp/digits --seeds 0 1 2

The demo is drawn, once as it is and once with noise that differs by category, and trained with every loss and seed;
answers are kept in --out, and a run whose answers are there is not trained again. `neighbours` is the recipe's
`training.number_smoothing`. `crps`: to the cross-entropy is added the squared distance between the cumulative
probabilities of the ten digits and the step at the true one, by place value over the price. `head`: a linear head
learns the logarithm of the price from the hidden state before its first digit, and its squared error is added.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import estimates
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import catalens
from catalens.checkpoint import DEMO_RECIPE, load_run, load_untrained
from catalens.confidence import crps
from catalens.intervals import Statistic, mean, median, paired
from catalens.model.modeling import Phi3VForCausalLM
from catalens.predictions import truth_of
from catalens.sampling.assortment import DEMO

CATALOGS = {"demo": (0, False), "by-category": (5, True)}
"""Seed, and noise by category, of what is drawn."""
WEIGHTS = {"none": 0.0, "neighbours": 0.05, "crps": 3.0, "head": 10.0}
"""Width of what digits learn, factors of the terms that are added."""
MIDDLE = 5.5
"""Of logarithms of prices, from which the head begins."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of catalogues, runs and answers")
    parser.add_argument("--losses", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--catalogs", nargs="+", choices=CATALOGS, default=list(CATALOGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=3040, help="rows that are drawn")
    parser.add_argument("--set", nargs="+", default=[], help="settings of the recipe, such as training.epochs=1")
    options = parser.parse_args(arguments)
    for name in options.catalogs:
        found = {
            (loss, seed): _answers(options.out, name, loss, seed, options.rows, options.set)
            for seed in options.seeds
            for loss in options.losses
        }
        _print(name, found, options.losses, options.seeds)


def _answers(out: Path, name: str, loss: str, seed: int, rows: int, settings: Sequence[str]) -> dict[str, Any]:
    """Answers about the test rows of a run, trained where it is not there."""
    kept, catalog = out / f"{name}-{loss}-{seed}.json", out / "catalogs" / name
    if kept.exists():
        return json.loads(kept.read_text())
    if not catalog.exists():
        drawn, by_category = CATALOGS[name]
        splits = {"train": 0.79, "validation": 0.1, "test": 0.11}
        catalens.sample(catalog, rows, drawn, DEMO.uneven if by_category else DEMO, fractions=splits)
    told = [f"catalog={catalog}", f"training.seed={seed}", "tracking.to=none", *settings]
    told.append(f"training.number_smoothing={WEIGHTS[loss] if loss == 'neighbours' else 0}")
    usual = Phi3VForCausalLM._loss
    if loss in ("crps", "head"):
        Phi3VForCausalLM._loss = _adding(loss, WEIGHTS[loss])  # type: ignore[method-assign]
    try:
        trained = catalens.train(DEMO_RECIPE, out / "runs" / kept.stem, overrides=told)
    finally:
        Phi3VForCausalLM._loss = usual  # type: ignore[method-assign]
    run = load_run(trained.folder)
    test = estimates.rows_of(run, "test")
    answers = estimates.written(run, test, "median")
    column = next(field.column for field in run.prompt.fields if field.kind == "number")
    found: dict[str, Any] = {"ids": [], "truth": [], "said": [], "crps": []}
    for row, answer, said in zip(test, answers, estimates.values_of(run, answers), strict=True):
        truth, known = truth_of(run.prompt, row)[column], answer.distributions[column]
        found["ids"].append(row["product_code"])
        found["truth"].append(truth)
        found["said"].append(said[column])
        found["crps"].append(crps(truth, np.array(known.values, float), np.array(known.probabilities)) / truth)
    kept.write_text(json.dumps(found))
    return found


def _adding(loss: str, weight: float) -> Callable[..., torch.Tensor]:
    """Make the loss of a model with a term of the prices' digits: hidden [B, T, H], labels [B, T] -> a number."""
    usual, head = Phi3VForCausalLM._loss, None
    tokenizer = load_untrained().processor.tokenizer
    zero, point = (tokenizer.convert_tokens_to_ids(word) for word in "0.")

    def value(self: Any, hidden: torch.Tensor, labels: torch.Tensor, count: Any, *others: Any) -> torch.Tensor:
        nonlocal head
        total = usual(self, hidden, labels, count, *others)
        learnt = labels[:, 1:] != -100
        answers, targets = hidden[:, :-1][learnt], labels[:, 1:][learnt]
        prices = _prices(targets.tolist(), zero, point) if torch.is_grad_enabled() else []
        if not prices:
            return total
        if loss == "head":
            first = answers[[start for start, _ in prices]]
            head = head or _head(first.shape[1])
            truths = torch.tensor([math.log(max(1, _number(digits))) for _, digits in prices])
            added = ((head(first).squeeze(1) + MIDDLE - truths) ** 2).sum()
        else:
            added = _crps(answers, targets, prices, self.lm_head.weight, zero)
        return total + weight * added / max(float(len(targets) if count is None else count), 1.0)

    return value


def _prices(targets: Sequence[int], zero: int, point: int) -> list[tuple[int, list[int]]]:
    """Find where the whole parts of numbers begin, and their digits."""
    found, at = [], 0
    while at < len(targets):
        end = at
        while end < len(targets) and zero <= targets[end] < zero + 10:
            end += 1
        if end > at and not (at and targets[at - 1] == point):
            found.append((at, [word - zero for word in targets[at:end]]))
        at = max(end, at + 1)
    return found


def _number(digits: Sequence[int]) -> int:
    return int("".join(map(str, digits)))


def _head(size: int) -> torch.nn.Linear:
    """Make a head that learns whenever a gradient reaches it."""
    head = torch.nn.Linear(size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    learner = torch.optim.AdamW(head.parameters(), lr=2e-3)

    def step(_: torch.Tensor) -> None:
        learner.step()
        learner.zero_grad()

    head.bias.register_post_accumulate_grad_hook(step)
    return head


def _crps(
    answers: torch.Tensor,
    targets: torch.Tensor,
    prices: Sequence[tuple[int, list[int]]],
    words: torch.Tensor,
    zero: int,
) -> torch.Tensor:
    """Add up how far cumulative probabilities of digits before the point are off, by place value over the price."""
    places = [start + n for start, digits in prices for n in range(len(digits))]
    units = [10 ** (len(one) - 1 - n) / max(1, _number(one)) for _, one in prices for n in range(len(one))]
    ten = F.linear(answers[places], words).float().log_softmax(-1)[:, zero : zero + 10]
    beyond = (torch.arange(10)[None] >= (targets[places] - zero)[:, None]).float()
    return (((ten.softmax(-1).cumsum(-1) - beyond) ** 2).sum(1) * torch.tensor(units)).sum()


def _figures(one: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Errors of a run, in per cent, by figure."""
    truth, said = np.array(one["truth"]), np.array(one["said"])
    off = np.abs(said - truth)
    return {
        "median error": 100 * off / truth,
        "SMAPE": 200 * off / (said + truth),
        "within 10 %": 100.0 * (off <= 0.1 * truth),
        "CRPS over price": 100 * np.array(one["crps"]),
    }


def _over_seeds(statistics: Sequence[Statistic]) -> Statistic:
    return lambda counts: np.mean([one(counts) for one in statistics], axis=0)


def _print(
    name: str, found: Mapping[tuple[str, int], Mapping[str, Any]], losses: Sequence[str], seeds: Sequence[int]
) -> None:
    """Print every seed's figures, and the difference to the first loss, a mean of the seeds."""
    table = Table(
        title=f"{name}: {len(found[losses[0], seeds[0]]['ids'])} test rows, seeds {', '.join(map(str, seeds))}"
    )
    known = {key: _figures(one) for key, one in found.items()}
    for heading in ("loss", *known[losses[0], seeds[0]]):
        table.add_column(heading)
    apart = Table(title=f"{name}: difference to {losses[0]} (95 % interval over products)")
    for heading in ("loss", *known[losses[0], seeds[0]]):
        apart.add_column(heading)
    for loss in losses:
        shown, told = [], []
        for figure in known[loss, seeds[0]]:
            kind = median if figure == "median error" else mean
            values = [known[loss, seed][figure] for seed in seeds]
            alone = [float(kind(one)(np.ones(len(one)))) for one in values]
            shown.append(", ".join(f"{one:.1f}" for one in alone))
            both = [
                np.concatenate([known[losses[0], seed][figure], one]) for seed, one in zip(seeds, values, strict=True)
            ]
            ids = found[loss, seeds[0]]["ids"]
            change = paired({figure: _over_seeds([kind(one) for one in both])}, len(ids), ids)[figure]
            told.append(f"{change['value']:.1f} ({change['low']:.1f} to {change['high']:.1f})")
        table.add_row(loss, *shown)
        if loss != losses[0]:
            apart.add_row(loss, *told)
    console = Console(width=118)
    console.print(table)
    console.print(apart)


if __name__ == "__main__":
    main()
