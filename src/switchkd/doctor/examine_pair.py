"""What the doctor says about two checkpoints before any weight is loaded."""

from switchkd.doctor.findings import Finding, Findings, Level
from switchkd.pairing.pair_report import match_checkpoints


def examine_pair(student: str, teacher: str) -> tuple[Findings, str]:
    """Each thing in which the two agree or not, and the lines of a recipe for them.

    What differs and is overcome is a warning, what cannot be is a failure.

    Raises:
        ValueError, OSError: for families that are not supported, and names that cannot be loaded.
    """
    found = match_checkpoints(student, teacher)
    findings = Findings()
    for item in found.items:
        level: Level = "ok" if item.verdict == "fits" else "failed" if item.verdict == "refused" else "warning"
        values = f"{item.student}" if item.student == item.teacher else f"{item.student} and {item.teacher}"
        verdict = "" if item.verdict == "fits" else f": {item.verdict}"
        detail = f", {item.detail}" if item.detail else ""
        findings.lines.append(Finding(level, item.what, values + verdict + detail))
    return findings, found.recipe_lines(student, teacher)
