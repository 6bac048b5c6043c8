"""The demo: all of it on generated reviews, in a few minutes."""

from levi_deploy.demo.steps import demo, in_words

__all__ = ["demo", "in_words"]
