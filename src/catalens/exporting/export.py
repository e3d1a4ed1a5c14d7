"""From a run to a folder that is proven, and the proof again; the package's docstring shows the folder.

export("runs/demo", "merged", "exports/demo").certificate.lines()
check("exports/demo").passed
"""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from catalens.catalog.folder import occupied, partial_of
from catalens.errors import CheckError, CheckpointError, RecipeError, first_line
from catalens.exporting.certificate import (
    REFERENCE,
    Certificate,
    ReferenceRow,
    Trace,
    compare,
    load_reference,
    save_reference,
)
from catalens.files import CERTIFICATE, EXPORT, locked, model_folder, read_export, sync, writing
from catalens.progress import Progress, bars
from catalens.tolerance import TEN_PER_CENT, Tolerance

if TYPE_CHECKING:
    from catalens.checkpoint import Run
    from catalens.config import PromptSpec

MARK = ".export"
"""File of a folder that an export is being written into."""
ROWS = 32
"""Rows that a certificate is of."""


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    certificate: Certificate


def target_of(to: str) -> ModuleType:
    """Choose the module that writes and loads a form of export; RecipeError where there is none."""
    match to:
        case "merged":
            from catalens.exporting import merged

            return merged
        case "onnx":
            from catalens.exporting import onnx

            return onnx
        case "vllm":
            from catalens.exporting import vllm

            return vllm
        case _:
            raise RecipeError(f"--to {to}: the choices are merged, onnx, vllm, and hub with --repo")


def export(
    run: Path | str,
    to: str = "merged",
    out: Path | str | None = None,
    *,
    precision: str | None = None,
    rows: int = ROWS,
    reference: bool = True,
    catalog: Path | str | None = None,
    console: Console | None = None,
) -> Exported:
    """Export a finished run into a new folder, `exports/<run>-<to>` by default, with its certificate.

    `precision` is of a target that has several: fp32, int8 or int4 of `onnx`. The certificate is of so many `rows` of
    the validation split, read from `catalog`, by default the run's own; with `reference` they stay in the export, so
    that `check` can be repeated anywhere. Raises RecipeError where an option does not fit, CheckpointError where the
    run is not finished or the folder is taken or cannot be written, CatalogError where the catalogue is not there or
    has changed since the training, CheckError where the export does not answer as the run does: nothing is left.
    """
    from catalens.checkpoint import load_run
    from catalens.exporting.card import write_card
    from catalens.exporting.merged import NativeRuntime

    target, run, console = target_of(to), Path(run), console or Console(stderr=True)
    out = Path(out) if out else Path("exports") / f"{run.resolve().name}-{to}"
    options = _options(to, precision)
    refuse_taken(out)
    loaded = load_run(run, weights=False)
    asked = reference_rows(loaded, rows, catalog)
    loaded = load_run(run)
    if catalog:
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"catalog": str(catalog)}))
    with new_folder(out) as aside, bars(console) as progress:
        _write(target, to, loaded, aside, options, progress)
        save_reference(aside, asked, _trace(NativeRuntime(loaded), asked, "the run", progress))
        del loaded
        _free_memory()
        lacking = target.lacking() if hasattr(target, "lacking") else None  # as vLLM may be, of those that write
        certificate = _certify(aside, progress, lacking)
        certificate.save(aside)
        if not certificate.passed and not certificate.unchecked:
            raise CheckError(_refusal(certificate, f"{out} is not written"))
        write_card(run, aside, out.resolve().name)
        if not reference:
            (aside / REFERENCE).unlink()
    return Exported(out, certificate)


def check(folder: Path | str, console: Console | None = None) -> Certificate:
    """Repeat the check of an export on this machine, against what its run answered.

    `equality.json` stays as it is, but for one that could not be checked where it was made: it is written anew.
    Raises CheckpointError where it is no export or has no reference, RecipeError where its runtime is not installed;
    whether it passed, the certificate says.
    """
    folder = Path(folder)
    with bars(console or Console(stderr=True)) as progress:
        certificate = _certify(folder, progress)
    if certificate.passed and (folder / CERTIFICATE).is_file() and (before := Certificate.load(folder)).unchecked:
        from catalens.exporting.card import renew_equality

        with writing(folder, CheckpointError, "make it writable, and give the same command again"):
            renew_equality(folder, before, certificate)
            certificate.save(folder)
    return certificate


def reference_rows(run: "Run", count: int, catalog: Path | str | None = None) -> list[ReferenceRow]:
    """Draw validation rows of a run's catalogue, always the same ones.

    Raises CatalogError where the catalogue is not there, is not the one of the training, or has no such rows.
    """
    from catalens.catalog.storage import Catalog
    from catalens.data import Encoder, load_examples
    from catalens.errors import CatalogError
    from catalens.evaluation.calibrating import sampled
    from catalens.predictions import truth_of

    found = Catalog(catalog or run.recipe.catalog)
    if found.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(
            f"{found.folder} is not the catalogue that {run.folder} was trained on: name that one by --catalog"
        )
    roles = found.card.roles
    rows = sampled(load_examples(found, Encoder(run.processor, run.prompt), "validation").rows, count)
    return [
        ReferenceRow(
            str(row[roles.id]),
            tuple(map(bytes, row[roles.image].pictures)),
            row[roles.image].question,
            truth_of(run.prompt, row),
        )
        for row in rows
    ]


def _options(to: str, precision: str | None) -> dict[str, str]:
    """Check the options of a target; RecipeError where it does not have such a precision."""
    known = {"onnx": ("fp32", "int8", "int4")}.get(to, ())
    if precision is not None and precision not in known:
        choices = f"the choices are {', '.join(known)}" if known else f"leave it out, {to} keeps that of the run"
        raise RecipeError(f"--precision {precision}: {choices}")
    return {} if precision is None else {"precision": precision}


