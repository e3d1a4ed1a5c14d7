"""Sample data like a real catalogue, with nothing of the catalogue in it."""

from catalens.lazy import exports

HOMES = {
    "fidelity": "kolmogorov refuse_leaks total_variation",
    "learning": "learn_profile Survey",
    "mimic": "mimic_catalog Mimicked",
    "products": "Planner StratumPlanner",
    "profile": "last_place load_profile Profile quantile round_by save_profile summarise",
    "text": "invent_words kind_in meaning_of shareable",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
