"""The HTML report: one file that needs no network (docs/analyses.md, "The report")."""
