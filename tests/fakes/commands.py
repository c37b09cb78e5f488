"""emdenoised commands, each in a process of its own that needs not import anything: ``python commands.py``.

A line of input is a JSON list: a file for what the command says, and the command. The answer is its exit status.
"""

import json
import os
import sys
from importlib import import_module

from daemon.commands import main

import_module("daemon.commands.report")  # here once, and not in each command

for line in sys.stdin:
    said, *command = json.loads(line)
    if (child := os.fork()) == 0:
        target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        status = 1
        try:
            status = main.main(command)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
