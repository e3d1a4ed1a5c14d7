"""The original's way of computing a training step against ours, on the same weights and rows: `make bench`.

What Microsoft's code for Phi-3.5-vision does (`modeling_phi3_v.py` and `processing_phi3_v.py` of
microsoft/Phi-3.5-vision-instruct; its behaviour re-implemented here, its figures in `../shared/golden`):

- the processor fills every picture up to `num_crops + 1` crops with zeros; all of them go through the tower;
- the tower computes all blocks and keeps every hidden state; the second to last is taken, the last is thrown away;
- there is eager and flash attention, no SDPA, so that without a GPU all scores are computed and kept;
- the head gives logits at every position, which are copied to fp32 before the shifted cross entropy;
- the cookbook trains one row at a time with AdamW.

Ours sends the real crops through the blocks that count, computes attention by SDPA, and logits where there is a label
only. Both train everything, the tower included, in fp32 and under bf16 autocast. The model has the sizes that the
reference figures were made with: 3 CLIP layers, 3 text layers, 32,064 words. First both ways must give the same loss.

A photo that is about square fills all crops by itself; one twice as high as wide fills 3 of 5 at `num_crops` 4.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from random_models import SMALL, drawn_rows, official_config, random_model
from rich.console import Console
from rich.table import Table
from rounds import Times, ratio, take_turns
from torch.nn import functional as F

from catalens.config import TrainingSpec
from catalens.data import IGNORED, Collator
from catalens.devices import device
from catalens.model import REFERENCE
from catalens.training import make_optimizer, prepare_parts

Batch = Mapping[str, torch.Tensor]
ALLOWED = 1e-4
SIZES = {
    "small": SMALL,
    "tiny": SMALL
    | {
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "image_size": 56,
        }
    },
}
SPEC = TrainingSpec(method="full", learning_rate=1e-6)


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    picture: str
    precision: str
    ours: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{'ours' if self.ours else 'the original'}, {self.precision}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="tiny: a smaller tower")
    parser.add_argument("--rows", type=int, default=1, help="rows of each shape in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-crops", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1, help="of ours")
    options = parser.parse_args(arguments)

    config = official_config(**SIZES[options.size])
    models = {
        ours: prepare_parts(random_model(config, torch.float32, device(), attention), SPEC).train()
        for ours, attention in ((False, "eager"), (True, REFERENCE.training_attention))
    }
    optimizers = {ours: make_optimizer(model, SPEC) for ours, model in models.items()}
    rows: dict[str, list[dict[str, Any]]] = {}
    runs: dict[Way, Callable[[], None]] = {}
    for tall, shape in ((False, "square"), (True, "1:2")):
        own = list(drawn_rows(config, options.rows, options.num_crops, tall))
        picture = f"{shape}, {len(own[0]['images'][0].pixels)} of {options.num_crops + 1} crops"
        rows[picture] = own
        for way in [Way(picture, precision, ours) for precision in ("fp32", "bf16") for ours in (False, True)]:
            batches = _batches(own, options.batch_size if way.ours else 1)
            runs[way] = _runner(way, models[way.ours], optimizers[way.ours], batches, options.num_crops)
    apart = max(_apart(models, own, options.num_crops) for own in rows.values())
    if apart > ALLOWED:
        raise SystemExit(f"the ways do not compute the same: losses are {apart:.1e} apart, {ALLOWED} is allowed")
    print(f"losses of both ways, the same rows and weights: {apart:.1e} apart")
    _print(take_turns(runs, options.rounds, options.rows), rows, options)


def _print(times: Mapping[Way, Times], rows: Mapping[str, Sequence[Any]], options: argparse.Namespace) -> None:
    table = Table(
        title=f"full training, medians of {options.rounds} rounds, {torch.get_num_threads()} threads, {device().type}"
    )
    columns = ("way", "ms a row", "CPU ms a row", "times the original's", "lowest-highest", "times its fp32")
    for column in columns:
        table.add_column(column, justify="left" if column == "way" else "right")
    for picture, own in rows.items():
        table.add_section()
        table.add_row(f"[bold]{picture}, {len(own[0]['input_ids'])} tokens")
        for way, figures in times.items():
            if way.picture == picture:
                faster = ratio(times[Way(picture, way.precision, ours=False)], figures)
                over_fp32 = ratio(times[Way(picture, "fp32", ours=False)], figures)
                cpu = f"{statistics.median(figures.cpu):.0f}"
                shown = (f"{faster.median:.2f}x", faster.range, f"{over_fp32.median:.2f}x")
                table.add_row(way.name, f"{figures.median:.0f}", cpu, *shown)
    Console(width=118).print(table)


@torch.no_grad()
def _apart(models: Mapping[bool, Any], rows: Sequence[dict[str, Any]], num_crops: int) -> float:
    """Largest difference between the losses of both ways on one row."""
    pairs = [(original_loss(models[False], b, num_crops), models[True](**b).loss) for b in _batches(rows, 1)]
    return max(abs(one.item() - other.item()) for one, other in pairs)


def original_loss(model: Any, batch: Batch, num_crops: int) -> torch.Tensor:
    """Mean loss of a batch of one row, with crops filled up, all blocks, and fp32 logits at every position."""
    inputs = {key: value for key, value in batch.items() if key not in ("pixel_values", "labels")}
    inputs["crop_features"] = tower_features(model, batch["pixel_values"], num_crops + 1)
    return loss_everywhere(model, inputs, batch["labels"])


def tower_features(model: Any, pixels: torch.Tensor, filled_to: int = 0, every_block: bool = True) -> torch.Tensor:
    """Features [C, m, m, F] of the crops [C, 3, S, S] of one picture, by way of `filled_to` crops."""
    embedding = model.model.vision_embed_tokens
    empty = pixels.new_zeros(max(0, filled_to - len(pixels)), *pixels.shape[1:])
    crops = torch.cat([pixels, empty])
    if not every_block:
        return embedding.crop_features(crops)[: len(pixels)]
    hidden = embedding.img_processor.vision_model(crops, output_hidden_states=True).hidden_states[-2][:, 1:]
    side = round(hidden.shape[1] ** 0.5) // 2  # m
    merged = hidden.unflatten(1, (side, 2, side, 2)).transpose(2, 3).flatten(3)
    return merged[: len(pixels)]


def loss_everywhere(model: Any, inputs: Batch, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the labels, from fp32 logits at every position."""
    logits = model(**inputs, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _batches(rows: Sequence[dict[str, Any]], size: int) -> list[Batch]:
    collate = Collator(REFERENCE, pad_id=0)
    return [
        {key: value.to(device()) for key, value in collate(rows[start : start + size]).items()}
        for start in range(0, len(rows), size)
    ]


def _runner(
    way: Way, model: Any, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], num_crops: int
) -> Callable[[], None]:
    """A function that takes one training step for every batch."""

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast(device().type, torch.bfloat16, enabled=way.precision == "bf16"):
                loss = model(**batch).loss if way.ours else original_loss(model, batch, num_crops)
            loss.backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    main()
