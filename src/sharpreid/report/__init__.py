"""Tables and figures of recorded runs.

Four files are commands. ``__main__.py`` (``python -m sharpreid.report``) writes the report, ``sweep.py`` the
summary of a sweep, ``record.py`` a line per run of an ablation study, and ``results.py`` the tables of the
READMEs.

- ``runs.py`` reads recorded jobs and runs.
- ``comparison.py`` compares the jobs of a sweep with their baseline; ``sweep_summary.py`` writes the result.
- ``paper_tables.py`` and ``sections.py`` make the report; ``page.py`` renders it.
- ``ablation.py`` reads an ablation study, whose rows ``row_names.py`` names; ``bootstrap.py`` computes the
  intervals of its differences.
- ``figures.py`` and ``forest_plot.py`` draw; ``markdown.py`` formats tables.
"""
