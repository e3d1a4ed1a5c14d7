"""Generation with pictures, and across the longrope switch, by transformers' `generate`.

Shapes: B rows, T tokens, N pictures, C crops of all pictures.
"""

from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessorList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor

from catalens.tiling import picture_tokens

from .configuration import Phi3VConfig

PICTURE_INPUTS = ("pixel_values", "image_sizes", "crop_features")


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions [B, T] that count real tokens only, wherever the padding stands."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


class PictureGenerationMixin(GenerationMixin):
    """`generate` for `Phi3VForCausalLM`."""

    config: Phi3VConfig
    model: Any
    device: Any

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any = None, generation_config: Any = None, logits_processor: Any = None, **kwargs: Any
    ) -> Any:
        """transformers' `generate`; a picture slot is never written, for no picture would fill it."""
        never = SuppressTokensLogitsProcessor([self.config.image_token_id], device=str(self.device))
        processors = LogitsProcessorList([*(logits_processor or []), never])
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs, generation_config, processors, **kwargs
        )

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One step's inputs; at the longrope crossing everything is fed again, pictures included."""
        positions = kwargs.get("position_ids")
        if positions is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            positions = positions_of(mask)
        if self._crosses(past_key_values, positions):
            fed = input_ids if inputs_embeds is None else inputs_embeds
            written = positions.shape[-1] - fed.shape[1]
            if inputs_embeds is not None and written:
                more = self.model.embed_tokens(input_ids[:, -written:])
                inputs_embeds = torch.cat([inputs_embeds, more.to(inputs_embeds.dtype)], dim=1)
            elif written:
                raise ValueError("input_ids lack cached tokens that must be fed again here: pass all of them")
            past_key_values = None
            kwargs["next_sequence_length"] = None
            is_first_iteration = True  # which is when pictures and inputs_embeds are passed on
        elif not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("crop_features", None)
        return super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _crosses(self, cache: Any, positions: torch.Tensor) -> bool:
        """Tell whether with this step a row in the cache comes to the longrope factors; `positions` [B, all T]."""
        limit, past = self.model.rotary_emb.limit, 0 if cache is None else int(cache.get_seq_length())
        if limit is None or not past or positions.shape[-1] <= limit:
            return False
        now, before = positions.amax(-1), positions[:, :past].amax(-1)
        return bool(((now >= limit) & (before < limit)).any())

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        pictures = {name: kwargs.pop(name) for name in PICTURE_INPUTS if kwargs.get(name) is not None}
        if expand_size > 1 and pictures and input_ids is not None:
            pictures = self._repeated(pictures, input_ids, expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            expand_size=expand_size,
            input_ids=input_ids,
            **kwargs,
        )
        return input_ids, {**kwargs, **pictures}

    def _repeated(
        self, pictures: dict[str, torch.Tensor], input_ids: torch.Tensor, times: int
    ) -> dict[str, torch.Tensor]:
        """Pictures of a batch whose every row stands `times` times in a row (beams, several answers)."""
        grids = self.model.grids(pictures["image_sizes"])
        tokens = [picture_tokens(h, w, self.config.crop_grid) for h, w in grids]
        order: list[int] = []
        following = 0
        for slots in (input_ids == self.config.image_token_id).sum(-1).tolist():
            first = following
            while slots > 0 and following < len(tokens):
                slots -= tokens[following]
                following += 1
            order += list(range(first, following)) * times
        crops = torch.arange(sum(1 + h * w for h, w in grids)).split([1 + h * w for h, w in grids])
        by_crop = torch.cat([crops[i] for i in order])
        by_picture = torch.tensor(order)
        return {
            name: value[(by_picture if name == "image_sizes" else by_crop).to(value.device)]
            for name, value in pictures.items()
        }
