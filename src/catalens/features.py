"""Images that are wanted again: decoded pictures, or what a vision tower makes of them, by the pictures' content.

    ~/.cache/catalens/features/6f0c.../      one folder for a frozen tower's weights, its processor and the precision
      9a3b...-512.safetensors                {"<SHA-256 of a picture's bytes>": [C, m, m, F], ...}
      e01f...-512.safetensors

In memory they take so much room and no more. On disk a shard is written aside and renamed, so that a run that is
killed goes on from the last whole one, and another run with the same tower finds what is there. C tiles of a picture,
m embeddings along a tile's side, F features of an embedding. `CATALENS_CACHE` names another place than
`~/.cache/catalens`.
"""

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import get_worker_info

from catalens.data import Encoded, Encoder, Picture
from catalens.devices import broadcast, processes
from catalens.errors import TrainingError
from catalens.files import atomic
from catalens.model import ImageInputs
from catalens.progress import bars

Item = TypeVar("Item")
Made = TypeVar("Made")
SHARD_BYTES = 256 * 2**20
TOGETHER = 8
"""Pictures that the tower sees at once, and that the estimate measures."""
AHEAD = 4
"""Times as many that are decoded meanwhile."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run with and without features on disk, and what these would take."""

    pictures: int
    missing: int  # of them, whose features are not there yet
    size: float  # bytes of all features
    free: float  # bytes free on the disk
    computed: float  # seconds for the tower to see a picture,
    read: float  # to read its features,
    written: float  # to write them
    passes: float  # times that each picture is seen

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of the whole run for the tower, and for filling and reading the cache."""
        views = self.pictures * self.passes
        return views * self.computed, self.missing * (self.computed + self.written) + views * self.read

    @property
    def pays(self) -> bool:
        """Tell whether the cache is quicker and fits; half of the free disk is left to others."""
        without, cached = self.seconds
        return cached < without and self.missing / self.pictures * self.size < self.free / 2

    def __str__(self) -> str:
        """One line for the terminal."""
        without, cached = self.seconds
        left = "" if self.missing == self.pictures else f", {self.pictures - self.missing:,} of them there"
        return (
            f"feature cache: {self.pictures:,} pictures{left}, {self.size / 1e9:.2g} GB; "
            f"tower {without:.2g} s in this run, {cached:.2g} s with the cache"
        )


class FeatureCache:
    """Images by their pictures: features, or decoded pictures where there are none.

    In memory they take at most `room` bytes; calling and `add` keep what fits, but in a worker of a loader, each of
    which would have a copy of its own. Where processes are not forked a copy has nothing in memory, and no model.
    After `open` features of a frozen tower are on disk, too: `fill` computes those that are missing.
    """

    def __init__(self, encoder: Encoder, room: int = 2**30, features: bool = True) -> None:
        self.encoder, self.room = encoder, room
        self.features = features
        """Tell whether images are to have features; else they are decoded pictures."""
        self.folder: Path | None = None
        self._model: Any = None
        self.kept: dict[bytes, ImageInputs] = {}
        """Images in memory, by the digests of their pictures."""
        self._shards: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "kept": {}, "_files": {}}

    def __contains__(self, picture: Encoded) -> bool:
        digest = _digest(picture)
        return digest in self.kept or digest.hex() in self._shards

    def __call__(self, picture: Encoded) -> ImageInputs:
        """Give what is kept, or on disk, else decode and keep it; PictureError where it is no picture."""
        digest = _digest(picture)
        if kept := self.kept.get(digest):
            return kept
        if isinstance(picture, Picture) and (path := self._shards.get(digest.hex())):
            features = self._tensor(path, digest.hex())
            return ImageInputs(self.encoder.hd_size(picture.size), features=features)
        image = self.encoder.image(bytes(picture))
        if get_worker_info() is None and not self.features:
            self.add(picture, image)
        return image

    def add(self, picture: Encoded, image: ImageInputs) -> None:
        """Keep an image in memory, while there is room."""
        size = sum(tensor.nbytes for tensor in (image.pixels, image.features) if tensor is not None)
        if size <= self.room and (digest := _digest(picture)) not in self.kept:
            self.kept[digest] = image
            self.room -= size

    # On disk

    def open(self, model: Any, dtype: torch.dtype) -> None:
        """Take to features on disk, of the tower of `model`, whose products are of this type, as are they."""
        self._model, self.dtype, self.features = model, dtype, True
        home = Path(os.environ.get("CATALENS_CACHE") or Path.home() / ".cache" / "catalens")
        self.folder = home / "features" / _fingerprint(self.encoder, model, dtype)
        self.refresh()

    def close(self, used: bool) -> None:
        """Have done with the model: go on with the features where they are `used`, else with decoded pictures."""
        self._model, self.features = None, used
        if used:
            self.kept, self.room = {}, 0
        else:
            self._shards = {}

    def estimate(self, pictures: Sequence[Picture], passes: float) -> Estimate:
        """Measure on some pictures what features would take in a run that sees each `passes` times, and save."""
        assert self.folder
        trial = [self.encoder.image(bytes(one)) for one in pictures[:: max(1, len(pictures) // TOGETHER)][:TOGETHER]]
        self._run(trial)  # the first call is slow
        started = time.perf_counter()
        features = {str(number): tensor for number, tensor in enumerate(self._run(trial))}
        computed = (time.perf_counter() - started) / len(trial)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".trial-{os.getpid()}"
        started = time.perf_counter()
        with atomic(path) as aside:
            save_file(features, aside)
        written = (time.perf_counter() - started) / len(trial)
        started = time.perf_counter()
        for name in features:
            self._tensor(path, name).sum()  # touches every page
        read = (time.perf_counter() - started) / len(trial)
        del self._files[path]
        path.unlink()
        size = sum(tensor.nbytes for tensor in features.values()) / len(trial) * len(pictures)
        missing = sum(one.digest.hex() not in self._shards for one in pictures)
        free = shutil.disk_usage(self.folder).free
        return Estimate(len(pictures), missing, size, free, computed, read, written, passes)

    def fill(self, pictures: Sequence[Picture], on_progress: Callable[[int], None]) -> None:
        """Compute and write what is missing; `on_progress` hears how many pictures are done.

        Raises TrainingError where the disk is full.
        """
        assert self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for shard in self._computed(pictures, on_progress):
                with atomic(self.folder / f"{next(iter(shard))[:16]}-{len(shard)}.safetensors") as aside:
                    save_file(shard, aside)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"features cannot be written to {self.folder} ({error}): make room, set "
                "CATALENS_CACHE to another disk, or set training.feature_cache=false"
            ) from error
        self.refresh()

    def _computed(
        self, pictures: Sequence[Picture], on_progress: Callable[[int], None]
    ) -> Iterator[dict[str, torch.Tensor]]:
        shard: dict[str, torch.Tensor] = {}
        # after a kill the same pictures share a pass again, and have the same bits
        groups = [pictures[start : start + TOGETHER] for start in range(0, len(pictures), TOGETHER)]
        missing = ([one for one in dict.fromkeys(group) if one.digest.hex() not in self._shards] for group in groups)
        done = 0
        decoded = decoded_ahead(missing, lambda one: self.encoder.image(bytes(one)), AHEAD)
        for group, (some, images) in zip(groups, decoded, strict=True):
            if some:
                shard |= zip((one.digest.hex() for one in some), self._run(images), strict=True)
            done += len(group)
            on_progress(done)
            if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
                yield shard
                shard = {}
        if shard:
            yield shard

    def _run(self, images: Sequence[ImageInputs]) -> list[torch.Tensor]:
        with torch.autocast(self._model.device.type, self.dtype, enabled=self.dtype != torch.float32):
            seen = self.encoder.family.encode_features(self._model, images, self.dtype)
        return [image.features.to(self.dtype) for image in seen if image.features is not None]

    def _tensor(self, path: Path, name: str) -> torch.Tensor:
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path].get_tensor(name)

    def refresh(self) -> None:
        """See what other processes have written."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            with safe_open(path, framework="pt") as shard:
                self._shards |= dict.fromkeys(shard.keys(), path)


