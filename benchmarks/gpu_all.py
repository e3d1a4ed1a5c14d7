"""Everything that wants a GPU, in one call: `make bench-gpu`, within 8 minutes on one H100.

    equality   CPU against GPU: logits, gradients by part, packed against padded, types of what trains
    training   images a second, utilisation and memory of each method (`gpu.py`), with a profile
    pipeline   `train`, `evaluate` and `predict` on a drawn catalogue, with random weights of official sizes
    answers    milliseconds of an answer, free and constrained, at several batch sizes

Figures go to `report.md` under `--out` as soon as a part is done, and at the end of a run at full size between the
markers of docs/benchmarks.md. A part that fails says so in its place. `--tiny` takes the tiny model, on any machine.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpu
import torch
from random_models import drawn_rows, official_config, random_model

import catalens
from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec, TrainingSpec
from catalens.data import Collator
from catalens.devices import device
from catalens.examples import answer_space
from catalens.inference import Generator
from catalens.model import REFERENCE
from catalens.sampling import draw_catalog, sample_catalog
from catalens.training import prepare_parts

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARKERS = ("<!-- make bench-gpu -->", "<!-- end of make bench-gpu -->")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all parts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the tiny model, on any machine")
    parser.add_argument("--rows", type=int, default=160, help="of the drawn catalogue")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"))
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: 4.15 B weights need one; --tiny runs anywhere")
    options.out.mkdir(parents=True, exist_ok=True)
    begun, report = time.perf_counter(), [f"On {_machine()}, torch {torch.__version__}:"]
    with TemporaryDirectory() as folder:
        model = "tiny" if options.tiny else _official(Path(folder) / "model")
        parts: dict[str, Callable[[], Iterator[str]]] = {
            "Equality of CPU and GPU": equality,
            "Training": lambda: training(model, options),
            "The pipeline": lambda: pipeline(model, Path(folder), options),
            "Answers": lambda: answers(model, options.tiny),
        }
        for title, part in parts.items():
            report += ["", f"### {title}", "", *_lines(part)]
            (options.out / "report.md").write_text("\n".join(report) + "\n", encoding="utf-8")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    text = "\n".join([*report, "", f"All of it took {time.perf_counter() - begun:.0f} s."])
    print(text)
    if not options.tiny:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        DOCS.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def _lines(part: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Lines of a part, and how it failed where it did: the others' figures are not to be lost."""
    try:
        yield from part()
    except Exception as error:
        yield f"Failed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"


def _machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


