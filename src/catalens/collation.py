"""Product rows -> batches.

    {"image": b"\\xff\\xd8...", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}

becomes input ids with one slot for every picture token, labels on the answer and its `<|end|>` only, and the real
crops of the picture. Legend: T tokens of a row, B rows, C crops of a row, S side of a crop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from catalens.catalog.pictures import open_picture
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, PromptError
from catalens.examples import END, render_answer, render_prompt
from catalens.model import Phi3VProcessor

IGNORED = -100


@dataclass(frozen=True)
class Picture:
    """A picture ready for the model."""

    pixel_values: torch.Tensor  # [C, 3, S, S]
    size: tuple[int, int]  # height and width of the high-resolution canvas in pixels


class Encoder:
    """Turns rows into token ids and pixels, with the processor and prompt of a run.

    Raises CheckpointError where the tokenizer would melt the end of the prompt and the answer into one token.
    """

    def __init__(self, processor: Phi3VProcessor, prompt: PromptSpec) -> None:
        self.processor, self.prompt = processor, prompt
        self.tokenizer: Any = processor.tokenizer
        self._opening = render_prompt(prompt)
        side = processor.image_processor.crop_size
        alone, together = (self._ids(answer, (side, side)) for answer in ("", f"{prompt.fields[0].label}: 1{END}"))
        if together[: len(alone)] != alone:
            raise CheckpointError("the tokenizer does not end a token where the prompt ends: use the model's own")

    def check(self, row: Mapping[str, Any], name: str) -> None:
        """Raise PromptError, with the row's name, where its text or its tokens do not read back."""
        answer = render_answer(self.prompt, row, name)
        if self.tokenizer.decode(self.tokenizer(answer, add_special_tokens=False)["input_ids"]).strip() != answer:
            raise PromptError(f"{name}: the tokenizer does not give back {answer!r}; change the text of the row")

    def picture(self, data: bytes) -> Picture:
        """Decode and cut a picture; PictureError where it is none."""
        encoded = self.processor.image_processor(open_picture(data), return_tensors="pt")
        height, width = encoded["image_sizes"][0].tolist()
        return Picture(encoded["pixel_values"], (height, width))

    def example(self, row: Mapping[str, Any], picture: Picture) -> dict[str, Any]:
        """`input_ids` [T], `labels` [T], `pixel_values` [C, 3, S, S], `image_sizes` [1, 2] of a checked row."""
        start = len(self._ids("", picture.size))
        ids = self._ids(render_answer(self.prompt, row), picture.size)
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor([IGNORED] * start + ids[start:]),
            "pixel_values": picture.pixel_values,
            "image_sizes": torch.tensor([picture.size]),
        }

    def _ids(self, answer: str, size: tuple[int, int]) -> list[int]:
        return self.processor.tokenize(self._opening + answer, [size])


class ProductDataset(Dataset[dict[str, Any]]):
    """Training examples of catalogue rows; pictures are decoded once, as long as they fit in `cache_bytes`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], encoder: Encoder, image: str, cache_bytes: int) -> None:
        self.rows, self.encoder, self.image = rows, encoder, image
        self._pictures: dict[int, Picture] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        picture = self._pictures.get(index)
        if picture is None:
            picture = self.encoder.picture(row[self.image])
            size = picture.pixel_values.nbytes
            if size <= self._room:
                self._pictures[index] = picture
                self._room -= size
        return self.encoder.example(row, picture)


class Collator:
    """Examples -> one batch, padded on the right to its longest row.

    Gives `input_ids`, `attention_mask`, `labels` [B, T], `pixel_values` [sum of C, 3, S, S], `image_sizes` [B, 2].
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make the batch."""
        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=IGNORED),
            "pixel_values": torch.cat([example["pixel_values"] for example in examples]),
            "image_sizes": torch.cat([example["image_sizes"] for example in examples]),
        }
