"""Pre-train the tiny base model that ships with catalens: `make base-model`, about an hour on two cores.

    draw     24,000 pictures of the BASE assortment: other category words, other prices, another seed than the demo's
    tokenize byte-level BPE of 512 tokens with Phi-3's special tokens and single digits, trained on their texts
    train    from random weights, free of any other model, Muon on the 2-D weights, AdamW elsewhere
    demo     fine-tune on the demo's catalogue: the scores before and after go to the model card
    ship     src/catalens/assets/tiny

Each stage leaves its result in `build/base` and is skipped where it is there.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, set_seed

from catalens.catalog.storage import Catalog
from catalens.checkpoint import DEMO_RECIPE, TINY
from catalens.config import PromptSpec, Recipe, TrackingSpec, load_recipe, make_recipe
from catalens.evaluation.evaluate import evaluate, flatten, validation_scorer
from catalens.examples import render_answer
from catalens.model import REFERENCE, Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from catalens.sampling.assortment import BASE
from catalens.sampling.sample import sample_catalog
from catalens.training.train import train

SEED = 20_260
SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|user|>",
    "<|image|>",
)
VOCABULARY = 512
CROP, PATCH, WIDTH = 56, 14, 128


def main() -> None:
    """Run the stages that have not run yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/base"))
    parser.add_argument("--rows", type=int, default=24_000, help="pictures to draw")
    parser.add_argument("--steps", type=int, default=6_000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    build: Path = options.build
    catalog = build / "catalog"
    if not catalog.exists():
        sample_catalog(
            catalog,
            options.rows,
            SEED,
            BASE,
            workers=2,
            fractions={"train": 0.97, "validation": 0.01, "test": 0.02},
        )
    if not (build / "init").exists():
        save_random_model(Catalog(catalog), build / "init")
    recipe = pretraining_recipe(catalog, build / "init", options.steps, options.batch_size)
    if not (build / "run" / "best").exists():
        shutil.rmtree(build / "run", ignore_errors=True)
        train(recipe, build / "run", validation_scorer(recipe))
        evaluate(build / "run")
    ship(build / "run", TINY)
    write_card(build, recipe)


def save_random_model(catalog: Catalog, folder: Path) -> None:
    """Tokenizer, processor and a model with random weights."""
    set_seed(SEED)
    tokenizer = train_tokenizer(catalog)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,  # the last one never runs, as in the original
            "num_attention_heads": 4,
            "projection_dim": WIDTH,
            "image_size": CROP,
            "patch_size": PATCH,
        },
        image_token_id=ids["<|image|>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        tie_word_embeddings=False,
    )
    model = Phi3VForCausalLM(config)
    model.generation_config.eos_token_id = [ids["<|end|>"], ids["<|endoftext|>"]]
    model.save_pretrained(folder)
    images = Phi3VImageProcessor(num_crops=4, crop_size=CROP, patch_size=PATCH)
    Phi3VProcessor(images, tokenizer).save_pretrained(folder)


def train_tokenizer(catalog: Catalog) -> Any:
    """Byte-level BPE: any text in any language has tokens, and decoding gives back what was encoded."""
    prompt = PromptSpec()
    roles = catalog.card.roles
    rows = catalog.rows("train", columns=roles.fields)
    texts = [render_answer(prompt, row) + REFERENCE.end_token for row in rows]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, rstrip=token == "<|assistant|>", special=True) for token in SPECIAL],  # type: ignore[arg-type]
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[REFERENCE.chat(prompt.question)] * len(texts)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def pretraining_recipe(catalog: Path, model: Path, steps: int, batch_size: int) -> Recipe:
    """Everything trains, from random weights."""
    return make_recipe(
        {
            "catalog": str(catalog),
            "model": str(model),
            "training": {
                "method": "full",
                "optimizer": "muon",
                "learning_rate": 3e-3,
                "adamw_learning_rate": 1.5e-3,
                "max_steps": steps,
                "batch_size": batch_size,
                "num_evals": 8,
                "validation_rows": 128,
            },
            "evaluation": {"before": False, "batch_size": 64},
            "tracking": {"to": "none"},
        }
    )


def ship(run: Path, folder: Path) -> None:
    """Copy the best model to where the package looks for it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "best", folder)
    (folder / "prompt.json").unlink()
    weights = folder / "model.safetensors"
    if weights.stat().st_size > 8 * 2**20:
        raise SystemExit(f"{weights} is larger than 8 MB: make the model smaller")


def write_card(build: Path, pretraining: Recipe) -> None:
    """Fine-tune on the demo's catalogue and write the model card with the scores before and after."""
    run, catalog = build / "demo", build / "demo-catalog"
    if not catalog.exists():
        sample_catalog(catalog, 3040, 0, workers=2, fractions={"train": 0.84, "validation": 0.05, "test": 0.11})
    recipe = load_recipe(DEMO_RECIPE, [f"catalog={catalog}"])
    recipe = recipe.model_copy(update={"tracking": TrackingSpec(to="none")})
    shutil.rmtree(run, ignore_errors=True)
    train(recipe, run, validation_scorer(recipe))
    result = evaluate(run).metrics
    own = json.loads((build / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    columns = {
        f"own held-out rows ({own['rows']})": flatten(own["model"]),
        f"demo, before ({result['rows']})": flatten(result["before"]),
        "demo, fine-tuned": flatten(result["model"]),
        "demo, nearest neighbour": flatten(result["baselines"]["nearest_neighbour"]),
    }
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(f'{c[name]:.3f}' for c in columns.values())} |" for name in flatten(own["model"])
    ]
    model = Phi3VForCausalLM.from_pretrained(TINY)
    size = sum(parameter.numel() for parameter in model.parameters())
    spec = pretraining.training
    card = CARD.format(
        size=size,
        rows=Catalog(build / "catalog").card.rows["train"],
        steps=spec.max_steps,
        batch=spec.batch_size,
        scores="\n".join(lines),
        torch=torch.__version__,
    )
    (TINY / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
tags: [phi3_v, catalens, tiny]
---

# catalens tiny

A Phi-3-Vision of {size:,} parameters that reads drawn product pictures. It exists for the demo, the tests and
everyone without a GPU; it knows nothing of the world. Same architecture as Phi-3-vision-128k-instruct (CLIP tower,
2x2 patch merge, HD crops with separators, MLP projector, Phi-3 decoder), other sizes: crops of 56 pixels, patch 14,
width 128, 4 vision layers (3 run), 3 text layers, a byte-level BPE of 512 tokens with Phi-3's special tokens.

## How it was made

`make base-model` (scripts/base_model.py), from random weights, torch {torch} on two CPU cores: {rows:,} drawn
pictures of the BASE assortment (category words and prices that the demo does not have, another seed), {steps:,}
steps of {batch}, Muon at 3e-3 on 2-D weights, AdamW at 1.5e-3 elsewhere, cosine schedule. No other model and no other
data went in.

## Scores

Free generation on rows that training never saw; shares, except for `mae` in price units.

{scores}
"""


if __name__ == "__main__":
    main()
