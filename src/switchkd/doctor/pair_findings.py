"""What the doctor says about two checkpoints before any weight is loaded."""

from switchkd.doctor.check_templates import template
from switchkd.doctor.findings import Finding, Findings, Level
from switchkd.pairing.pair_report import compare_checkpoints


def examine_pair(student: str, teacher: str) -> tuple[Findings, str]:
    """Each thing in which the two agree or not, and the lines of a recipe for them.

    What differs and is overcome is a warning, what cannot be is a failure.

    Raises:
        ValueError, OSError: for families that are not supported, and names that cannot be loaded.
    """
    report = compare_checkpoints(student, teacher)
    findings = Findings()
    for one in report.differences:
        level: Level = "ok" if one.verdict == "fits" else "failed" if one.verdict == "refused" else "warning"
        values = f"{one.student}" if one.student == one.teacher else f"{one.student} and {one.teacher}"
        verdict = "" if one.verdict == "fits" else f": {one.verdict}"
        detail = f", {one.detail}" if one.detail else ""
        findings.lines.append(Finding(level, one.what, values + verdict + detail))
    findings.lines += [template(chat, name) for name, chat in zip(("student", "teacher"), report.formats, strict=False)]
    return findings, report.recipe_lines(student, teacher)
