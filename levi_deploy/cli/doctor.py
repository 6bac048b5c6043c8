"""``levi doctor``: what this machine has, what is missing, and the line that installs it."""

from __future__ import annotations

from typing import Any

from levi_deploy.cli.options import Json, show

# Each package, the extra that brings it, and what it is for.
_PACKAGES = {
    "numpy": ("", "everything"),
    "tokenizers": ("", "everything"),
    "pyarrow": ("table", "Parquet"),
    "torch": ("train", "levi train, evaluate on a run, bench --against torch"),
    "transformers": ("train", "levi train"),
    "safetensors": ("train", "levi train"),
    "onnx": ("export", "levi export"),
    "onnxscript": ("export", "levi export"),
    "optimum": ("export", "levi export"),
}


def command(as_json: Json = False) -> None:
    """Say what this machine has and what is missing; exit code 5 when no bundle can run here."""
    from levi_serving.errors import ProviderError

    document = _examine()
    show(document, as_json=as_json, human=lambda: _human(document))
    if not document["runtime"]["providers"]:
        raise ProviderError(str(document["runtime"]["problem"]))


def _examine() -> dict[str, Any]:
    from importlib import metadata

    from levi_serving.bench.environment import environment
    from levi_serving.errors import LeviError
    from levi_serving.session import providers

    runtime: dict[str, Any] = {"providers": [], "problem": None}
    try:
        runtime["providers"] = providers()
    except LeviError as error:
        runtime["problem"] = str(error)
    packages: dict[str, dict[str, str | None]] = {}
    for name, (extra, purpose) in _PACKAGES.items():
        try:
            packages[name] = {"version": metadata.version(name), "for": purpose}
        except metadata.PackageNotFoundError:
            packages[name] = {
                "version": None,
                "for": purpose,
                "install": f"pip install 'levi-deploy[{extra}]'",
            }
    about = environment()
    return {"runtime": runtime, "packages": packages, "environment": about}


def _human(document: dict[str, Any]) -> str:
    about, runtime = document["environment"], document["runtime"]
    versions = about["versions"]
    lines = [
        f"levi-deploy {versions['levi-deploy']}, Python {about['python']}, {about['system']}",
        f"{about['cpu']}: {about['usable_cores']} usable cores, {about['memory_gib']} GiB, "
        f"{', '.join(about['instruction_sets']) or 'no vector instructions known'}",
        "",
    ]
    runtimes = [f"{name} {versions[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in versions]
    lines.append(f"{'onnxruntime':<14}{', '.join(runtimes) or 'missing'}")
    lines.append(f"{'providers':<14}{', '.join(runtime['providers']) or runtime['problem']}")
    slower = "; preload mimalloc or tcmalloc for long batches on a CPU, see serving/README.md"
    lines.append(f"{'allocator':<14}{about['allocator']}{slower if about['allocator'] == 'glibc' else ''}")
    for name, package in document["packages"].items():
        state = package["version"] or f"missing, for {package['for']}: {package['install']}"
        lines.append(f"{name:<14}{state}")
    return "\n".join(lines)
