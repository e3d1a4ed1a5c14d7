"""How fast an engine answers, and how far its answers are from those of another: `python benchmarks/engines.py`.

    python benchmarks/engines.py runs/practice --catalog catalogs/practice --keep torch.json
    python benchmarks/engines.py exports/practice-onnx --catalog catalogs/practice --like torch.json
    python benchmarks/engines.py exports/practice-vllm --engine vllm --catalog ... --like torch.json     (.venv-vllm)
    python benchmarks/engines.py exports/practice-vllm --server http://127.0.0.1:8000 --catalog ... --like torch.json

One engine a process, since each needs an environment of its own. Answers are constrained; one row is answered before
the clock runs. Exits with an error where an answer is another.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

from catalens import Catalog, load_predictor
from catalens.inference.predictor import engine_of


def main() -> None:
    """Answer rows of the test split, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--engine")
    parser.add_argument("--server")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="file for the answers")
    parser.add_argument("--like", type=Path, help="file of answers to compare with")
    options = parser.parse_args()
    batches = Catalog(options.catalog).batches("test", ["image"])
    photos = list(islice((bytes(row["image"]) for batch in batches for row in batch), options.rows))
    begun = time.perf_counter()
    predictor = load_predictor(options.run, engine=options.engine, server=options.server)
    predictor.predict(photos[:1])
    ready = time.perf_counter()
    completions = predictor.generator.generate(photos)
    seconds, used = time.perf_counter() - ready, time.process_time()
    name = engine_of(options.run, options.engine, options.server) + (" at a server" if options.server else "")
    line = f"{name}: first answer after {ready - begun:.1f} s ({used:.0f} s of processor time in all), "
    line += f"{len(photos)} rows at {1000 * seconds / len(photos):.1f} ms"
    answers = [[one.text, sum(one.log_probabilities)] for one in completions]
    if options.keep:
        options.keep.write_text(json.dumps(answers))
    if options.like:
        pairs = list(zip(answers, json.loads(options.like.read_bytes()), strict=True))
        same = [abs(one[1] - other[1]) for one, other in pairs if one[0] == other[0]]
        line += f"; {len(same)} of {len(pairs)} answers as in {options.like.name}, "
        line += f"log-probabilities {max(same, default=0):.2g} apart at most"
        print(line)
        sys.exit(len(same) != len(pairs))
    print(line)


if __name__ == "__main__":
    main()
