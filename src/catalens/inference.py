"""Free generation, in batches, from the picture alone: nothing of the answer is ever shown to the model."""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from accelerate.utils import gather_object
from PIL import Image

from catalens.catalog.pictures import open_picture, picture_size
from catalens.checkpoint import greedy, processes
from catalens.config import PromptSpec
from catalens.examples import END, render_prompt
from catalens.model import Phi3VProcessor

CHUNK = 8
"""Batches that are sorted by length together."""


class Writer:
    """Writes answers for pictures, greedily, with a KV cache, until `<|end|>`."""

    def __init__(
        self,
        model: Any,  # Phi3VForCausalLM, or one wrapped by PEFT
        processor: Phi3VProcessor,
        prompt: PromptSpec,
        batch_size: int = 16,
        max_new_tokens: int = 128,
    ) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.tokenizer: Any = processor.tokenizer
        self._prompt = render_prompt(prompt)
        self._generation = greedy(processor)
        self._generation.max_new_tokens = max_new_tokens

    def answers(self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None) -> list[str]:
        """One answer a picture, in their order; `progress` hears how many are done.

        An answer ends with its `<|end|>`, unless it was cut off at `max_new_tokens`. Under torchrun the processes
        share the pictures and all get all answers. Raises PictureError where a picture cannot be decoded.
        """
        state = processes()
        if state.num_processes == 1 or not pictures:
            return self._written(pictures, progress)
        share = math.ceil(len(pictures) / state.num_processes)  # the same in each: they wait for one another
        places = [min(state.process_index + n * state.num_processes, len(pictures) - 1) for n in range(share)]
        mine = self._written([pictures[i] for i in places], lambda done: progress(done * state.num_processes))
        everyones = gather_object(mine)  # one process after the other
        turns = (everyones[n::share] for n in range(share))
        return [text for turn in turns for text in turn][: len(pictures)]

    def _written(self, pictures: Sequence[bytes], progress: Callable[[int], None]) -> list[str]:
        answers: list[str] = []
        remaining = iter(pictures)
        while chunk := list(islice(remaining, CHUNK * self.batch_size)):
            order = sorted(range(len(chunk)), key=lambda i: self._tokens(chunk[i]))
            written = [""] * len(chunk)
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for i, text in zip(batch, self._generate([open_picture(chunk[i]) for i in batch]), strict=True):
                    written[i] = text
                progress(len(answers) + start + len(batch))
            answers += written
        return answers

    def _tokens(self, picture: bytes) -> int:
        images = self.processor.image_processor
        return images.num_image_tokens(*images.hd_size(*picture_size(picture)))

    def _generate(self, pictures: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(
            text=[self._prompt] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        was_training = self.model.training
        self.model.eval()  # checkpointing left on in training mode would drop the cache
        try:
            ids = self.model.generate(**inputs, generation_config=self._generation)
        finally:
            self.model.train(was_training)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        return [text.partition(END)[0] + END if END in text else text for text in texts]
