"""Product rows -> batches.

    {"image": b"\\xff\\xd8...", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}

becomes input ids with one slot for every picture token, labels on the answer and its `<|end|>` only, and the real
crops of the picture, or the features that a frozen tower made of them. Legend: T tokens of a row, B rows, C crops of
a row, S side of a crop, m embeddings along a crop's side, F features of a merged patch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from catalens.catalog.pictures import open_picture, picture_size
from catalens.catalog.storage import Catalog
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, PictureError, PromptError, TooManyBadRowsError, TrainingError
from catalens.examples import END, render_answer, render_prompt
from catalens.model import Phi3VProcessor

IGNORED = -100
MAX_BAD = 0.05
"""Largest share of a split that may be of no use."""


@dataclass(frozen=True)
class Picture:
    """A picture ready for the model: its crops, or what the tower makes of them."""

    size: tuple[int, int]  # height and width of the high-resolution canvas in pixels
    pixel_values: torch.Tensor | None  # [C, 3, S, S]
    crop_features: torch.Tensor | None = None  # [C, m, m, F]


class Encoder:
    """Turns rows into token ids and pixels, with the processor and prompt of a run.

    Raises CheckpointError where the tokenizer would melt the end of the prompt and the answer into one token.
    """

    def __init__(self, processor: Phi3VProcessor, prompt: PromptSpec) -> None:
        self.processor, self.prompt = processor, prompt
        self.tokenizer: Any = processor.tokenizer
        self._opening = render_prompt(prompt)
        self._starts: dict[tuple[int, int], int] = {}  # tokens before the answer, by canvas
        side = processor.image_processor.crop_size
        alone, together = (self._ids(answer, (side, side)) for answer in ("", f"{prompt.fields[0].label}: 1{END}"))
        if together[: len(alone)] != alone:
            raise CheckpointError("the tokenizer does not end a token where the prompt ends: use the model's own")

    def check(self, answer: str, name: str) -> None:
        """Raise PromptError, with the row's name, where the tokens of a rendered answer do not read back."""
        if self.tokenizer.decode(self.tokenizer(answer, add_special_tokens=False)["input_ids"]).strip() != answer:
            raise PromptError(f"{name}: the tokenizer does not give back {answer!r}; change the text of the row")

    def picture(self, data: bytes) -> Picture:
        """Decode and cut a picture; PictureError where it is none."""
        encoded = self.processor.image_processor(open_picture(data), return_tensors="pt")
        height, width = encoded["image_sizes"][0].tolist()
        return Picture((height, width), encoded["pixel_values"])

    def canvas(self, data: bytes) -> tuple[int, int]:
        """Height and width of a picture's high-resolution canvas, from its header alone; PictureError."""
        return self.processor.image_processor.hd_size(*picture_size(data))

    def example(self, row: Mapping[str, Any], picture: Picture) -> dict[str, torch.Tensor]:
        """`input_ids` [T], `labels` [T], `image_sizes` [1, 2] of a checked row, and its picture's

        `pixel_values` [C, 3, S, S] or `crop_features` [C, m, m, F].
        """
        if picture.size not in self._starts:
            self._starts[picture.size] = len(self._ids("", picture.size))
        start = self._starts[picture.size]
        ids = self._ids(render_answer(self.prompt, row), picture.size)
        seen = {"pixel_values": picture.pixel_values, "crop_features": picture.crop_features}
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor([IGNORED] * start + ids[start:]),
            "image_sizes": torch.tensor([picture.size]),
            **{name: values for name, values in seen.items() if values is not None},
        }

    def length(self, row: Mapping[str, Any], canvas: tuple[int, int]) -> int:
        """Tokens T of a checked row whose picture has this canvas."""
        return len(self._ids(render_answer(self.prompt, row), canvas))

    def text_tokens(self, answer: str) -> int:
        """Tokens of the prompt and a rendered answer, the picture's not counted."""
        side = self.processor.image_processor.crop_size
        return len(self._ids(answer, (side, side))) - self.processor.image_processor.num_image_tokens(side, side)

    def _ids(self, answer: str, size: tuple[int, int]) -> list[int]:
        return self.processor.tokenize(self._opening + answer, [size])


