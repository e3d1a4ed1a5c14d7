"""Text and pictures into what the model takes.

    processor(text="<|user|>\\n<|image_1|>What is it?<|end|><|assistant|>\\n", images=photo)
    -> input_ids      [1, T]           ... 32010, 29871, 13, 32044, 32044, ..., 32044, 1, 1724 ...
       attention_mask [1, T]
       pixel_values   [C, 3, S, S]     real crops only, in the order of the slots in `input_ids`
       image_sizes    [N, 2]

A picture takes a run of `image_token_id` (`<|image|>`) in place of its tag. As the model was trained, each
piece of text between tags is tokenized on its own, so each begins with the tokenizer's `<s>`.

Shapes: B rows, T tokens, N pictures, C crops of all pictures, S crop side in pixels.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from .image_processing import Phi3VImageProcessor

IMAGE_TOKEN = "<|image|>"
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")


class Phi3VProcessor(ProcessorMixin):
    """An image processor and a tokenizer that speak with one voice.

    Args:
        image_processor: cuts pictures into crops and counts their tokens.
        tokenizer: must know the token `<|image|>`, which becomes `image_token_id`.

    Raises:
        ValueError: when the tokenizer has no `<|image|>`.
    """

    image_processor: Phi3VImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)
        vocabulary = self.tokenizer.get_vocab()
        if IMAGE_TOKEN not in vocabulary:
            raise ValueError(f"tokenizer has no {IMAGE_TOKEN} token: add it as a special token")
        self.image_token_id: int = vocabulary[IMAGE_TOKEN]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str | Sequence[str],
        images: Any = None,
        *,
        num_crops: int | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Encode rows of text with none, one or several pictures each.

        Args:
            text: one row, or several. `<|image_1|>` marks the row's first picture, `<|image_2|>` its second.
            images: a picture or a list of them for one row; for several rows, one entry a row, each None,
                a picture or a list.
            num_crops: overrides the image processor's own for this call; 1 or more.
            padding: True or "longest", "max_length" (to `max_length`), or False.
            padding_side: "right" to train, "left" to generate; the tokenizer's own when None.
            truncation: cut rows to `max_length` tokens at their end, behind the last picture only.
            max_length: tokens.
            return_tensors: "pt", "np", or None for lists of ids.

        Returns:
            `input_ids`, `attention_mask` and, where there is any picture, `pixel_values`, `image_sizes`.

        Raises:
            ValueError: naming the row and the tag, when tags and pictures do not match one to one, when
                text holds the picture token itself, or when a cut would go through a picture.
        """
        rows = [text] if isinstance(text, str) else list(text)
        pictures = _pictures_of_rows(images, len(rows))
        orders = [
            _checked_tags(row, len(own), f"row {index}: ")
            for index, (row, own) in enumerate(zip(rows, pictures, strict=True))
        ]
        # Pictures follow their slots, so the model places them in one go.
        flat = [own[number - 1] for own, order in zip(pictures, orders, strict=True) for number in order]
        pixels = self.image_processor.preprocess(flat, num_crops=num_crops) if flat else None
        sizes = iter(pixels["image_sizes"].tolist() if pixels else [])
        ids = []
        for index, (row, order) in enumerate(zip(rows, orders, strict=True)):
            by_number = {number: next(sizes) for number in order}
            encoded = self._encode(row, [by_number[n] for n in sorted(by_number)], f"row {index}: ")
            if truncation:
                encoded = self._truncated(encoded, max_length, f"row {index}: ")
            ids.append(encoded)
        data: dict[str, Any] = self._padded(ids, padding, padding_side, max_length, return_tensors)
        if pixels:
            as_numpy = return_tensors == "np"
            data.update({name: value.numpy() if as_numpy else value for name, value in pixels.items()})
        return BatchFeature(data)

    def tokenize(self, text: str, image_sizes: Sequence[Sequence[int]] = ()) -> list[int]:
        """Ids of one row whose pictures' HD sizes are known, without reading a picture.

        Args:
            text: one row with its `<|image_N|>` tags.
            image_sizes: HD size (H, W) in pixels of picture 1, 2, ... as the image processor gives it.

        Raises:
            ValueError: as calling the processor does.
        """
        return self._encode(text, image_sizes, "")

    def _encode(self, text: str, image_sizes: Sequence[Sequence[int]], where: str) -> list[int]:
        order = _checked_tags(text, len(image_sizes), where)
        chunks = IMAGE_TAG.split(text)[::2]  # every other piece is a tag's number
        ids: list[int] = []
        for index, chunk in enumerate(chunks):
            piece = self.tokenizer(chunk)["input_ids"]
            if self.image_token_id in piece:
                raise ValueError(f"{where}text holds the picture token {IMAGE_TOKEN}: take it out")
            ids.extend(piece)
            if index < len(order):
                height, width = image_sizes[order[index] - 1]
                ids.extend([self.image_token_id] * self.image_processor.num_image_tokens(height, width))
        return ids

    def _truncated(self, ids: list[int], max_length: int | None, where: str) -> list[int]:
        if max_length is None:
            raise ValueError("truncation needs max_length: give it in tokens")
        if self.image_token_id in ids[max_length:]:
            end = len(ids) - ids[::-1].index(self.image_token_id)
            raise ValueError(
                f"{where}max_length {max_length} cuts into a picture: give {end} or more, or lower num_crops"
            )
        return ids[:max_length]

    def _padded(
        self,
        ids: list[list[int]],
        padding: bool | str,
        side: str | None,
        length: int | None,
        tensors: str | None,
    ) -> dict[str, Any]:
        side = side or self.tokenizer.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}: give 'left' or 'right'")
        if padding not in (True, False, "longest", "max_length"):
            raise ValueError(f"padding is {padding!r}: give True, False, 'longest' or 'max_length'")
        target = max(map(len, ids), default=0) if padding else 0
        if padding == "max_length":
            if length is None:
                raise ValueError("padding 'max_length' needs max_length: give it in tokens")
            target = max(target, length)
        pad = self.tokenizer.pad_token_id
        if pad is None and any(len(row) < target for row in ids):
            raise ValueError("tokenizer has no pad_token: set one to pad rows of unequal length")
        fill = cast("int", pad)
        data: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for row in ids:
            gap = max(0, target - len(row))
            before, after = (gap, 0) if side == "left" else (0, gap)
            data["input_ids"].append([fill] * before + row + [fill] * after)
            data["attention_mask"].append([0] * before + [1] * len(row) + [0] * after)
        if tensors is None:
            return data
        if len({len(row) for row in data["input_ids"]}) > 1:
            raise ValueError("rows differ in length: pass padding=True, or return_tensors=None for lists")
        as_tensor = {name: torch.tensor(value, dtype=torch.long) for name, value in data.items()}
        return {name: v.numpy() for name, v in as_tensor.items()} if tensors == "np" else as_tensor

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the model takes from here."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save tokenizer, `processor_config.json` and the official `preprocessor_config.json`."""
        # The official layout keeps the image processor in a file of its own, and others look for it there.
        self.image_processor.save_pretrained(Path(save_directory))
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> PreTrainedTokenizerBase:
        # The official tokenizer_config.json names LlamaTokenizer, which rebuilds the tokenizer and gives
        # other ids on transformers 5; tokenizer.json holds the true one.
        kwargs.pop("_from_auto", None)
        return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


