"""The command that makes a run run elsewhere, and proves that it answers the same: `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalens.cli.app import answer, app, console, say
from catalens.errors import CheckError, RecipeError

if TYPE_CHECKING:
    from catalens.exporting.hub import Published


@app.command(
    epilog="Example:  catalens export runs/demo --to merged --out exports/demo\n\n"
    "Example:  catalens export runs/demo --to hub --repo me/demo --dry-run\n\n"
    "Example:  catalens export --check exports/demo"
)
def export(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished run.")] = None,
    to: Annotated[
        str,
        typer.Option(
            help="merged: the official layout; hub: the same, pushed to --repo; vllm: for vLLM; onnx: needs no torch."
        ),
    ] = "merged",
    precision: Annotated[str | None, typer.Option(help="Of --to onnx: fp32 by default, int8 or int4.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; exports/<run>-<to> by default.")] = None,
    check: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Repeat the check of an export.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Validation rows that run and export are compared on.")] = 32,
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Keep these rows, pictures included, in the export.")
    ] = True,
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue of the training, where it is no longer in its place.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="Of --to hub: repository, such as me/name.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Of --to hub: for all to see; else private.")] = False,
    push_reference: Annotated[
        bool, typer.Option("--push-reference", help="Of --to hub: push these rows, pictures included, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of --to hub: show the card and the files, push nothing.")
    ] = False,
) -> None:
    """Write a run for other programs, and prove that it answers there as it does here.

    Every export ends with a certificate, equality.json; one that does not pass is not written, and exit code 9. One
    for vLLM is checked where vLLM is installed, else later, by --check.
    """
    from catalens.exporting.export import check as check_export
    from catalens.exporting.export import export as export_run
    from catalens.exporting.hub import publish

    if (run is None) == (check is None):
        raise RecipeError("give a run to export, or --check and the folder of an export")
    if check is not None:
        certificate = check_export(check, console)
        for line in certificate.lines():
            answer(line)
        if not certificate.passed:
            raise CheckError(f"{check} does not answer here as the run did: see the lines above")
        return
    assert run is not None
    how: dict[str, Any] = {"rows": rows, "reference": reference, "catalog": catalog, "console": console}
    if to == "hub":
        if precision:
            raise RecipeError("--precision is for --to onnx: leave it out")
        if repo is None:
            raise RecipeError("--to hub needs --repo: give a name such as me/demo")
        _publish(publish(run, repo, out, public=public, push_reference=push_reference, dry_run=dry_run, **how))
        return
    if repo or public or push_reference or dry_run:
        raise RecipeError("--repo, --public, --push-reference and --dry-run are for --to hub: leave them out")
    exported = export_run(run, to, out, precision=precision, **how)
    for line in exported.certificate.lines():
        say(line)
    answer(f"export: {exported.folder}")


def _publish(published: "Published") -> None:
    """Print what was pushed, or what would be."""
    for line in published.certificate.lines():
        say(line)
    if published.url is None:
        answer(published.card)
    for name, size in published.files:
        answer(f"{size:>14,} {name}")
    answer(f"export: {published.folder}")
    seen = "private" if published.private else "public"
    answer(
        f"pushed, {seen}: {published.url}" if published.url else f"nothing was pushed (--dry-run); it would be {seen}"
    )
