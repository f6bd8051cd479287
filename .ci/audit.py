"""Known vulnerabilities of the pinned packages, by pip-audit. Exit code 1 where there is one.

pip-audit says "No known vulnerabilities found" also of packages that its advisory service does not know, or gives no answer for. So
what counts is how many were looked up: those that were not are said, and where it is none of them, that no audit was made.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).parent.parent / "constraints.txt"
SERVICES = ("pypi", "osv")


def ask(service: str) -> dict[str, Any]:
    """pip-audit's report; empty where it made none."""
    words = ("--vulnerability-service", service, "--requirement", str(PINS), "--no-deps", "--disable-pip", "--format", "json")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout", "15", *words],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        return dict(json.loads(done.stdout))
    except (ValueError, subprocess.TimeoutExpired):
        return {}


def judge(report: dict[str, Any]) -> tuple[set[str], list[str]]:
    """The packages that were looked up, and a line for each vulnerability."""
    looked_up = [one for one in report.get("dependencies", []) if "skip_reason" not in one]
    lines = [
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version yet'}"
        for one in looked_up
        for found in one["vulns"]
    ]
    return {one["name"] for one in looked_up}, lines


def main() -> int:
    pins = sum("==" in line for line in PINS.read_text(encoding="utf-8").splitlines())
    names: set[str] = set()
    faults: dict[str, None] = {}  # each line once, in the order of the services
    for service in SERVICES:
        found, lines = judge(ask(service))
        names |= found
        faults |= dict.fromkeys(lines)
        if len(names) == pins:
            break
    if not names:
        print(f"audit: NOT MADE. No advisory service ({', '.join(SERVICES)}) answered for any of the {pins} pinned packages.")
        return 0
    print(f"audit: {len(names)} of {pins} pinned packages looked up, {len(faults)} known vulnerabilities", *faults, sep="\n  ")
    if len(names) < pins:
        print(f"audit: {pins - len(names)} packages are unknown to both services and were NOT looked up")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