def _official(folder: Path) -> str:
    """Write a model of official sizes with random weights, and the tiny model's tokenizer."""
    processor = load_processor("tiny", 4)
    config = official_config(image_token_id=processor.image_token_id)
    images = processor.image_processor
    processor.image_processor = type(images)(num_crops=4, crop_size=config.crop_size, patch_size=config.patch_size)
    random_model(config, torch.bfloat16, device()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def equality() -> Iterator[str]:
    """Largest deviations of the tiny model's logits and gradients on this device from those on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    figures = {name: _figures(torch.device(name)) for name in ("cpu", device().type)}
    on_cpu, here = figures["cpu"], figures[device().type]
    yield "| fp32 | largest deviation, as a share of the largest value |"
    yield "|---|---:|"
    for name, value in on_cpu.items():
        apart = (value - here[name]).abs().max() / value.abs().max()
        yield f"| {name} | {apart:.1e} |"
    dtype = torch.bfloat16
    losses = [_loss(load_model("tiny", dtype).to(device()), packed, dtype).item() for packed in (False, True)]
    yield f"\nLoss in bf16: padded {losses[0]:.4f}, packed {losses[1]:.4f}."
    for method in ("lora", "full"):
        model = prepare_parts(load_model("tiny", dtype), TrainingSpec(method=method))  # type: ignore[arg-type]
        types = sorted({str(weight.dtype) for weight in model.parameters() if weight.requires_grad})
        yield f"What trains under {method} is of {', '.join(types)}."


def _figures(where: torch.device) -> dict[str, torch.Tensor]:
    """Logits, and gradients by part, of packed and of padded rows, on the CPU."""
    figures: dict[str, torch.Tensor] = {}
    for packed in (False, True):
        model = prepare_parts(load_model("tiny"), TrainingSpec(method="full")).to(where)
        _loss(model, packed, torch.float32).backward()
        gradients: dict[str, list[torch.Tensor]] = {}
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                gradients.setdefault(REFERENCE.part_of(name), []).append(weight.grad.flatten().cpu())
        form = "packed" if packed else "padded"
        figures |= {f"gradients of {part}, {form}": torch.cat(own) for part, own in gradients.items()}
        with torch.no_grad():
            batch = _batch(model, packed)
            batch.pop("labels")
            figures[f"logits, {form}"] = model(**batch).logits.cpu()
    return figures


def _batch(model: Any, packed: bool) -> dict[str, Any]:
    rows = [*drawn_rows(model.config, 2, 4), *drawn_rows(model.config, 2, 1)]
    batch = Collator(REFERENCE, 3, packed)(rows)
    model.set_attn_implementation(REFERENCE.training_attention)
    return {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}


def _loss(model: Any, packed: bool, dtype: torch.dtype) -> torch.Tensor:
    batch = _batch(model.train(), packed)
    with torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16):
        return model(**batch).loss


def training(model: str, options: argparse.Namespace) -> Iterator[str]:
    """One line for each method and number of crops, at batch 1 and at the largest that fits; a profile beside it."""
    crops, most = ([1], 2) if options.tiny else ([16, 4, 1], 64)
    methods = ("lora", "full") if options.tiny else gpu.METHODS
    asked = {"steps": 1 if options.tiny else 4, "num_crops": crops, "largest_batch": most, "methods": methods}
    yield "| method | weights | recomputing | crops | rows | img/s | MFU | GB | estimate |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for record in gpu.measure(model, argparse.Namespace(**asked, profile=True, out=options.out)):
        if "failed" in record:
            yield f"| {record['method']} | | | | {record.get('batch', '')} | {record['failed']} | | | |"
            continue
        again = "yes" if record["checkpointing"] else ""
        memory = f"{record['allocated_gb']:.1f}" if "allocated_gb" in record else ""
        yield (
            f"| {record['method']} | {record['weights']} | {again} | {record['num_crops']} | {record['batch']} | "
            f"{record['images_per_second']:.2f} | {record['mfu']:.1%} | {memory} | {record['estimated_gb']:.1f} |"
        )
    yield "\nWhere the time of a step goes: `profile.txt` beside the report."


def pipeline(model: str, folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """Seconds of the commands on a drawn catalogue, and what the training says of itself."""
    catalog, run = folder / "catalog", folder / "run"
    sample_catalog(catalog, options.rows, fractions={"train": 0.8, "validation": 0.1, "test": 0.1})
    recipe = {
        "catalog": str(catalog),
        "model": model,
        "num_crops": 1 if options.tiny else 4,
        "training": {"epochs": 1, "num_evals": 1, "num_checkpoints": 1, "validation_rows": 8, "feature_cache": False},
        "evaluation": {"max_new_tokens": 32, "resamples": 100, "before": False},
        "tracking": {"to": "none"},
    }
    started = time.perf_counter()
    trained = catalens.train(catalens.make_recipe(recipe), run)
    speed = ", ".join(f"{name} {value:.3g}" for name, value in trained.throughput.items())
    yield f"- `train`: {time.perf_counter() - started:.0f} s for {trained.steps} steps; {speed}"
    started = time.perf_counter()
    catalens.evaluate(run, rows=16)
    yield f"- `evaluate`, 16 rows: {time.perf_counter() - started:.0f} s"
    predictor, pictures = catalens.load_predictor(run), [row.image for row in draw_catalog(16, seed=1)]
    started = time.perf_counter()
    errors = sum(one.error is not None for one in predictor.predict(pictures))
    yield f"- `predict`, 16 pictures: {time.perf_counter() - started:.1f} s, {errors} errors"


def answers(name: str, tiny: bool) -> Iterator[str]:
    """Milliseconds a picture at each batch size, answers of at most 30 tokens, free and constrained."""
    model: Any = load_model(name, torch.float32 if tiny else torch.bfloat16).eval()
    processor, prompt = load_processor(name, 1 if tiny else 4), PromptSpec()
    rows = list(draw_catalog(64, seed=0))
    known = [{field.column: getattr(row, field.column) for field in prompt.fields} for row in rows]
    yield "| answers | rows | ms a picture, first | again |"
    yield "|---|---:|---:|---:|"
    for kind, schema in (("free", None), ("constrained", answer_space(prompt, known))):
        for size in (1, 2) if tiny else (1, 8, 32):
            generator = Generator(model, processor, prompt, size, 30, schema)
            times = []
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                generator.generate([row.image for row in rows[:size]])
                times.append(1000 * (time.perf_counter() - started) / size)
            yield f"| {kind} | {size} | {times[0]:.0f} | {times[1]:.0f} |"


if __name__ == "__main__":
    main()
