"""The cookbook's way of training against ours, on the same rows in one run: `make bench`.

The Phi-3 cookbook trains one row at a time, padded to 512 tokens, with every picture filled up to `num_crops + 1`
crops that all go through every block of the tower, and with fp32 logits at every position (`original.py` has these).
Each line of the table takes one of these away, on top of the lines before it; `lost without it` is how many times
slower our way would be if that lever alone were missing.

Every way takes full training steps (forward, backward, AdamW) over the same rows. A frozen tower keeps nothing for
the backward pass as it is; cached features replace it by what it gave once, computed before the clock starts. A
second table has the official vocabulary of 32,064 words: embeddings and head grown with random rows, the same tokens.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from original import loss_everywhere, tower_features
from rich.console import Console
from rich.table import Table
from rounds import Times, ratio, take_turns
from torch.nn import functional as F

from catalens.checkpoint import load_model, load_processor
from catalens.config import PartSpec, PartsSpec, PromptSpec, TrainingSpec
from catalens.data import IGNORED, Collator, Encoder
from catalens.devices import device
from catalens.model import REFERENCE
from catalens.sampling import draw_catalog
from catalens.training import make_optimizer, prepare_parts

COOKBOOK_LENGTH = 512
OFFICIAL_VOCABULARY = 32064
COOKBOOK = "the cookbook's way"


@dataclass(frozen=True)
class Way:
    """How a step is computed; as it stands, the cookbook's."""

    padded_to: int = COOKBOOK_LENGTH
    padded_crops: bool = True
    every_block: bool = True
    all_logits: bool = True
    batch_size: int = 1
    frozen: bool = False
    cached: bool = False
    fused: bool = False
    bf16: bool = False


LEVERS: Mapping[str, Mapping[str, Any]] = {
    "no fixed padding": {"padded_to": 0},
    "real crops only": {"padded_crops": False},
    "last block skipped": {"every_block": False},
    "logits of the answer only": {"all_logits": False},
    "batches of 16": {"batch_size": 16},
    "frozen tower": {"frozen": True},
    "cached features": {"cached": True},
    "fused AdamW": {"fused": True},
}
"""What our way does, in the order of the table."""
BF16 = "and under bf16 autocast"


def ways() -> dict[str, Way]:
    """The cookbook's way, then each lever on top of the ones before; bf16 comes last, for it changes the numbers."""
    lines = {COOKBOOK: Way()}
    for name, lever in [*LEVERS.items(), (BF16, {"bf16": True})]:
        lines[name] = replace(list(lines.values())[-1], **lever)
    return lines


