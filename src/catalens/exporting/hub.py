"""A run -> a repository of the Hugging Face hub: the merged export with its card, private if nothing else is asked.

    publish("runs/demo", "me/demo", dry_run=True).card       what would be seen, without a network
    publish("runs/demo", "me/demo").url                      pushed

The pictures of the reference stay at home: `reference.parquet` is pushed only where that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from catalens.errors import CheckpointError, RecipeError, first_line
from catalens.exporting.certificate import REFERENCE, Certificate
from catalens.exporting.export import ROWS, Exported, export
from catalens.files import EXPORT, model_folder, read_export

STALE = ("*.safetensors", "*.index.json", REFERENCE)
"""Files of an earlier push that go unless they are pushed again."""


@dataclass(frozen=True)
class Published:
    """An export, and what of it is on the hub or would be."""

    folder: Path
    certificate: Certificate
    card: str
    files: Sequence[tuple[str, int]]
    """Names and bytes."""
    url: str | None
    """None in a dry run."""
    private: bool = True
    """Only who has access sees it."""


def publish(
    run: Path | str,
    repo: str,
    out: Path | str | None = None,
    *,
    public: bool = False,
    push_reference: bool = False,
    dry_run: bool = False,
    rows: int = ROWS,
    reference: bool = True,
    catalog: Path | str | None = None,
    console: Console | None = None,
) -> Published:
    """Export a run, merged, and push the folder; one that is there already, of the same run, is taken as it is.

    Raises what `export` raises, RecipeError where the reference is to be pushed and there is none, CheckpointError
    where the hub refuses or cannot be reached: the export stays, and the same command pushes it.
    """
    from catalens.exporting.card import write_card

    run = Path(run)
    out = Path(out) if out else Path("exports") / f"{run.resolve().name}-hub"
    done = _finished(run, out) or export(
        run, "merged", out, rows=rows, reference=reference, catalog=catalog, console=console
    )
    if push_reference and not (out / REFERENCE).is_file():
        raise RecipeError(
            f"--push-reference: {out} has no {REFERENCE}: leave it out, or export anew without --no-reference"
        )
    card = write_card(run, out, repo)
    left_out = [] if push_reference else [REFERENCE]
    files = sorted((path.name, path.stat().st_size) for path in out.iterdir() if path.name not in left_out)
    url, private = (None, not public) if dry_run else push(out, repo, public, left_out)
    return Published(out, done.certificate, card, files, url, private)


def _finished(run: Path, out: Path) -> Exported | None:
    """Give the merged export of a run's very model that stands at a place; None where there is none.

    CheckpointError where its weights are no longer those of its certificate.
    """
    from catalens.inference.calibration import model_hash

    if not (out / EXPORT).is_file():
        return None
    about = read_export(out)
    if about["to"] != "merged" or about["model"] != model_hash(model_folder(run)):
        return None
    if about["content"] != model_hash(out):
        raise CheckpointError(f"{out} is no longer as it was certified: remove it, and export the run again")
    return Exported(out, Certificate.load(out))


def push(folder: Path, repo: str, public: bool = False, left_out: Sequence[str] = (REFERENCE,)) -> tuple[str, bool]:
    """Push an export in one commit; gives its address, and whether it is private.

    Raises CheckpointError where the hub refuses or cannot be reached, and where the repository is there and public
    although a private one is asked for.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        name = api.create_repo(repo, private=not public, exist_ok=True).repo_id
        private = bool(api.model_info(name).private)
        if private or public:
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=f"catalens export of {read_export(folder)['run']}",
                ignore_patterns=list(left_out),
                delete_patterns=list(STALE),
            )
            return str(commit.repo_url), private
    except Exception as error:  # of many kinds: no token, no such name, no network, a full quota
        raise CheckpointError(
            f"--repo {repo}: cannot be pushed ({first_line(error)}): see to the name and `hf auth login`, and give "
            f"the same command again; the export is in {folder}"
        ) from error
    raise CheckpointError(f"--repo {repo} is public: add --public, or name another one")
