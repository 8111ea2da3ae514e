"""How a command's help looks: plain text that never cuts the name of an option."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_NAME_SHARE = 3
"""A name longer than this part of the width stands on a line of its own."""


class Command(TyperCommand):
    """A command whose options are shown in their groups, with their whole names.

    In its docstring, an indented paragraph keeps its lines.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "rich_markup_mode": None})
        paragraphs = (self.help or "").split("\n\n")
        # the mark that keeps a paragraph from being wrapped
        self.help = "\n\n".join(f"\b\n{one}" if one.startswith("  ") else one for one in paragraphs)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            given = getattr(param, "rich_help_panel", None)
            is_argument = param.param_type_name == "argument"
            group = "Arguments" if is_argument else given or "Options"
            groups.setdefault(group, []).append(record)
        others = groups.pop("Options", [])
        for name, records in [*groups.items(), ("Options", others)]:
            if records:
                with formatter.section(name):
                    formatter.write_dl(records, col_max=formatter.width // _NAME_SHARE)