def _pictures_of_rows(images: Any, rows: int) -> list[list[Any]]:
    """The pictures of each row as lists, however the caller nested them."""
    if images is None:
        return [[] for _ in range(rows)]
    if not isinstance(images, list | tuple):
        images = [images]
    nested = any(entry is None or isinstance(entry, list | tuple) for entry in images)
    if rows == 1 and not nested:
        return [list(images)]
    if len(images) != rows:
        raise ValueError(f"images has {len(images)} entries for {rows} rows of text: give one entry a row")
    return [[] if e is None else list(e) if isinstance(e, list | tuple) else [e] for e in images]


def _checked_tags(text: str, pictures: int, where: str) -> list[int]:
    """Picture numbers in the order of their tags; each of 1..pictures must stand exactly once."""
    numbers = [int(number) for number in IMAGE_TAG.findall(text)]
    for number in numbers:
        if not 1 <= number <= pictures:
            raise ValueError(
                f"{where}<|image_{number}|> has no picture ({pictures} given): give it or take the tag out"
            )
    for number in range(1, pictures + 1):
        count = numbers.count(number)
        if count > 1:
            raise ValueError(f"{where}<|image_{number}|> stands {count} times: a picture is shown once")
        if count == 0:
            raise ValueError(f"{where}<|image_{number}|> is missing in the text for picture {number}: add the tag")
    return numbers


__all__ = ["Phi3VProcessor"]
