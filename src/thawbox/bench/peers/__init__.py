"""thawbox beside everything a user would pick instead, in one interleaved run.

`workloads` is what gets frozen; `ours`, `runtimes` and `floor` are those who freeze it, each behind `Contender`;
`run` joins them; `report` says what came of it.
"""
