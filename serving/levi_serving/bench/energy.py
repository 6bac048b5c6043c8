"""Energy the processor used, where the machine says so.

Linux publishes Intel's and AMD's running average power limit counters (RAPL) under ``/sys/class/powercap``:
microjoules of each package, wrapping around at ``max_energy_range_uj``
(kernel documentation, power/powercap). Only root may read them on most systems.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

__all__ = ["Meter"]

_POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Joules of all processor packages since the meter was made. Read it more often than a counter wraps (minutes).

    Args:
        zones: the folders of the packages' counters, as ``find`` lists them.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._range = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
        self._last = {zone: self._microjoules(zone) for zone in zones}
        self._total = 0

    @classmethod
    def find(cls, folder: Path = _POWERCAP) -> Self | None:
        """The machine's meter, or None where it has none that this user may read."""
        zones = []
        for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's too; parts of a package lie below it
            try:
                if (zone / "name").read_text().startswith("package"):
                    zones.append(zone)
            except OSError:
                continue
        try:
            return cls(zones) if zones else None
        except (OSError, ValueError):
            return None

    @staticmethod
    def _microjoules(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())

    def __call__(self) -> float:
        """Joules so far."""
        for zone, last in self._last.items():
            now = self._microjoules(zone)
            self._total += now - last if now >= last else now + self._range[zone] - last
            self._last[zone] = now
        return self._total / 1e6
