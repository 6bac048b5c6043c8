"""How a graph runs on a CPU: onnxruntime's settings for it, each with its reason or its measurement.

It knows onnxruntime's options by name; it knows no bundle, no rows and no task. A GPU's session has these options
too, for the few nodes that stay on the host.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KEPT_TOKENS", "SLOWER", "SPIN_US", "options", "shrinking"]

SLOWER = ("SkipLayerNormFusion", "BiasGeluFusion")
"""onnxruntime's fusions whose CPU kernels are slower, or no faster, than what they replace (docs/graph.md)."""

SPIN_US = "50"
"""Microseconds that an idle thread looks for work before it sleeps: longer than a run's gaps (docs/spinning.md)."""

KEPT_TOKENS = 2048
"""Padded tokens of a batch; the memory that a larger one needed is not kept for the next (docs/memory.md)."""


def options(runtime: Any, *, threads: int) -> Any:
    """A session's options.

    Args:
        runtime: the onnxruntime module.
        threads: of one run.
    """
    found = runtime.SessionOptions()
    found.intra_op_num_threads = threads
    found.log_severity_level = 3  # errors; what a warning says of a failed provider, the session says itself
    # Buffers are kept between runs: fresh memory costs page faults, up to an eighth of a run. A plan of
    # buffers for every shape seen would be kept too, and saves nothing (docs/memory.md).
    found.enable_mem_pattern = False
    found.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    return found


def shrinking(runtime: Any) -> Any:
    """Options of one run, after which the memory it needed goes back to the system."""
    found = runtime.RunOptions()
    found.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return found
