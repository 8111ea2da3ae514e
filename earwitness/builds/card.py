"""The dataset card: what a person, and `datasets.load_dataset`, need to know of a build."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import yaml

from earwitness.builds.account import account_lines
from earwitness.escaping import markdown, markdown_code
from earwitness.manifest.schema import OutputFields
from earwitness.settings import Format

if TYPE_CHECKING:
    from earwitness.builds.layout import Counts, Plan
    from earwitness.records import Json

CARD_MARK = (
    "<!-- Written by earwitness at each publication; without this line the page is left alone. -->"
)
"""What tells an output's own page from one that somebody wrote."""

_SECONDS_AN_HOUR = 3600


def dataset_card(plan: Plan, counts: Counts, account: Json | None = None) -> str:
    """A build's README.md: YAML header for loaders, then plain facts.

    Args:
        plan: The frozen plan.
        counts: The build's ledger.
        account: What it cost, as `build.json` has it.

    Returns:
        Markdown.
    """
    layout = plan.settings.layout
    model = {name: markdown(value) for name, value in plan.model.items()}
    parquet = Format.PARQUET in layout.formats
    pattern = "data/*.parquet" if parquet else "jsonl/*.jsonl"
    header = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}
        ],
        "tags": ["audio", "question-answering", "earwitness"],
    }
    lines = [
        "---",
        _yaml(header),
        "---",
        "",
        f"# {markdown(plan.build)}",
        "",
        (
            f"{counts.answered:,} answers by {model['name']} to {counts.rows:,} questions "
            f"about {counts.audio_s / _SECONDS_AN_HOUR:.2f} hours of audio."
        ),
        "",
        "| | |",
        "| --- | --- |",
        f"| rows in the manifest | {counts.rows:,} |",
        f"| answered | {counts.answered:,} |",
        f"| of them cut by max_tokens | {counts.cut_by_max_tokens:,} |",
        f"| rejected | {counts.rejected:,} |",
        f"| tokens in prompts | {counts.prompt_tokens:,} |",
        f"| tokens in answers | {counts.completion_tokens:,} |",
        f"| model | {model['name']} ({model['kind']} {model['version']}) |",
        f"| relative clip paths start from | {markdown(plan.settings.input.audio_root or '')} |",
        *_asked(plan),
        f"| sampling | {_sampling(plan)} |",
        *(f"| {name.strip()} | {markdown(told)} |" for name, told in account_lines(account)),
        f"| planned | {datetime.fromisoformat(plan.planned_at).isoformat(' ', 'seconds')} |",
        "",
        (
            f"Each row: the manifest's fields, {markdown_code(layout.answer_column)}, and "
            f"{markdown_code(layout.provenance_column)} (row in the manifest, finish reason, token "
            "counts, SHA-256 and length of each clip, cache key)."
        ),
    ]
    if counts.reasons:
        lines += ["", "## Rejected", "", "| reason | rows |", "| --- | --- |"]
        lines += [f"| {markdown(reason)} | {count:,} |" for reason, count in counts.reasons.items()]
    as_json = OutputFields.from_json(plan.fields).json_fields
    if as_json:
        lines += [
            "",
            "Fields that held values of conflicting types are JSON text in the Parquet files: "
            + ", ".join(markdown_code(name) for name in sorted(as_json))
            + ".",
        ]
    return "\n".join(lines) + "\n"


def output_card(card: str, build: str) -> str:
    """The page of a whole output: a build's card, its data files named from the output.

    Args:
        card: The build's README.md.
        build: The build's id.

    Raises:
        ValueError: It is no card that `dataset_card` wrote.
    """
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    try:
        told = yaml.safe_load(header)
        for config in told["configs"]:
            for file in config["data_files"]:
                file["path"] = f"builds/{build}/{file['path']}"
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise ValueError(f"the card of {build} cannot be read: {error}") from error
    return f"---\n{_yaml(told)}\n---\n\n{CARD_MARK}\n{body}"


def _yaml(header: Json) -> str:
    return yaml.safe_dump(header, sort_keys=False).strip()


def _asked(plan: Plan) -> list[str]:
    question, prompt = plan.settings.question, plan.settings.system_prompt
    lines = [f"| system prompt | {markdown(prompt) if prompt.strip() else 'none'} |"]
    if question is not None:
        lines.insert(0, f"| question to records without a conversation | {markdown(question)} |")
    return lines


def _sampling(plan: Plan) -> str:
    sampling = plan.settings.sampling.model_dump(mode="json")
    told = ", ".join(
        f"{name} {'none' if value is None else value}" for name, value in sampling.items()
    )
    return f"{told}, max_tokens {plan.settings.max_tokens}"
