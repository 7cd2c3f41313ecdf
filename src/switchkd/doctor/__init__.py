"""The checks that catch silent failure before hours are spent. docs/doctor.md has what each one catches and what to do then.

Each name is imported when it is first used: what cannot even be opened is a finding that needs no model library.
"""

from typing import TYPE_CHECKING

from switchkd.lazy import on_use

if TYPE_CHECKING:
    from switchkd.doctor.examination import LOOKING, RUNNING, examine, examine_stage
    from switchkd.doctor.findings import Finding, Findings, Level, Sample
    from switchkd.doctor.pair_findings import examine_pair
    from switchkd.doctor.samples import Examined

__all__ = [
    "LOOKING",
    "RUNNING",
    "Examined",
    "Finding",
    "Findings",
    "Level",
    "Sample",
    "examine",
    "examine_pair",
    "examine_stage",
]

__getattr__ = on_use(
    __name__,
    {
        "examination": ("LOOKING", "RUNNING", "examine", "examine_stage"),
        "findings": ("Finding", "Findings", "Level", "Sample"),
        "pair_findings": ("examine_pair",),
        "samples": ("Examined",),
    },
)
