"""Exhaustive models of the protocols between two ends: set-up, hand-over to the ring, wake-ups.

`explorer` visits every interleaving; `machine` adds the reorderings that processors make.  `setup_protocol`,
`tuple_reuse`, `wakeup` and `bell` are the models.  The tests explore each, and break each of their rules in
turn: a rule whose absence the model does not notice would be a rule that the model does not check.
"""
