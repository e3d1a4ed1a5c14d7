"""A table of a shop becomes a catalogue."""
