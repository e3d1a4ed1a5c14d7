"""One LoRA step of the full-size model on this machine's CPU: `make full-size`.

    4,146,621,440 random bf16 weights of the official configuration -> adapters -> one row with a drawn picture
    -> every adapter has a finite gradient and has moved; seconds and peak memory

It takes minutes and about 15 GB. Where the official tokenizer is on disk (`../shared/golden/official`), the row is
the cookbook's text; else its tokens are random, with the right number of slots. An adapter starts with one of its two
matrices at zero, which leaves the other without a gradient for a step; here it starts with small random numbers.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import parity
import torch
from random_models import drawn_rows, official_config, random_model

from catalens.checkpoint import load_processor
from catalens.config import LoraSpec, PromptSpec, TrainingSpec
from catalens.data import Collator, Encoder
from catalens.model import REFERENCE
from catalens.sampling import draw_catalog
from catalens.training import coverage, make_optimizer, prepare_parts

FAMILY = "phi3_5_v"
SPREAD = 0.01


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the step, check every adapter, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="text layers; fewer for a quick look")
    parser.add_argument("--vision-layers", type=int, default=24)
    parser.add_argument("--num-crops", type=int, default=4)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    started = time.perf_counter()
    config = official_config(
        num_hidden_layers=options.layers, vision_config={"num_hidden_layers": options.vision_layers}
    )
    spec = TrainingSpec(method="lora", lora=LoraSpec(dropout=0))  # on a CPU its masks are fp32
    model = prepare_parts(random_model(config, torch.bfloat16), spec).train()
    built = time.perf_counter() - started
    adapters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, parameter in adapters.items():
            if ".lora_B." in name:
                parameter.normal_(0, SPREAD)
    _report(model, spec)
    print(f"built in {built:.0f} s, {_peak():.1f} GB at the peak", flush=True)

    batch = Collator(REFERENCE, config.pad_token_id or 0)([_row(config, options.num_crops)])
    optimizer = make_optimizer(model, spec)
    before = {name: parameter.detach().clone() for name, parameter in adapters.items()}
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    forward = time.perf_counter() - started
    loss.backward()
    optimizer.step()
    step = time.perf_counter() - started
    check_adapters(adapters, before)
    tokens, crops = batch["input_ids"].shape[1], len(batch["pixel_values"])
    print(
        f"{tokens} tokens, {crops} crops, loss {loss.item():.3f}: forward {forward:.0f} s, whole step {step:.0f} s, "
        f"{torch.get_num_threads()} threads\nall {len(adapters)} adapter matrices got a finite gradient and moved\n"
        f"{_peak():.1f} GB at the peak"
    )


def check_adapters(adapters: dict[str, torch.nn.Parameter], before: dict[str, torch.Tensor]) -> None:
    """SystemExit with the name of an adapter that has no gradient, one that is no number or zero, or did not move."""
    for name, parameter in adapters.items():
        if parameter.grad is None:
            raise SystemExit(f"{name} got no gradient")
        if not torch.isfinite(parameter.grad).all() or not parameter.grad.any():
            raise SystemExit(f"{name}: its gradient is zero or no finite number")
        if torch.equal(parameter, before[name]):
            raise SystemExit(f"{name} did not move")


def _row(config: Any, num_crops: int) -> dict[str, Any]:
    if not parity.available():
        print("no official tokenizer on disk: random tokens")
        return next(drawn_rows(config, 1, num_crops))
    encoder = Encoder(load_processor(str(parity.FOLDER / "official" / FAMILY), num_crops), PromptSpec())
    (drawn,) = draw_catalog(1, seed=0)
    values = {"title": drawn.title, "category3_code": drawn.category3_code, "full_price": drawn.full_price}
    return encoder.example(encoder.answer_ids(values), encoder.image(drawn.image))


def _report(model: Any, spec: TrainingSpec) -> None:
    found = coverage(model, spec)
    print(f"{sum(entry.parameters for entry in found.values()):,} parameters")
    for part, entry in found.items():
        print(
            f"{part:10} {entry.train:8} {entry.parameters:>13,} parameters, {entry.trained:>10,} train, "
            f"adapters on {len(entry.adapted)} modules"
        )


def _peak() -> float:
    """GB of main memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
