"""Measurements behind ``bertha bench``: ratios between variants, taken in one interleaved run.

Each bench is a module that fills a :class:`~bertha_socket._bench.report.Report`.  What they share is here:
``stage`` (hosts, processes, clean-up), ``interleave`` (A B C A B C ...), ``stats``, ``connlog`` (proof of
what carried the bytes), ``host`` (what it was measured on), ``report`` (the JSON) and ``plot``.  The small
C programs that talk are in ``native/`` and are compiled at first use (``tools``).
"""