def decoded_ahead(
    batches: Iterable[Sequence[Item]], decode: Callable[[Item], Made], ahead: int
) -> Iterator[tuple[Sequence[Item], list[Made]]]:
    """Give batches with what `decode` makes of their items, on all cores; as many as `ahead` before their turn."""
    waiting: deque[tuple[Sequence[Item], list[Future[Made]]]] = deque()

    def first() -> tuple[Sequence[Item], list[Made]]:
        batch, coming = waiting.popleft()
        return batch, [one.result() for one in coming]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches:
            waiting.append((batch, [pool.submit(decode, one) for one in batch]))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()


def fill_where_it_pays(
    cache: FeatureCache, pictures: Sequence[Picture], views: int, always: bool, console: Console
) -> bool:
    """Fill an open cache where it pays, or `always`, and close it; tell whether the features are used.

    `views` is how often the run looks at a picture, all in all. Each host fills its own disk, its processes share.
    """
    state = processes()
    estimate = cache.estimate(pictures, views / len(pictures))
    used = broadcast(always or estimate.pays)
    console.print(f"{estimate}: {'on' if used else 'off'}", highlight=False)
    if used:
        share = pictures[state.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))]
        with bars(console) as progress:
            cache.fill(share, lambda done: progress("features of the frozen tower", done, len(share)))
        state.wait_for_everyone()
        cache.refresh()
    cache.close(used)
    return used


def _digest(picture: Encoded) -> bytes:
    return picture.digest if isinstance(picture, Picture) else hashlib.sha256(picture).digest()


def _fingerprint(encoder: Encoder, model: Any, dtype: torch.dtype) -> str:
    """Digest of what features depend on: the tower's weights, the precision, and how pictures are cut."""
    cut = encoder.processor.image_processor.to_dict()
    digest = hashlib.sha256(json.dumps([cut, str(dtype)], sort_keys=True).encode())
    for name, weight in model.named_parameters():
        if encoder.family.part_of(name) == "vision":
            name = name.removeprefix(f"{model.base_model_prefix}.")
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
