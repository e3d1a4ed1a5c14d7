"""Pictures -> answers, in batches, from the picture alone: nothing of the answer is ever shown to the model.

    Writer(run.model, run.processor, run.prompt).write([picture])[0].text
    "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>"

One writer stands behind `evaluate`, `predict` and `serve`. Batches are rows of like length on one side of the
longrope switch; pictures of the next ones are decoded meanwhile; a batch that does not fit in memory is halved.
"""

import gc
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import psutil
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from catalens.catalog.pictures import open_picture, picture_size
from catalens.checkpoint import greedy
from catalens.config import PromptSpec
from catalens.devices import processes
from catalens.errors import InferenceError, PictureError
from catalens.examples import AnswerSpace, render_prompt
from catalens.inference.decoding import Decoder, Written, longrope_switch
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.model import Phi3VProcessor

CHUNK = 8
"""Batches that are sorted by length together."""
QUARTERS = 2
"""Parts of a picture's side of which `features` are means: they know roughly what is where."""
AHEAD = 2
"""Batches whose pictures are decoded before their turn."""
MEMORY = 0.5
"""Share of the memory beside the weights that a batch's cache may take; the rest is for what a pass needs besides."""

Seen = dict[str, torch.Tensor]
"""A picture as the model takes it: `image_sizes` [1, 2] and `pixel_values` [C, 3, S, S] or `crop_features`."""
Made = TypeVar("Made")


class Engine(Protocol):
    """What writes answers for pictures."""

    def write(self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None) -> list[Written]:
        """One answer a picture, in their order; `progress` hears how many are done."""
        ...


class Memory:
    """What the tower made of pictures that are written about more than once, in at most `room` bytes."""

    def __init__(self, room: int = 2**30) -> None:
        self.room = room
        self.kept: dict[bytes, Seen] = {}

    def keep(self, picture: bytes, seen: Seen) -> None:
        """Keep the features of a picture while there is room."""
        size = seen["crop_features"].nbytes
        if size <= self.room:
            self.kept[picture] = seen
            self.room -= size


