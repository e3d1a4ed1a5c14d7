"""The command that makes a run run elsewhere, and proves that it answers the same: `export`."""

from pathlib import Path
from typing import Annotated

import typer

from catalens.cli.app import answer, app, console, say
from catalens.errors import CheckError, RecipeError


@app.command(
    epilog="Example:  catalens export runs/demo --to merged --out exports/demo\n\n"
    "Example:  catalens export --check exports/demo"
)
def export(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished run.")] = None,
    to: Annotated[str, typer.Option(help="merged: the official layout, adapters merged.")] = "merged",
    out: Annotated[Path | None, typer.Option(help="New folder; exports/<run>-<to> by default.")] = None,
    check: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Repeat the check of an export.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Validation rows that run and export are compared on.")] = 32,
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Keep these rows, pictures included, in the export.")
    ] = True,
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue of the training, where it is no longer in its place.")
    ] = None,
) -> None:
    """Write a run for other programs, and prove that it answers there as it does here.

    Every export ends with a certificate, equality.json; one that does not pass is not written, and exit code 9.
    """
    from catalens.exporting.export import check as check_export
    from catalens.exporting.export import export as export_run

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
    exported = export_run(run, to, out, rows=rows, reference=reference, catalog=catalog, console=console)
    for line in exported.certificate.lines():
        say(line)
    answer(f"export: {exported.folder}")
