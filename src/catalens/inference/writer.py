"""Pictures -> answers, in batches, from the picture alone: nothing of the answer is ever shown to the model.

    Writer(run.model, run.processor, run.prompt).write([picture])[0].text
    "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>"

One writer stands behind `evaluate`, `predict` and `serve`. Batches are rows of like length on one side of the
longrope switch; pictures of the next ones are decoded meanwhile; a batch that does not fit in memory is halved.
"""

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import psutil
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size

from catalens.catalog.pictures import open_picture, picture_size
from catalens.checkpoint import greedy, processes
from catalens.config import PromptSpec
from catalens.errors import InferenceError, PictureError
from catalens.examples import AnswerSpace, render_prompt
from catalens.inference.decoding import Decoder, Written, longrope_switch
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.model import Phi3VProcessor

CHUNK = 8
"""Batches that are sorted by length together."""
AHEAD = 2
"""Batches whose pictures are decoded before their turn."""
MEMORY = 0.5
"""Share of the free memory that a batch's cache may take; the rest is for what a pass needs besides."""

Seen = dict[str, torch.Tensor]
"""A picture as the model takes it: `image_sizes` [1, 2] and `pixel_values` [C, 3, S, S] or `crop_features`."""


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


class Writer:
    """Writes answers for pictures, greedily, with a KV cache, until `<|end|>`.

    With a `space` decoding is constrained to it, and every answer is whole; `free_categories` leaves categories open.
    Without, answers are free and at most `max_new_tokens` long. `batch_size` is the largest; less is taken where the
    memory is short. Writers of one model may share a `memory`.
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
        self._prompt = render_prompt(prompt)
        side = processor.image_processor.crop_size
        picture = processor.image_processor.num_image_tokens(side, side)
        self._text_tokens = len(processor.tokenize(self._prompt, [(side, side)])) - picture
        self._memory = memory or Memory(0)
        self.batch_size = batch_size

    def write(self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None) -> list[Written]:
        """One answer a picture, in their order; `progress` hears how many are done.

        What cannot be decoded gets an answer that has an `error`. Under torchrun the processes share the pictures
        and all get all answers. Raises InferenceError where a single picture is too much for the memory.
        """
        state = processes()
        if state.num_processes == 1 or not pictures:
            return self._write(pictures, progress)
        share = math.ceil(len(pictures) / state.num_processes)  # the same in each: they wait for one another
        places = [min(state.process_index + n * state.num_processes, len(pictures) - 1) for n in range(share)]
        mine = self._write([pictures[i] for i in places], lambda done: progress(done * state.num_processes))
        everyones = gather_object(mine)  # one process after the other
        turns = (everyones[n::share] for n in range(share))
        return [written for turn in turns for written in turn][: len(pictures)]

    def _write(self, pictures: Sequence[bytes], progress: Callable[[int], None]) -> list[Written]:
        written: list[Written] = [Written()] * len(pictures)
        done = 0
        was_training = self.model.training
        self.model.eval()  # checkpointing left on in training mode would drop the cache
        try:
            with ThreadPoolExecutor(AHEAD) as pool:
                for places, seen in self._ahead(pool, pictures):
                    good = {i: one for i, one in zip(places, seen, strict=True) if not isinstance(one, PictureError)}
                    for i, one in zip(places, seen, strict=True):
                        if isinstance(one, PictureError):
                            written[i] = Written(error=f"picture {one}")
                    self._remember({pictures[i]: one for i, one in good.items()})
                    kept = [self._memory.kept.get(pictures[i], one) for i, one in good.items()]
                    for i, answer in zip(good, self._answers(kept), strict=True):
                        written[i] = answer
                    done += len(places)
                    progress(done)
        finally:
            self.model.train(was_training)
        return written

    def _ahead(
        self, pool: ThreadPoolExecutor, pictures: Sequence[bytes]
    ) -> Iterator[tuple[list[int], list[Seen | PictureError]]]:
        """Batches of places with their pictures, decoded while the batches before are written about."""
        waiting: deque[tuple[list[int], list[Future[Seen | PictureError]]]] = deque()
        for batch in self._batches(pictures):
            waiting.append((batch, [pool.submit(self._seen, pictures[i]) for i in batch]))
            if len(waiting) > AHEAD:
                places, coming = waiting.popleft()
                yield places, [one.result() for one in coming]
        for places, coming in waiting:
            yield places, [one.result() for one in coming]

    def _batches(self, pictures: Sequence[bytes]) -> Iterator[list[int]]:
        """Places of pictures that are written about together."""
        chunk = CHUNK * self.batch_size
        for start in range(0, len(pictures), chunk):
            places = range(start, min(start + chunk, len(pictures)))
            tokens = {i: self._tokens(pictures[i]) for i in places}
            cost, free = self._cost_of_token(), MEMORY * self._free_memory()
            batch: list[int] = []
            for i in sorted(places, key=tokens.__getitem__):
                fits = len(batch) < self.batch_size and (len(batch) + 1) * cost * tokens[i] <= free
                if batch and not (fits and self._side(tokens[batch[0]]) == self._side(tokens[i])):
                    yield batch
                    batch = []
                batch.append(i)
            yield batch

    def _tokens(self, picture: bytes) -> int:
        """Most tokens of a row with a picture, its answer counted; 0 where it is none."""
        images = self.processor.image_processor
        try:
            tokens = images.num_image_tokens(*images.hd_size(*picture_size(picture)))
        except PictureError:
            return 0
        return tokens + self._text_tokens + self._decoder.longest

    def _side(self, tokens: int) -> int:
        """0 below the longrope switch, 2 beyond it, 1 where an answer may cross it."""
        switch = longrope_switch(self.model.config)
        return (tokens > switch) + (tokens - self._decoder.longest > switch)

    def _cost_of_token(self) -> int:
        """Bytes of a token in the cache."""
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head * self.model.dtype.itemsize

    def _free_memory(self) -> int:
        """Bytes."""
        device = self.model.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available

    def _seen(self, picture: bytes) -> Seen | PictureError:
        """A picture decoded and cut, or remembered."""
        if picture in self._memory.kept:
            return self._memory.kept[picture]
        try:
            encoded = self.processor.image_processor(open_picture(picture), return_tensors="pt")
        except PictureError as error:
            return error
        return {"image_sizes": encoded["image_sizes"], "pixel_values": encoded["pixel_values"]}

    @torch.no_grad()
    def _remember(self, pictures: dict[bytes, Seen]) -> None:
        """Run the tower over new pictures and keep what it makes of them, as long as there is room."""
        new = {data: seen for data, seen in pictures.items() if data not in self._memory.kept}
        if self._memory.room <= 0 or not new:
            return
        pixels = torch.cat([seen["pixel_values"] for seen in new.values()])
        sizes = torch.cat([seen["image_sizes"] for seen in new.values()])
        try:
            features = self.model.model.get_crop_features(pixels.to(self.model.device, self.model.dtype), sizes)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return  # they go through the model with their rows, in smaller batches
        crops = [len(seen["pixel_values"]) for seen in new.values()]
        for (data, seen), own in zip(new.items(), features.cpu().split(crops), strict=True):
            self._memory.kept[data] = {"image_sizes": seen["image_sizes"], "crop_features": own.clone()}
            self._memory.room -= own.nbytes

    def _answers(self, seen: Sequence[Seen]) -> list[Written]:
        """Answers for the pictures of one batch; for halves of it where the memory does not suffice."""
        if not seen:
            return []
        prompts = [self.processor.tokenize(self._prompt, one["image_sizes"].tolist()) for one in seen]
        try:
            return self._decoder(prompts, seen)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if len(seen) == 1:
                raise InferenceError(
                    f"one picture of {len(prompts[0])} tokens is too much for the memory: lower num_crops"
                ) from error
        gc.collect()  # what the failed pass held has gone with its exception
        torch.cuda.empty_cache()
        half = self.batch_size = len(seen) // 2
        return self._answers(seen[:half]) + self._answers(seen[half:])
