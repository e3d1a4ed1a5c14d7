import json

import parity
import pytest
from transformers import AutoConfig, CLIPVisionConfig

from catalens.model import Phi3VConfig

needs_official = pytest.mark.skipif(not parity.available(), reason=f"no official files in {parity.FOLDER}")
# What the machine, not the model, decides, and what names remote code.
NOT_KEPT = {"auto_map", "_attn_implementation", "transformers_version", "_name_or_path"}
LATER = {"embd_pdrop", "resid_pdrop", "pad_token_id"}
"""Fields that the file of Phi-3.5 has and that of Phi-3 leaves to its defaults."""


@needs_official
@pytest.mark.parametrize("family", parity.FAMILIES)
def test_official_file_goes_in_and_comes_out_unchanged(family, tmp_path):
    folder = parity.FOLDER / "official" / family
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is Phi3VConfig
    assert config._attn_implementation is None
    assert config.vision_config.num_hidden_layers == 24
    assert (config.crop_size, config.patch_size, config.crop_grid, config.feature_size) == (336, 14, 12, 4096)
    assert config.image_token_id == 32044
    assert config.rope_parameters["rope_type"] == "longrope"
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    official = json.loads((folder / "config.json").read_text())
    assert {k: written[k] for k in official.keys() - NOT_KEPT} == {k: official[k] for k in official.keys() - NOT_KEPT}
    assert written.keys() - official.keys() <= LATER
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
    assert again.image_token_id == 32044


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": None, "rope_theta": 5000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}, "rope_scaling": None},
        {"max_position_embeddings": 64},
        {"tie_word_embeddings": True},
        {"vision_config": CLIPVisionConfig(image_size=112, patch_size=28, hidden_size=48, num_attention_heads=3)},
    ],
)
def test_saved_config_loads_equal(make_config, changes, tmp_path):
    config = make_config(**changes)
    config.save_pretrained(tmp_path)
    again = Phi3VConfig.from_pretrained(tmp_path)
    assert again.to_dict() == {**config.to_dict(), "_name_or_path": again.to_dict()["_name_or_path"]}
    assert again.rope_parameters == config.rope_parameters
    assert again.vision_config.to_dict() == config.vision_config.to_dict()


def test_vision_dict_overrides_single_values():
    config = Phi3VConfig(vision_config={"num_hidden_layers": 3})
    assert config.vision_config.num_hidden_layers == 3
    assert config.vision_config.hidden_size == 1024
    assert config.img_processor["num_img_tokens"] == 144


def test_config_says_nothing_at_loading(make_config, tmp_path, caplog):
    make_config().save_pretrained(tmp_path)
    Phi3VConfig.from_pretrained(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_id": 100_000}, "image_token_id is 100000: set it below vocab_size"),
        ({"pad_token_id": 32000}, "pad_token_id is 32000: set it below vocab_size"),
        ({"hidden_size": 63}, "hidden_size 63 must be a multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"vision_config": {"image_size": 70}}, "vision_config.image_size 70 must be a multiple of twice patch_size"),
        ({"vision_config": {"image_size": [56, 56]}}, r"vision_config.image_size is \[56, 56\]: give one positive"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "embd_layer.hd_transform_order must be 'sub_glb'"),
    ],
)
def test_what_does_not_fit_is_named(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)
