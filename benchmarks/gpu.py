"""Training Phi-3-Vision at full size on a GPU: pictures a second, utilisation, memory; a part of `make bench-gpu`.

    {"method": "lora", "cached": false, "checkpointing": false, "num_crops": 16, "tokens": 2569, "crops": 17,
     "batch": 1, "images_per_second": ..., "mfu": ..., "allocated_gb": ..., "reserved_gb": ..., "estimated_gb": ...}

One such line is written to `results.jsonl` for every measurement as soon as it is made, so that a run that is cut
off keeps them. The model has 4.15 B random weights (nothing is downloaded), rows are square photos with 60 tokens of
text. Each case is measured with one row in a batch, and with as many as fit by the estimate, halved where they do
not; what fails is written down as such, and the others go on.

Steps are those of `catalens train`: layers compiled on a GPU, forward and backward under bf16 autocast, the recipe's
optimizer. MFU is the
model's operations (docs/estimates.md; recomputing for gradient checkpointing does not count) over the device's dense
peak.
`--size tiny` does the same with the tiny model on any machine.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from random_models import drawn_rows, official_config, random_model
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from catalens.checkpoint import load_model
from catalens.config import TrainingSpec
from catalens.data import Collator
from catalens.devices import compute_dtype, device, gpu_memory
from catalens.estimates import Setup, sample_flops, step_memory
from catalens.model import REFERENCE, ModelSizes
from catalens.training import USABLE, compile_layers, device_peak, make_optimizer, prepare_parts, uncast_adapters

Record = dict[str, Any]
METHODS = ("lora", "qlora", "full", "full-bf16")
"""The last one with matrices in bf16 and 8-bit moments."""


@dataclass(frozen=True)
class Case:
    """What is measured, at every batch size that fits."""

    method: Literal["full", "lora", "qlora"]
    num_crops: int
    cached: bool = False
    checkpointing: bool = False
    weights: Literal["fp32", "bf16"] = "fp32"

    @property
    def setup(self) -> Setup:
        """As the estimator sees it."""
        return Setup(
            self.method,
            frozen_tower=self.method != "full",
            checkpointing=self.checkpointing,
            cached_features=self.cached,
            dropout=False,
            compiled=torch.cuda.is_available(),
            weights=self.weights,
        )


@dataclass(frozen=True)
class Bench:
    """What the cases of one method share."""

    model: Any
    spec: TrainingSpec
    optimizer: torch.optim.Optimizer
    sizes: ModelSizes
    peak: float
    steps: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--num-crops", nargs="+", type=int, default=[16, 4, 1])
    parser.add_argument("--largest-batch", type=int, default=128)
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps of each measurement, after one that warms up"
    )
    parser.add_argument("--profile", action="store_true", help="show where the time of the first case goes")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"))
    options = parser.parse_args(arguments)
    if options.size == "full" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: 4.15 B weights need one; --size tiny runs anywhere")
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    results.unlink(missing_ok=True)
    records = []
    try:
        with _folder(options.size) as model:
            for record in measure(model, options):
                records.append(record)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    finally:
        _print(records)


@contextmanager
def _folder(size: str) -> Iterator[str]:
    """Where the model is loaded from: a random one is written once, and every method loads it as it always does."""
    if size == "tiny":
        yield "tiny"
        return
    with tempfile.TemporaryDirectory() as folder:
        random_model(official_config(), torch.bfloat16, device()).save_pretrained(folder)
        _free()
        yield folder


def measure(name: str, options: argparse.Namespace) -> Iterator[Record]:
    """A record for every case and batch size; one without figures where a method fails as a whole."""
    for method in options.methods:
        bench, failed = _guarded(lambda method=method: _prepared(name, method, options.steps))
        if bench is None:
            yield {"method": method, "failed": failed}
            continue
        for case in _cases(method, options.num_crops):
            if case.checkpointing:
                bench.model.activation_checkpointing_enable({"use_reentrant": False})
            yield from _measure_case(bench, case, options)
        del bench
        _free()


def _cases(method: str, num_crops: Sequence[int]) -> list[Case]:
    """LoRA at every number of crops; others, and full weights in fp32 with checkpointing alone, at the middle one."""
    if method == "lora":
        return [Case("lora", crops) for crops in num_crops]
    crops, kind = num_crops[len(num_crops) // 2], method.partition("-")[0]
    weights: Any = "bf16" if method.endswith("bf16") else "fp32"
    again = method == "full" and torch.cuda.is_available()
    return [Case(kind, crops, checkpointing=again, weights=weights)]  # type: ignore[arg-type]


def _measure_case(bench: Bench, case: Case, options: argparse.Namespace) -> Iterator[Record]:
    (row,) = drawn_rows(bench.model.config, 1, case.num_crops)
    largest, tiles = 1, len(row["images"][0].pixels)
    estimate = step_memory(bench.sizes, case.setup, len(row["input_ids"]), tiles)
    memory = gpu_memory() or float("inf")
    fits = [n for n in range(1, options.largest_batch + 1) if estimate.peak(n) <= USABLE * memory]
    for record in halved(lambda batch: _figures(bench, case, row, batch), max(fits, default=1)):
        largest = largest if "failed" in record else record["batch"]
        yield {**asdict(case), "tokens": len(row["input_ids"]), "crops": tiles, **record}
    if options.profile:
        options.profile = False  # one is enough
        _, failed = _guarded(lambda: _profile(bench, case, row, largest, options.out))
        if failed:
            print(f"no profile: {failed}")


def halved(figures: Callable[[int], Record], largest: int) -> Iterator[Record]:
    """Figures at batch size 1 and at the largest, or its half, ... where that fails, with the reason."""
    for batch in [1, *(largest >> n for n in range(largest.bit_length() - 1))]:
        found, failed = _guarded(lambda batch=batch: figures(batch))
        yield {"batch": batch, **(found or {"failed": failed})}
        if (found is None) == (batch == 1):  # one fits not, or the largest does
            return


def _guarded(work: Callable[[], Any]) -> tuple[Any, str]:
    """What came of it, or None and the reason; a failure frees its memory."""
    failed = ""
    try:
        return work(), failed
    except torch.OutOfMemoryError:
        failed = "out of memory"
    except Exception as error:  # one method's trouble must not lose the others' figures
        failed = str(error).strip().partition("\n")[0] or type(error).__name__
    _free()  # only now does no frame hold tensors
    return None, failed


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _prepared(name: str, method: str, steps: int) -> Bench:
    kind, _, weights = method.partition("-")
    settings = {"weights": weights, "optimizer": "adamw_8bit"} if weights else {}
    spec = TrainingSpec.model_validate({"method": kind, "learning_rate": 1e-6, **settings})
    dtype = torch.float32 if method == "full" else compute_dtype()  # as `catalens train` does
    base = load_model(name, dtype, four_bits=method == "qlora")
    base.set_attn_implementation(REFERENCE.training_attention)
    model = prepare_parts(base, spec).train()
    model.config.use_cache = False
    if torch.cuda.is_available():
        compile_layers(model)
    sizes = REFERENCE.sizes(model.config)
    return Bench(model, spec, make_optimizer(model, spec), sizes, device_peak(device(), compute_dtype()), steps)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _batch(bench: Bench, case: Case, row: dict[str, Any], size: int) -> dict[str, torch.Tensor]:
    if case.cached:
        row = row | {"images": REFERENCE.encode_features(bench.model, row["images"], bench.model.dtype)}
    collated = Collator(REFERENCE, pad_id=0)([row] * size)
    return {key: value.to(device()) for key, value in collated.items()}


def _step(bench: Bench, batch: dict[str, torch.Tensor]) -> None:
    bench.optimizer.zero_grad()
    bf16 = torch.autocast(device().type, torch.bfloat16, enabled=compute_dtype() == torch.bfloat16)
    with bf16, uncast_adapters(bench.model, bench.spec):
        loss = bench.model(**batch).loss
    loss.backward()
    bench.optimizer.step()


def _figures(bench: Bench, case: Case, row: dict[str, Any], size: int) -> Record:
    bench.optimizer.zero_grad()
    batch = _batch(bench, case, row, size)
    _step(bench, batch)  # warms up, and makes the optimizer's state
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    _synchronize()
    started = time.perf_counter()
    for _ in range(bench.steps):
        _step(bench, batch)
    _synchronize()
    rate = size * bench.steps / (time.perf_counter() - started)
    tokens, crops = float(len(row["input_ids"])), float(len(row["images"][0].pixels))
    needed = sample_flops(bench.sizes, replace(case.setup, checkpointing=False), tokens, crops)
    figures = {"images_per_second": rate, "mfu": rate * needed / bench.peak}
    figures["estimated_gb"] = step_memory(bench.sizes, case.setup, tokens, crops).peak(size) / 1e9
    if torch.cuda.is_available():
        figures["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        figures["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return figures


def _profile(bench: Bench, case: Case, row: dict[str, Any], size: int, out: Path) -> None:
    """Where the time of one step goes, by operation: printed, and written to `profile.txt`."""
    gpu = torch.cuda.is_available()
    batch = _batch(bench, case, row, size)
    _step(bench, batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        _step(bench, batch)
        _synchronize()
    by_time = f"self_{device().type}_time_total"
    shown = profiler.key_averages().table(sort_by=by_time, row_limit=15, max_name_column_width=60)
    (out / "profile.txt").write_text(f"{case}, batch {size}\n{shown}", encoding="utf-8")
    print(f"{case}, batch {size}\n{shown}")


def _print(records: Sequence[Record]) -> None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    table = Table(title=f"{name}: full training steps; GB at the peak, reserved, and by docs/estimates.md")
    columns = ("method", "checkp.", "crops", "batch 1", "GB", "estimate", "fastest", "batch", "MFU", "GB", "ended by")
    for column in columns:
        table.add_column(column, justify="left" if column in ("method", "ended by") else "right")
    cases: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = tuple(record.get(part) for part in ("method", "weights", "checkpointing", "num_crops"))
        cases.setdefault(key, []).append(record)
    for (method, weights, checkpointing, crops), own in cases.items():
        good = [record for record in own if "failed" not in record]
        failed = own[-1].get("failed", "")
        line = [
            f"{method}{', bf16 weights' if weights == 'bf16' else ''}",
            "yes" if checkpointing else "",
            str(crops or ""),
        ]
        if good:
            one, best = good[0], max(good, key=lambda record: record["images_per_second"])
            line += [_rate(one), _memory(one), f"{one['estimated_gb']:.1f}", _rate(best), str(best["batch"])]
            line += [f"{best['mfu']:.1%}", _memory(best)]
        else:
            line += [""] * 7
        table.add_row(*line, f"{failed} at {own[-1]['batch']}" if failed and good else failed)
    Console(width=140).print(table)


def _rate(record: Record) -> str:
    return f"{record['images_per_second']:.2f}/s"


def _memory(record: Record) -> str:
    return f"{record['reserved_gb']:.1f}" if "reserved_gb" in record else ""


if __name__ == "__main__":
    main()
