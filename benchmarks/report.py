"""x"""
from pathlib import Path
def write_report(a: Path, b: Path) -> Path:
    return b
