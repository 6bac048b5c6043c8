"""Help in panels without rich, which takes longer to import than all the rest of ``levi --help``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["CommandWithPanels"]


class CommandWithPanels(TyperCommand):
    """A command whose plain help lists its options by panel: Typer itself does so with rich alone."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order in which the panels first appear."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)
