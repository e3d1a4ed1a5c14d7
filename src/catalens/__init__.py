"""catalens: from a table of product pictures to a fine-tuned Phi-3-Vision with honest scores."""

__version__ = "0.1.0"
