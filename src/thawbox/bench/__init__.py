"""Measuring thawbox beside what a user would pick instead: interleaved in one run, every restored sample proven.

`samples` and `report` are pure; `rounds` runs; `agent` is the program that gets frozen; `bare_criu` is the peer;
`main_job` is the first set of scenarios.
"""

from thawbox.bench.machine import machine_facts
from thawbox.bench.report import Requirement, markdown, write_samples
from thawbox.bench.rounds import Scenario, Timed, run_rounds
from thawbox.bench.samples import Sample, Summary, summarise

__all__ = [
    "Requirement",
    "Sample",
    "Scenario",
    "Summary",
    "Timed",
    "machine_facts",
    "markdown",
    "run_rounds",
    "summarise",
    "write_samples",
]