def without(lever: str) -> Way:
    """Our way, this lever alone taken away: a tower that trains has no cache, with a cache no crop is computed."""
    kept = {name: value for name, change in LEVERS.items() if name != lever for name, value in change.items()}
    cached = kept.get("cached", False) and lever != "frozen tower"
    return Way(**kept | ({"padded_crops": False, "every_block": False} if cached else {"cached": False}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-crops", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=OFFICIAL_VOCABULARY, help="of the second table")
    options = parser.parse_args(arguments)

    processor = load_processor(options.model, options.num_crops)
    encoder = Encoder(processor, PromptSpec())
    examples = []
    for row in draw_catalog(options.rows, seed=0):
        values = {"title": row.title, "category3_code": row.category3_code, "full_price": row.full_price}
        image = encoder.image(row.image)  # normalised before the clock starts, as the cookbook's are
        image = replace(image, pixels=encoder.family.normalised_pixels([image]))
        examples.append(encoder.example(encoder.answer_ids(values), image))
    collate = Collator(encoder.family, encoder.tokenizer.pad_token_id)
    for vocabulary in (None, options.vocabulary):
        wanted = dict.fromkeys([*ways().values(), *map(without, LEVERS)])
        runs = {way: _runner(way, options, vocabulary, examples, collate) for way in wanted}
        _print(take_turns(runs, options.rounds, len(examples)), options, examples, vocabulary)


def _runner(
    way: Way,
    options: argparse.Namespace,
    vocabulary: int | None,
    examples: Sequence[dict[str, Any]],
    collate: Collator,
) -> Callable[[], None]:
    """A function that trains once over the rows, batches made beforehand: the pictures are decoded alike."""
    torch.manual_seed(0)
    spec = TrainingSpec(
        method="full",
        parts=PartsSpec(vision=PartSpec(train="frozen" if way.frozen else "full")),
        learning_rate=1e-6,
    )
    model: Any = load_model(options.model)
    model.set_attn_implementation("sdpa" if way.padded_to else REFERENCE.training_attention)
    if vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model = prepare_parts(model, spec).train()
    optimizer = make_optimizer(model, spec)
    for group in optimizer.param_groups:
        group["fused"] = way.fused
    filled_to = options.num_crops + 1 if way.padded_crops else 0
    batches = [
        {key: value.to(device()) for key, value in collate(examples[start : start + way.batch_size]).items()}
        for start in range(0, len(examples), way.batch_size)
    ]
    batches = [_prepared(batch, way, model, collate.pad_id) for batch in batches]

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast(device().type, torch.bfloat16, enabled=way.bf16):
                loss = _loss(model, batch, way, filled_to)
            loss.backward()
            optimizer.step()

    return run


def _prepared(batch: dict[str, torch.Tensor], way: Way, model: Any, pad_id: int) -> dict[str, torch.Tensor]:
    """The batch, padded to the way's length, with features in place of pixels where they are cached."""
    batch = dict(batch)
    if way.padded_to:  # the cookbook's batches have a mask, ours none
        batch["attention_mask"] = (batch.pop("position_ids") > 0).long()
        batch["attention_mask"][:, 0] = 1
    room = max(0, way.padded_to - batch["input_ids"].shape[1])
    for key, value in (("input_ids", pad_id), ("attention_mask", 0), ("labels", IGNORED)):
        if key in batch:
            batch[key] = F.pad(batch[key], (0, room), value=value)
    if way.cached:
        with torch.no_grad():
            batch["crop_features"] = model.model.vision_embed_tokens.crop_features(batch.pop("pixel_values"))
    return batch


def _loss(model: Any, batch: dict[str, torch.Tensor], way: Way, filled_to: int) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if way.every_block and "pixel_values" in inputs:
        inputs["crop_features"] = tower_features(model, inputs.pop("pixel_values"), filled_to)
    if way.all_logits:
        return loss_everywhere(model, inputs, batch["labels"])
    return model(**inputs, labels=batch["labels"]).loss


def _print(
    times: Mapping[Way, Times],
    options: argparse.Namespace,
    examples: Sequence[dict[str, Any]],
    vocabulary: int | None,
) -> None:
    tokens = sum(len(example["input_ids"]) for example in examples) / len(examples)
    crops = sum(len(example["images"][0].pixels) for example in examples) / len(examples)
    table = Table(
        title=f"{options.model}{f', {vocabulary:,} words' if vocabulary else ''}, {options.rows} rows of "
        f"{tokens:.0f} tokens and {crops:.1f} crops, medians of {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads, {device().type}"
    )
    for column in ("way", "ms a row", "the cookbook's", "lowest-highest", "line before", "lost without it"):
        table.add_column(column, justify="left" if column == "way" else "right")
    lines = ways()
    ours, before = times[lines[list(LEVERS)[-1]]], None
    for name, way in lines.items():
        own = times[way]
        faster = ratio(times[lines[COOKBOOK]], own)
        share = f"{ratio(before, own).median:.2f}x" if before else ""
        lost = f"{ratio(times[without(name)], ours).median:.2f}x" if name in LEVERS else ""
        table.add_row(name, f"{own.median:.1f}", f"{faster.median:.2f}x", faster.range, share, lost)
        before = own
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
