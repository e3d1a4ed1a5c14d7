"""A run -> a folder that other programs run, proven to answer as the run does.

    export("runs/demo", "merged", "exports/demo")      writes, checks, and only then puts the folder in its place
    check("exports/demo")                              repeats the check, on any machine
    publish("runs/demo", "me/demo", dry_run=True)      the merged export with its card, on the Hugging Face hub

    exports/demo/
      config.json  model-00001-of-00002.safetensors ...   what the target wrote, with the processor's files
      prompt.json  answers.json  calibration.json         question, fields, form of the answers, confidences
      export.json                                         target, precision, the run and its base by content
      README.md                                           the card: scores, baselines, use of the pictures, how to run
      reference.parquet                                   validation rows, their pictures, what the run made of them
      equality.json                                       the certificate: what was compared, how far it differs

A target is a module with these functions, chosen in `export.target_of`:

    write(run: checkpoint.Run, folder: Path) -> str       writes its files; gives the key of `certificate.LIMITS`
    calibration(run, folder, progress)                    of what was written, or None
    load(folder: Path) -> certificate.Runtime             the exported thing in its own runtime
    lacking() -> str | None                               why that cannot be had here; may be left out
    reading(run) -> config.NumberSpec                     how it reads numbers; left out, as the run does

A runtime is called with the reference's rows and gives a `certificate.Trace` of each: a sample of the pixels (by
`sample_pixels`), token ids of the prompt, logits of the first token of the answer before any constraint, the greedy
constrained answer, and its summed log-probability. `certificate` imports no torch.
"""

from catalens.lazy import exports

HOMES = {
    "certificate": "Certificate Check LIMITS ReferenceRow Trace compare sample_pixels",
    "card": "licence_of renew_equality write_card",
    "export": "check export Exported target_of",
    "onnx_writer": "write_graphs",
    "hub": "publish Published push",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
