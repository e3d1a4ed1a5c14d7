"""Catalogues: rows with pictures, drawn or prepared from a table, split by product, stored to be trusted."""
