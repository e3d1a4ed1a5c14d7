"""Product rows -> batches.

    {"image": Picture(...), "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}

becomes input ids with one slot for every picture token, labels on the answer and its end token only (not where a row
lacks a field), and the tiles of its pictures, or the features that a frozen tower made of them. Answers are rendered
and tokenized once, when they are read; of their pictures rows have the place alone.
Legend: T tokens of a row, A of its answer, B rows.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from catalens.catalog.pictures import Encoded, Picture, PictureFacts, open_picture
from catalens.catalog.storage import Catalog, Pictures, Roles
from catalens.config import PromptSpec
from catalens.digits import DIGITS, neighbours
from catalens.errors import (
    CatalogError,
    CheckpointError,
    PictureError,
    PromptError,
    TooManyBadRowsError,
    TrainingError,
)
from catalens.examples import Query, answer_gaps, complete_question, fields_of, render_answer, value_spans
from catalens.model import Family, ImageInputs, Size, family_of

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
        self._prompts: dict[tuple[Size, ...], torch.Tensor] = {}
        self._tile = self.family.hd_size(processor, 1, 1, 1)
        ids = self._ids(f"{prompt.fields[0].label}: 1{self.family.end_token}")
        if ids[: len(self.prompt_ids([self._tile]))] != self.prompt_ids([self._tile]).tolist():
            raise CheckpointError("the tokenizer does not end a token where the prompt ends: use the model's own")

    def prompt_ids(self, hd_sizes: Sequence[Size], question: str | None = None) -> torch.Tensor:
        """Tokens [T - A] before an answer about pictures of these HD sizes, by default with the prompt's question."""
        sizes, question = tuple(hd_sizes), self.prompt.question if question is None else question
        common = question == self.prompt.question and len(sizes) == 1  # others are too many to keep
        if common and sizes in self._prompts:
            return self._prompts[sizes]
        ids = self.family.token_ids(self.processor, self.family.chat(question, len(sizes)), sizes)
        prompt = torch.tensor(ids)
        if common:
            self._prompts[sizes] = prompt
        return prompt

    def answer_ids(self, row: Mapping[str, Any], name: str = "row") -> list[int]:
        """Tokens [A] of a row's answer and its end; PromptError where it, or they, do not read back."""
        answer = render_answer(self.prompt, row, name) + self.family.end_token
        ids = self._ids(answer)[len(self.prompt_ids([self._tile])) :]
        if self.tokenizer.decode(ids).strip() != answer:
            raise PromptError(f"{name}: the tokenizer does not give back {answer!r}; change the text of the row")
        return ids

    def answer_labels(self, row: Mapping[str, Any], answer_ids: Sequence[int]) -> list[int]:
        """Label the tokens of a row's answer, [A]: `IGNORED` where it lacks a field, lest leaving it out be learnt.

        A token that holds a character of a value has its label.
        """
        labels, answer = list(answer_ids), render_answer(self.prompt, row)
        text = answer + self.family.end_token
        for gap in answer_gaps(self.prompt, row, answer, self.family.end_token):
            first, last = (self._count_tokens(answer_ids, text[:end]) for end in gap)
            labels[first:last] = [IGNORED] * (last - first)
        return labels

    def soft_digits(
        self, row: Mapping[str, Any], answer_ids: Sequence[int], width: float
    ) -> tuple[list[int], list[NDArray[np.float32]]]:
        """Find the tokens of digits before the point in a row's answer, and the shares [10] that each learns.

        As `digits.neighbours` has them, of numbers above 0 that the tokenizer writes digit by digit.
        """
        answer, places, shares = render_answer(self.prompt, row), [], []
        spans = value_spans(self.prompt, row, answer)
        for field in self.prompt.fields:
            if field.kind != "number" or field.column not in spans or row[field.column] <= 0:
                continue
            first, last = (self._count_tokens(answer_ids, answer[:end]) for end in spans[field.column])
            whole = answer[slice(*spans[field.column])].partition(self.prompt.numbers.decimal)[0]
            digits = "".join(sign for sign in whole if sign in DIGITS)
            found = [place for place in range(first, last) if answer_ids[place] in self.digit_ids][: len(digits)]
            if digits and [answer_ids[place] for place in found] == [self.digit_ids[int(one)] for one in digits]:
                places += found
                shares += [*neighbours(float(row[field.column]), digits, width)]
        return places, shares

    @cached_property
    def digit_ids(self) -> list[int]:
        """Tokens of the digits 0 to 9, [10]."""
        return self.tokenizer.convert_tokens_to_ids([*DIGITS])

    def _count_tokens(self, ids: Sequence[int], text: str) -> int:
        """Count the first tokens that it takes to write a text, by bisection: more of them write it as well."""

        def writes(count: int) -> bool:
            return self.tokenizer.decode(ids[:count]).lstrip().startswith(text)

        return bisect_left(range(len(ids)), True, key=writes)

    def text_tokens(self, question: str | None = None, images: int = 1) -> int:
        """Count the tokens of a prompt about so many pictures, theirs left out."""
        tiles = [self._tile] * images
        return len(self.prompt_ids(tiles, question)) - images * self.family.image_tokens(self.processor, self._tile)

    def image(self, picture: Encoded) -> ImageInputs:
        """Decode and cut a picture; PictureError where it is none."""
        return self.family.encode_image(self.processor, open_picture(bytes(picture)))

    def hd_size(self, size: tuple[int, int]) -> Size:
        """Give the (H, W) of what the tiles of a picture of this width and height are cut from."""
        return self.family.hd_size(self.processor, *size)

    def example(
        self,
        answer_ids: Sequence[int],
        *images: ImageInputs,
        question: str | None = None,
        answer_labels: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Put together `input_ids` [T], `labels` [T] and `images`; learnt are by default all tokens of the answer."""
        prompt = self.prompt_ids([image.hd_size for image in images], question)
        answer = torch.tensor(answer_ids, dtype=torch.long)
        learnt = answer if answer_labels is None else torch.tensor(answer_labels, dtype=torch.long)
        labels = torch.cat([torch.full_like(prompt, IGNORED), learnt])
        return {"input_ids": torch.cat([prompt, answer]), "labels": labels, "images": images}

    def _ids(self, answer: str) -> list[int]:
        return self.family.token_ids(self.processor, self._chat + answer, [self._tile])


class Examples(Dataset[dict[str, Any]]):
    """Rows of a split that a model can learn from and be judged by.

    As a dataset it has the examples of a training, whose pictures are `images`, by calls with a `Picture`. Example
    `~i` is example `i` without labels: it fills a place and teaches nothing. TrainingError, with the row's id, where
    a picture cannot be read any more.
    """

    def __init__(self, encoder: Encoder, roles: Roles, images: Any = None, number_smoothing: float = 0.0) -> None:
        self.encoder, self.roles, self.images = encoder, roles, images
        self.number_smoothing = number_smoothing
        """Width of what the digits of numbers learn, 0: the digits themselves; `Encoder.soft_digits`."""
        self.rows: list[dict[str, Any]] = []
        """Id and fields, and in the image column a `Query`."""
        self.bad: list[str] = []
        """Reasons against the other rows."""
        self._labels: dict[int, list[int]] = {}
        """Of the answers of rows that lack a field."""
        self._tokens, self._ends = array("i"), array("q", [0])  # of all answers, one after the other

    def add(self, row: dict[str, Any], answer_ids: Sequence[int]) -> None:
        """Take a row in."""
        if len(fields_of(self.encoder.prompt, row)) < len(self.encoder.prompt.fields):
            self._labels[len(self.rows)] = self.encoder.answer_labels(row, answer_ids)
        self.rows.append(row)
        self._tokens.extend(answer_ids)
        self._ends.append(len(self._tokens))

    def answer_ids(self, row: int) -> list[int]:
        """Tokens [A] of a row's answer and its end."""
        return self._tokens[self._ends[row] : self._ends[row + 1]].tolist()

    @property
    def queries(self) -> list[Query]:
        """Queries of the rows."""
        return [row[self.roles.image] for row in self.rows]

    @property
    def pictures(self) -> list[Picture]:
        """Pictures of all rows, one after the other."""
        return [picture for query in self.queries for picture in query.pictures if isinstance(picture, Picture)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = ~index if index < 0 else index
        row = self.rows[place]
        try:
            query, labels = row[self.roles.image], self._labels.get(place)
            images = map(self.images, query.pictures)
            example = self.encoder.example(
                self.answer_ids(place), *images, question=query.question, answer_labels=labels
            )
        except (PictureError, CatalogError) as error:
            shown = ", ".join(str(value) for name, value in row.items() if name != self.roles.image)
            raise TrainingError(f"row ({shown}): picture {error}: see to it, and go on with --resume") from error
        if index < 0:
            return example | {"labels": torch.full_like(example["labels"], IGNORED)}
        if self.number_smoothing:
            ids = self.answer_ids(place)
            places, shares = self.encoder.soft_digits(row, ids, self.number_smoothing)
            begun = len(example["input_ids"]) - len(ids)
            example |= {"soft_places": [begun + one for one in places], "soft_shares": shares}
            example["soft_words"] = self.encoder.digit_ids
        return example

    def answer_lengths(self) -> list[int]:
        """Count the tokens A of each row's answer."""
        return [end - start for start, end in pairwise(self._ends)]

    def lengths(self) -> list[int]:
        """Count the tokens T of each row."""
        prompts = zip(self.queries, self.hd_sizes, strict=True)
        lengths = (len(self.encoder.prompt_ids(sizes, query.question)) for query, sizes in prompts)
        return [prompt + answer for prompt, answer in zip(lengths, self.answer_lengths(), strict=True)]

    def tiles(self) -> list[int]:
        """Count the tiles of each row's pictures."""
        family, processor = self.encoder.family, self.encoder.processor
        return [sum(family.num_tiles(processor, size) for size in sizes) for sizes in self.hd_sizes]

    @cached_property
    def hd_sizes(self) -> list[tuple[Size, ...]]:
        """HD sizes (H, W) of each row's pictures."""
        by_size = {size: self.encoder.hd_size(size) for size in {one.size for one in self.pictures}}
        pictures = iter(self.pictures)
        return [tuple(by_size[next(pictures).size] for _ in query.pictures) for query in self.queries]


def load_examples(
    catalog: Catalog, encoder: Encoder, split: str, images: Any = None, number_smoothing: float = 0.0
) -> Examples:
    """Read the rows of a split that are of use, and the reasons against the others.

    The one reader of all stages, so that they have the same rows: text and its tokens read back, the pictures decode,
    by the facts that the catalogue keeps of these very bytes, else by trying.
    Raises CatalogError as `Catalog.batches`, and where the question names a column that the catalogue does not have;
    and TooManyBadRowsError where more than `MAX_BAD` of the rows are of no use; those without any field of the prompt
    do not count, unless there are no others.
    """
    roles, prompt = catalog.card.roles, encoder.prompt
    found, number, empty = Examples(encoder, roles, images, number_smoothing), 0, 0
    stored = {column: Pictures(catalog, split, column) for column in roles.images}
    kept = [roles.id, *(field.column for field in prompt.fields)]
    columns = [*roles.images, *roles.facts, *kept, *readable_inputs(prompt, catalog)]
    for row in (row for batch in catalog.batches(split, columns) for row in batch):
        number += 1
        empty += not fields_of(prompt, row)
        name = f"{split} row {number} ({row[roles.id]})"
        pictures = []
        try:
            answer_ids = encoder.answer_ids(row, name)
            for column, facts in zip(roles.images, roles.facts, strict=True):
                if (data := row[column]) or column == roles.image:
                    digest = hashlib.sha256(data).digest()
                    size = _decodable_size(data, digest, row[facts])
                    pictures.append(Picture(stored[column], number - 1, digest, size))
        except PromptError as error:
            found.bad.append(str(error))
        except PictureError as error:
            found.bad.append(f"{name}: picture {error}")
        else:
            query = Query(tuple(pictures), complete_question(prompt, row))
            found.add({name: row[name] for name in kept} | {roles.image: query}, answer_ids)
    if len(found.bad) - empty > MAX_BAD * (number - empty) or empty == number:
        reasons = "; ".join(found.bad[:3])
        raise TooManyBadRowsError(f"{len(found.bad)} of {number} {split} rows cannot be used: {reasons}")
    return found


def _decodable_size(data: bytes, digest: bytes, facts: PictureFacts | None) -> tuple[int, int]:
    """Width and height of a picture, which is decoded only where `facts` are of other bytes; PictureError."""
    if facts is None or facts.sha256 != digest.hex():
        return open_picture(data).size
    if facts.size is None:
        raise PictureError(facts.reason)
    return facts.size


def readable_inputs(prompt: PromptSpec, catalog: Catalog) -> list[str]:
    """Columns of the question; CatalogError where the catalogue lacks one."""
    roles = catalog.card.roles
    if missing := [name for name in prompt.inputs if name not in (*roles.inputs, *roles.fields)]:
        having = ", ".join([*roles.inputs, *roles.fields])
        raise CatalogError(
            f"{catalog.folder}: no column {missing[0]!r} for the question {prompt.question!r}: it has {having}; "
            f"prepare the table with --input {missing[0]}, or leave it out of prompt.question"
        )
    return prompt.inputs


class Collator:
    """Examples -> one batch, padded on the right to its longest row, or packed into one row.

    Gives `input_ids`, `labels` and `position_ids` [B, T], and what the family makes of the rows' images, all with
    pixels or all with features, if there are any. There is no mask: no token sees what stands to its right, and every
    token of padding is a sample of its own by its position 0. Packed batches have B = 1 and positions that start
    afresh with each example; `cu_seq_lens_q` [samples + 1] says where, and `max_length_q` how long one may be.
    `shapes`, by `batches.shapes_of`, are the only ones that batches then have: the rows B of each number of tokens T.
    Where digits have soft targets, `soft_places` [n] are the positions, row after row, of the hidden states that
    predict them, `soft_shares` [n, 10] their targets, and `soft_words` [10] the tokens of these.
    """

    def __init__(
        self, family: Family, pad_id: int, packed: bool = False, shapes: Mapping[int, int] | None = None
    ) -> None:
        self.family, self.pad_id, self.packed, self.shapes = family, pad_id, packed, dict(shapes or {})

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make the batch."""
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        seen = [image for example in examples for image in example.get("images", ())]
        images = self.family.collate(seen) if seen else {}
        lengths = [len(row) for row in ids]
        needed = sum(lengths) if self.packed else max(lengths)
        tokens = min((size for size in self.shapes if size >= needed), default=needed)
        places = [torch.arange(length) for length in lengths]
        texts = {"input_ids": (ids, self.pad_id), "labels": (labels, IGNORED), "position_ids": (places, 0)}
        if self.packed:
            texts = {name: ([torch.cat(rows)], fill) for name, (rows, fill) in texts.items()}
        rows = 1 if self.packed else self.shapes.get(tokens, len(ids))
        batch: dict[str, Any] = {
            name: F.pad(whole, (0, tokens - whole.shape[1], 0, max(0, rows - len(whole))), value=fill)
            for name, (some, fill) in texts.items()
            for whole in [pad_sequence(some, batch_first=True, padding_value=fill)]
        }
        if self.packed:
            batch |= self._samples(lengths, tokens)
        starts = [0, *accumulate(lengths)] if self.packed else range(0, tokens * len(ids), tokens)
        return batch | images | self._soft(examples, starts)

    def _soft(self, examples: Sequence[Mapping[str, Any]], starts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Put soft targets together, of examples that begin at `starts` of the flattened tokens."""
        each = zip(starts, examples, strict=False)
        places = [start + one - 1 for start, example in each for one in example.get("soft_places", ())]
        if not places:
            return {}
        shares = np.stack([one for example in examples for one in example.get("soft_shares", ())])
        words = next(torch.tensor(example["soft_words"]) for example in examples if "soft_words" in example)
        return {"soft_places": torch.tensor(places), "soft_shares": torch.from_numpy(shares), "soft_words": words}

    def _samples(self, lengths: Sequence[int], tokens: int) -> dict[str, Any]:
        """Give the ends of packed samples; the last one is padding, and some are empty where shapes are fixed."""
        longest, ends = max(lengths), [0, *accumulate(lengths)]
        if self.shapes:
            longest = max(self.shapes)
            ends += [tokens] * (max(self.shapes.values()) + 2 - len(ends))
        both = {"cu_seq_lens": torch.tensor(ends, dtype=torch.int32), "max_length": longest}
        return {f"{name}_{of}": value for name, value in both.items() for of in "qk"}