class Writer:
    """Writes answers for pictures, greedily, with a KV cache, until `<|end|>`.

    With a `space` decoding is constrained to it, and every answer is whole; `free_categories` leaves categories open.
    Without, answers are free and at most `max_new_tokens` long. `batch_size` is the largest; rows share a batch as
    their lengths and the size of the machine's memory allow, not as what is free at the moment, so that the same
    pictures make the same batches. Writers of one model may share a `memory`.
    """

    def __init__(
        self,
        model: Any,  # Phi3VForCausalLM, or one wrapped by PEFT
        processor: Phi3VProcessor,
        prompt: PromptSpec,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        space: AnswerSpace | None = None,
        free_categories: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.vocabulary = Vocabulary(processor.tokenizer, model.config.vocab_size)
        constraint = Constraint(self.vocabulary, prompt, space, free_categories) if space else None
        longest = constraint.longest if constraint else max_new_tokens
        ends: Any = greedy(processor).eos_token_id
        self._decoder = Decoder(model, self.vocabulary, ends, longest, constraint)
        self._answer_tokens = min(longest, max_new_tokens)  # room that a row is given; few answers need more
        self._prompt = render_prompt(prompt)
        side = processor.image_processor.crop_size
        picture = processor.image_processor.num_image_tokens(side, side)
        self._text_tokens = len(processor.tokenize(self._prompt, [(side, side)])) - picture
        self._memory = memory
        self.batch_size = batch_size

    def write(self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None) -> list[Written]:
        """One answer a picture, in their order; `progress` hears how many are done.

        What cannot be decoded gets an answer that has an `error`. Under torchrun the processes share the pictures
        and all get all answers. Raises InferenceError where a single picture is too much for the memory.
        """
        return _shared(self._write, pictures, progress)

    def features(
        self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None
    ) -> NDArray[np.float32]:
        """Give the tower's features of each whole picture, [n, 4F], by their means over its quarters.

        They come from the memory, and fill it. Shared, and raised, as by `write`; PictureError where one is no
        picture.
        """
        return np.stack(_shared(self._features, pictures, progress))

    def _write(self, pictures: Sequence[bytes], progress: Callable[[int], None]) -> list[Written]:
        written: list[Written] = [Written()] * len(pictures)
        done = 0
        with self._evaluating():
            for places, seen in self._ahead(pictures):
                good = {i: one for i, one in zip(places, seen, strict=True) if not isinstance(one, PictureError)}
                for i, one in zip(places, seen, strict=True):
                    if isinstance(one, PictureError):
                        written[i] = Written(error=f"picture {one}")
                batch = list(good.values())
                if self._memory:  # all of them or none: a batch is of one kind
                    batch = self._looked_at([pictures[i] for i in good], batch)
                for i, answer in zip(good, self._fitting(self._answers, batch), strict=True):
                    written[i] = answer
                done += len(places)
                progress(done)
        return written

    def _features(self, pictures: Sequence[bytes], progress: Callable[[int], None]) -> list[NDArray[np.float32]]:
        quarters: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(pictures)
        done = 0
        with self._evaluating():
            for places, seen in self._ahead(pictures):
                if problem := next((one for one in seen if isinstance(one, PictureError)), None):
                    raise problem
                good = [one for one in seen if not isinstance(one, PictureError)]
                for i, own in zip(places, self._looked_at([pictures[i] for i in places], good), strict=True):
                    whole = own["crop_features"][0].float().movedim(-1, 0)  # [F, m, m]: the first crop shows all
                    quarters[i] = adaptive_avg_pool2d(whole, QUARTERS).flatten().numpy()
                done += len(places)
                progress(done)
        return quarters

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Out of training mode, in which checkpointing would drop the cache."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def _ahead(self, pictures: Sequence[bytes]) -> Iterator[tuple[list[int], list[Seen | PictureError]]]:
        """Batches of places with their pictures, decoded while the batches before are worked on."""
        waiting: deque[tuple[list[int], list[Future[Seen | PictureError]]]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in self._batches(pictures):
                waiting.append((batch, [pool.submit(self._seen, pictures[i]) for i in batch]))
                if len(waiting) > AHEAD:
                    places, coming = waiting.popleft()
                    yield places, [one.result() for one in coming]
            for places, coming in waiting:
                yield places, [one.result() for one in coming]

    def _batches(self, pictures: Sequence[bytes]) -> Iterator[list[int]]:
        """Places of pictures that are written about together."""
        chunk, room = CHUNK * self.batch_size, self._cache_tokens()
        for start in range(0, len(pictures), chunk):
            places = range(start, min(start + chunk, len(pictures)))
            tokens = {i: self._tokens(pictures[i]) for i in places}
            batch: list[int] = []
            for i in sorted(places, key=tokens.__getitem__):
                fits = len(batch) < self.batch_size and (len(batch) + 1) * tokens[i] <= room
                if batch and not (fits and self._side(tokens[batch[0]]) == self._side(tokens[i])):
                    yield batch
                    batch = []
                batch.append(i)
            yield batch

    def _tokens(self, picture: bytes) -> int:
        """Tokens that a row with a picture is given room for, its answer counted; 0 where it is none."""
        images = self.processor.image_processor
        try:
            tokens = images.num_image_tokens(*images.hd_size(*picture_size(picture)))
        except PictureError:
            return 0
        return tokens + self._text_tokens + self._answer_tokens

    def _side(self, tokens: int) -> int:
        """0 below the longrope switch, 2 beyond it, 1 where an answer may cross it."""
        switch = longrope_switch(self.model.config)
        return (tokens > switch) + (tokens - self._answer_tokens > switch)

    def _cache_tokens(self) -> float:
        """Tokens that a batch's cache may hold."""
        config, device = self.model.config, self.model.device
        head = config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * self.model.dtype.itemsize
        weights = sum(weight.nbytes for weight in self.model.parameters())
        return MEMORY * (_memory_of(device) - weights) / token

    def _seen(self, picture: bytes) -> Seen | PictureError:
        """A picture decoded and cut, or remembered."""
        if self._memory and picture in self._memory.kept:
            return self._memory.kept[picture]
        try:
            encoded = self.processor.image_processor(open_picture(picture), return_tensors="pt")
        except PictureError as error:
            return error
        return {"image_sizes": encoded["image_sizes"], "pixel_values": encoded["pixel_values"]}

    def _looked_at(self, pictures: Sequence[bytes], seen: Sequence[Seen]) -> list[Seen]:
        """What the tower makes of each picture, kept as long as there is room."""
        known = dict(zip(pictures, seen, strict=True))
        new = {data: one for data, one in known.items() if "pixel_values" in one}
        known |= zip(new, self._fitting(self._tower, list(new.values())), strict=True)
        if self._memory:
            for data in new:
                self._memory.keep(data, known[data])
        return [known[data] for data in pictures]

    @torch.no_grad()
    def _tower(self, seen: Sequence[Seen]) -> list[Seen]:
        pixels = torch.cat([one["pixel_values"] for one in seen]).to(self.model.device, self.model.dtype)
        sizes = torch.cat([one["image_sizes"] for one in seen])
        crops = [len(one["pixel_values"]) for one in seen]
        features = self.model.model.get_crop_features(pixels, sizes).cpu().split(crops)
        return [
            {"image_sizes": one["image_sizes"], "crop_features": own.clone()}
            for one, own in zip(seen, features, strict=True)
        ]

    def _answers(self, seen: Sequence[Seen]) -> list[Written]:
        return self._decoder(
            [self.processor.tokenize(self._prompt, one["image_sizes"].tolist()) for one in seen], seen
        )

    def _fitting(self, work: Callable[[Sequence[Seen]], list[Made]], seen: Sequence[Seen]) -> list[Made]:
        """What `work` makes of pictures; of halves of them, from then on, where the memory does not suffice."""
        if not seen:
            return []
        try:
            return work(seen)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if len(seen) == 1:
                height, width = seen[0]["image_sizes"][0].tolist()
                raise InferenceError(
                    f"one picture of {width} x {height} pixels is too much for the memory: lower num_crops"
                ) from error
        gc.collect()  # what the failed pass held has gone with its exception
        torch.cuda.empty_cache()
        half = self.batch_size = len(seen) // 2
        return self._fitting(work, seen[:half]) + self._fitting(work, seen[half:])


def _shared(
    work: Callable[[Sequence[bytes], Callable[[int], None]], list[Made]],
    pictures: Sequence[bytes],
    progress: Callable[[int], None],
) -> list[Made]:
    """What `work` makes of all pictures; under torchrun each process does its share, and all get everything."""
    state = processes()
    if state.num_processes == 1 or not pictures:
        return work(pictures, progress)
    share = math.ceil(len(pictures) / state.num_processes)  # the same in each: they wait for one another
    places = [min(state.process_index + n * state.num_processes, len(pictures) - 1) for n in range(share)]
    mine = work([pictures[i] for i in places], lambda done: progress(done * state.num_processes))
    everyones = gather_object(mine)  # one process after the other
    turns = (everyones[n::share] for n in range(share))
    return [made for turn in turns for made in turn][: len(pictures)]


def _memory_of(device: torch.device) -> int:
    """Bytes of a device's whole memory, whatever is free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
