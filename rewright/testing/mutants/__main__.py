"""``python -m rewright.testing.mutants``: breaks what the fusion passes emit, and shows which gate notices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, cast

import typer
from rich.console import Console

from rewright.model.errors import RewrightError, UsageError
from rewright.run import VERIFY_MODES, VerifyMode
from rewright.testing.mutants.campaign import Campaign, run_campaign

_EXPECTED: Final = {"sites": 0.99, "strict": 0.99, "model": 0.8}
"""What share of each pass's mutants a mode has to catch."""


def mutants(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Exports, or names of built-in models; all of these by default."),
    ] = None,
    passes: Annotated[
        str, typer.Option(help="Names of fusion or cleanup passes, joined by commas; all fusions by default.")
    ] = "",
    verify: Annotated[str, typer.Option(help="The mode whose gates are tested: model or sites.")] = "sites",
    json: Annotated[Path | None, typer.Option(help="Write the table and every trial to this file.", show_default=False)] = None,
    at_least: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if a pass has a smaller share caught. 0.99 for sites, 0.8 for model.", show_default=False),
    ] = None,
) -> None:
    """Breaks what the fusion passes emit, one fault at a time, and shows which gate notices."""
    messages = Console(stderr=True, highlight=False)
    try:
        if verify not in VERIFY_MODES or verify == "off":
            raise UsageError(
                f"--verify is '{verify}'.", f"It is one of {', '.join(mode for mode in VERIFY_MODES if mode != 'off')}."
            )
        campaign = run_campaign(
            [name.strip() for name in passes.split(",") if name.strip()],
            models or (),
            verify=cast(VerifyMode, verify),
            progress=lambda line: messages.print(line, soft_wrap=True),
        )
        if json is not None:
            json.write_text(campaign.model_dump_json(indent=2) + "\n")
    except RewrightError as error:
        messages.print(f"error: {error.message}", markup=False, soft_wrap=True)
        messages.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        raise SystemExit(error.exit_status) from None
    wanted = at_least if at_least is not None else _EXPECTED.get(verify, 0.0)
    _show(campaign, Console(highlight=False))
    short = [row.step for row in campaign.rows if row.share < wanted]
    if short:
        messages.print(f"fewer than {wanted:.0%} were caught of: {', '.join(short)}", soft_wrap=True)
    raise SystemExit(1 if short or campaign.false_alarms else 0)


def _show(campaign: Campaign, console: Console) -> None:
    console.print(campaign.table())
    for trial in campaign.missed:
        text = f"missed: {trial.step} on {trial.model}: {trial.op}: {trial.fault}, {trial.where}"
        console.print(text, markup=False, soft_wrap=True)
    for alarm in campaign.false_alarms:
        console.print(f"false alarm: {alarm}", markup=False, soft_wrap=True)
    for line in campaign.beyond:
        console.print(f"left out, for it moves the outputs too far as it is: {line}", markup=False, soft_wrap=True)
    if campaign.idle:
        console.print(f"fired on no model: {', '.join(campaign.idle)}", soft_wrap=True)
    unshown = sorted({(trial.step, trial.fault, trial.equivalent) for trial in campaign.trials if trial.equivalent})
    for step, fault, reason in unshown:
        console.print(f"cannot show: {step}: {fault}: {reason}", markup=False, soft_wrap=True)
    count = sum(row.mutants for row in campaign.rows)
    console.print(f"{count} mutants in {campaign.seconds:.0f} s, {len(campaign.false_alarms)} false alarms")


app = typer.Typer(add_completion=False)
app.command()(mutants)


if __name__ == "__main__":
    app(prog_name="python -m rewright.testing.mutants")
