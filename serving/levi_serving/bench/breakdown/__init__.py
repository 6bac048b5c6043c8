"""Where a request's time goes, down to modules and operators, and how near it comes to what the machine can do.

``measure`` runs a workload with and without onnxruntime's trace and makes a ``tree`` of it. ``trace`` reads the trace's
events, ``onnx_file`` the graph that they are of; ``modules`` says which module a node belongs to, ``work`` how many
operations and bytes it is, ``peak`` what the machine can do. ``flame`` draws the trees as an HTML page.
"""

from levi_serving.bench.breakdown.flame import flame_page
from levi_serving.bench.breakdown.measure import profile
from levi_serving.bench.breakdown.peak import Peak, measure_peak
from levi_serving.bench.breakdown.tree import Breakdown

__all__ = ["Breakdown", "Peak", "flame_page", "measure_peak", "profile"]
