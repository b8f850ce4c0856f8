"""The program `lbm-lora`, also as `python -m lbm_lora.cli`: Ctrl-C while it starts ends it with a line, as later on."""

import sys


def main() -> int:
    """Run the command line of this process and return the exit code."""
    try:
        from lbm_lora.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
