"""Text and pictures into what the model takes, with Pillow and torch alone.

    processor(text="<|user|>\\n<|image_1|>What is it?<|end|><|assistant|>\\n", images=photo)
    -> input_ids      [1, T]           ... 32010, 29871, 13, 32044, 32044, ..., 32044, 1, 1724 ...
       attention_mask [1, T]
       pixel_values   [5, 3, 336, 336] the whole picture in one crop, then its 2x2 crops row by row
       image_sizes    [[672, 672]]     HD size (H, W) of a 640x480 photo with num_crops=4: 757 picture tokens

What needs no torch is in `catalens.tiling`: the HD transform, the crops, the chat. A picture takes a run of
`image_token_id` (`<|image|>`) in place of its tag.

Shapes: B rows, T tokens, N pictures, C crops of all pictures, S crop side, (H, W) HD size, h = H/S, w = W/S.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from catalens.tiling import CLIP_MEAN, CLIP_STD, IMAGE_TAG, IMAGE_TOKEN, Tiler, tokenize

from .configuration import Phi3VConfig


class Phi3VImageProcessor(BaseImageProcessor):
    """Image processor: cuts pictures into normalised crops and counts the tokens they take.

    Args:
        num_crops: at most this many crops a picture, the global one not counted (16 and 4 officially).
        crop_size: side of a crop in pixels.
        patch_size: side of a vision patch in pixels; a token covers 2x2 patches.
        image_mean, image_std: per channel, on the 0 to 1 scale.

    Raises:
        ValueError: when a field has no sensible value.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops: int = 1,
        crop_size: int = 336,
        patch_size: int = 14,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        for name in ("num_img_tokens", "do_convert_rgb", "auto_map", "image_processor_type", "processor_class"):
            kwargs.pop(name, None)  # what the official file adds, and what is derived or fixed here
        super().__init__(**kwargs)
        if crop_size < 1 or patch_size < 1 or crop_size % (2 * patch_size):
            raise ValueError(f"crop_size {crop_size} must be a multiple of twice patch_size ({2 * patch_size})")
        self.num_crops = _checked_crops(num_crops)
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = (crop_size // patch_size // 2) ** 2
        self.processor_class = "Phi3VProcessor"  # by which others find the whole processor

    def cutter(self, num_crops: int | None = None) -> Tiler:
        """Make the cutter of pictures, into so many crops at most where `num_crops` is given."""
        crops = self.num_crops if num_crops is None else _checked_crops(num_crops)
        return Tiler(crops, self.crop_size, self.patch_size, tuple(self.image_mean), tuple(self.image_std))

    def hd_size(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """HD size (H, W) in pixels of a picture of `width` x `height`, padding included."""
        return self.cutter(num_crops).hd_size(width, height)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens of a picture whose HD size is `height` x `width` pixels: crops, row ends and separator."""
        return self.cutter().image_tokens((height, width))

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, num_crops: int | None = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Cut one picture or a list of pictures.

        Args:
            images: PIL pictures, or arrays [height, width, 3] or [height, width] of uint8.
            num_crops: overrides the processor's own for this call.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values` [C, 3, S, S] float32, each picture's global crop first, then its crops row by
            row; `image_sizes` [N, 2], the HD sizes (H, W).

        Raises:
            ValueError: for something that is no picture, an empty one, or `num_crops` below 1.
        """
        if kwargs:
            raise ValueError(f"{next(iter(kwargs))} is not an option of Phi3VImageProcessor: remove it")
        cutter = self.cutter(num_crops)
        pictures = list(images) if isinstance(images, list | tuple) else [images]
        hd = [cutter.hd_transform(_as_picture(picture)) for picture in pictures]
        pixels = [_cut(picture, cutter) for picture in hd]
        data = {
            "pixel_values": torch.cat(pixels) if pixels else torch.empty(0, 3, self.crop_size, self.crop_size),
            "image_sizes": torch.tensor([(p.height, p.width) for p in hd], dtype=torch.long).reshape(-1, 2),
        }
        return BatchFeature(data, tensor_type=return_tensors)


def _cut(hd: Image.Image, cutter: Tiler) -> torch.Tensor:
    """Crops [1 + h*w, 3, S, S] of what the HD transform gave, the global one first."""
    side = cutter.crop_size
    grid = (hd.height // side, hd.width // side)
    return normalised_crops(raw_crops(hd, side), [grid], cutter.mean, cutter.std)


def raw_crops(hd: Image.Image, side: int) -> torch.Tensor:
    """Crops [h*w, 3, S, S] of uint8 of what the HD transform gave, row by row, without the global one."""
    pixels = torch.from_numpy(np.array(hd))  # [H, W, 3]
    pixels = pixels.unflatten(1, (-1, side)).unflatten(0, (-1, side))  # [h, S, w, S, 3]
    return pixels.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous()


def normalised_crops(
    crops: torch.Tensor,
    grids: Sequence[tuple[int, int]],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:
    """Make what the tower takes, where the crops are: float32 [C, 3, S, S], each picture's global crop first.

    The global crop is interpolated on normalised values, so it has no uint8 of its own to travel as.

    Args:
        crops: [C - N, 3, S, S] uint8, by `raw_crops`.
        grids: crops (down, across) of each of the N pictures.
        mean, std: per channel, on the 0 to 1 scale.
    """
    pixels, side = crops.float().div_(255), crops.shape[-1]
    pixels.sub_(torch.tensor(mean, device=crops.device)[:, None, None])
    pixels.div_(torch.tensor(std, device=crops.device)[:, None, None])
    parts: list[torch.Tensor] = []
    for own, (h, w) in zip(pixels.split([h * w for h, w in grids]), grids, strict=True):
        hd = own.unflatten(0, (h, w)).permute(2, 0, 3, 1, 4).reshape(1, 3, h * side, w * side)
        parts += [torch.nn.functional.interpolate(hd, size=(side, side), mode="bicubic"), own]
    return torch.cat(parts)


def _checked_crops(num_crops: int) -> int:
    if num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}: give 1 or more")
    return num_crops


def _as_picture(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is a {type(image).__name__}: give a PIL picture or a uint8 array [height, width, 3]")
    if not (image.width and image.height):
        raise ValueError("image has no pixels: leave it out")
    return image


class Phi3VProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Args:
        image_processor: cuts pictures into crops and counts their tokens.
        tokenizer: must know the token `<|image|>`, which becomes `image_token_id`.

    Raises:
        ValueError: when the tokenizer has no `<|image|>`.
    """

    model_type = Phi3VConfig.model_type
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
        padding: bool = False,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Encode rows of text with none, one or several pictures each.

        Args:
            text: one row, or several. `<|image_1|>` marks the row's first picture, `<|image_2|>` its second.
            images: a picture or a list of them for one row; for several rows, one entry a row, each None,
                a picture or a list.
            num_crops: overrides the image processor's own for this call; 1 or more.
            padding: to the longest row, or not at all.
            padding_side: "right" to train, "left" to generate; the tokenizer's own when None.
            return_tensors: "pt", "np", or None for lists of ids.

        Returns:
            `input_ids`, `attention_mask` and, where there is any picture, `pixel_values`, `image_sizes`.

        Raises:
            ValueError: naming the row and the tag, when tags and pictures do not match one to one, or when
                text holds the picture token itself.
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
            ids.append(self.tokenize(row, [by_number[n] for n in sorted(by_number)], f"row {index}: "))
        data = self._padded(ids, padding, padding_side)
        if return_tensors and len({len(row) for row in data["input_ids"]}) > 1:
            raise ValueError("rows differ in length: pass padding=True, or return_tensors=None for lists")
        return BatchFeature({**data, **(pixels or {})}, tensor_type=return_tensors)

    def tokenize(self, text: str, image_sizes: Sequence[Sequence[int]] = (), where: str = "") -> list[int]:
        """Ids of one row whose pictures' HD sizes are known, without reading a picture.

        Args:
            text: one row with its `<|image_N|>` tags.
            image_sizes: HD size (H, W) in pixels of picture 1, 2, ... as the image processor gives it.
            where: opens the sentences of errors, which are those of calling the processor.
        """
        order = _checked_tags(text, len(image_sizes), where)
        counts = [self.image_processor.num_image_tokens(*image_sizes[number - 1]) for number in order]

        def encode(piece: str) -> list[int]:
            ids: list[int] = self.tokenizer(piece)["input_ids"]  # pyright: ignore[reportAssignmentType]
            if self.image_token_id in ids:
                raise ValueError(f"{where}text holds the picture token {IMAGE_TOKEN}: take it out")
            return ids

        return tokenize(encode, text, counts, self.image_token_id)

    def _padded(self, ids: list[list[int]], padding: bool, side: str | None) -> dict[str, list[list[int]]]:
        side = side or self.tokenizer.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}: give 'left' or 'right'")
        target = max(map(len, ids), default=0) if padding else 0
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
        return data

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