def _write(
    target: ModuleType, to: str, run: "Run", folder: Path, options: Mapping[str, str], progress: Progress
) -> None:
    """Write all files of an export but reference and certificate."""
    from catalens.inference.calibration import model_hash
    from catalens.model import family_of

    spec = run.recipe.evaluation
    about = {
        "format": 1,
        "to": to,
        "precision": target.write(run, folder, **options),
        "end_token": family_of(run.processor.model_type).end_token,
        "run": run.folder.resolve().name,
        "base": _base_name(run),
        "model": model_hash(model_folder(run.folder)),
        "content": model_hash(folder),
        "catalog": run.versions.get("catalog"),
        "catalens": version("catalens"),
        "number": (target.reading(run) if hasattr(target, "reading") else run.recipe.number).model_dump(),
        "evaluation": {name: getattr(spec, name) for name in ("batch_size", "max_new_tokens", "interval")},
    }
    (folder / EXPORT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (calibration := target.calibration(run, folder, progress)) is not None:
        calibration.save(folder)  # tied to the weights as they are here


def _base_name(run: "Run") -> str:
    """Name the base of a run without the folders of this machine."""
    name = run.recipe.model
    return run.versions.get("base", Path(name).name) if Path(name).is_absolute() else name


def _trace(runtime: Any, rows: Sequence[ReferenceRow], name: str, progress: Progress) -> list[Trace]:
    progress(name, 0, len(rows))
    return runtime(rows, lambda done: progress(name, done, len(rows)))


def _certify(folder: Path, progress: Progress, lacking: str | None = None) -> Certificate:
    """Hold an export against its reference; where the runtime is `lacking`, the certificate says so."""
    from catalens.config import PromptSpec

    about = read_export(folder)
    rows, expected = load_reference(folder)
    if lacking:
        return Certificate(about["to"], about["precision"], len(rows), [], unchecked=lacking)
    traces = expected, _trace(target_of(about["to"]).load(folder), rows, "the export", progress)
    prompt = PromptSpec.model_validate_json((folder / "prompt.json").read_bytes())
    within = Tolerance.parse((about.get("number") or {}).get("within", "10%"))
    accuracy = accuracy_of(prompt, rows, traces, about["end_token"], within)
    return compare(about["to"], about["precision"], rows, traces, accuracy)


def accuracy_of(
    prompt: "PromptSpec",
    rows: Sequence[ReferenceRow],
    traces: tuple[Sequence[Trace], Sequence[Trace]],
    end_token: str,
    within: Tolerance = TEN_PER_CENT,
) -> dict[str, Mapping[str, float]]:
    """Share of right values of run and export, by column; of the rows that have a truth."""
    from catalens.examples import parse_answer
    from catalens.metrics import correctness

    shares: dict[str, Mapping[str, float]] = {}
    for spec in prompt.fields:
        known = [i for i, row in enumerate(rows) if row.truth.get(spec.column) is not None]
        if known:
            truths = [rows[i].truth for i in known]
            parsed = [[parse_answer(prompt, one[i].answer, end_token).values for i in known] for one in traces]
            means = [float(correctness(spec.column, spec.kind, truths, values, within).mean()) for values in parsed]
            shares[spec.column] = dict(zip(("run", "export"), means, strict=True))
    return shares


def _refusal(certificate: Certificate, outcome: str) -> str:
    failed = [check.line(certificate.rows).removeprefix("FAIL ") for check in certificate.checks if not check.passed]
    shown = "; ".join(f"row {d['id']}: run {d['run']!r}, export {d['export']!r}" for d in certificate.differences[:1])
    return (
        f"the export does not answer as the run does ({'; '.join(failed)}{'; ' if shown else ''}{shown}): {outcome}"
    )


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def refuse_taken(out: Path) -> None:
    """Raise CheckpointError where an export may not be put; an empty folder does not matter."""
    if out.name in ("", ".."):
        raise CheckpointError(f"--out {out}: give the name of a new folder, such as exports/demo")
    with writing(out, CheckpointError):
        if occupied(out):
            raise CheckpointError(f"{out} exists already: choose another --out or remove it first")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, `out` with `.partial`: synced and renamed when the block ends well, else emptied.

    What a killed export left there is removed. Raises CheckpointError where another process writes there, where
    something else lies there, or where a file cannot be written.
    """
    from safetensors import SafetensorError

    aside = partial_of(out)
    fix = "make room, or choose another --out, and give the same command again"
    with writing(out, CheckpointError, fix):
        if occupied(aside) and not any((aside / name).is_file() for name in (MARK, EXPORT)):
            raise CheckpointError(f"{aside} is in the way: move it away or choose another --out")
        with locked(aside) as held:
            if not held:
                raise CheckpointError(f"another process writes {out}: wait for it, or choose another --out")
            try:
                _empty(aside)
                (aside / MARK).touch()
                yield aside
                mode = (aside / MARK).stat().st_mode  # the usual one: safetensors lets nobody else read
                (aside / MARK).unlink()
                for path in aside.rglob("*"):
                    if path.is_file():
                        path.chmod(mode)
                    sync(path)
                sync(aside)
                refuse_taken(out)  # somebody may have come in between
                aside.rename(out)  # an empty folder gives way
                sync(out.parent)
            except SafetensorError as error:
                raise CheckpointError(f"{out} cannot be written ({first_line(error)}): {fix}") from error
            finally:
                with suppress(OSError):
                    _empty(aside)


def _empty(aside: Path) -> None:
    """Remove what is half written, the mark last: killed meanwhile it is still ours."""
    for path in aside.iterdir() if aside.is_dir() else ():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (aside / MARK).unlink(missing_ok=True)