def load_examples(
    catalog: Catalog, encoder: Encoder, split: str, look: Callable[[bytes], object] = open_picture
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of a split that a model can learn from and be judged by, and the reasons against the others.

    The one reader of all stages, so that they have the same rows: text and its tokens read back, the picture decodes.
    `look` is called with each picture and raises PictureError against it. Raises CatalogError as `Catalog.rows`, and
    TooManyBadRowsError where more than `MAX_BAD` of the rows are of no use.
    """
    roles = catalog.card.roles
    rows = catalog.rows(split, [roles.image, roles.id, *(field.column for field in encoder.prompt.fields)])
    good: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, row in enumerate(rows, start=1):
        name = f"{split} row {number} ({row[roles.id]})"
        try:
            encoder.check(render_answer(encoder.prompt, row, name), name)
            look(row[roles.image])
            good.append(row)
        except PromptError as error:
            bad.append(str(error))
        except PictureError as error:
            bad.append(f"{name}: picture {error}")
    if len(bad) > MAX_BAD * len(rows):
        raise TooManyBadRowsError(f"{len(bad)} of {len(rows)} {split} rows cannot be used: {'; '.join(bad[:3])}")
    return good, bad


class DecodedPictures:
    """Pictures that are decoded once, as long as they fit in `room` bytes; the others again at each call.

    `look` is called with each picture before training, and keeps it; calling the object never does, so that workers
    of a loader share what is there and keep nothing of their own. Where processes are not forked they share nothing,
    and a copy decodes.
    """

    def __init__(self, encoder: Encoder, room: int) -> None:
        self.encoder, self.room = encoder, room
        self._kept: dict[bytes, Picture] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def look(self, data: bytes) -> None:
        """Decode, and keep where there is room; PictureError where it is no picture."""
        if data not in self._kept:
            picture = self.encoder.picture(data)
            assert picture.pixel_values is not None
            if picture.pixel_values.nbytes <= self.room:
                self._kept[data] = picture
                self.room -= picture.pixel_values.nbytes

    def __call__(self, data: bytes) -> Picture:
        """The picture, kept or decoded."""
        return self._kept.get(data) or self.encoder.picture(data)

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()


class ProductDataset(Dataset[dict[str, torch.Tensor]]):
    """Training examples of catalogue rows. Row `~i` is row `i` without labels: it fills a place and teaches nothing.

    Raises TrainingError, with the row's id, where a picture cannot be read any more.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], encoder: Encoder, image: str, pictures: Callable[[bytes], Picture]
    ) -> None:
        self.rows, self.encoder, self.image, self.pictures = rows, encoder, image, pictures

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[~index if index < 0 else index]
        try:
            example = self.encoder.example(row, self.pictures(row[self.image]))
        except PictureError as error:
            shown = ", ".join(str(value) for name, value in row.items() if name != self.image)
            raise TrainingError(f"row ({shown}): picture {error}: see to it, and go on with --resume") from error
        return example | {"labels": torch.full_like(example["labels"], IGNORED)} if index < 0 else example

    def lengths(self) -> list[int]:
        """Tokens T of each row; no picture is decoded."""
        return [self.encoder.length(row, self.encoder.canvas(row[self.image])) for row in self.rows]


class Collator:
    """Examples -> one batch, padded on the right to its longest row, or packed.

    Gives `input_ids`, `labels` [B, T] and, where any row has a picture, `image_sizes` [B, 2] and `pixel_values`
    [sum of C, 3, S, S] or `crop_features` [sum of C, m, m, F]. Padded batches have an `attention_mask` [B, T]. Packed
    ones are a single row of all tokens, [1, sum of T]; in place of the mask they have `position_ids` that start
    afresh with each example, which is what keeps attention within it.
    """

    def __init__(self, pad_id: int, packed: bool = False) -> None:
        self.pad_id, self.packed = pad_id, packed

    def __call__(self, examples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make the batch."""
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        pictures = {
            name: torch.cat([example[name] for example in examples if name in example])
            for name in ("image_sizes", "pixel_values", "crop_features")
            if any(name in example for example in examples)
        }
        if self.packed:
            return {
                "input_ids": torch.cat(ids)[None],
                "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
                "labels": torch.cat(labels)[None],
                **pictures,
            }
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            **pictures,
        }
