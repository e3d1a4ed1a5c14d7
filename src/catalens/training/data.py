"""The rows of a run, and the pictures that go with them: decoded, or as cached features of a frozen tower."""

import os
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from catalens.catalog.storage import Catalog
from catalens.checkpoint import agreed, processes
from catalens.collation import DecodedPictures, Encoder, ProductDataset, usable_rows
from catalens.config import Recipe
from catalens.errors import TrainingError
from catalens.training.features import FeatureCache


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on."""

    train: ProductDataset
    validation: ProductDataset
    left_out: tuple[dict[str, str], ...]
    """`{"split": ..., "reason": ...}` of each row that cannot be used."""

    @property
    def splits(self) -> dict[str, ProductDataset]:
        """Both, by name."""
        return {"train": self.train, "validation": self.validation}

    def pictures(self) -> list[bytes]:
        """The pictures of all rows, each once."""
        return list(dict.fromkeys(row[data.image] for data in self.splits.values() for row in data.rows))


def load_data(
    recipe: Recipe, catalog: Catalog, encoder: Encoder, pictures: DecodedPictures | FeatureCache, console: Console
) -> Data:
    """Check every row of both splits, pictures included.

    Raises CatalogError, TooManyBadRowsError, and TrainingError where a split has no row.
    """
    rows = {}
    left_out: list[dict[str, str]] = []
    for split in ("train", "validation"):
        rows[split], bad = usable_rows(catalog, encoder, split, pictures.look)
        left_out += [{"split": split, "reason": reason} for reason in bad]
        if not rows[split]:
            raise TrainingError(f"{catalog.folder} has no {split} rows: prepare it with other --splits")
    if left_out:
        console.print(f"[yellow]left out {len(left_out)} rows[/], such as {escape(left_out[0]['reason'])}")
    datasets = {
        split: ProductDataset(own, encoder, catalog.card.roles.image, pictures) for split, own in rows.items()
    }
    return Data(datasets["train"], datasets["validation"], tuple(left_out))


def fill_cache(cache: FeatureCache, data: Data, views: int, always: bool, console: Console) -> bool:
    """Fill the cache where it pays, or `always`; whether it is to be used.

    `views` is how often the run looks at a picture, all in all. Each host fills its own disk, its processes share.
    """
    state, pictures = processes(), data.pictures()
    estimate = cache.estimate(pictures, views / len(pictures))
    used = agreed(always or estimate.pays)
    console.print(f"{estimate}: {'on' if used else 'off'}", highlight=False)
    if used:
        share = pictures[state.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))]
        with Progress(console=console) as progress:
            task = progress.add_task("features of the frozen tower", total=len(share))
            cache.fill(share, lambda done: progress.update(task, completed=done))
        state.wait_for_everyone()
        cache.refresh()
        cache.decoded.forget()
    return used


def loader_workers(asked: int | None) -> int:
    """Processes that prepare batches ahead of a GPU, as many as the recipe says; none where the cores train."""
    if asked is not None or not torch.cuda.is_available():
        return asked or 0
    return min(8, max(1, (os.cpu_count() or 1) // torch.cuda.device_count() - 1))
