"""Product rows -> batches.

    {"image": b"\\xff\\xd8...", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}

becomes input ids with one slot for every picture token, labels on the answer and its end token only, and the tiles of
the picture, or the features that a frozen tower made of them. Legend: T tokens of a row, B rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from catalens.catalog.pictures import open_picture, picture_size
from catalens.catalog.storage import Catalog
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, PictureError, PromptError, TooManyBadRowsError, TrainingError
from catalens.examples import render_answer
from catalens.model import Family, ImageInputs, family_of

IGNORED = -100
MAX_BAD = 0.05
"""Largest share of a split that may be of no use."""


class Encoder:
    """Turns rows into token ids and pixels, with the processor and prompt of a run.

    Raises CheckpointError where the tokenizer would melt the end of the prompt and the answer into one token.
    """

    def __init__(self, processor: Any, prompt: PromptSpec) -> None:
        self.processor, self.prompt = processor, prompt
        self.family = family_of(processor.model_type)
        self.tokenizer: Any = processor.tokenizer
        self._chat = self.family.chat(prompt.question)
        self._prompts: dict[tuple[int, int], int] = {}  # tokens before the answer, by HD size
        self._tile = self.family.hd_size(processor, 1, 1, 1)
        alone, together = (
            self.family.token_ids(processor, self._chat + answer, [self._tile])
            for answer in ("", f"{prompt.fields[0].label}: 1{self.family.end_token}")
        )
        if together[: len(alone)] != alone:
            raise CheckpointError("the tokenizer does not end a token where the prompt ends: use the model's own")

    def answer(self, row: Mapping[str, Any], name: str = "row") -> str:
        """Render a row's answer with its end; PromptError where it, or its tokens, do not read back."""
        answer = render_answer(self.prompt, row, name) + self.family.end_token
        self.check(answer, name)
        return answer

    def check(self, answer: str, name: str) -> None:
        """Raise PromptError, with the row's name, where the tokens of a rendered answer do not read back."""
        if self.tokenizer.decode(self.tokenizer(answer, add_special_tokens=False)["input_ids"]).strip() != answer:
            raise PromptError(f"{name}: the tokenizer does not give back {answer!r}; change the text of the row")

    def image(self, data: bytes) -> ImageInputs:
        """Decode and cut a picture; PictureError where it is none."""
        return self.family.encode_image(self.processor, open_picture(data))

    def hd_size(self, data: bytes) -> tuple[int, int]:
        """Give the (H, W) of what a picture's tiles are cut from, by its header alone; PictureError."""
        return self.family.hd_size(self.processor, *picture_size(data))

    def example(self, row: Mapping[str, Any], image: ImageInputs) -> dict[str, Any]:
        """Encode a checked row: `input_ids` [T], `labels` [T] and `image`."""
        size = image.hd_size
        if size not in self._prompts:
            self._prompts[size] = len(self.family.token_ids(self.processor, self._chat, [size]))
        ids = torch.tensor(self._ids(row, size))
        labels = ids.clone()
        labels[: self._prompts[size]] = IGNORED
        return {"input_ids": ids, "labels": labels, "image": image}

    def length(self, row: Mapping[str, Any], hd_size: tuple[int, int]) -> int:
        """Count the tokens T of a checked row whose picture has this HD size."""
        return len(self._ids(row, hd_size))

    def text_tokens(self, answer: str) -> int:
        """Count the tokens of the prompt and a rendered answer, the picture's left out."""
        ids = self.family.token_ids(self.processor, self._chat + answer, [self._tile])
        return len(ids) - self.family.image_tokens(self.processor, self._tile)

    def _ids(self, row: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
        text = self._chat + render_answer(self.prompt, row) + self.family.end_token
        return self.family.token_ids(self.processor, text, [size])


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
            encoder.answer(row, name)
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
        self._kept: dict[bytes, ImageInputs] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def look(self, data: bytes) -> None:
        """Decode, and keep where there is room; PictureError where it is no picture."""
        if data not in self._kept:
            image = self.encoder.image(data)
            assert image.pixels is not None
            if image.pixels.nbytes <= self.room:
                self._kept[data] = image
                self.room -= image.pixels.nbytes

    def __call__(self, data: bytes) -> ImageInputs:
        """Give the picture, kept or decoded."""
        return self._kept.get(data) or self.encoder.image(data)

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()


class ProductDataset(Dataset[dict[str, Any]]):
    """Training examples of catalogue rows. Row `~i` is row `i` without labels: it fills a place and teaches nothing.

    Raises TrainingError, with the row's id, where a picture cannot be read any more.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        encoder: Encoder,
        image: str,
        pictures: Callable[[bytes], ImageInputs],
    ) -> None:
        self.rows, self.encoder, self.image, self.pictures = rows, encoder, image, pictures

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[~index if index < 0 else index]
        try:
            example = self.encoder.example(row, self.pictures(row[self.image]))
        except PictureError as error:
            shown = ", ".join(str(value) for name, value in row.items() if name != self.image)
            raise TrainingError(f"row ({shown}): picture {error}: see to it, and go on with --resume") from error
        return example | {"labels": torch.full_like(example["labels"], IGNORED)} if index < 0 else example

    def lengths(self) -> list[int]:
        """Count the tokens T of each row; no picture is decoded."""
        return [self.encoder.length(row, size) for row, size in zip(self.rows, self.hd_sizes, strict=True)]

    def tiles(self) -> list[int]:
        """Count the tiles of each row's picture."""
        return [self.encoder.family.num_tiles(self.encoder.processor, size) for size in self.hd_sizes]

    @cached_property
    def hd_sizes(self) -> list[tuple[int, int]]:
        """HD sizes (H, W) of the rows' pictures."""
        return [self.encoder.hd_size(row[self.image]) for row in self.rows]


class Collator:
    """Examples -> one batch, padded on the right to its longest row, or packed.

    Gives `input_ids`, `labels` [B, T] and what the family makes of the rows' images, all with pixels or all with
    features, if there are any. Padded batches have an `attention_mask` [B, T]. Packed ones are a single row of all
    tokens, [1, sum of T]; in place of the mask they have `position_ids` that start afresh with each example, which is
    what keeps attention within it.
    """

    def __init__(self, family: Family, pad_id: int, packed: bool = False) -> None:
        self.family, self.pad_id, self.packed = family, pad_id, packed

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make the batch."""
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        seen = [example["image"] for example in examples if "image" in example]
        images = self.family.collate(seen) if seen else {}
        if self.packed:
            return {
                "input_ids": torch.cat(ids)[None],
                "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
                "labels": torch.cat(labels)[None],
                **images,
            }
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            **images,
        }
