"""The command line, `catalens demo | sample | prepare | check | train | evaluate | compare | predict | serve | ...`.

Heavy libraries are imported inside the commands, so that `catalens --help` answers at once.
"""

from catalens.cli import catalogs, runs, using
from catalens.cli.app import app, main

__all__ = ["app", "catalogs", "main", "runs", "using"]
