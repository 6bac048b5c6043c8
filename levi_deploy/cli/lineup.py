"""What ``levi bench`` measures side by side: a bundle's runners, and what they are compared with.

It builds targets; it measures nothing. What a target needs is imported when that target is built.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from levi_serving.errors import UsageError

if TYPE_CHECKING:
    from levi_serving import Runner
    from levi_serving.bench import Target
    from levi_serving.engine.runner import Scenario
    from levi_serving.engine.session import Device
    from levi_serving.rows.preprocess import Row

__all__ = ["Lineup", "Lineups", "open_runner"]

_PEERS = ("torch", "torch-compile", "openvino", "openvino-default")


def open_runner(
    bundle: Path, *, device: Device, scenario: Scenario, threads: int | None, precision: str | None
) -> Runner:
    """A bundle's runner on a number of threads in all; for ``offline``, one worker a thread.

    Raises:
        LeviError: it cannot be loaded.
    """
    from levi_serving import Runner

    spread = threads is not None and scenario == "offline"
    return Runner(
        bundle,
        device=device,
        scenario=scenario,
        threads=1 if spread else threads,
        workers=threads if spread else None,
        precision=precision,
    )


@dataclass(frozen=True)
class Lineup:
    """Targets that are measured together.

    Attributes:
        runners: the bundle's by name, one a precision; the first is the one that others are compared with.
        others: what they are compared with.
        load_s: seconds each runner took to be constructed, by name.
    """

    runners: dict[str, Runner]
    others: Sequence[Target]
    load_s: dict[str, float]

    @property
    def first(self) -> Runner:
        """The runner that others are compared with."""
        return next(iter(self.runners.values()))

    @property
    def targets(self) -> list[Target]:
        """All of them."""
        from levi_serving.bench import Target

        return [*(Target(name, runner) for name, runner in self.runners.items()), *self.others]

    def cold_start(self, row: Row) -> dict[str, float]:
        """Seconds from each runner's construction to its first prediction, by name; call it before any other use."""
        found = {}
        for name, runner in self.runners.items():
            began = time.perf_counter()
            runner.predict([row])
            found[name] = self.load_s[name] + time.perf_counter() - began
        return found


@dataclass(frozen=True, kw_only=True)
class Lineups:
    """A line-up for each number of threads.

    Attributes:
        bundle: the folder.
        device: of every runner.
        threads: of every target; None is the usable cores.
        precisions: the bundle's graphs; None is the first that the device can run.
        scenario: whose layout the runners have.
        against: ``torch``, ``torch-compile``, ``openvino``, ``openvino-default``, or bundles' folders.
        run: the training run, for torch.
        backbone: where the run's backbone is now; where it was in training when None.
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
        """Build one after the other; each is released before the next.

        Raises:
            UsageError: something to compare with is not there, or two have one name.
            MissingExtraError: a package that one needs is not installed.
            LeviError: one cannot be loaded.
        """
        if {"torch", "torch-compile"} & set(self.against) and (self.run is None or not self.run.exists()):
            found = "a bundle holds no torch weights" if self.run is None else f"there is no {self.run}"
            raise UsageError(f"`against` torch needs the training run, and {found}. Give `run`.")
        for name in self.against:
            if name not in _PEERS and not Path(name).exists():
                raise UsageError(f"`against` is {name!r}; expected {', '.join(_PEERS)}, or the folder of a bundle.")
        for threads in self.threads:
            yield self._build(threads)

    def _build(self, threads: int | None) -> Lineup:
        runners, load_s = {}, {}
        for precision in self.precisions:
            began = time.perf_counter()
            name = f"onnxruntime-{precision}" if precision else "onnxruntime"
            runners[name] = self._runner(self.bundle, threads, precision)
            load_s[name] = time.perf_counter() - began
        first = next(iter(runners.values()))
        lineup = Lineup(runners, [self._other(name, first) for name in self.against], load_s)
        names = [target.name for target in lineup.targets]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UsageError(
                f"Two targets are called {repeated.pop()}. Name each once; of two bundles, rename a folder."
            )
        return lineup

    def _runner(self, bundle: Path, threads: int | None, precision: str | None = None) -> Runner:
        return open_runner(bundle, device=self.device, scenario=self.scenario, threads=threads, precision=precision)

    def _other(self, name: str, first: Runner) -> Target:
        from levi_serving.bench import Target

        if name in ("openvino", "openvino-default"):
            from levi_serving.bench.openvino import OpenVino

            return Target(name, OpenVino(first, exact=name == "openvino"))
        if name not in _PEERS:
            return Target(Path(name).name, self._runner(Path(name), first.threads))
        import torch

        from levi_deploy.run import Run

        torch.set_num_threads(first.threads)
        reference = Run.open(self.run or Path()).reference(backbone=self.backbone)
        if name == "torch-compile":
            reference.compile()
        return Target(name, reference)
