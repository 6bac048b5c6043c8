"""What ``levi bench`` measures: a bundle's runner, and what it is compared with, on as many threads.

It builds targets; it measures nothing. What a target needs is imported when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from levi_serving.errors import UsageError

if TYPE_CHECKING:
    from levi_serving import Runner
    from levi_serving.bench import Target
    from levi_serving.preprocess import Row
    from levi_serving.runner import Scenario
    from levi_serving.session import Device

__all__ = ["PEERS", "Lineup", "Lineups"]

PEERS = ("torch", "torch-compile", "openvino", "openvino-default")


@dataclass(frozen=True)
class Lineup:
    """Targets that are measured together.

    Attributes:
        runners: the bundle's, one a precision; the first is ours.
        others: what they are compared with.
        load_s: seconds each runner took to be constructed, by name.
    """

    runners: Sequence[Runner]
    others: Sequence[Target]
    load_s: dict[str, float] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        """All of them."""
        return [*self.runners, *self.others]

    def cold_start(self, row: Row) -> dict[str, float]:
        """Seconds from each runner's construction to its first prediction, by name; ask before anything else."""
        found = {}
        for runner in self.runners:
            began = time.perf_counter()
            runner.predict([row])
            found[runner.name] = self.load_s[runner.name] + time.perf_counter() - began
        return found


@dataclass(frozen=True, kw_only=True)
class Lineups:
    """A line-up for every number of threads.

    Attributes:
        bundle: the folder.
        device: of every runner.
        threads: of every target; None is the usable cores.
        precisions: the bundle's graphs; None is its first.
        scenario: what the runners are laid out for.
        against: ``torch``, ``torch-compile``, ``openvino``, ``openvino-default``, or bundles' folders.
        run: the training run, for torch.
        backbone: where the run's backbone lies now.
    """

    bundle: Path
    device: Device
    threads: Sequence[int | None]
    precisions: Sequence[str | None]
    scenario: Scenario
    against: Sequence[str]
    run: Path | None
    backbone: str | None

    def __len__(self) -> int:
        return len(self.threads)

    def __iter__(self) -> Iterator[Lineup]:
        """Build one after the other; each is let go of before the next.

        Raises:
            UsageError: something to compare with is not there, or two have one name.
            MissingExtraError: a package that one needs is not installed.
            LeviError: one cannot be loaded.
        """
        if {"torch", "torch-compile"} & set(self.against) and (self.run is None or not self.run.exists()):
            found = "a bundle holds no torch weights" if self.run is None else f"there is no {self.run}"
            raise UsageError(f"--against torch needs the training run, and {found}. Give --run RUN.")
        for name in self.against:
            if name not in PEERS and not Path(name).exists():
                raise UsageError(f"--against is {name!r}; expected {', '.join(PEERS)}, or the folder of a bundle.")
        for threads in self.threads:
            yield self._build(threads)

    def _build(self, threads: int | None) -> Lineup:
        runners, load_s = [], {}
        for precision in self.precisions:
            began = time.perf_counter()
            runner = self._runner(self.bundle, threads, precision)
            if precision:
                runner.name = f"{runner.name}-{precision}"
            load_s[runner.name] = time.perf_counter() - began
            runners.append(runner)
        lineup = Lineup(runners, [self._other(name, runners[0]) for name in self.against], load_s)
        names = [target.name for target in lineup.targets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"Two targets are called {twice.pop()}. Name each once; of two bundles, rename a folder.")
        return lineup

    def _runner(self, bundle: Path, threads: int | None, precision: str | None = None) -> Runner:
        from levi_serving import Runner

        each = 1 if threads and self.scenario == "offline" else threads  # offline: a worker for each thread
        return Runner(
            bundle,
            device=self.device,
            scenario=self.scenario,
            threads=each,
            workers=threads if threads and self.scenario == "offline" else None,
            precision=precision,
        )

    def _other(self, name: str, ours: Runner) -> Target:
        threads = ours.session.threads * ours.workers
        if name in ("openvino", "openvino-default"):
            from levi_serving.bench.openvino import OpenVino

            return OpenVino(ours, exact=name == "openvino")
        if name not in PEERS:
            other = self._runner(Path(name), threads)
            other.name = Path(name).name
            return other
        import torch

        from levi_deploy.training import Run

        torch.set_num_threads(threads)
        reference = Run.open(self.run or Path()).reference(backbone=self.backbone)
        if name == "torch-compile":
            reference.compile()
        return reference
