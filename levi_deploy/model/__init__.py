"""What a LEVI model is."""

from levi_deploy.model.backbone import Backbone
from levi_deploy.model.levi import Ensemble, Levi
from levi_deploy.model.reference import Reference

__all__ = ["Backbone", "Ensemble", "Levi", "Reference"]
