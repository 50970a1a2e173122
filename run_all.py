"""The whole pipeline from one command line: see `python run_all.py --help`."""

from common.errors import run_command
from pipeline.cli import main

if __name__ == "__main__":
    run_command(main)
