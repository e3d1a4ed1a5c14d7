"""Pages for people: reports, checks, comparisons."""
