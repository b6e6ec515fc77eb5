"""Peak resident memory of this process (Linux)."""

import re
from pathlib import Path


def reset_peak() -> None:
    """Forget the peak resident memory of this process so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return peak resident memory of this process since [`reset_peak`] (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
