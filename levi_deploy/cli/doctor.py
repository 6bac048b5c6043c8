"""``levi doctor``: what this machine has, what is missing, and the line that installs it."""

from __future__ import annotations

from typing import Any

from levi_deploy.cli.options import Json, show

_PURPOSES = {
    "table": "Parquet",
    "image": "images",
    "plot": "levi bench --plot",
    "openvino": "levi bench --against openvino",
    "train": "levi train; levi evaluate on a run; levi bench --against torch",
    "lora": "levi train --lora",
    "export": "levi export",
}
"""What each extra is for; those of onnxruntime's builds, of which one machine has one, are not listed."""


def command(json: Json = False) -> None:
    """Show what this machine has, and what is missing.

    The exit code is 5 when no bundle can run here.
    """
    from levi_serving.errors import ProviderError

    document = _examine()
    show(document, json=json, human=lambda: _human(document))
    if not document["runtime"]["providers"]:
        raise ProviderError(str(document["runtime"]["problem"]))


def _examine() -> dict[str, Any]:
    from levi_deploy.cli.extras import extras, required
    from levi_serving.engine.session import providers
    from levi_serving.environment import environment, versions
    from levi_serving.errors import LeviError

    runtime: dict[str, Any] = {"providers": [], "problem": None}
    try:
        runtime["providers"] = providers()
    except LeviError as error:
        runtime["problem"] = str(error)
    packages: dict[str, dict[str, str | None]] = {name: {"for": "everything"} for name in required()}
    for name, extra in extras().items():
        if extra in _PURPOSES:
            packages[name] = {"for": _PURPOSES[extra], "install": f"pip install 'levi-deploy[{extra}]'"}
    installed = versions(packages)
    for name, package in packages.items():
        package["version"] = installed.get(name)
    about = environment()
    return {"runtime": runtime, "packages": packages, "environment": about}


def _human(document: dict[str, Any]) -> str:
    about, runtime = document["environment"], document["runtime"]
    versions = about["versions"]
    runtimes = [f"{name} {versions[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in versions]
    lines = [
        f"levi-deploy {versions['levi-deploy']}, Python {about['python']}, {about['system']}",
        f"{about['cpu']}: {about['usable_cores']} usable cores, {about['memory_gib']} GiB, "
        f"{', '.join(about['instruction_sets']) or 'no known vector instructions'}",
        "",
        f"{'onnxruntime':<16}{', '.join(runtimes) or 'missing'}",
        f"{'providers':<16}{', '.join(runtime['providers']) or runtime['problem']}",
    ]
    advice = "; preload mimalloc or tcmalloc for long batches on a CPU, see serving/README.md"
    lines.append(f"{'allocator':<16}{about['allocator']}{advice if about['allocator'] == 'glibc' else ''}")
    for name, package in document["packages"].items():
        state = package["version"] or f"missing, for {package['for']}: {package['install']}"
        lines.append(f"{name:<16}{state}")
    return "\n".join(lines)
