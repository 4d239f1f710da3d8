"""Tables, for a terminal and for the documentation, and the machine they were taken on."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import workload

from bench.processes import AM_ROOT, CHECKOUT
from bench.rounds import Result, Suite, cut_short, errors_of

OURS = "vosfs"
SLOW = 0.5
"""Rows below this part of the best peer are marked."""
ROWS = [
    "seq_write_MBps", "par4_write_MBps", "cold_seq_read_MBps", "warm_seq_read_MBps", "par4_read_MBps",
    "rcold_first_byte_s", "rcold_seq_read_MBps", "rcold_par4_read_MBps", "rand4k_1t_iops", "rand4k_16t_iops",
    "rand4k_warm_1t_iops", "rand4k_warm_16t_iops", "rand1m_1t_MBps", "rcold_rand4k_1t_iops", "rcold_rand4k_16t_iops",
    "rcold_rand1m_1t_MBps", "write_cpu_per_GiB_s", "cold_read_cpu_per_GiB_s", "warm_reread_server_cpu_per_GiB_s",
    "create_4k_per_s", "create_64k_per_s", "create_fsync_per_s", "create_empty_per_s", "stat_cold_per_s",
    "stat_warm_per_s", "read_4k_files_cold_per_s", "read_4k_files_warm_per_s", "rcold_read_4k_files_per_s",
    "chmod_per_s", "rename_per_s", "unlink_per_s", "unlink_empty_per_s", "mkdir_per_s", "readdir5k_cold_s",
    "ls_l5k_cold_s", "ls_l5k_warm_s", "rcold_ls_l5k_s", "rcold_ls_lR_1500_s", "ls_lR_1500_warm_s", "tar_x_1500_s",
    "tar_x_1500_fsync_s", "find_cold_s", "find_warm_s", "grep_r_cold_s", "rm_rf_s", "git_clone_s",
    "git_status_cold_s", "git_status_warm_s", "sqlite_tx_per_s", "append100_per_s", "append_open_close_per_s",
]  # fmt: skip


def lower_is_better(row: str) -> bool:
    """Seconds, not a rate."""
    return row.endswith("_s") and not row.endswith("per_s")


def number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f}"


def values_of(results: Sequence[Result], target: str, row: str) -> list[float]:
    """A figure in all rounds that have it."""
    found = [result.get(row) for result in results if result["label"] == target]
    return [float(value) for value in found if isinstance(value, (int, float))]


def ratio_of(results: Sequence[Result], row: str, other: str) -> float | None:
    """How many times the speed of another target vosfs has, by the medians."""
    ours, theirs = values_of(results, OURS, row), values_of(results, other, row)
    if not ours or not theirs:
        return None
    mine, its = statistics.median(ours), statistics.median(theirs)
    above, below = (its, mine) if lower_is_better(row) else (mine, its)
    return above / below if below else None


def ratios_of(results: Sequence[Result], row: str, targets: Sequence[str]) -> dict[str, float]:
    """The same for all of these targets that have the row."""
    found = {other: ratio_of(results, row, other) for other in targets if other != OURS}
    return {other: ratio for other, ratio in found.items() if ratio is not None}


def mark_of(row: str, ratios: dict[str, float], suite: Suite) -> str:
    """What is to be said of a row: a goal that is missed, or a peer that is far ahead."""
    missed = [f"{times:g} x {other}" for other, times in suite.goals.get(row, ()) if ratios.get(other, times) < times]
    if missed:
        return f"<-- asked: {', '.join(missed)}"
    slow = min((ratio for other, ratio in ratios.items() if other != "local"), default=1)
    return f"<-- slower than {SLOW} of a peer" if slow < SLOW else ""


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
    return number(statistics.median(values)) + spread


def table_of(results: Sequence[Result], targets: Sequence[str], suite: Suite) -> list[list[str]]:
    """Rows of texts, the first a heading; the last column is a mark or empty."""
    others = [target for target in targets if target != OURS] if OURS in targets else []
    table = [["row", *targets, *(f"{OURS}/{other}" for other in others), ""]]
    for row in ROWS:
        cells = [_cell(values_of(results, target, row)) for target in targets]
        if all(cell == "-" for cell in cells):
            continue
        ratios = ratios_of(results, row, targets)
        shown = [f"{ratios[other]:.2f}" if other in ratios else "-" for other in others]
        table.append([row, *cells, *shown, mark_of(row, ratios, suite)])
    return table


def costs_of(results: Sequence[Result], targets: Sequence[str], steps: Sequence[str]) -> list[list[str]]:
    """CPU seconds of client + server in each step, and peak memory; medians."""

    def median(target: str, pick: Callable[[Result], float]) -> str:
        values = []
        for result in results:
            if result["label"] == target:
                with contextlib.suppress(KeyError):
                    values.append(pick(result))
        return number(statistics.median(values)) if values else "-"

    def cpu(step: str, kind: str) -> Callable[[Result], float]:
        return lambda result: result["cpu_s"][step][kind]  # type: ignore[index]

    def rss(kind: str) -> Callable[[Result], float]:
        return lambda result: result["rss_peak_MiB"][kind]  # type: ignore[index]

    mounted = [target for target in targets if target != "local"]
    table = [["CPU s, client + server", *mounted]]
    for step in steps:
        table.append([step, *(f"{median(t, cpu(step, 'client'))} + {median(t, cpu(step, 'server'))}" for t in mounted)])
    table.append(["peak RSS, MiB", *(f"{median(t, rss('client'))} + {median(t, rss('server'))}" for t in mounted)])
    return table


def aligned(table: Sequence[Sequence[str]]) -> str:
    """For a terminal: names to the left, figures to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for first, *rest in table:
        cells = [
            f"{cell:>{width}}" if cell[:3] != "<--" else cell for cell, width in zip(rest, widths[1:], strict=True)
        ]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def list_table(table: Sequence[Sequence[str]]) -> str:
    """The same in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines)


def _first(path: str, key: str) -> str:
    with contextlib.suppress(OSError), open(path) as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
    return ""


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    memory = _first("/proc/meminfo", "MemTotal").split()
    git = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu, "cores": os.cpu_count(), "memory_GiB": round(int(memory[0]) / 2**20) if memory else None,
        "kernel": platform.release(), "python": platform.python_version(), "commit": commit,
        "load_before": round(os.getloadavg()[0], 2), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _about(summary: Result, args: argparse.Namespace) -> str:
    about: dict[str, object] = summary["machine"]  # type: ignore[assignment]
    rounds = "one round" if args.rounds == 1 else f"medians of {args.rounds} rounds (least–most)"
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_GiB']} GiB, Linux {about['kernel']}, "
        f"Python {about['python']}; {about['date']}, load {about['load_before']} before; "
        f"{rounds}, large file {args.big} MiB."
    )


def _rst(summary: Result, table: list[list[str]], costs: list[list[str]], args: argparse.Namespace) -> str:
    plain = [[*row[:-2], row[-2] + row[-1].replace("<-- ", " ") * (row[-1] != "")] for row in table]
    return f"{_about(summary, args)}\n\n{list_table(plain)}\n\n{list_table(costs)}\n"


def report(
    suite: Suite, results: list[Result], about: dict[str, object], args: argparse.Namespace, prefix: Path
) -> None:  # fmt: skip
    """Print the tables, what failed and what was cut short; save the summary."""
    table = table_of(results, args.targets, suite)
    costs = costs_of(results, args.targets, args.steps)
    rows: dict[str, dict[str, object]] = {}
    for row in ROWS:
        medians = {t: statistics.median(found) for t in args.targets if (found := values_of(results, t, row))}
        if medians:
            rows[row] = {**medians, "ratio": ratios_of(results, row, args.targets)}
    summary: Result = {
        "machine": about, "suite": suite.name, "rounds": args.rounds, "big_MiB": args.big, "cap_s": args.cap,
        "steps": list(args.steps), "rows": rows,
        "errors": {f"{r['label']}-{r['round']}": e for r in results if (e := errors_of(r))},
    }  # fmt: skip
    path = prefix.with_name(prefix.name + "-summary.json")
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{aligned(table)}\n\n{aligned(costs)}\n")
    for result in results:
        name = f"{result['label']}, round {result['round']}"
        for step, text in errors_of(result).items():
            print(f"ERROR  {name}: {step}: {text}")
        if short := cut_short(result, args.big):
            print(f"cut short by the cap  {name}: {', '.join(short)}")
    if not AM_ROOT:
        print(f"Not root, so caches were not dropped; left out: {', '.join(workload.COLD_ROWS)}.")
    if not summary["errors"]:
        print("No step failed.")
    if args.rst:
        with open(args.rst, "a") as file:
            file.write(_rst(summary, table, costs, args))
    print(
        f"Names ending in _s but not in per_s are seconds; a ratio above 1 means that vosfs is faster.\nSaved: {path}"
    )
