"""A finished run used from Python: `python examples/write_answers.py runs/practice examples/shop/photos/*.jpg`.

transformers' Auto classes load it; importing `catalens.model` is what teaches them Phi-3-Vision.
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoProcessor

from catalens.catalog import open_picture
from catalens.config import PromptSpec
from catalens.examples import parse_answer
from catalens.model import family_of


def main(run: str, *photos: str) -> None:
    """Print what the run's best model reads from each photo."""
    best = Path(run) / "best"
    prompt = PromptSpec.model_validate_json((best / "prompt.json").read_bytes())
    processor = AutoProcessor.from_pretrained(best)
    model = AutoModelForCausalLM.from_pretrained(best).eval()
    family = family_of(model.config.model_type)
    end = processor.tokenizer.convert_tokens_to_ids(family.end_token)
    for photo in photos:
        picture = open_picture(Path(photo).read_bytes())
        inputs = processor(text=family.chat(prompt.question), images=picture)
        ids = model.generate(**inputs, max_new_tokens=96, do_sample=False, eos_token_id=end)
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
        print(photo, parse_answer(prompt, text, family.end_token).values or text)


if __name__ == "__main__":
    main(*sys.argv[1:])
