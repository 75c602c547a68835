"""Measurements against the best other tools, in interleaved pairs of whole processes: ``python -m bench``.

Every number has a rival and its caveats beside it. Servers, clients, the program that measures them and the report are
separate; the data is seeded; results are JSON lines.
"""
