"""Phi-3-Vision from transformers' own CLIP tower and Phi-3 layers.

    pixel_values [C, 3, S, S] -> CLIP, all but its last block -> 2x2 patches merged -> crops laid out as one
    image, rows closed by `sub_GN`, then `glb_GN`, then the global crop the same way -> projector
    -> picture embeddings, put where input_ids == image_token_id -> Phi-3 layers -> lm_head

Module names are the official checkpoint's keys. Two places where the original is wrong, and what happens here:

1. Longrope has one set of factors for up to 4,096 positions and another beyond. The first official family
   goes on with short-factor keys in its cache when generation crosses 4,096 tokens. Here `generate` drops
   the cache at the step at which a row crosses and feeds everything again, pictures included, which gives
   what a run without a cache gives. Who keeps a cache by hand must start it afresh at the crossing.
2. The second family picks the factors by the padded length. Here each row of a batch, and each sample packed
   into a row, goes by its own largest position, whatever the padding and the neighbours.

Shapes: B rows, T tokens, H hidden size, V vocabulary, N pictures, C crops of all pictures, S crop side in
pixels, (H, W) HD size in pixels, h x w crops of a picture, m embeddings along a crop's side, F features of a
merged patch (4 x CLIP hidden size).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3Model, Phi3PreTrainedModel, Phi3RotaryEmbedding
from transformers.utils.generic import can_return_tuple

from .configuration import Phi3VConfig
from .generation import PictureGenerationMixin, positions_of
from .loss import LanguageHead
from .processing import normalised_crops

IGNORED = -100


class Phi3VTower(nn.Module):
    """The CLIP tower; its last block and final norm exist for the checkpoint's sake and never run."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config.vision_config)  # pyright: ignore[reportArgumentType]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features [C, 2m, 2m, F/4] of crops [C, 3, S, S]: the layer before the last, without CLS."""
        tower = self.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        side = round((hidden.shape[1] - 1) ** 0.5)
        return hidden[:, 1:].unflatten(1, (side, side))


