"""The command line: `catalens demo | sample | prepare | check | train | evaluate | predict | recipe-schema`.

Heavy libraries are imported inside the commands, so that `catalens --help` answers at once.
"""

from catalens.cli import catalogs, runs
from catalens.cli.app import app, main

__all__ = ["app", "catalogs", "main", "runs"]
