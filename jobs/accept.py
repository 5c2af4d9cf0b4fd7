"""`python -m jobs.accept CODES VERB ARGS...`: a verb whose exit codes CODES count as success.

For schedulers that know success and failure only: 75 (other writers were faster, five times in a
row) is no failure of a nightly job, as the others have done its work. Quoting-free on purpose:
Ray and Kubernetes hand the words on as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = "orbit: python -m jobs.accept 75 VERB ARGS... is expected"


def accept(arguments: Sequence[str]) -> int:
    """The verb's exit code, 0 in place of an accepted one."""
    codes, *command = arguments or [""]
    try:
        accepted = {int(code) for code in codes.split(",")}
    except ValueError:
        print(USAGE, file=sys.stderr)
        return 2
    if not command:
        print(USAGE, file=sys.stderr)
        return 2
    from jobs.cli import app
    from jobs.console import run

    code = run(app, "orbit", command)
    if code in accepted:
        print(f"orbit: exit {code} counts as success here", file=sys.stderr)
        return 0
    return code


if __name__ == "__main__":
    sys.exit(accept(sys.argv[1:]))
