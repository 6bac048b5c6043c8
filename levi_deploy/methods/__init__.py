"""Methods that LEVI is compared with, a file each: configurations of the same training, so each ends as a run."""

from levi_deploy.methods.fine_tuning import full_fine_tuning
from levi_deploy.methods.probes import branch_alone, linear_probe
from levi_deploy.methods.table import METHODS, Method

__all__ = ["METHODS", "Method", "branch_alone", "full_fine_tuning", "linear_probe"]
