"""Train and measure LEVI beside every method that it is compared with, on the same rows and the same budget."""

from levi_deploy.compare.compare import compare

__all__ = ["compare"]
