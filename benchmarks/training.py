"""The cookbook's way of training against ours, on the same rows in one run: `make bench`.

The Phi-3 cookbook trains one row at a time, padded to 512 tokens, with every picture filled up to `num_crops + 1`
crops that all go through the tower, and with logits at every position. Each line below takes one of these away,
on top of the lines before it. Every way takes full training steps (forward, backward, AdamW) over the same rows; the
ways take turns, and a figure is the median over the rounds of the milliseconds a row.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from catalens.catalog.drawing import draw_catalog
from catalens.checkpoint import device, load_model, load_processor
from catalens.collation import IGNORED, Collator, Encoder
from catalens.config import PromptSpec
from catalens.model import unused_parameter_names

COOKBOOK_LENGTH = 512
TOWER = "vision_embed_tokens.img_processor"


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    name: str
    padded_to: int | None = COOKBOOK_LENGTH
    padded_crops: bool = True
    all_logits: bool = True
    batch_size: int = 1
    frozen: bool = False


def ways() -> list[Way]:
    """The cookbook's way, then each lever on top of the ones before."""
    cookbook = Way("the cookbook's way")
    unpadded = replace(cookbook, name="no fixed padding", padded_to=None)
    cropped = replace(unpadded, name="real crops only", padded_crops=False)
    answers = replace(cropped, name="logits of the answer only", all_logits=False)
    batched = replace(answers, name="batches of 16", batch_size=16)
    return [cookbook, unpadded, cropped, answers, batched, replace(batched, name="frozen tower", frozen=True)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-crops", type=int, default=4)
    options = parser.parse_args()

    processor = load_processor(options.model, options.num_crops)
    encoder = Encoder(processor, PromptSpec())
    examples = []
    for row in draw_catalog(options.rows, seed=0):
        values = {"title": row.title, "category3_code": row.category3_code, "full_price": row.full_price}
        examples.append(encoder.example(values, encoder.picture(row.image)))
    collate = Collator(encoder.tokenizer.pad_token_id)
    runners = {way: _runner(way, options.model, examples, collate, options.num_crops) for way in ways()}
    times: dict[Way, list[float]] = {way: [] for way in runners}
    for turn in range(options.rounds + 1):  # the first round warms up
        for way, run in runners.items():
            started = time.perf_counter()
            run()
            if turn:
                times[way].append(1000 * (time.perf_counter() - started) / len(examples))
    _print(times, options, examples)


def _runner(
    way: Way, name: str, examples: Sequence[dict[str, Any]], collate: Collator, num_crops: int
) -> Callable[[], None]:
    """A function that trains once over the rows, batches made beforehand: the pictures are decoded alike."""
    torch.manual_seed(0)
    model = load_model(name).train()
    for parameter_name, parameter in model.named_parameters():
        if way.frozen and TOWER in parameter_name:
            parameter.requires_grad_(False)
    dead = set(unused_parameter_names(model))
    optimizer = torch.optim.AdamW(
        [p for n, p in model.named_parameters() if p.requires_grad and n not in dead], lr=1e-6
    )
    batches = [
        {key: value.to(device()) for key, value in collate(examples[start : start + way.batch_size]).items()}
        for start in range(0, len(examples), way.batch_size)
    ]
    batches = [_padded(batch, way, collate.pad_id, num_crops) for batch in batches]

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            _loss(model, batch, way).backward()
            optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _padded(batch: dict[str, torch.Tensor], way: Way, pad_id: int, num_crops: int) -> dict[str, torch.Tensor]:
    batch = dict(batch)
    if way.padded_to:
        room = way.padded_to - batch["input_ids"].shape[1]
        for key, value in (("input_ids", pad_id), ("attention_mask", 0), ("labels", IGNORED)):
            batch[key] = F.pad(batch[key], (0, room), value=value)
    if way.padded_crops:
        pixels = batch["pixel_values"]
        empty = pixels.new_zeros(num_crops + 1 - pixels.shape[0], *pixels.shape[1:])
        batch["empty_crops"] = empty
    return batch


def _loss(model: Any, batch: dict[str, torch.Tensor], way: Way) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key not in ("empty_crops", "labels")}
    if way.padded_crops:  # the original sends the filled-up crops through the tower and drops what comes out
        pixels = inputs.pop("pixel_values")
        features = model.model.vision_embed_tokens.crop_features(torch.cat([pixels, batch["empty_crops"]]))
        inputs["crop_features"] = features[: pixels.shape[0]]
    if not way.all_logits:
        return model(**inputs, labels=batch["labels"]).loss
    logits = model(**inputs, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)


def _print(times: dict[Way, list[float]], options: Any, examples: Sequence[dict[str, Any]]) -> None:
    tokens = statistics.mean(len(example["input_ids"]) for example in examples)
    crops = statistics.mean(len(example["pixel_values"]) for example in examples)
    table = Table(
        title=f"{options.model}, {options.rows} rows of {tokens:.0f} tokens and {crops:.1f} crops, "
        f"medians of {options.rounds} rounds, {torch.get_num_threads()} threads, {device().type}"
    )
    for column in ("way", "ms a row", "lowest-highest", "times the cookbook's"):
        table.add_column(column, justify="left" if column == "way" else "right")
    first = statistics.median(next(iter(times.values())))
    for way, figures in times.items():
        middle = statistics.median(figures)
        table.add_row(way.name, f"{middle:.1f}", f"{min(figures):.1f}-{max(figures):.1f}", f"{first / middle:.2f}x")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