class Phi3VImageEmbedding(nn.Module):
    """Crops into picture embeddings in reading order: tower, HD layout, projector."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        features = config.feature_size
        self.img_processor = Phi3VTower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, features))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, features))
        self.img_projection = nn.Sequential(
            nn.Linear(features, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def crop_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower features [C, m, m, F] of crops [C, 3, S, S], 2x2 patches merged; a frozen tower leaves no graph.

        A frozen one in bf16 computes in bf16 throughout: under autocast its norms would be fp32, with casts around.
        """
        weights = list(self.img_processor.parameters())
        learns = pixel_values.requires_grad or any(weight.requires_grad for weight in weights)
        own = not learns and weights[0].dtype == torch.bfloat16
        as_is = torch.autocast(weights[0].device.type, enabled=False) if own else nullcontext()
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()), as_is:
            features = self.img_processor(pixel_values)  # [C, 2m, 2m, F/4]
        features = features.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [C, m, 2, m, 2, F/4]
        return features.transpose(2, 3).flatten(3)  # [C, m, m, F]

    def forward(self, crop_features: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """Picture embeddings [picture tokens, H] of crops [C, m, m, F], each picture's global one first."""
        crop_features = crop_features.to(self.glb_GN.dtype)  # a weight that no quantizer touches
        pictures = list(crop_features.split([1 + h * w for h, w in grids]))
        laid_out = list(pictures)
        for grid in set(grids):  # pictures of one size are arranged in one go
            members = [i for i, own in enumerate(grids) if own == grid]
            together = self._arrange(torch.stack([pictures[i] for i in members]), *grid)
            for member, tokens in zip(members, together, strict=True):
                laid_out[member] = tokens
        return self.img_projection(torch.cat(laid_out))

    def _arrange(self, crops: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """[n, 1 + h*w, m, m, F] -> [n, tokens of a picture, F]: crops, separator, global crop."""
        n, m = crops.shape[0], crops.shape[2]
        sub = crops[:, 1:].unflatten(1, (h, w)).transpose(2, 3)  # [n, h, m, w, m, F]
        sub = sub.reshape(n, h * m, w * m, -1)
        separator = self.glb_GN.flatten().expand(n, 1, -1)  # flat, its gradient lies as DDP wants it
        return torch.cat([self._end_rows(sub), separator, self._end_rows(crops[:, 0])], dim=1)

    def _end_rows(self, image: torch.Tensor) -> torch.Tensor:
        """[n, rows, columns, F] -> [n, rows * (columns + 1), F]: `sub_GN` closes every row."""
        ends = self.sub_GN.flatten().expand(*image.shape[:2], 1, -1)
        return torch.cat([image, ends], dim=2).flatten(1, 2)


def unused_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that never run: the last CLIP block and the norm after it, of a wrapped model too.

    They are in every checkpoint and have no gradient; keep them out of optimizers, adapters and DDP.
    """
    dead = [
        part
        for name, module in model.named_modules()
        if isinstance(module, CLIPVisionModel)
        for part in (f"{name}.encoder.layers.{len(module.encoder.layers) - 1}.", f"{name}.post_layernorm.")
    ]
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(dead))]


def _longest(position_ids: torch.Tensor) -> torch.Tensor:
    """For each position of [B, T], the largest of its sample; in a packed row a sample starts at position 0."""
    samples = (position_ids == 0).cumsum(-1)
    largest = position_ids.new_zeros(position_ids.shape[0], position_ids.shape[1] + 1)
    return largest.scatter_reduce(-1, samples, position_ids, "amax").gather(-1, samples)


class Phi3VRotaryEmbedding(nn.Module):
    """Rotary angles with the rope factors chosen for each row.

    The frequencies are plain numbers, not buffers: no cast can spoil them. On a device they are put once, since a
    CUDA graph cannot take them from the host.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope: Any = config.rope_parameters
        self.limit: int | None = None
        with torch.device("cpu"):  # values are needed even where the model is built on the meta device
            if rope["rope_type"] == "longrope":
                self.limit = int(rope["original_max_position_embeddings"])
                fill = ROPE_INIT_FUNCTIONS["longrope"]
                short, self.scaling = fill(config, torch.device("cpu"))
                long, _ = fill(config, torch.device("cpu"), seq_len=self.limit + 1)
            else:
                short, self.scaling = Phi3RotaryEmbedding.compute_default_rope_parameters(config)
                long = short
        self.short: list[float] = short.tolist()
        self.long: list[float] = long.tolist()
        self._placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [B, T, head_dim] for `position_ids` [B, T], in the dtype of `x`."""
        if x.device not in self._placed:
            short, long = (torch.tensor(factors, device=x.device) for factors in (self.short, self.long))
            self._placed[x.device] = short, long
        inverse, long = self._placed[x.device]  # [head_dim / 2]
        if self.limit is not None:
            beyond = _longest(position_ids)[..., None] >= self.limit  # [B, T, 1]
            inverse = torch.where(beyond, long, inverse)  # [B, T, head_dim / 2]
        angles = position_ids[..., None].float() * inverse
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    """Base of both models: configuration, initialisation, splitting."""

    config: Phi3VConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = Phi3VConfig
    input_modalities = ["image", "text"]
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _can_compile_fullgraph = False  # slots are counted on the host

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Phi-3 layers over text and picture embeddings, without a head."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = Phi3VRotaryEmbedding(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        crop_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Picture embeddings [picture tokens, H], in the order of the pictures.

        Args:
            pixel_values: [C, 3, S, S], or uint8 [C - N, 3, S, S] without the global crops (`normalised_crops`).
            image_sizes: [N, 2], the HD sizes (H, W).
            crop_features: [C, m, m, F] from `vision_embed_tokens.crop_features`, in place of `pixel_values`.

        Raises:
            ValueError: when sizes and crops do not fit together.
        """
        if image_sizes is None:
            raise ValueError("image_sizes is missing: pass it with pixel_values, as the processor gives both")
        pictures, grids = pixel_values if crop_features is None else crop_features, self.grids(image_sizes)
        if pictures is None:
            raise ValueError("pixel_values is missing: pass it with image_sizes, as the processor gives both")
        raw, given = pictures.dtype == torch.uint8, pictures.shape[0]
        if (crops := sum(h * w + (not raw) for h, w in grids)) != given:
            raise ValueError(
                f"image_sizes need {crops} crops but {given} are given: pass both as the processor gives them"
            )
        if crop_features is None:
            pixels = normalised_crops(pictures, grids) if raw else pictures
            crop_features = self.vision_embed_tokens.crop_features(pixels)
        return self.vision_embed_tokens(crop_features, grids)

    def grids(self, image_sizes: torch.Tensor) -> list[tuple[int, int]]:
        """Crops (down, across) of each picture by its HD size [N, 2]; ValueError where these are no whole crops."""
        side = self.config.crop_size
        for height, width in (sizes := image_sizes.tolist()):
            if height < side or width < side or height % side or width % side:
                raise ValueError(f"image_sizes has {height}x{width}: give multiples of the crop size {side}")
        return [(height // side, width // side) for height, width in sizes]

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        crop_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings [B, T, H] of text and pictures; the slots take the pictures' tokens in order.

        Raises:
            ValueError: when slots and picture tokens differ in number.
        """
        embeds = self.embed_tokens(input_ids)
        slots = input_ids == self.config.image_token_id
        pictures = None
        if pixel_values is not None or crop_features is not None:
            pictures = self.get_image_features(pixel_values, image_sizes, crop_features).to(embeds.dtype)
        wanted, given = int(slots.sum()), 0 if pictures is None else pictures.shape[0]
        if wanted != given:
            raise ValueError(
                f"input_ids hold {wanted} picture slots but the pictures given make {given} tokens: "
                "pass input_ids, pixel_values and image_sizes of one processor call"
            )
        if pictures is not None:
            return embeds.masked_scatter(slots[..., None], pictures.to(embeds.device))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # the other processes wait for this one's tower and projector, in the forward or in the backward pass
            weight, side = self.vision_embed_tokens.glb_GN, self.config.crop_size
            blank = torch.zeros(2, 3, side, side, dtype=weight.dtype, device=weight.device)
            return embeds + 0 * self.get_image_features(blank, torch.tensor([[side, side]])).sum().to(embeds.dtype)
        return embeds

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        crop_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, H]; the arguments are those of `Phi3VForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        pictures = pixel_values is not None or crop_features is not None
        if inputs_embeds is not None and pictures:
            raise ValueError("pictures need input_ids to find their slots: place them with embed() instead")
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if input_ids is not None and (pictures or not past):
            inputs_embeds = self.embed(input_ids, pixel_values, image_sizes, crop_features)
            input_ids = None
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
            position_ids = positions_of(attention_mask)[:, -tokens.shape[1] :]
        return super().forward(
            input_ids=input_ids,  # pyright: ignore[reportArgumentType]
            attention_mask=attention_mask,
            position_ids=position_ids,  # pyright: ignore[reportArgumentType]
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class Phi3VForCausalLM(Phi3VPreTrainedModel, PictureGenerationMixin):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Phi-3-Vision with its language head: what is trained and what generates."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True  # Trainer hands over num_items_in_batch

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Phi3VModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        crop_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T or kept, V], or a loss.

        With `labels` [B, T] (-100 where there is none) the loss is the sum over labels in fp32, divided by
        `num_items_in_batch` where given, else by their number; `label_smoothing` spreads that share of each target
        over the vocabulary. Of the B x T hidden states those at `soft_places` [n] learn the words `soft_words` [k] in
        the shares `soft_shares` [n, k], in place of their labels. `logits` is None then, unless `logits_to_keep` asks
        for some: only the positions that predict a label go through the head, which is most of the memory saved; and
        no cache is made by default.

        `input_ids` [B, T] hold `image_token_id` in the slots of picture tokens, or `inputs_embeds` [B, T, H] have the
        pictures placed already (`model.embed`). Pictures are as in `Phi3VModel.get_image_features`, which raises
        ValueError where they do not fit. Without `position_ids` [B, T] positions follow `attention_mask` [B, T].
        """
        count, smoothing = kwargs.pop("num_items_in_batch", None), kwargs.pop("label_smoothing", 0.0)
        soft = [kwargs.pop(f"soft_{name}", None) for name in ("places", "shares", "words")]
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            crop_features=crop_features,
            use_cache=False if labels is not None and use_cache is None else use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # [B, T, H]
        loss = None if labels is None else self._loss(hidden, labels, count, smoothing, soft)
        logits = None
        if labels is None or not isinstance(logits_to_keep, int) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(
        self, hidden: torch.Tensor, labels: torch.Tensor, count: Any, smoothing: float, soft: Sequence[Any]
    ) -> torch.Tensor:
        following = labels[:, 1:].to(hidden.device)
        labelled = following != IGNORED
        answers, targets = hidden[:, :-1][labelled], following[labelled]  # [labels, H], [labels]
        if getattr(self.lm_head, "gives_loss", False):
            total = self.lm_head(answers, targets=targets, smoothing=smoothing)
        else:  # one with an adapter gives scores alone
            logits = self.lm_head(answers).float()  # [labels, V]
            total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        places, shares, words = soft
        if places is not None:
            logs = self.lm_head(hidden.flatten(0, 1)[places]).float().log_softmax(-1)  # [n, V]
            hard = logs.gather(1, labels.to(hidden.device).flatten()[places + 1, None]).sum()
            total = total + (1 - smoothing) * (hard - (shares * logs[:, words]).sum())
        count = len(targets) if count is None else count
        return total / (count.to(total.device).clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))
