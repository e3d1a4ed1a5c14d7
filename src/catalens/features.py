"""Features of a frozen tower, computed once and kept on disk.

    ~/.cache/catalens/features/6f0c.../      one folder for a tower's weights, its processor and the precision
      9a3b...-512.safetensors                {"<SHA-256 of a picture's bytes>": [C, m, m, F], ...}
      e01f...-512.safetensors

A shard is written aside and renamed, so that a run that is killed goes on from the last whole one, and another run
with the same tower finds what is there. C tiles of a picture, m embeddings along a tile's side, F features of an
embedding. `CATALENS_CACHE` names another place than `~/.cache/catalens`.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from catalens.data import DecodedPictures
from catalens.devices import broadcast, processes
from catalens.errors import TrainingError
from catalens.files import atomic
from catalens.model import ImageInputs
from catalens.progress import bars

SHARD_BYTES = 256 * 2**20
TOGETHER = 8
"""Pictures that the tower sees at once, and that the estimate measures."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run with and without the cache, and what it would hold."""

    pictures: int
    missing: int
    """Pictures that the cache does not hold yet."""
    size: float
    """Bytes of all features."""
    free: float
    """Bytes free on the disk of the cache."""
    computed: float
    """Seconds for the tower to see a picture."""
    read: float
    """Seconds to read a picture's features."""
    written: float
    """Seconds to write them."""
    passes: float
    """Times that each picture is seen."""

    @property
    def without(self) -> float:
        """Seconds of tower in the whole run."""
        return self.pictures * self.passes * self.computed

    @property
    def cached(self) -> float:
        """Seconds of tower, writing and reading in the whole run."""
        return self.missing * (self.computed + self.written) + self.pictures * self.passes * self.read

    @property
    def pays(self) -> bool:
        """Tell whether the cache is quicker and fits; half of the free disk is left to others."""
        return self.cached < self.without and self.missing / self.pictures * self.size < self.free / 2

    def __str__(self) -> str:
        """One line for the terminal."""
        left = "" if self.missing == self.pictures else f", {self.pictures - self.missing:,} of them there"
        return (
            f"feature cache: {self.pictures:,} pictures{left}, {self.size / 1e9:.2g} GB; "
            f"tower {self.without:.2g} s in this run, {self.cached:.2g} s with the cache"
        )


class FeatureCache:
    """Features of pictures by their bytes; made by `fill`, read through memory-mapped shards.

    `dtype` is that of the run's products, and of the features. A copy in another process reads, and has no model.
    """

    def __init__(self, model: Any, decoded: DecodedPictures, dtype: torch.dtype) -> None:
        self._model, self.decoded, self.dtype = model, decoded, dtype
        self.folder = _home() / "features" / _fingerprint(model, decoded, dtype)
        self._shards: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._known: dict[bytes, tuple[str, tuple[int, int]]] = {}  # name and HD size, so that epochs share the work
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_open": {}}

    def __contains__(self, data: bytes) -> bool:
        return _name(data) in self._shards

    def __call__(self, data: bytes) -> ImageInputs:
        """Give a picture that is in the cache."""
        if data not in self._known:
            self._known[data] = _name(data), self.decoded.encoder.hd_size(data)
        name, size = self._known[data]
        return ImageInputs(size, features=self._tensor(self._shards[name], name))

    def look(self, data: bytes) -> None:
        """Believe a picture that the cache holds, decode any other; PictureError where it is none."""
        if data not in self:
            self.decoded.look(data)

    def estimate(self, pictures: Sequence[bytes], passes: float) -> Estimate:
        """Measure tower and disk on a few pictures; `passes` is how often a run sees each."""
        trial = [self.decoded(data) for data in pictures[:: max(1, len(pictures) // TOGETHER)][:TOGETHER]]
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
        del self._open[path]
        path.unlink()
        size = sum(tensor.nbytes for tensor in features.values()) / len(trial) * len(pictures)
        missing = sum(data not in self for data in pictures)
        free = shutil.disk_usage(self.folder).free
        return Estimate(len(pictures), missing, size, free, computed, read, written, passes)

    def fill(self, pictures: Sequence[bytes], on_progress: Callable[[int], None]) -> None:
        """Compute and write what is missing; `on_progress` hears how many pictures are done.

        Raises TrainingError where the disk is full.
        """
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
        self, pictures: Sequence[bytes], on_progress: Callable[[int], None]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Features of what is missing, in shards."""
        shard: dict[str, torch.Tensor] = {}
        for start in range(0, len(pictures), TOGETHER):
            # after a kill the same pictures share a pass again, and have the same bits
            missing = {_name(data): data for data in pictures[start : start + TOGETHER] if data not in self}
            if missing:
                features = self._run([self.decoded(data) for data in missing.values()])
                shard |= zip(missing, features, strict=True)
            on_progress(min(start + TOGETHER, len(pictures)))
            if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
                yield shard
                shard = {}
        if shard:
            yield shard

    def _run(self, images: Sequence[ImageInputs]) -> list[torch.Tensor]:
        family, dtype = self.decoded.encoder.family, self.dtype
        with torch.autocast(self._model.device.type, dtype, enabled=dtype != torch.float32):
            images = family.encode_features(self._model, images, dtype)
        return [image.features.to(dtype) for image in images if image.features is not None]

    def _tensor(self, path: Path, name: str) -> torch.Tensor:
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path].get_tensor(name)

    def refresh(self) -> None:
        """See what other processes have written."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as shard:
                self._shards |= dict.fromkeys(shard.keys(), path)


def fill_where_it_pays(
    cache: FeatureCache, pictures: Sequence[bytes], views: int, always: bool, console: Console
) -> bool:
    """Fill the cache where it pays, or `always`; whether it is to be used.

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
        cache.decoded.forget()
    return used


def _name(data: bytes) -> str:
    """Name a picture in a shard."""
    return hashlib.sha256(data).hexdigest()


def _home() -> Path:
    return Path(os.environ.get("CATALENS_CACHE") or Path.home() / ".cache" / "catalens")


def _fingerprint(model: Any, decoded: DecodedPictures, dtype: torch.dtype) -> str:
    """Digest of what features depend on: the tower's weights, the precision, and how pictures are cut."""
    encoder = decoded.encoder
    cut = encoder.processor.image_processor.to_dict()
    digest = hashlib.sha256(json.dumps([cut, str(dtype)], sort_keys=True).encode())
    for name, weight in model.named_parameters():
        if encoder.family.part_of(name) == "vision":
            name = name.removeprefix(f"{model.base_model_prefix}.")
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
