"""The `emdenoised` command: one module for each of its commands.

In: the command line. Out: lines on the terminal, pages for a lab book, an exit status.
Front door: `main.main`, the console script; `command_line` has the options, and examples for `--help`.
"""
