"""Sample data like a real catalogue, with nothing of the catalogue in it."""
