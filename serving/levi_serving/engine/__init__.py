"""What runs a graph: sessions, batches, and the runner's three verbs."""

from levi_serving.engine.microbatch import MicroBatcher
from levi_serving.engine.runner import Runner, Scenario
from levi_serving.engine.session import Device, Session, providers

__all__ = ["Device", "MicroBatcher", "Runner", "Scenario", "Session", "providers"]
