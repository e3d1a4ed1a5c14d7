"""Writing about pictures one at a time against in batches, and freely against constrained: `make bench`.

All ways write about the same drawn pictures in one run; where a batch changes an answer, the program ends with an
error. `tokens` is what a mean answer has, `steps` how many passes through the model it took after the prompt's.

`--steps` measures single steps of a model with random weights instead: from Python, and on a GPU, where the sizes are
the official ones, replayed as a CUDA graph.
"""

import argparse
from collections.abc import Mapping

import numpy as np
import torch
from random_models import SMALL, official_config, random_model
from rich.console import Console
from rich.table import Table
from rounds import ratio, take_turns

from catalens.checkpoint import load_run, load_untrained
from catalens.config import PromptSpec
from catalens.examples import answer_space
from catalens.inference import Completion, Generator, KeyValues, Step
from catalens.sampling import draw_catalog

TOGETHER = 64
ROWS, WIDTHS, PROMPT, REPEATS = (1, 8, 32), (1, 8), 817, 20
"""Of single steps: batch sizes, tokens of a row, tokens before them (a picture of 4 crops), steps in a round."""
WAYS = {
    "one at a time, free": (1, False),
    "one at a time, constrained": (1, True),
    f"batches of {TOGETHER}, free": (TOGETHER, False),
    f"batches of {TOGETHER}, constrained": (TOGETHER, True),
    f"batches of {TOGETHER}, by distributions": (TOGETHER, True),
}
DISTRIBUTIONS = list(WAYS)[-1]
"""Numbers and categories are written out of their distributions: other answers, now and then."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a finished run in place of the tiny model as it ships")
    parser.add_argument("--rows", type=int, default=256, help="pictures")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one that warms up")
    parser.add_argument("--steps", action="store_true", help="measure single steps of random weights")
    options = parser.parse_args()
    if options.steps:
        _measure_steps(options.rounds)
        return
    rows = list(draw_catalog(options.rows, seed=0))
    run = load_run(options.run) if options.run else load_untrained()
    space = run.space
    if not options.run:
        space = answer_space(
            PromptSpec(),
            ({"title": r.title, "category3_code": r.category3_code, "full_price": r.full_price} for r in rows),
        )
    pictures = [row.image for row in rows]
    written: dict[str, list[Completion]] = {}
    generators = {
        name: Generator(
            run.model,
            run.processor,
            run.prompt,
            batch_size,
            128,
            space if constrained else None,
            estimate="median" if name == DISTRIBUTIONS else None,
        )
        for name, (batch_size, constrained) in WAYS.items()
    }

    def write(name: str) -> None:
        written[name] = generators[name].generate(pictures)

    times = take_turns({name: lambda name=name: write(name) for name in WAYS}, options.rounds, len(rows))
    _compare({name: answers for name, answers in written.items() if name != DISTRIBUTIONS})
    table = Table(title=f"{len(rows)} pictures, medians of {options.rounds} rounds")
    for column in ("", "tokens", "steps", "ms a picture", "times as fast", "range"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in WAYS:
        against = "one at a time, free" if name.endswith("free") else "one at a time, constrained"
        gain = ratio(times[against], times[name])
        tokens, steps = np.mean([(len(one.pieces), one.steps) for one in written[name]], axis=0)
        table.add_row(
            name, f"{tokens:.1f}", f"{steps:.1f}", f"{times[name].median:.2f}", f"{gain.median:.2f}", gain.range
        )
    console = Console(width=118)
    console.print(table)
    cost = ratio(times[f"batches of {TOGETHER}, constrained"], times[f"batches of {TOGETHER}, free"])
    console.print(f"constrained against free, in batches: {cost.median:.2f} times the time ({cost.range})")
    cost = ratio(times[DISTRIBUTIONS], times[f"batches of {TOGETHER}, constrained"])
    console.print(f"by distributions against token by token: {cost.median:.2f} times the time ({cost.range})")


@torch.no_grad()
def _measure_steps(rounds: int) -> None:
    gpu = torch.cuda.is_available()
    sizes, dtype, device = ({}, torch.bfloat16, "cuda") if gpu else (SMALL, torch.float32, "cpu")
    model = random_model(official_config(**sizes), dtype, device).eval()
    table = Table(title=f"ms a step behind {PROMPT} tokens, {torch.cuda.get_device_name() if gpu else 'CPU'}")
    for column in ("rows", "tokens a row", "from Python", "replayed", "times as fast"):
        table.add_column(column, justify="right")
    for count in ROWS:
        cache = KeyValues(count, 960)
        ids = torch.randint(10, 32000, (count, PROMPT), device=device)
        places = torch.arange(PROMPT, device=device)[None]
        model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for width in WIDTHS:
            steps = {"from Python": Step(model, cache, count, width)}
            if gpu:
                steps["replayed"] = Step(model, cache, count, width, captured=True)

            def run(name: str, steps: Mapping[str, Step] = steps, count: int = count, width: int = width) -> None:
                for _ in range(REPEATS):
                    steps[name].load([[7] * width] * count, [PROMPT] * count)
                    steps[name].run().argmax(-1).tolist()

            times = take_turns({name: lambda name=name: run(name) for name in steps}, rounds, REPEATS)
            medians = [f"{one.median:.2f}" for one in times.values()]
            gain = f"{ratio(*times.values()).median:.2f}" if gpu else ""
            table.add_row(str(count), str(width), medians[0], medians[1] if gpu else "", gain)
    Console(width=118).print(table)


def _compare(written: Mapping[str, list[Completion]]) -> None:
    """End the program where a batch changed an answer."""
    for kind in ("free", "constrained"):
        alone, together = written[f"one at a time, {kind}"], written[f"batches of {TOGETHER}, {kind}"]
        differing = sum(one.pieces != other.pieces for one, other in zip(alone, together, strict=True))
        if differing:
            raise SystemExit(f"{differing} of {len(alone)} {kind} answers differ in a batch")


if __name__ == "__main__":
    main()
