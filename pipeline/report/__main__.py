"""python -m pipeline.report runs/NAME

Writes runs/NAME/report.html: the tables, the curves, the results by class, predictions beside the
truth, where everything comes from, and what did not run. It reads files only, whatever state the
run is in, and the page needs no network and no other file.
"""

import argparse
from pathlib import Path

from common.errors import UserError, run_command
from common.files import write_text
from pipeline.report.page import render
from pipeline.report.read import PARTS, read_run

REPORT = "report.html"


def main() -> None:
    """Read the run folder, write the page and say where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="runs/NAME")
    folder = parser.parse_args().run
    if not any((folder / part).exists() for part in PARTS):
        raise UserError(f"{folder}: not a run folder: give what run_all.py calls --output")
    run = read_run(folder)
    write_text(folder / REPORT, render(run))
    for problem in run.problems:
        print(f"not in the report: {problem}")
    print(folder / REPORT)


if __name__ == "__main__":
    run_command(main)
