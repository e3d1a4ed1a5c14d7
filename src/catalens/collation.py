"""Product rows -> batches.

    {"image": b"\\xff\\xd8...", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}

becomes input ids with one slot for every picture token, labels on the answer and its `<|end|>` only, and the real
crops of the picture. Legend: T tokens of a row, B rows, C crops of a row, S side of a crop.

`plan_check` counts the same tokens and crops without reading a picture, before anything is trained.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from catalens.catalog.checking import Plan
from catalens.catalog.checking.estimates import NUM_CROPS, PHI3_VISION, ModelShape
from catalens.catalog.checking.scanning import Cost, Describe, Description
from catalens.catalog.mimicking.profile import Needs
from catalens.catalog.pictures import open_picture
from catalens.catalog.storage import Catalog, Roles
from catalens.checkpoint import TINY, load_model, load_processor
from catalens.config import FieldSpec, Kind, PromptSpec, Recipe, TrainingSpec
from catalens.errors import CheckpointError, PromptError, RecipeError
from catalens.examples import END, format_number, parse_number, render_answer, render_prompt
from catalens.model import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

IGNORED = -100
CHARACTERS_PER_TOKEN = 2.8
"""Of Phi-3's tokenizer on product texts (docs/estimates.md): the estimate where it is not on disk."""


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

    def text_tokens(self, answer: str) -> int:
        """Tokens of the prompt and a rendered answer, the picture's not counted."""
        side = self.processor.image_processor.crop_size
        return len(self._ids(answer, (side, side))) - self.processor.image_processor.num_image_tokens(side, side)

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


def plan_check(folder: Path, recipe: Recipe | None) -> Plan:
    """What a check of a catalogue needs of a recipe; without one, of a prompt with all its fields and Phi-3-Vision.

    Where the model cannot be loaded, picture tokens are those of Phi-3-Vision and text is estimated. Raises
    CatalogError where there is no catalogue, RecipeError where it lacks a column of the recipe.
    """
    fields = Catalog(folder).card.roles.fields
    prompt = recipe.prompt if recipe else _prompt_of(fields)
    if absent := [field.column for field in prompt.fields if field.column not in fields]:
        raise RecipeError(f"prompt.fields: {folder} has no column {absent[0]!r}; its columns are {', '.join(fields)}")
    training = recipe.training if recipe else TrainingSpec()
    processor, shape, basis = None, PHI3_VISION, "No recipe was given"
    if recipe:
        basis = f"The recipe\u2019s model, {recipe.model}, cannot be loaded from disk"
        try:
            processor = load_processor(recipe.model)
            shape = ModelShape.from_config(
                Phi3VConfig.get_config_dict(TINY if recipe.model == "tiny" else recipe.model)[0]
            )
        except (CheckpointError, OSError):
            processor = None
    if processor and recipe:
        basis = f"For the recipe\u2019s model, {recipe.model}, with its own tokenizer."
    else:
        basis += f": reckoned for Phi-3-Vision, text by {CHARACTERS_PER_TOKEN} characters a token."
    return Plan(_describe(prompt, processor), shape, training, basis)


def _prompt_of(fields: Mapping[str, Kind]) -> PromptSpec:
    """The default prompt where the catalogue has its fields, else one with the columns as labels."""
    default = PromptSpec()
    if {field.column: field.kind for field in default.fields} == dict(fields):
        return default
    labels = {name: " ".join("".join(c if c.isalnum() else " " for c in name).split()) for name in fields}
    specs = [
        FieldSpec(column=name, label=labels[name] or f"Field {number}", kind=kind)
        for number, (name, kind) in enumerate(fields.items(), start=1)
    ]
    if len({spec.label for spec in specs}) < len(specs):
        specs = [spec.model_copy(update={"label": f"Field {n}"}) for n, spec in enumerate(specs, start=1)]
    return PromptSpec(fields=tuple(specs))


def _describe(prompt: PromptSpec, processor: Phi3VProcessor | None) -> Describe:
    """The function that a check calls with every row: does its text read back, how long is it."""
    images = processor.image_processor if processor else Phi3VImageProcessor()
    encoder = Encoder(processor, prompt) if processor else None

    def describe(row: Mapping[str, Any], name: str, size: tuple[int, int] | None) -> Description:
        try:
            answer = render_answer(prompt, row, name)
            if encoder:
                encoder.check(row, name)
        except PromptError as error:
            return Description(problem=str(error))
        costs = {}
        if size:
            text = encoder.text_tokens(answer) if encoder else _estimated(render_prompt(prompt) + answer)
            for num_crops in NUM_CROPS:
                height, width = images.hd_size(*size, num_crops)
                crops = 1 + height * width // images.crop_size**2
                costs[num_crops] = Cost(text + images.num_image_tokens(height, width), crops)
        return Description(rounded=_rounded(prompt, row), costs=costs)

    return describe


def _estimated(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _rounded(prompt: PromptSpec, row: Mapping[str, Any]) -> str | None:
    """The first number that its written form is not equal to."""
    for field in prompt.fields:
        if field.kind == "number":
            text = format_number(prompt.numbers, row[field.column])
            if parse_number(prompt.numbers, text) != row[field.column]:
                return f"{field.column} {row[field.column]!r} is written {text!r}"
    return None


class TinyMeter:
    """What rows of a catalogue cost the tiny model, for `catalens sample --like`."""

    def __init__(self, roles: Roles) -> None:
        fields = [FieldSpec(column=c, label=f"Field {n}", kind=k) for n, (c, k) in enumerate(roles.fields.items())]
        self._image, self._model = roles.image, load_model("tiny")
        self._encoder = Encoder(load_processor("tiny"), PromptSpec(fields=tuple(fields)))
        self._collate = Collator(self._encoder.tokenizer.pad_token_id)

    def needs(self, row: Mapping[str, Any]) -> Needs:
        """Tokens and crops of a row; PromptError or PictureError where it has no text or picture."""
        example = self._example(row)
        return Needs(len(example["input_ids"]), len(example["pixel_values"]))

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Decode, encode, forward, backward; nothing is learnt."""
        batch = self._collate([self._example(row) for row in rows])
        self._model.train()
        self._model(**{name: value.to(self._model.device) for name, value in batch.items()}).loss.backward()
        self._model.zero_grad()

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return self._encoder.example(row, self._encoder.picture(row[self._image]))
