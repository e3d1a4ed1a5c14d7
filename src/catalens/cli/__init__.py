"""The command line, `catalens demo | sample | prepare | check | train | evaluate | predict | serve | export | ...`.

Heavy libraries are imported inside the commands, so that `catalens --help` answers at once.
"""

from catalens.cli import catalogs, exports, runs, using
from catalens.cli.app import app, main

__all__ = ["app", "catalogs", "exports", "main", "runs", "using"]
