"""The report on a terminal: what every pass did, what its numbers were, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rewright.report import quantized, wording
from rewright.report.directory import DirectoryReport
from rewright.report.model import PassReport, QuantizationReport, Report
from rewright.report.wording import Reason, printable

_STATUS_STYLES: Final = {
    "applied": "green",
    "unchanged": "dim",
    "rolled-back": "bold red",
    "failed": "bold red",
    "skipped": "yellow",
}
_MARKS: Final = {"applied": "✓", "unchanged": "·", "rolled-back": "↺", "failed": "✗", "skipped": "-"}
_PLAIN_MARKS: Final = {"applied": "+", "unchanged": ".", "rolled-back": "!", "failed": "x", "skipped": "-"}
_VERDICT_STYLES: Final = {
    "passed": "bold green",
    "passed-with-rollbacks": "bold yellow",
    "failed": "bold red",
    "unverified": "bold yellow",
}
_REASONS: Final = 5
_WORST: Final = 5


def show(report: Report, console: Console | None = None) -> None:
    """Prints the report; to standard output unless a console is given."""
    console = console if console is not None else Console(highlight=False)
    _print_header(report, console)
    if report.passes:
        console.print()
        console.print(_pass_table(report, console))
    else:
        console.print("\nThe chain holds no pass.")
    _print_quantization(report.quantization, console)
    _print_rejections(report, console)
    _print_failures(report, console)
    _print_evidence(report, console)
    console.print()
    console.print(Text(printable(wording.verdict_sentence(report)), _VERDICT_STYLES[report.verdict]))
    if nothing := quantized.quantization_sentence(report):
        console.print(Text(printable(nothing), "bold yellow"))


def show_directory(directory: DirectoryReport, console: Console | None = None) -> None:
    """Prints the report of every file of a directory, and a table of all; to standard output unless a console is given."""
    console = console if console is not None else Console(highlight=False)
    for report in directory.files.values():
        show(report, console)
        console.print()
    console.print(_file_table(directory, console))
    for message in directory.messages:
        console.print(Text(printable(message), "yellow"))
    console.print()
    console.print(Text(printable(wording.directory_sentence(directory)), _VERDICT_STYLES[directory.verdict]))


def _file_table(directory: DirectoryReport, console: Console) -> Table:
    table = _table(console)
    table.add_column("file", overflow="fold")
    for title in ("nodes", "size", "max abs", "rtol/limit", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, report in directory.files.items():
        output = wording.worst_output(report.parity)
        error, tolerance = wording.error_against_tolerance(output) if output is not None else ("", "")
        table.add_row(
            Text(printable(name)),
            wording.difference(report.model.nodes_before, report.model.nodes_after),
            wording.byte_size(report.model.bytes_after),
            error,
            tolerance,
            wording.seconds(report.seconds),
            Text(report.verdict, _VERDICT_STYLES[report.verdict]),
        )
    return table


def _print_header(report: Report, console: Console) -> None:
    model = report.model
    console.print(Rule(Text("rewright", "bold"), align="left", style="dim", characters="─" if _is_unicode(console) else "-"))
    facts = _facts()
    facts.add_row("model", Text(printable(model.path or "(in memory)")))
    nodes = Text(f"{model.nodes_before:,} -> {model.nodes_after:,}")
    if model.nodes_before != model.nodes_after:
        share = 100 * (model.nodes_after - model.nodes_before) / max(1, model.nodes_before)
        nodes.append(f"  {share:+.0f} %", "green" if share < 0 else "yellow")
    facts.add_row("nodes", nodes)
    facts.add_row("size", f"{wording.byte_size(model.bytes_before)} -> {wording.byte_size(model.bytes_after)}")
    facts.add_row("target", f"{report.target}, verify {report.verify}")
    facts.add_row("verdict", Text(report.verdict, _VERDICT_STYLES[report.verdict]))
    console.print(facts)


def _facts() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _pass_table(report: Report, console: Console) -> Table:
    table = _table(console)
    table.add_column("", width=1)
    table.add_column("pass", overflow="fold")
    table.add_column("sites", justify="right", no_wrap=True)
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("max abs", justify="right", no_wrap=True)
    table.add_column("rtol/limit", justify="right", no_wrap=True)
    table.add_column("apply", justify="right", no_wrap=True)
    table.add_column("verify", justify="right", no_wrap=True)
    for record in report.passes:
        table.add_row(*_pass_row(record, console))
    applied = sum(record.seconds.apply for record in report.passes)
    verified = sum(record.seconds.verify for record in report.passes)
    table.add_section()
    table.add_row("", "total", "", "", "", "", wording.seconds(applied), wording.seconds(verified), style="dim")
    return table


def _table(console: Console) -> Table:
    if _is_unicode(console):
        return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="dim")
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _pass_row(record: PassReport, console: Console) -> Iterable[Text]:
    style = _STATUS_STYLES[record.status]
    name = Text(printable(record.name), style)
    if record.backend != "standalone":
        name.append(f" ({record.backend})", "dim")
    output = wording.worst_output(record.parity)
    error, tolerance = wording.error_against_tolerance(output) if output is not None else ("", "")
    return (
        Text((_MARKS if _is_unicode(console) else _PLAIN_MARKS)[record.status], style),
        name,
        Text(wording.sites_of(record), "bold red" if record.undone and record.status == "applied" else ""),
        Text(wording.difference(record.nodes_before, record.nodes_after), "dim" if record.status == "unchanged" else ""),
        Text(error, "bold red" if output is not None and not output.equal else ""),
        Text(tolerance, "yellow" if output is not None and output.vacuous else ""),
        Text(wording.seconds(record.seconds.apply)),
        Text(wording.seconds(record.seconds.verify)),
    )


def _print_quantization(found: QuantizationReport | None, console: Console) -> None:
    """Which ops were quantized, why not the others, and where the weights lost most."""
    if found is None or not found.coverage:
        return
    console.print(Text("\nQuantized", "bold"))
    table = _table(console)
    table.add_column("op", overflow="fold")
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for row in quantized.coverage_rows(found):
        table.add_row(*map(Text, map(printable, row)))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if weights := quantized.weight_bytes(found):
        console.print(Text(f"  weights {weights}"))
    _print_reasons("Not quantized", quantized.missed_reasons(found), "--json", console)
    if worst := quantized.worst_rows(found, _WORST):
        console.print(Text("\nWorst weights", "bold"))
        table = _table(console)
        table.add_column("node", overflow="fold")
        table.add_column("became", overflow="fold")
        table.add_column("error", justify="right", no_wrap=True)
        table.add_column("worst channel", justify="right")
        for node, became, error, channel in worst:
            table.add_row(Text(printable(node)), Text(printable(became)), error, channel)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _print_rejections(report: Report, console: Console) -> None:
    _print_reasons("Not rewritten", wording.common_reasons(report.passes), "`rewright explain`", console)


def _print_reasons(heading: str, reasons: Sequence[Reason], lister: str, console: Console) -> None:
    """The most common reasons, each with how many nodes it holds for; ``lister`` is what has the others."""
    if not reasons:
        return
    console.print(Text(f"\n{heading}", "bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for reason in reasons[:_REASONS]:
        line = Text(printable(reason.owner), "bold").append(f": {printable(reason.text)}", "not bold")
        grid.add_row(f"{len(reason.nodes)}x", line.append(f"  {printable(reason.nodes[0])}", "dim not bold"))
    if len(reasons) > _REASONS:
        grid.add_row("", Text(f"and {len(reasons) - _REASONS} more reasons; {lister} lists them", "dim"))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _print_failures(report: Report, console: Console) -> None:
    for record in report.passes:
        if record.status in ("failed", "rolled-back") or record.undone:
            state = "in part rolled back" if record.status == "applied" else record.status.replace("-", " ")
            line = Text("\n").append(f"{printable(record.name)} {state}", "bold red")
            console.print(line.append(f": {printable(record.reason)}", "not bold default"))
            for undone in wording.undone_lines(record, _REASONS):
                console.print(Text(f"  {printable(undone)}", "dim"))
            if record.reproducer is not None:
                # on one line whatever the width, to be copied
                console.print(Text(f"  rewright reproduce {printable(record.reproducer)}", "cyan"), soft_wrap=True)
        for note in record.notes:
            console.print(Text(f"\n{printable(record.name)}: {printable(note)}", "yellow"))


def _print_evidence(report: Report, console: Console) -> None:
    facts = _facts()
    if report.parity is not None:
        for output in report.parity.outputs:
            if quantized.is_judged_by_budget(report.parity):
                style = "yellow" if output.vacuous else "" if output.equal else "bold red"
                what = output.vacuous or quantized.output_figures(output)
                facts.add_row("output", Text(f"{printable(output.name)}: {what}", style))
                continue
            error, tolerance = wording.error_against_tolerance(output)
            needed, _, limit = tolerance.partition("/")
            judged = f"needs rtol {needed} of {limit}" if limit else tolerance
            text = Text(f"{printable(output.name)}: max abs {error}, {judged}")
            note = wording.output_note(output)
            facts.add_row("output", text.append(f" ({note})", "yellow" if output.vacuous else "dim") if note else text)
        facts.add_row("inputs", Text(printable(wording.input_sets_sentence(report.parity)) or "none"))
        for dropped in report.parity.dropped:
            facts.add_row("dropped", Text(printable(dropped), "yellow"))
        for number, line in enumerate(wording.expected_sentences(report.parity)):
            facts.add_row("expected" if number == 0 else "", Text(printable(line), "" if number == 0 else "yellow"))
    if report.quantization is not None and quantized.is_judged_by_budget(report.parity):
        facts.add_row("budget", Text(report.quantization.budget))
    sites = wording.site_parity_sentence(report)
    if sites:
        facts.add_row("sites", Text(sites))
    mutation = wording.mutation_sentence(report)
    if mutation:
        facts.add_row("self-test", Text(mutation))
    static = wording.static_sentence(report)
    if static and report.static is not None:
        facts.add_row("static", Text(printable(static), "" if report.static.status == "passed" else "yellow"))
    for number, line in enumerate(wording.probe_sentences(report)):
        facts.add_row("" if number else "probes", Text(printable(line), "bold red" if line.startswith("broken") else ""))
    facts.add_row("cost", f"{wording.seconds(report.seconds)} s, {wording.byte_size(report.rss_peak)} peak memory")
    for warning in report.warnings:
        facts.add_row("warning", Text(printable(warning), "yellow"))
    console.print()
    console.print(facts)


def _is_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
