"""Configuration of Phi-3-Vision: the official `config.json` of both families, read unchanged.

    {"model_type": "phi3_v", "hidden_size": 3072, "num_hidden_layers": 32, ..., "rope_scaling": {"type": "su",
     "short_factor": [1.05, ...], "long_factor": [1.03, ...]}, "img_processor": {"image_dim_out": 1024, ...}}

The official file leaves the vision tower implicit (CLIP ViT-L/14 at 336 pixels). Here it is `vision_config`;
a dict overrides single values, so a tiny model of the same architecture is only another config.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Phi3Config

# CLIP ViT-L/14 at 336 pixels, the tower of every published Phi-3-Vision.
CLIP_VIT_L_14_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
    "image_size": 336,
    "patch_size": 14,
}
# What the architecture fixes, as the official file writes it; other values would be another model.
EMBD_LAYER: dict[str, Any] = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}


@strict
class Phi3VConfig(Phi3Config):
    """Phi-3-Vision: the fields of `Phi3Config`, a CLIP `vision_config` and the id of a picture slot.

    Args:
        vision_config: a `CLIPVisionConfig`, or a dict whose values override those of CLIP ViT-L/14-336.
        image_token_id: id that stands for one picture embedding in `input_ids` (`<|image|>`, 32044).
        embd_layer: the official description of the picture embedding; only the official values exist.
        img_processor: the official description of the tower; its sizes are written from `vision_config`.

    Raises:
        ValueError: when a field does not fit the others; the sentence names the field and the fix.
    """

    model_type = "phi3_v"
    sub_configs_defaults: ClassVar[Any] = {"vision_config": CLIPVisionConfig}
    # its name before transformers 5.23
    sub_configs: ClassVar[Any] = sub_configs_defaults  # pyright: ignore[reportIncompatibleMethodOverride]

    vision_config: dict | CLIPVisionConfig | None = None
    image_token_id: int = 32044
    embd_layer: dict | None = None
    img_processor: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**{**CLIP_VIT_L_14_336, **(self.vision_config or {})})
        self.embd_layer = {**EMBD_LAYER, **(self.embd_layer or {})}
        # Which attention kernel runs is the machine's business, and no remote code is ever loaded.
        for name in ("_attn_implementation", "auto_map"):
            kwargs.pop(name, None)
        rope = kwargs.pop("rope_scaling", None) or self.rope_parameters
        if rope:
            self.rope_parameters = self._modern_rope(dict(rope))
        super().__post_init__(**kwargs)
        self._check()
        self.img_processor = {
            "name": "clip_vision_model",
            "model_name": "openai/clip-vit-large-patch14-336",
            **(self.img_processor or {}),
            "image_dim_out": self.vision_config.hidden_size,
            "num_img_tokens": self.crop_grid**2,
        }

    def _check(self) -> None:
        changed = [name for name, value in EMBD_LAYER.items() if (self.embd_layer or {}).get(name) != value]
        if changed:
            must = EMBD_LAYER[changed[0]]
            raise ValueError(f"embd_layer.{changed[0]} must be {must!r}: no other layout is supported")
        for name in ("image_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} is {value}: set it below vocab_size ({self.vocab_size})")
        heads, groups, patches = self.num_attention_heads, self.num_key_value_heads or 1, 2 * self.patch_size
        for name, value, unit, divisor in (
            ("hidden_size", self.hidden_size, f"num_attention_heads {heads}", heads),
            ("num_attention_heads", heads, f"num_key_value_heads {groups}", groups),
            ("vision_config.image_size", self.crop_size, f"twice patch_size ({patches})", patches),
        ):
            if value % divisor:
                raise ValueError(f"{name} {value} must be a multiple of {unit}")

    def _modern_rope(self, rope: dict[str, Any]) -> dict[str, Any]:
        old_name = rope.pop("type", None)
        if rope.setdefault("rope_type", old_name or "default") in ("su", "longrope"):  # its older and newer name
            rope["rope_type"] = "longrope"
            rope.setdefault("factor", self._context_ratio)  # or transformers warns at every load
        return rope

    @property
    def _context_ratio(self) -> float:
        return self.max_position_embeddings / self.original_max_position_embeddings

    def _vision(self, name: str) -> int:
        value = getattr(self.vision_config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"vision_config.{name} is {value!r}: give one positive whole number, crops are square")
        return value

    @property
    def crop_size(self) -> int:
        """Side of a crop in pixels (336)."""
        return self._vision("image_size")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels (14)."""
        return self._vision("patch_size")

    @property
    def crop_grid(self) -> int:
        """Picture embeddings along one side of a crop, after patches are merged two by two (12)."""
        return self.crop_size // self.patch_size // 2

    @property
    def feature_size(self) -> int:
        """Features of two by two merged patches, what the projector takes (4096)."""
        return 4 * self._vision("hidden_size")

    def to_dict(self) -> dict[str, Any]:
        """The fields as the official file writes them: `rope_theta`, `rope_scaling`, no `rope_parameters`."""
        fields = super().to_dict()
        rope = fields.pop("rope_parameters", None)
        if not rope:
            return fields
        fields["rope_theta"] = rope["rope_theta"]
        fields["rope_scaling"] = None
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if rope["rope_type"] == "longrope":  # "su" is the name that every version of the original code knows
            kept = ["short_factor", "long_factor", "attention_factor"]
            kept += ["factor"] if rope["factor"] != self._context_ratio else []
            fields["rope_scaling"] = {"type": "su", **{name: rope[name] for name in kept if name in rope}}
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields of a saved config.json: those of the official one, and a tower only where it is another."""
        fields, vision = super().to_diff_dict(), self.vision_config
        if "dtype" in fields:
            fields["torch_dtype"] = fields.pop("dtype")  # the name that every reader knows
        if self.image_token_id == type(self).image_token_id:
            fields.pop("image_token_id", None)
        usual = CLIPVisionConfig(**CLIP_VIT_L_14_336).to_diff_dict() | {"dtype": None}
        if isinstance(vision, CLIPVisionConfig) and vision.to_diff_dict() | {"dtype": None} == usual:
            fields.pop("vision_config", None)
        return fields
