"""The gate: what stands in the results folder against a committed reference, with a direction for every number.

``tables``, ``study`` and ``asv_results`` compare one kind of file each; ``consistency`` asks what holds in any table,
whatever the reference; ``check`` puts them together. All of them turn files into findings.

A rerun with the same seeds and library versions gives the same quality numbers, so tolerances are no intervals of
sampling: they are what other versions, machines and time limits may move, and never as much as the effects that the
tables show. Only times are noisy in themselves, and they are compared by their samples, on one machine.
"""
