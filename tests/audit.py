"""`make audit`: looks the pinned packages up in a database of known vulnerabilities, by pip-audit.

The exit code is 0 only if every package was looked up and none is known to be vulnerable. pip-audit itself passes
over packages that its service does not answer for.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def audit(command: Sequence[str], constraints: Path = CONSTRAINTS) -> int:
    """Run pip-audit and print what it found; return the exit code.

    Args:
        command: how pip-audit is called.
        constraints: the pinned packages.
    """
    options = ["--requirement", str(constraints), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run([*command, *options, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines()
        return _fail(f"pip-audit gave no result; is the advisory service reachable? {said[-1] if said else ''}")
    pinned = [line for line in constraints.read_text(encoding="utf-8").splitlines() if "==" in line]
    asked = [package for package in packages if "skip_reason" not in package]
    for package in asked:
        for known in package["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    if len(asked) < len(pinned):
        return _fail(
            f"{len(pinned) - len(asked)} of {len(pinned)} packages could not be looked up; "
            "is the advisory service reachable?"
        )
    if any(package["vulns"] for package in asked):
        return _fail("raise the versions above in constraints.txt")
    print(f"{len(asked)} packages, no known vulnerability")
    return 0


def _fail(reason: str) -> int:
    print(f"audit: failed: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(audit([sys.executable, "-m", "pip_audit"]))
