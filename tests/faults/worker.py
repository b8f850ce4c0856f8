"""A process that runs command lines sent to it, one after another, and answers with what they did.

    python -m faults.worker

A line of JSON on stdin asks: `{"argv": [...], "fork": false}`; a line on stdout answers: exit code, both streams,
seconds. With `fork`, the command runs in a fork of this process, whose id is answered at once: the asker may kill it.
The packages are imported once, and not instrumented as they are in the process of the tests.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lbm_lora.cli.main import main

MEMORY = 6 * 2**30
"""Bytes of address space that a command may take beyond the imported libraries."""

LIBRARIES = (
    "lbm_lora.verbs.extract", "lbm_lora.verbs.validate", "lbm_lora.verbs.infer",
    "lbm_lora.verbs.infer_shards", "lbm_lora.verbs.merge", "lbm_lora.verbs.inspect",
    "lbm_lora.verbs.train", "lbm_lora.verbs.refine", "lbm_lora.verbs.calibrate", "lbm_lora.training.fit",
)  # fmt: skip


def run(argv: list[str]) -> dict[str, Any]:
    """One command, its streams kept."""
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.perf_counter() - start}


def forked(request: dict[str, Any]) -> int:
    """Start one command in a process of its own, its stderr in a file; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        # PR_SET_PDEATHSIG: a fork that is stopped, or hangs, ends with its parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if "file_bytes" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
        if "patch" in request:
            importlib.import_module("faults.failing").fail(**request["patch"])
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        if "to" in request:
            sys.stdout = open(request["to"], "w")  # noqa: PTH123, SIM115
        code = main(request["argv"])
        if "patch" in request:
            os.write(2, f"\nwrites: {len(importlib.import_module('faults.failing').counted)}\n".encode())
    finally:
        os._exit(code)


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in LIBRARIES:
        importlib.import_module(name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    gc.freeze()  # a collection in a fork would copy every page that it visits
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status)}
        elif request.get("fork"):
            answer = {"pid": forked(request)}
        else:
            answer = run(request["argv"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
