"""A check of a catalogue before an expensive run."""
